//! What goes wrong on a device, and where.

use std::fmt;

use ebbtide_solver::units::Bytes;

use super::Stream;
use crate::error::Error;

/// A command by its stream and the caller's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The stream it ran on.
    pub stream: Stream,
    /// The number that the caller gave it.
    pub instruction: u32,
    /// What it was: an operator's name, or `copy`.
    pub operator: &'static str,
}

/// Why a device failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Memory that could not be had.
    OutOfMemory {
        /// What for.
        what: String,
        /// How much was asked for.
        bytes: u64,
    },
    /// A command that this device cannot run: an address outside its memory, shapes that
    /// contradict each other, a missing operator. Says what.
    Refused(String),
    /// Something that the device lacks or that broke while it ran: a copy, a driver call.
    Failed(String),
    /// A worker thread panicked: a bug, here or in a schedule that was not checked.
    Panicked(String),
}

/// A failure of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Why.
    pub cause: Cause,
    /// The command, where it was one.
    pub place: Option<Place>,
}

impl Failure {
    /// A failure of no command in particular.
    pub fn new(cause: Cause) -> Self {
        Failure { cause, place: None }
    }
    /// A command that cannot be.
    pub fn refused(what: impl Into<String>) -> Self {
        Self::new(Cause::Refused(what.into()))
    }
    /// The same failure at a command.
    pub fn at(mut self, place: Place) -> Self {
        self.place = Some(place);
        self
    }
    /// What a person is told: every failure of a device ends with exit code 4.
    pub fn told(&self) -> Error {
        let error = Error::no_device(self.to_string());
        match self.cause {
            Cause::OutOfMemory { .. } => error
                .hint("plan with less --device-memory or --host-memory, or for a shorter --seq"),
            _ => error,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(place) = self.place {
            write!(
                f,
                "{} (instruction {} of stream {}): ",
                place.operator,
                place.instruction,
                place.stream.name()
            )?;
        }
        match &self.cause {
            Cause::OutOfMemory { what, bytes } => {
                let size = Bytes::new(*bytes);
                write!(
                    f,
                    "no memory for {what}: {size} ({bytes} bytes) could not be had"
                )
            }
            Cause::Refused(what) => write!(f, "the device cannot run this: {what}"),
            Cause::Failed(what) => write!(f, "the device failed: {what}"),
            Cause::Panicked(what) => write!(f, "a worker panicked: {what}"),
        }
    }
}

impl std::error::Error for Failure {}
