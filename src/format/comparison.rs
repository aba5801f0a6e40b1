//! `ebbtide/comparison/1`: what `ebbtide compare` found, strategy by strategy and length by length.
//! The file is written after every finished length and method, so that a comparison that was
//! killed goes on; tables, figures and the page are drawn from it and from nothing else.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

use super::profile::section;
use crate::error::{Error, Result};

/// The format's name and version.
pub const SCHEMA: &str = "ebbtide/comparison/1";

/// One file.
///
/// # Errors
/// As [`super::read_json`].
pub fn read(text: &str) -> Result<ComparisonFile> {
    let file: ComparisonFile = super::read_json(text, SCHEMA)?;
    for (g, group) in file.groups.iter().enumerate() {
        let fits = group.cells.iter().map(|cell| cell.fits.as_ref());
        for (c, fit) in fits.enumerate().filter_map(|(c, fit)| Some((c, fit?))) {
            let parts = [("mfu", fit.mfu), ("hfu", fit.hfu)];
            // Of a datasheet's peak a little more than all can be counted.
            if let Some((name, part)) = parts.iter().find(|(_, part)| !(0.0..=2.0).contains(part)) {
                let at = format!("groups[{g}].cells[{c}].fits.{name}");
                return Err(Error::bad_input(format!(
                    "{at}: {part} is no part of a peak"
                )));
            }
        }
    }
    Ok(file)
}

/// The text of a file, one group a line.
pub fn write(file: &ComparisonFile) -> String {
    let text = serde_json::to_string(file).expect("string keys and finite numbers");
    text.replace("{\"method\":", "\n{\"method\":") + "\n"
}

section! {
    /// The whole file.
    ComparisonFile {
        /// [`SCHEMA`].
        schema: String,
        /// What is compared.
        settings: Settings,
        /// What was found for every method and length.
        groups: Vec<Group>,
        /// What is shown in single plans: the longest sequence up to 128k that fits.
        focus: Option<Focus>,
        /// The longest sequences that fit.
        longest: Vec<Longest>,
        /// Step times over device memory, at the focus.
        budgets: Vec<BudgetPoint>,
        /// One plan in time, at the focus.
        timeline: Option<Timeline>,
    }

    /// What is compared: a file goes on only with the same.
    Settings {
        /// The version of ebbtide.
        ebbtide_version: String,
        /// The model's name.
        model: String,
        /// Its number of parameters.
        parameters: u64,
        /// The longest sequence that it was made for.
        max_positions: u64,
        /// The profile's name.
        profile: String,
        /// The device's own name.
        device: String,
        /// Where the profile's numbers are from, by section.
        sources: BTreeMap<String, String>,
        /// Of all that is in model and profile: another one has another.
        fingerprint: String,
        /// Sequences of a micro-batch.
        batch: u64,
        /// Micro-batches of an optimizer step.
        accumulate: u32,
        /// The type of numbers.
        dtype: String,
        /// Device memory for plans.
        device_bytes: u64,
        /// Device memory that context and libraries take beside it.
        overhead_bytes: u64,
        /// Host memory for plans.
        host_bytes: u64,
        /// The link to the host and back, alone.
        link_bytes_per_s: [u64; 2],
        /// Strategies in the order of tables.
        strategies: Vec<String>,
        /// A plan this close to the bound, as a fraction, is good enough.
        gap: f64,
        /// How long one plan may be searched for, in milliseconds.
        time_limit_ms: u64,
    }

    /// One method and length.
    Focus {
        /// The training method.
        method: String,
        /// Tokens of a sequence.
        seq: u64,
    }

    /// All strategies for one method and length.
    Group {
        /// The training method.
        method: String,
        /// Tokens of a sequence.
        seq: u64,
        /// The step with everything resident, nothing recomputed and no wait.
        floor_ns: u64,
        /// What every strategy found.
        cells: Vec<Cell>,
        /// What recomputing a tensor takes, and what copying it takes.
        tensors: Vec<TensorCost>,
        /// What the profile had to guess for the first strategy that fits.
        extrapolated: Vec<String>,
    }

    /// What one strategy found.
    Cell {
        /// The strategy.
        strategy: String,
        /// Whether operators were cut into tiles and head groups.
        tiled: bool,
        /// The plan, where one fits.
        fits: Option<Fit>,
        /// Why none fits, where none does.
        misses: Option<String>,
    }

    /// A plan that fits.
    Fit {
        /// The whole step.
        step_ns: u64,
        /// Compute spent on making things again.
        recompute_ns: u64,
        /// By how much copies beside it slowed compute.
        slowed_ns: u64,
        /// Time in which the device waits for copies.
        stall_ns: u64,
        /// Time after the last operator.
        tail_ns: u64,
        /// Tokens each second.
        tokens_per_s: f64,
        /// Model FLOPs by peak, a fraction.
        mfu: f64,
        /// Executed FLOPs by peak, a fraction.
        hfu: f64,
        /// The size of the arena.
        arena_bytes: u64,
        /// What lives in it at its peak, by category.
        device_bytes: BTreeMap<String, u64>,
        /// Host memory by category.
        host_bytes: BTreeMap<String, u64>,
        /// Bytes sent to the host.
        d2h_bytes: u64,
        /// Bytes fetched from the host.
        h2d_bytes: u64,
        /// No plan takes less; 0 where that was not asked.
        bound_ns: u64,
        /// How much is proved: optimal, gap, time_limit or unproved.
        status: String,
        /// The strategy whose plan it is.
        found_by: String,
        /// The longest token range of a block's loops.
        tile: u64,
        /// The longest token range of the head's.
        head_tile: u64,
        /// Groups in which attention heads are processed.
        head_groups: u32,
        /// What becomes of every kind of tensor, all blocks together.
        shares: Vec<Share>,
        /// Parameters by where they live.
        states: BTreeMap<String, u64>,
    }

    /// What becomes of one kind of tensor: fractions that sum to one.
    Share {
        /// Its name within a block, or the block's.
        tensor: String,
        /// What stays on the device.
        keep: f64,
        /// What travels to the host and back.
        swap: f64,
        /// What is made again.
        recompute: f64,
    }

    /// What recomputing one tensor takes, and what copying it takes, in the middle block.
    TensorCost {
        /// Its name within the block.
        tensor: String,
        /// Its size.
        bytes: u64,
        /// Making it again from what its operator reads.
        recompute_ns: u64,
        /// Sending it to the host, or fetching it, whichever takes longer.
        copy_ns: u64,
    }

    /// The longest sequence of one strategy and method.
    Longest {
        /// The strategy.
        strategy: String,
        /// The training method.
        method: String,
        /// Tokens of the longest sequence that was found to fit; 0 where none was.
        max_tokens: u64,
        /// The shortest that was found not to fit, if any.
        too_long: Option<u64>,
        /// What binds there.
        binds: String,
    }

    /// A step under another device budget.
    BudgetPoint {
        /// The strategy.
        strategy: String,
        /// Device memory for the plan.
        device_bytes: u64,
        /// The step; nothing where it does not fit.
        step_ns: Option<u64>,
        /// Why it does not fit, if it does not.
        misses: Option<String>,
    }

    /// A plan in time.
    Timeline {
        /// The step.
        step_ns: u64,
        /// What each stream does: neighbours of one block and kind together.
        slices: Vec<Slice>,
        /// What becomes of each block's tensors, by bytes; in order.
        blocks: Vec<Share>,
        /// Live device memory by category, in the order of [`Timeline::categories`].
        memory: Vec<MemoryPoint>,
        /// The categories of memory.
        categories: Vec<String>,
    }

    /// What a stream does for a while.
    Slice {
        /// The stream: compute, d2h, h2d or host.
        stream: String,
        /// What is done: run, recompute, copy or update.
        kind: String,
        /// The block it is done for.
        block: Option<u32>,
        /// What is done first, in words.
        what: String,
        /// When it starts.
        start_ns: u64,
        /// When it ends.
        end_ns: u64,
    }

    /// Live device memory at a time.
    MemoryPoint {
        /// When.
        at_ns: u64,
        /// How much of each category.
        bytes: Vec<u64>,
    }
}

impl Fit {
    /// Step by floor.
    pub fn over(&self, floor_ns: u64) -> f64 {
        self.step_ns as f64 / floor_ns.max(1) as f64
    }
}

impl ComparisonFile {
    /// The group of a method and a length.
    pub fn group(&self, method: &str, seq: u64) -> Option<&Group> {
        let mut groups = self.groups.iter();
        groups.find(|group| group.method == method && group.seq == seq)
    }
    /// The groups of a method, by length.
    pub fn of_method<'a>(&'a self, method: &'a str) -> impl Iterator<Item = &'a Group> {
        self.groups
            .iter()
            .filter(move |group| group.method == method)
    }
    /// The methods, in the order in which they were asked for.
    pub fn methods(&self) -> Vec<&str> {
        let mut methods: Vec<&str> = Vec::new();
        for group in &self.groups {
            if !methods.contains(&group.method.as_str()) {
                methods.push(&group.method);
            }
        }
        methods
    }
}

impl Share {
    /// What becomes of most of what is stored: 0 kept, 1 swapped; 2 where next to nothing is.
    pub fn decided(&self) -> usize {
        match self.keep + self.swap {
            stored if stored < 0.01 => 2,
            _ => usize::from(self.swap > self.keep),
        }
    }
}

impl Group {
    /// What a strategy found with tiles.
    pub fn cell(&self, strategy: &str) -> Option<&Cell> {
        let mut cells = self.cells.iter();
        cells.find(|cell| cell.tiled && cell.strategy == strategy)
    }
    /// What a strategy found without tiles.
    pub fn untiled(&self, strategy: &str) -> Option<&Cell> {
        let mut cells = self.cells.iter();
        cells.find(|cell| !cell.tiled && cell.strategy == strategy)
    }
    /// The plan that a strategy found with tiles, if one fits.
    pub fn fit(&self, strategy: &str) -> Option<&Fit> {
        self.cell(strategy)?.fits.as_ref()
    }
}
