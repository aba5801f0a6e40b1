//! Streams as threads, events as signals.
//!
//! A stream runs its commands in order on a thread of its own. An event stands for the last record
//! of it: a wait that is queued takes the record as it is then. One command in four, at random,
//! begins late, by a random time, so that whoever forgot to wait is seen.

use std::collections::BTreeMap;
use std::env;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{channel, Receiver, Sender};
use std::sync::{Arc, Condvar, Mutex, OnceLock};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::faults::{is_idle, lock, lose, lost, random};
use crate::status::{INVALID_VALUE, NOT_READY, SUCCESS};

/// A command that begins late does so by up to this much.
const LATE: Duration = Duration::from_micros(30);

/// Work of a stream.
type Work = Box<dyn FnOnce() -> Result<(), u32> + Send>;

enum Command {
    /// Work, and the nanoseconds that it takes on a virtual clock.
    Run(Work, u64),
    Record(Arc<Signal>),
    Wait(Arc<Signal>),
    Reply(Sender<()>),
}

/// One record of an event: when it was reached.
#[derive(Default)]
pub struct Signal {
    reached: Mutex<Option<u64>>,
    changed: Condvar,
}

impl Signal {
    fn set(&self, now: u64) {
        *lock(&self.reached) = Some(now);
        self.changed.notify_all();
    }

    fn wait(&self) -> u64 {
        let mut reached = lock(&self.reached);
        loop {
            if let Some(at) = *reached {
                return at;
            }
            reached = self
                .changed
                .wait(reached)
                .unwrap_or_else(|e| e.into_inner());
        }
    }
}

/// A stream.
pub struct Stream {
    number: u64,
    queue: Option<Sender<Command>>,
    thread: Option<JoinHandle<()>>,
}

/// All streams that there are, by number: what a context waits for.
static ALL: Mutex<BTreeMap<u64, Sender<Command>>> = Mutex::new(BTreeMap::new());
/// How many there ever were.
static MADE: AtomicU64 = AtomicU64::new(0);

impl Stream {
    /// A new one.
    pub fn new() -> Stream {
        let (queue, commands) = channel();
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        lock(&ALL).insert(number, queue.clone());
        let thread = thread::spawn(move || serve(&commands, number));
        Stream {
            number,
            queue: Some(queue),
            thread: Some(thread),
        }
    }

    fn send(&self, command: Command) -> Result<(), u32> {
        let queue = self.queue.as_ref().ok_or(INVALID_VALUE)?;
        queue.send(command).map_err(|_| INVALID_VALUE)
    }

    /// Queues work that takes `ns` on a virtual clock.
    pub fn run(
        &self,
        ns: u64,
        work: impl FnOnce() -> Result<(), u32> + Send + 'static,
    ) -> Result<(), u32> {
        self.send(Command::Run(Box::new(work), ns))
    }

    /// Waits until all is done.
    pub fn synchronize(&self) -> Result<(), u32> {
        let (reply, answer) = channel();
        self.send(Command::Reply(reply))?;
        answer.recv().map_err(|_| INVALID_VALUE)
    }

    /// Queues a wait for the last record of an event; for one that was never recorded, none.
    pub fn wait(&self, event: &Event) -> Result<(), u32> {
        match lock(&event.last).clone() {
            Some(signal) => self.send(Command::Wait(signal)),
            None => Ok(()),
        }
    }

    /// Queues a record.
    pub fn record(&self, event: &Event) -> Result<(), u32> {
        let signal = Arc::new(Signal::default());
        *lock(&event.last) = Some(Arc::clone(&signal));
        self.send(Command::Record(signal))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // Without senders the thread ends, when it has done all.
        lock(&ALL).remove(&self.number);
        drop(self.queue.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Waits for all streams.
pub fn synchronize_all() {
    let queues: Vec<Sender<Command>> = lock(&ALL).values().cloned().collect();
    let replies = queues.iter().filter_map(|queue| {
        let (reply, answer) = channel();
        queue.send(Command::Reply(reply)).ok().map(|()| answer)
    });
    for reply in replies.collect::<Vec<Receiver<()>>>() {
        let _ = reply.recv();
    }
}

/// An event.
pub struct Event {
    /// Whether its time can be asked for.
    pub timed: bool,
    last: Mutex<Option<Arc<Signal>>>,
}

impl Event {
    /// One that was not recorded yet.
    pub fn new(timed: bool) -> Event {
        Event {
            timed,
            last: Mutex::default(),
        }
    }

    /// Nanoseconds from another event to this one; both have to have been reached.
    pub fn since(&self, earlier: &Event) -> Result<f64, u32> {
        if !self.timed || !earlier.timed {
            return Err(INVALID_VALUE);
        }
        let reached = |event: &Event| -> Result<u64, u32> {
            let last = lock(&event.last).clone().ok_or(INVALID_VALUE)?;
            let reached = *lock(&last.reached);
            reached.ok_or(NOT_READY)
        };
        Ok(reached(self)? as f64 - reached(earlier)? as f64)
    }
}

fn serve(commands: &Receiver<Command>, number: u64) {
    let seed = env::var("EBBTIDE_STANDIN_DELAYS").ok();
    let seed = seed.and_then(|seed| seed.parse::<u64>().ok());
    let is_virtual = env::var("EBBTIDE_STANDIN_CLOCK").is_ok_and(|clock| clock == "virtual");
    let idle = is_idle();
    let mut state = seed.unwrap_or(0) ^ (number << 48);
    // Of the virtual clock.
    let mut now = 0;
    while let Ok(command) = commands.recv() {
        match command {
            Command::Run(_, ns) if idle => now += ns,
            // What is queued behind an error does not run.
            Command::Run(work, ns) if lost() == SUCCESS => {
                if seed.is_some() {
                    let drawn = random(&mut state);
                    if drawn % 4 == 0 {
                        let late = drawn / 4 % LATE.as_nanos() as u64;
                        thread::sleep(Duration::from_nanos(late));
                    }
                }
                now += ns;
                if let Err(status) = work() {
                    lose(status);
                }
            }
            Command::Run(..) => {}
            Command::Record(signal) => signal.set(if is_virtual { now } else { elapsed() }),
            Command::Wait(signal) => now = now.max(signal.wait()),
            Command::Reply(reply) => {
                let _ = reply.send(());
            }
        }
    }
}

/// Nanoseconds since the first call.
fn elapsed() -> u64 {
    static BEGAN: OnceLock<Instant> = OnceLock::new();
    BEGAN.get_or_init(Instant::now).elapsed().as_nanos() as u64
}
