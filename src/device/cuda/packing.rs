//! Copies that pack: while one part of it travels, the next one is packed on a stream of its own.
//!
//! ```text
//! to the host   kernels  pack 0 │ pack 1 │ … │ pack 2        back   copies   0 │ 1 │ … │ 2
//!               copies            0      │ 1      │ 2               kernels      unpack 0 │ 1 │ …
//! ```
//! Two stages take turns; whoever fills one waits until it was emptied. The kernels' stream begins
//! where the copies' stream is, and the copies' stream ends when the last stage was emptied:
//! whoever waits for it has the whole copy, and nothing waits on the host.

use super::driver::{Context, Mark, Queue};
use crate::device::Result;

/// What packs for one stream of copies.
pub(super) struct Packer {
    kernels: Queue,
    begun: Mark,
    full: [Mark; 2],
    free: [Mark; 2],
}

/// A part's kernel or copy, by its number, on a queue.
pub(super) type Piece<'a> = &'a dyn Fn(&Queue, usize) -> Result<()>;

impl Packer {
    pub fn new(context: &Context) -> Result<Packer> {
        let mark = || Mark::new(false);
        Ok(Packer {
            // Beside operators, whose blocks would all come first otherwise.
            kernels: context.urgent_queue()?,
            begun: mark()?,
            full: [mark()?, mark()?],
            free: [mark()?, mark()?],
        })
    }

    /// Queues all parts: to the host `kernel` fills a stage and `copy` empties it, on the way back
    /// the other way round.
    pub fn queue(
        &self,
        copies: &Queue,
        to_host: bool,
        parts: usize,
        (kernel, copy): (Piece<'_>, Piece<'_>),
    ) -> Result<()> {
        let (kernel, copy) = ((&self.kernels, kernel), (copies, copy));
        let (fill, empty) = if to_host {
            (kernel, copy)
        } else {
            (copy, kernel)
        };
        self.begun.record(copies)?;
        self.kernels.wait(&self.begun)?;
        for part in 0..parts {
            let (full, free) = (&self.full[part % 2], &self.free[part % 2]);
            if part >= 2 {
                fill.0.wait(free)?;
            }
            fill.1(fill.0, part)?;
            full.record(fill.0)?;
            empty.0.wait(full)?;
            empty.1(empty.0, part)?;
            free.record(empty.0)?;
        }
        match parts {
            0 => Ok(()),
            _ => copies.wait(&self.free[(parts - 1) % 2]),
        }
    }
}
