//! The command line: strings become domain types here and nowhere else.
//!
//! Each command's flags stand beside what it does, in `commands/`; what they have in common is
//! parsed by [`parse`].

pub mod output;
pub mod parse;

use crate::commands::{
    arena, chain, check, compare, export, fit, list, plan, profile, run, simulate,
};
use crate::error::Result;
use clap::{CommandFactory, Parser, Subcommand};
use std::io::Write;

/// What fits, how fast, with which plan: memory planning for long-context training.
#[derive(Debug, Parser)]
#[command(name = "ebbtide", version, about, max_term_width = 100)]
#[command(after_help = "\
Messages go to stderr. Exit codes: 0 ok, 1 bug, 2 bad input or interrupted, 3 nothing fits, 4 no
device or library, 5 refused by the checker.")]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Measure a device by a model's operators, and write its profile
    #[command(after_help = "\
Examples:
  ebbtide profile --model tiny-llama-10m --link 200MB/s -o cpu.json
  ebbtide profile --model ./my-model --seq 512,1k,2k -o cpu.json")]
    Profile(profile::Args),
    /// Find the fastest step that fits, prove how good it is, and write its schedule
    #[command(after_help = "\
Examples:
  ebbtide plan --model llama-3.1-8b --profile h100-sxm5-80gb --seq 128k -o schedule.json
  ebbtide plan --model ./my-model --profile h100-sxm5-80gb --seq 32k --batch 2 --method lomo
  ebbtide plan --model llama-2-7b --profile rtx-4090-24gb --seq 64k --host-memory 200GiB --json")]
    Plan(plan::Args),
    /// Find the longest sequence that fits, for every strategy, and what stops the next longer one
    #[command(after_help = "\
Examples:
  ebbtide fit --model llama-3.1-8b --profile h100-sxm5-80gb --method lomo
  ebbtide fit --model qwen2.5-7b --profile rtx-4090-24gb --strategy checkpoint,ilp --json")]
    Fit(fit::Args),
    /// Compare strategies over lengths and methods: tables, figures and one page to read
    #[command(after_help = "\
Examples:
  ebbtide compare --model llama-3.1-8b --profile h100-sxm5-80gb -o comparison
  ebbtide compare --model qwen2.5-7b --profile rtx-4090-24gb --seq 4k..64k --method lomo -o small
  ebbtide compare --model llama-2-7b --profile h100-sxm5-80gb --seq 8k,128k --json -o two

DIR gets index.html, report.md, cells.csv, comparison.json, and every figure as SVG and PNG. A
comparison that was interrupted goes on with the same command.")]
    Compare(compare::Args),
    /// Print the settings of another system that come nearest to a schedule, and what they cost
    #[command(after_help = "\
Examples:
  ebbtide export schedule.json --to trl
  ebbtide export schedule.json --to deepspeed > ds_config.json

Settings go to standard output; what they leave out, and what that costs, to standard error.")]
    Export(export::Args),
    /// Simulate a schedule: its timeline, its links and its memory peak
    #[command(after_help = "\
Examples:
  ebbtide simulate schedule.json
  ebbtide simulate schedule.json --json
  ebbtide simulate schedule.json --trace trace.json --memory-snapshot memory.pickle")]
    Simulate(simulate::Args),
    /// Check a schedule: races, overlaps, missing transfers, capacities
    #[command(after_help = "\
Examples:
  ebbtide check schedule.json
  ebbtide check schedule.json --json")]
    Check(check::Args),
    /// Train by a schedule on a device, and compare predicted with measured
    #[command(after_help = "\
Examples:
  ebbtide run schedule.json --steps 5
  ebbtide run schedule.json --weights ./my-model --tokens data.u16 --save ./trained
  ebbtide run schedule.json --link 2GB/s --lr 1e-4 --schedule cosine --warmup 10 -o run.json")]
    Run(run::Args),
    /// List what is built in: models, profiles, strategies or methods
    #[command(after_help = "\
Examples:
  ebbtide list models
  ebbtide list strategies")]
    List(list::Args),
    /// Place buffers of given sizes and lifetimes in as little memory as possible
    #[command(after_help = "\
Examples:
  ebbtide arena instance.csv
  ebbtide arena instance.csv --capacity 1048576 --json")]
    Arena(arena::Args),
    /// Solve a chain of layers: which to recompute, in which order, within a memory budget
    #[command(after_help = "\
A problem: the budget, the input, and every layer with its times, what it saves for its own
backward, its output, and what a forward that saves nothing needs besides:
  {\"budget_bytes\": 4096, \"input_bytes\": 512, \"layers\": [{\"fwd_ms\": 1.5, \"bwd_ms\": 3,
   \"internal_bytes\": 1024, \"out_bytes\": 512, \"nograd_tmp_bytes\": 256}]}

Examples:
  ebbtide chain tests/data/chain/homog32_60.json
  ebbtide chain tests/data/chain/hetero8s1_40.json --strategy rotor --json")]
    Chain(chain::Args),
    /// Print a completion script for a shell
    #[command(after_help = "\
Examples:
  ebbtide completions bash > ~/.local/share/bash-completion/completions/ebbtide")]
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
}

/// Does what the command says, printing to `out`.
///
/// # Errors
/// Those of the command.
pub fn run(command: &Command, out: &mut dyn Write) -> Result<()> {
    match command {
        Command::Profile(args) => profile::run(args, out),
        Command::Plan(args) => plan::run(args, out),
        Command::Fit(args) => fit::run(args, out),
        Command::Compare(args) => compare::run(args, out),
        Command::Export(args) => export::run(args, out),
        Command::Simulate(args) => simulate::run(args, out),
        Command::Check(args) => check::run(args, out),
        Command::Run(args) => run::run(args, out),
        Command::List(args) => list::run(args, out),
        Command::Arena(args) => arena::run(args, out),
        Command::Chain(args) => chain::run(args, out),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut Cli::command(), "ebbtide", &mut script);
            output::print(out, &script)
        }
    }
}
