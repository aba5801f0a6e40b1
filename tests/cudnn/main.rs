//! The graphs of attention by the real cuDNN 9.19, without a GPU: it is told of an H100 that is
//! not there (`h100.json`) and finds a driver that does nothing (`driver.c`). It proposes engines,
//! makes plans and says what memory they need. That such a plan computes attention is not seen:
//! `tests/cuda_on_cpu` computes the graphs, operation by operation. `kernels/cudnn.sh` installs
//! cuDNN; without it this skips aloud, with `EBBTIDE_CUDNN` set that is a failure.

#[path = "../kernels/library.rs"]
mod library;

use std::env;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use ebbtide::device::cuda::cudnn::graph::Shape;
use ebbtide::device::cuda::cudnn::{planned_for, version};
use ebbtide::profile::cost::AttentionDirection::{Backward, Forward};
use ebbtide::profile::FusedShape;
use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};

const H100: &str = include_str!("h100.json");

/// Keeps a library for the whole process, by its path.
fn open(path: &Path) {
    // SAFETY: NVIDIA's own libraries, and one that does nothing.
    let opened = unsafe { Library::open(Some(path), RTLD_NOW | RTLD_GLOBAL) };
    std::mem::forget(opened.unwrap_or_else(|error| panic!("{}: {error}", path.display())));
}

/// A driver without a card.
fn driver() -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("cudnn");
    std::fs::create_dir_all(&folder).unwrap();
    let driver = folder.join("libcuda.so.1");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/cudnn/driver.c");
    let made = Command::new(library::compiler())
        .args(["-x", "c", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1"])
        .arg(source)
        .arg("-o")
        .arg(&driver)
        .status();
    assert!(made.is_ok_and(|status| status.success()), "{source}");
    driver
}

#[test]
fn cudnn_has_engines_that_need_the_memory_that_is_planned() {
    let wheels = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/cudnn/nvidia");
    let [cudnn, cuda] = ["cudnn/lib", "cu13/lib"].map(|folder| wheels.join(folder));
    if !cudnn.join("libcudnn.so.9").exists() {
        let required = env::var_os("EBBTIDE_CUDNN").is_some();
        assert!(!required, "no {}", cudnn.display());
        // Not by `eprintln`, which tests keep to themselves.
        let line = "skipped: no cuDNN to ask (kernels/cudnn.sh installs it)";
        let _ = writeln!(std::io::stderr(), "{line}");
        return;
    }
    env::set_var(
        "EBBTIDE_CUDA_PATH",
        env::join_paths([&cudnn, &cuda]).unwrap(),
    );
    open(&driver());
    open(&cuda.join("libnvrtc-builtins.so.13.0"));
    assert_eq!(version(), Ok("9.19.0".to_owned()));
    // Sequences, tokens, heads and key/value heads of a call and of qkv, elements of a head.
    for (sequences, sequence, [heads, kv_heads], [all_heads, all_kv_heads], head_dim) in [
        (1, 4096, [32, 32], [32, 32], 128),
        (1, 4096, [32, 8], [32, 8], 128),
        (1, 65_536, [11, 11], [32, 32], 128),
        (1, 1 << 20, [4, 1], [32, 8], 128),
        (2, 200, [4, 2], [4, 2], 64),
        (3, 333, [8, 2], [8, 2], 72),
        (2, 20, [4, 4], [4, 4], 8),
        (1, 1, [4, 2], [4, 2], 8),
    ] {
        let shape = Shape {
            sequences,
            sequence,
            heads,
            kv_heads,
            head_dim,
            qkv_row: (all_heads + 2 * all_kv_heads) * head_dim,
            o_row: all_heads * head_dim,
        };
        let [rows, heads, kv_heads, head_dim] =
            [sequences * sequence, heads, kv_heads, head_dim].map(|number| number as u64);
        let sizes = FusedShape {
            rows,
            heads,
            kv_heads,
            head_dim,
        };
        for (direction, planned) in [
            (Forward, sizes.forward_bytes()),
            (Backward, sizes.backward_plan_bytes()),
        ] {
            let said = planned_for(H100, direction, &shape);
            let (engines, workspace) =
                said.unwrap_or_else(|e| panic!("{direction:?} {shape:?}: {e}"));
            println!("{direction:?} {shape:?}: {engines} engines, {workspace} bytes");
            assert!(engines > 0);
            // Of one token another engine is proposed, which needs nothing in the forward.
            let exact = rows > 1 || direction == Backward;
            let fits = u128::from(workspace) == planned || (!exact && workspace == 0);
            assert!(fits, "{direction:?} {shape:?}: {workspace} for {planned}");
        }
    }
    // What no engine serves is told, and is no crash.
    let odd = Shape {
        sequences: 1,
        sequence: 64,
        heads: 1,
        kv_heads: 1,
        head_dim: 130,
        qkv_row: 390,
        o_row: 130,
    };
    println!("heads of 130: {:?}", planned_for(H100, Forward, &odd));
    assert!(planned_for(H100, Forward, &odd).is_err());
}
