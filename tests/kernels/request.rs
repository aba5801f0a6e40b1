//! What the program of the host-compiled kernels (`kernels/host/run.cpp`) is asked and answers.

use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;

use ebbtide::device::cuda::launch::{Argument, Launch};

/// The orders of threads and blocks that kernels run in (`kernels/host/fibres.cpp`): warp by warp,
/// thread by thread backwards, and each shuffled.
const ORDERS: [&str; 4] = ["0", "1", "6", "7"];

/// Launches of more threads run in two of them: forwards and shuffled, or backwards and shuffled,
/// warp by warp the one and abreast the other. Threads beyond these do what those before them do.
const MANY_THREADS: u64 = 8192;

/// Kind, buffer, and value or offset.
pub type Parameter = (u32, u32, u64);

/// Buffers and launches.
pub struct Request(Vec<u8>);

impl Request {
    /// In all orders.
    pub fn new() -> Request {
        Request::within((1 << ORDERS.len()) - 1)
    }

    /// Launches in as many orders as there should be of so many threads; `other`: in the other two.
    pub fn of(launches: &[Launch], other: bool) -> Request {
        let threads = |launch: &Launch| {
            let sizes = launch.grid.into_iter().chain(launch.block);
            sizes.map(u64::from).product::<u64>()
        };
        let all: u64 = launches.iter().map(threads).sum();
        match (all > MANY_THREADS, other) {
            (false, _) => Request::new(),
            (true, false) => Request::within(0b1001),
            (true, true) => Request::within(0b0110),
        }
    }

    fn within(orders: u32) -> Request {
        let mut request = Request(Vec::new());
        request.number(orders);
        request
    }

    pub fn number(&mut self, number: u32) {
        self.0.extend(number.to_le_bytes());
    }

    pub fn buffer(&mut self, bytes: u64, askew: u64, given: &[u8]) {
        for number in [bytes, askew, given.len() as u64] {
            self.0.extend(number.to_le_bytes());
        }
        self.0.extend(given);
    }

    pub fn launch(&mut self, launch: &Launch, of: impl Fn(Argument) -> Parameter) {
        let parameters = launch.arguments.iter().copied().map(of);
        self.launch_with(launch, &parameters.collect::<Vec<_>>());
    }

    pub fn launch_with(&mut self, launch: &Launch, parameters: &[Parameter]) {
        self.number(launch.kernel.len() as u32);
        self.0.extend(launch.kernel.bytes());
        for number in launch.grid.into_iter().chain(launch.block) {
            self.number(number);
        }
        self.number(launch.shared_bytes);
        self.number(parameters.len() as u32);
        for &(kind, buffer, value) in parameters {
            self.number(kind);
            self.number(buffer);
            self.0.extend(value.to_le_bytes());
        }
    }

    /// Runs it in its orders: the contents of all buffers then, or what was said where it failed.
    pub fn output(&self, program: &Path) -> Result<Vec<u8>, String> {
        static IDLE: Mutex<Vec<Child>> = Mutex::new(Vec::new());
        let idle = IDLE.lock().unwrap().pop();
        let mut child = idle.unwrap_or_else(|| {
            Command::new(program)
                .args(ORDERS)
                .env(
                    "ASAN_OPTIONS",
                    "detect_leaks=0:detect_stack_use_after_return=0",
                )
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap()
        });
        let answer = self.ask(&mut child);
        if let Ok(answer) = answer {
            IDLE.lock().unwrap().push(child);
            return Ok(answer);
        }
        let output = child.wait_with_output().unwrap();
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }

    fn ask(&self, child: &mut Child) -> std::io::Result<Vec<u8>> {
        let stdin = child.stdin.as_mut().unwrap();
        stdin.write_all(&self.0)?;
        stdin.flush()?;
        let stdout = child.stdout.as_mut().unwrap();
        let mut bytes = [0; 8];
        stdout.read_exact(&mut bytes)?;
        let mut answer = vec![0; u64::from_le_bytes(bytes) as usize];
        stdout.read_exact(&mut answer)?;
        Ok(answer)
    }
}
