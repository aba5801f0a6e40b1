//! The `ebbtide` command: parse, dispatch, print one error, exit with the contract's code.

use clap::Parser;
use ebbtide::cli::{self, output, Cli, Command};
use ebbtide::error::{Error, Result};
use ebbtide::files;
use ebbtide_solver::build::STACK_BYTES;
use ebbtide_solver::units::Bytes;
use rayon::ThreadPoolBuilder;
use std::io::{self, BufWriter, ErrorKind, Write};
use std::process::ExitCode;
use std::thread;

fn main() -> ExitCode {
    files::report_limits();
    let command = Cli::parse().command;
    let worker = thread::Builder::new().stack_size(STACK_BYTES);
    let worker = worker.spawn(move || run(&command));
    let worker = worker.map_err(|cause| {
        Error::bad_input(format!(
            "a stack of {} cannot be had: {cause}",
            Bytes::new(STACK_BYTES as u64)
        ))
        .hint("a process's memory is limited to less (`ulimit -v`, a container)")
    });
    match worker.map(thread::JoinHandle::join) {
        Ok(Ok(Ok(()))) => ExitCode::SUCCESS,
        Ok(Ok(Err(error))) | Err(error) => {
            // Nobody is left to be told where standard error is closed.
            let _ = writeln!(io::stderr(), "error: {error}");
            ExitCode::from(error.kind.exit_code())
        }
        // The panic has said where.
        Ok(Err(_)) => {
            let _ = writeln!(io::stderr(), "error: this is a bug in ebbtide");
            ExitCode::from(1)
        }
    }
}

fn run(command: &Command) -> Result<()> {
    // Where memory is too short for a thread on every processor, this one does their work.
    if ThreadPoolBuilder::new().build_global().is_err() {
        let alone = ThreadPoolBuilder::new().num_threads(1).use_current_thread();
        // Only a second pool would be refused.
        let _ = alone.build_global();
    }
    let mut out = BufWriter::new(UntilClosed(io::stdout()));
    let done = cli::run(command, &mut out);
    let flushed = output::flush(&mut out);
    done.and(flushed)
}

/// Standard output; what is written after its reader has gone is lost, as it should be.
struct UntilClosed(io::Stdout);

impl Write for UntilClosed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.0.write(bytes) {
            Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(bytes.len()),
            written => written,
        }
    }
    fn flush(&mut self) -> io::Result<()> {
        match self.0.flush() {
            Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
            flushed => flushed,
        }
    }
}
