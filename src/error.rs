//! What a person is told when something fails: what, where, which value, what would be right.

use std::fmt;

/// Why a command ended; decides its exit code (the contract's table).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A file, flag, unit or model that cannot be used: exit code 2.
    BadInput,
    /// Nothing fits: an answer, exit code 3.
    Infeasible,
    /// No device, driver or library: exit code 4.
    NoDevice,
    /// The checker refused a schedule: exit code 5.
    Refused,
}

impl Kind {
    /// The process's exit code.
    pub const fn exit_code(self) -> u8 {
        match self {
            Kind::BadInput => 2,
            Kind::Infeasible => 3,
            Kind::NoDevice => 4,
            Kind::Refused => 5,
        }
    }
}

/// A failure with its cause and the way out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// Why the command ended.
    pub kind: Kind,
    /// What is wrong: the thing, the value, the limit; lower case, no full stop.
    pub message: String,
    /// What would be right.
    pub hint: Option<String>,
}

/// The result of anything that a user's input can make fail.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An input that cannot be used.
    pub fn bad_input(message: impl Into<String>) -> Self {
        Self {
            kind: Kind::BadInput,
            message: message.into(),
            hint: None,
        }
    }
    /// Nothing fits.
    pub fn infeasible(message: impl Into<String>) -> Self {
        Self {
            kind: Kind::Infeasible,
            message: message.into(),
            hint: None,
        }
    }
    /// A device, driver or library is missing.
    pub fn no_device(message: impl Into<String>) -> Self {
        Self {
            kind: Kind::NoDevice,
            message: message.into(),
            hint: None,
        }
    }
    /// The checker found violations.
    pub fn refused(message: impl Into<String>) -> Self {
        Self {
            kind: Kind::Refused,
            message: message.into(),
            hint: None,
        }
    }
    /// The same failure with the way out.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
    /// The same failure, said of a file or flag: `what: message`.
    pub fn within(mut self, what: impl fmt::Display) -> Self {
        self.message = format!("{what}: {}", self.message);
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.message)?;
        match &self.hint {
            Some(hint) => write!(f, "\nhint: {hint}"),
            None => Ok(()),
        }
    }
}
impl std::error::Error for Error {}
