//! The host's stand-in for a GPU sees what it should see.

use std::process::Command;

use ebbtide::device::cuda::launch::Launch;

use crate::library;
use crate::request::Request;

/// Runs one launch on a buffer of 64 bytes; what the program says where it fails.
fn told(kernel: &'static str, block: u32, bytes: u64) -> Option<String> {
    let built = library::build(true)?;
    let mut request = Request::new();
    request.number(1);
    request.buffer(64, 0, &[1; 64]);
    request.number(1);
    let launch = Launch {
        kernel,
        grid: [1; 3],
        block: [block, 1, 1],
        shared_bytes: 0,
        arguments: Vec::new(),
    };
    request.launch_with(&launch, &[(0, 0, 0), (3, 0, bytes)]);
    let output = request.output(&built.run);
    Some(match output {
        Ok(contents) => format!("{contents:?}"),
        Err(told) => told,
    })
}

#[test]
fn mistakes_are_told() {
    let Some(fine) = told("zero_f32", 256, 60) else {
        return;
    };
    assert_eq!(
        fine,
        format!("{:?}", [[0u8; 60].as_slice(), &[1; 4]].concat())
    );
    let what = |kernel, block, bytes| told(kernel, block, bytes).unwrap();
    // One byte too many, seen by the sanitizer.
    assert!(what("zero_f32", 256, 65).contains("heap-buffer-overflow"));
    assert!(what("nothing_f32", 256, 60).contains("nothing_f32"));
    assert!(what("zero_bf16", 512, 60).contains("refused with code 2"));
    assert!(what("zero_bf16", 33, 60).contains("refused with code 2"));
    assert!(what("sum_doubles_f32", 256, 60).contains("another number of parameters"));
}

/// The library without sanitizers, which a process can load.
#[test]
fn the_library_can_be_loaded() {
    let Some(built) = library::build(false) else {
        return;
    };
    let symbols = Command::new("nm")
        .args(["-D", "--defined-only"])
        .arg(&built.library)
        .output();
    if let Ok(symbols) = symbols {
        let symbols = String::from_utf8(symbols.stdout).unwrap();
        assert!(symbols.contains(" ebbtide_host_launch"), "{symbols}");
        assert!(symbols.contains(" ebbtide_host_parameters"), "{symbols}");
    }
    let output = Command::new(&built.run).output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(told.contains("run ORDER"), "{told}");
}
