//! A stream: one thread that runs its commands in order.
//!
//! A worker never stops early. Once anything has failed, it drops operators and copies but still
//! signals events and answers the end of the step, so that nobody waits for ever.

use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::memory::POISON;
use super::run::Runner;
use super::scratch::Scratch;
use super::state::State;
use crate::device::packed::Packing;
use crate::device::{Cause, Failure, Operator, Place, Region, Space, Stream, TraceEntry};

/// How long before its end a throttled copy stops sleeping and spins: sleeps overrun by about this.
const SPIN: Duration = Duration::from_micros(80);

/// Something that is signalled once.
#[derive(Default)]
pub struct Signal {
    done: AtomicBool,
    lock: Mutex<()>,
    changed: Condvar,
}

impl Signal {
    fn set(&self) {
        let held = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        self.done.store(true, Ordering::Release);
        drop(held);
        self.changed.notify_all();
    }

    fn is_set(&self) -> bool {
        self.done.load(Ordering::Acquire)
    }

    /// Waits asleep.
    fn wait(&self) {
        let held = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.changed.wait_while(held, |()| !self.is_set());
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }

    /// Waits awake: the processor keeps its clock and its caches, as a GPU does.
    fn watch(&self) {
        while !self.is_set() {
            thread::yield_now();
        }
    }
}

/// A command.
pub enum Command {
    /// Runs an operator.
    Run(u32, Box<Operator>),
    /// Copies from the first region to the second.
    Copy(u32, Region, Region),
    /// Copies from the first region to the second and packs or unpacks.
    Packed(u32, Region, Region, Packing),
    /// Fills a region with NaNs.
    Poison(Region),
    /// Signals.
    Record(Arc<Signal>),
    /// Waits.
    Wait(Arc<Signal>),
    /// Ends the step: the trace goes back.
    Finish(Sender<Vec<TraceEntry>>),
}

/// Runs the commands of a stream until nobody can send any more.
pub fn serve(state: &State, stream: Stream, commands: &Receiver<Command>) {
    let scratch = Scratch::default();
    let mut worker = Worker {
        state,
        stream,
        runner: Runner {
            state,
            scratch: &scratch,
            on_host: stream == Stream::Host,
        },
        trace: Vec::new(),
        random: state.options.delays.map_or(0, |d| d.seed) ^ ((stream as u64 + 1) << 56),
        awake: state.options.awake && stream == Stream::Compute,
    };
    while let Ok(command) = commands.recv() {
        worker.serve(command);
    }
}

struct Worker<'a> {
    state: &'a State,
    stream: Stream,
    runner: Runner<'a>,
    trace: Vec<TraceEntry>,
    random: u64,
    /// Whether it waits awake.
    awake: bool,
}

impl Worker<'_> {
    fn serve(&mut self, command: Command) {
        match command {
            Command::Run(instruction, operator) => {
                self.timed(instruction, operator.name(), |worker| {
                    worker.runner.run(&operator)
                });
            }
            Command::Copy(instruction, from, to) => {
                self.timed(instruction, "copy", |worker| {
                    worker.copy(instruction, from, to)
                });
            }
            Command::Packed(instruction, from, to, packing) => {
                self.timed(instruction, "copy", |worker| {
                    let packed = if from.space == Space::Host { from } else { to };
                    worker.over_link(instruction, packed.bytes, || {
                        worker.runner.pack(from, to, packing)
                    })
                });
            }
            Command::Poison(region) if !self.state.is_spoilt() => {
                let memory = self.state.memory(region.space);
                memory.fill(region.offset_bytes, region.bytes, POISON);
            }
            Command::Poison(_) => {}
            Command::Record(signal) => signal.set(),
            Command::Wait(signal) if self.awake => signal.watch(),
            Command::Wait(signal) => signal.wait(),
            Command::Finish(reply) => {
                // Nobody listens any more where the device itself has gone.
                let _ = reply.send(std::mem::take(&mut self.trace));
            }
        }
    }

    /// Runs and records one operator or copy, unless something failed before.
    fn timed(
        &mut self,
        instruction: u32,
        operator: &'static str,
        work: impl FnOnce(&Self) -> Result<(), Cause>,
    ) {
        if self.state.is_spoilt() {
            return;
        }
        self.delay();
        let began = self.state.step().began;
        let start = began.elapsed();
        let faults = self.state.options.faults;
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            if faults.panic == Some((self.stream, instruction)) {
                panic!("injected");
            }
            work(self)
        }));
        let end = began.elapsed();
        let cause = match outcome {
            Ok(Ok(())) => {
                self.trace.push(TraceEntry {
                    stream: self.stream,
                    instruction,
                    start_ns: start.as_nanos() as u64,
                    end_ns: end.as_nanos() as u64,
                });
                return;
            }
            Ok(Err(cause)) => cause,
            Err(panic) => Cause::Panicked(said(&*panic)),
        };
        self.state.spoil(Failure::new(cause).at(Place {
            stream: self.stream,
            instruction,
            operator,
        }));
    }

    fn copy(&self, instruction: u32, from: Region, to: Region) -> Result<(), Cause> {
        self.over_link(instruction, from.bytes, || {
            let (source, target) = (self.state.memory(from.space), self.state.memory(to.space));
            target.copy_from(to.offset_bytes, source, from.offset_bytes, from.bytes);
            Ok(())
        })
    }

    /// A copy that takes no less than a link would.
    fn over_link(
        &self,
        instruction: u32,
        bytes: u64,
        copy: impl FnOnce() -> Result<(), Cause>,
    ) -> Result<(), Cause> {
        let options = &self.state.options;
        if options.faults.copy == Some((self.stream, instruction)) {
            return Err(Cause::Failed("a copy was made to fail".into()));
        }
        let link = match self.stream {
            Stream::D2h => options.d2h,
            Stream::H2d => options.h2d,
            Stream::Compute | Stream::Host => None,
        };
        let end = link.map(|link| Instant::now() + link.time(bytes));
        copy()?;
        if let Some(end) = end {
            wait_until(end);
        }
        Ok(())
    }

    /// A random sleep before one command in four, where the options ask for any (splitmix64, Steele
    /// et al. 2014): the others run on and overtake it.
    fn delay(&mut self) {
        let Some(delays) = self.state.options.delays else {
            return;
        };
        self.random = self.random.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^= z >> 31;
        if z % 4 == 0 {
            let longest = delays.longest.as_nanos() as u64;
            thread::sleep(Duration::from_nanos(z / 4 % longest.max(1)));
        }
    }
}

fn wait_until(end: Instant) {
    let left = end.saturating_duration_since(Instant::now());
    if left > SPIN {
        thread::sleep(left - SPIN);
    }
    while Instant::now() < end {
        std::hint::spin_loop();
    }
}

/// What a panic said.
fn said(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "without a word".to_owned())
}
