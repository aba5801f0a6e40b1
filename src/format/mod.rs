//! The files on disk, versioned. Only the types in here are serialised; the domain knows no JSON.

pub mod schedule;
