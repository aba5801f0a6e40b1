//! Puts the stand-in driver and the host's kernels where the CUDA device looks.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use super::library;

/// The names that are looked for and have to be there.
pub const LIBRARIES: [&str; 3] = ["cuda", "cublasLt", "nvrtc"];
/// cuDNN, and by which names it finds others itself.
pub const CUDNN: [&str; 3] = ["libcudnn.so", "libcublasLt.so.13", "libnvrtc.so.13"];

const EBBTIDE: &str = env!("CARGO_BIN_EXE_ebbtide");

/// A folder of this test's own.
pub fn folder(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"))
        .join("cuda_on_cpu")
        .join(name);
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

/// Has the host's compiler make a shared library.
fn compile(args: &[&str]) {
    let compiler = library::compiler();
    let out = Command::new(&compiler).args(args).output();
    let out = out.unwrap_or_else(|error| panic!("{compiler}: {error}"));
    assert!(out.status.success(), "{}", stderr(&out));
}

/// The stand-in, as cargo has built it for this test.
fn standin() -> PathBuf {
    let test = env::current_exe().unwrap();
    let built = test.parent().unwrap().join("libebbtide_standin.so");
    assert!(built.exists(), "{} was not built", built.display());
    built
}

/// Makes a library that is called as NVIDIA's is and has what the stand-in has, or nothing.
pub fn alias(folder: &Path, library: &str, standin: Option<&Path>) {
    let name = format!("lib{library}.so");
    let (file, soname) = (folder.join(&name), format!("-Wl,-soname,{name}"));
    let mut args = vec![
        "-shared",
        "-Wl,--no-as-needed",
        &soname,
        "-o",
        file.to_str().unwrap(),
    ];
    args.extend(standin.map(|path| path.to_str().unwrap()));
    compile(&args);
}

/// The folder with the stand-in by all names.
pub fn libraries() -> &'static Path {
    static MADE: OnceLock<PathBuf> = OnceLock::new();
    MADE.get_or_init(|| {
        let folder = folder("libraries");
        LIBRARIES
            .iter()
            .for_each(|library| alias(&folder, library, Some(&standin())));
        let [cudnn, others @ ..] = CUDNN;
        alias(&folder, "cudnn", Some(&standin()));
        for name in others {
            std::fs::copy(folder.join(cudnn), folder.join(name)).unwrap();
        }
        folder
    })
}

/// `ebbtide`, with the stand-in as its driver.
pub fn ebbtide(args: &[&str], environment: &[(&str, &str)]) -> Output {
    started(EBBTIDE.as_ref(), args, environment)
}

/// A program, with the stand-in as its driver. It must not make the libraries again: they are in
/// use.
pub fn started(program: &Path, args: &[&str], environment: &[(&str, &str)]) -> Output {
    let mut command = Command::new(program);
    command
        .args(args)
        .env("EBBTIDE_CUDA_PATH", libraries())
        .env(
            "EBBTIDE_STANDIN_KERNELS",
            kernels().expect("looked for before"),
        )
        .env("XDG_CACHE_HOME", folder("cache"))
        .envs(environment.iter().copied());
    command.output().unwrap()
}

/// Has this process find the stand-in.
pub fn stand_in() {
    static DONE: OnceLock<()> = OnceLock::new();
    DONE.get_or_init(|| {
        env::set_var("EBBTIDE_CUDA_PATH", libraries());
        env::set_var(
            "EBBTIDE_STANDIN_KERNELS",
            kernels().expect("looked for before"),
        );
        env::set_var("EBBTIDE_STANDIN_DELAYS", "1");
        env::set_var("XDG_CACHE_HOME", folder("cache"));
    });
}

/// The kernels, compiled for the host; none without a compiler, and then this has been said.
pub fn kernels() -> Option<&'static Path> {
    static MADE: OnceLock<Option<PathBuf>> = OnceLock::new();
    let made = MADE.get_or_init(|| library::build(false).map(|built| built.library.clone()));
    made.as_deref()
}

/// What a command says to a person that failed.
pub fn stderr(out: &Output) -> String {
    String::from_utf8_lossy(&out.stderr).into_owned()
}
