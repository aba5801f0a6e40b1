//! Builds the kernels for the host with the C++ compiler at hand: a library that exports
//! `ebbtide_host_launch`, and beside it a program that runs launches from a file.
//!
//! The build is kept in cargo's directory for test files under a name made from its sources and
//! flags. Without a compiler tests are skipped, with a line that says so; they fail instead where
//! `EBBTIDE_REQUIRE_KERNELS` is set.
#![allow(dead_code, reason = "each test binary uses its part")]

use std::collections::hash_map::DefaultHasher;
use std::fs;
use std::hash::{Hash, Hasher};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// What was built.
#[derive(Clone, Debug)]
pub struct Library {
    /// `libebbtide_kernels.so`.
    pub library: PathBuf,
    /// The program of `kernels/host/run.cpp`.
    pub run: PathBuf,
}

const FLAGS: [&str; 11] = [
    "-std=c++17",
    "-O1",
    // Lines for the sanitizers' words, without the types that templates make.
    "-g1",
    "-fPIC",
    "-Wall",
    "-Wextra",
    "-Werror",
    // CUDA's own `#pragma unroll`.
    "-Wno-unknown-pragmas",
    // Products and sums are rounded apart, as the CPU device's are.
    "-ffp-contract=off",
    "-DEBBTIDE_HOST",
    "-pthread",
];

const SANITIZED: [&str; 2] = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"];

/// The library; none without a compiler, and then this has been said. `sanitized`: with the
/// address and undefined-behaviour sanitizers, which only the program can be run with.
pub fn build(sanitized: bool) -> Option<&'static Library> {
    static BUILT: [OnceLock<Option<Library>>; 2] = [const { OnceLock::new() }; 2];
    let built = &BUILT[usize::from(sanitized)];
    built.get_or_init(|| found_or_made(sanitized)).as_ref()
}

/// The C++ compiler at hand.
pub fn compiler() -> String {
    std::env::var("CXX").unwrap_or_else(|_| "c++".into())
}

fn found_or_made(sanitized: bool) -> Option<Library> {
    let compiler = compiler();
    let Ok(version) = Command::new(&compiler).arg("--version").output() else {
        let line = format!("skipped: no C++ compiler (`{compiler}`) to run the kernels with");
        return skip(&line);
    };
    let kernels = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels");
    let mut hasher = DefaultHasher::new();
    (version.stdout, FLAGS, SANITIZED, sanitized).hash(&mut hasher);
    for directory in [kernels.clone(), kernels.join("host")] {
        let mut files: Vec<_> = fs::read_dir(directory).unwrap().flatten().collect();
        files.sort_by_key(|file| file.path());
        for file in files.iter().filter(|file| file.path().is_file()) {
            file.file_name().hash(&mut hasher);
            fs::read(file.path()).unwrap().hash(&mut hasher);
        }
    }
    let name = format!("kernels-{:016x}", hasher.finish());
    let place = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    if !place.is_dir() {
        compile(&compiler, &kernels, &place, sanitized);
    }
    Some(Library {
        library: place.join("libebbtide_kernels.so"),
        run: place.join("run"),
    })
}

/// Says that a test is skipped, past the test harness, or fails where it must not be.
pub fn skip<T>(line: &str) -> Option<T> {
    assert!(
        std::env::var_os("EBBTIDE_REQUIRE_KERNELS").is_none(),
        "{line}"
    );
    let _ = writeln!(std::io::stderr(), "{line}");
    None
}

fn compile(compiler: &str, kernels: &Path, place: &Path, sanitized: bool) {
    // Under another name until it is whole, since other tests may build it too.
    let work = place.with_extension(std::process::id().to_string());
    fs::create_dir_all(&work).unwrap();
    let command = |arguments: &[&str], out: &str| {
        let mut command = Command::new(compiler);
        command
            .args(FLAGS)
            .args(sanitized.then_some(SANITIZED).into_iter().flatten());
        command.arg("-I").arg(kernels).args(arguments);
        command.arg("-o").arg(work.join(out)).current_dir(kernels);
        command
    };
    let finished = |commands: Vec<Command>| {
        let begun: Vec<_> = commands
            .into_iter()
            .map(|mut c| c.spawn().unwrap())
            .collect();
        for mut child in begun {
            assert!(
                child.wait().unwrap().success(),
                "the kernels do not compile"
            );
        }
    };
    let object = |defined, out| command(&[defined, "-c", "host/kernels.cpp"], out);
    finished(vec![
        object("-DEBBTIDE_BF16", "bf16.o"),
        object("-DEBBTIDE_F32", "f32.o"),
    ]);
    let [bf16, f32] = ["bf16.o", "f32.o"].map(|object| work.join(object));
    let [bf16, f32] = [bf16.to_str().unwrap(), f32.to_str().unwrap()];
    let name = "-Wl,-soname,libebbtide_kernels.so";
    // These run all kernels, and compile in no time.
    let parts = [
        "-shared",
        "-O2",
        name,
        "host/fibres.cpp",
        "host/matrices.cpp",
    ];
    finished(vec![command(
        &[&parts[..], &[bf16, f32]].concat(),
        "libebbtide_kernels.so",
    )]);
    let library = format!("-L{}", work.to_str().unwrap());
    let parts = [
        "host/run.cpp",
        &library,
        "-lebbtide_kernels",
        "-Wl,-rpath,$ORIGIN",
    ];
    finished(vec![command(&parts, "run")]);
    if fs::rename(&work, place).is_err() {
        assert!(place.is_dir(), "{} cannot be made", place.display());
        fs::remove_dir_all(&work).unwrap();
    }
}
