//! The bar that a person watches: steps, loss, tokens a second, memory.

use indicatif::{ProgressBar, ProgressStyle};

use crate::device::{ArenaUse, StepResult};
use crate::report::grouped;
use ebbtide_solver::units::Bytes;

/// The bar on standard error; nothing where that is no terminal.
pub(super) struct Bar(ProgressBar);

impl Bar {
    /// A bar of so many steps, some of which are done.
    pub(super) fn begin(steps: u64, done: u64) -> Self {
        let bar = ProgressBar::new(steps).with_position(done);
        let template = "{bar:24} {pos}/{len}  {msg}  {eta} left";
        bar.set_style(ProgressStyle::with_template(template).expect("a constant"));
        Self(bar)
    }
    /// A step is done.
    pub(super) fn step(&self, result: &StepResult, tokens_per_s: f64, used: ArenaUse) {
        let clipped = result
            .gradient_norm
            .map_or_else(String::new, |norm| format!("  norm {norm:.3}"));
        self.0.set_message(format!(
            "loss {:.4}{clipped}  {} tokens/s  {}",
            result.loss,
            grouped(tokens_per_s as u64),
            Bytes::new(used.peak_live_bytes)
        ));
        self.0.inc(1);
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
