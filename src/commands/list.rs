//! `ebbtide list`: what is built in.

use crate::cli::output::print;
use crate::error::Result;
use crate::methods::Method;
use crate::model;
use crate::profile;
use crate::report::{columns, grouped};
use ebbtide_solver::search::Strategy;
use ebbtide_solver::units::Tokens;
use std::io::Write;

/// What `ebbtide list` is asked.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Of what
    #[arg(value_enum)]
    pub what: What,
}

/// What can be listed.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub enum What {
    /// Models, for --model
    Models,
    /// Hardware profiles, for --profile
    Profiles,
    /// Ways to find a plan, for --strategy
    Strategies,
    /// Training methods, for --method
    Methods,
}

/// Prints a table.
///
/// # Errors
/// When it cannot be written.
pub fn run(args: &Args, out: &mut dyn Write) -> Result<()> {
    let (title, numbers, rows) = match args.what {
        What::Models => models()?,
        What::Profiles => profiles()?,
        What::Strategies => (
            vec!["strategy", "what it does"],
            vec![],
            words(Strategy::ALL.map(|s| (s.name(), s.summary()))),
        ),
        What::Methods => (
            vec!["method", "what it does"],
            vec![],
            words(Method::ALL.map(|m| (m.name(), m.summary()))),
        ),
    };
    let title = title.into_iter().map(String::from).collect();
    let rows: Vec<Vec<String>> = std::iter::once(title).chain(rows).collect();
    print(out, columns(&rows, &numbers).join("\n") + "\n")
}

/// Titles, which columns hold numbers, and rows.
type Table = (Vec<&'static str>, Vec<bool>, Vec<Vec<String>>);

fn words<const N: usize>(pairs: [(&str, &str); N]) -> Vec<Vec<String>> {
    let rows = pairs.into_iter();
    rows.map(|(name, words)| vec![name.to_owned(), words.to_owned()])
        .collect()
}

fn models() -> Result<Table> {
    let title = vec![
        "model",
        "parameters",
        "blocks",
        "hidden",
        "heads",
        "kv heads",
        "MLP",
        "vocabulary",
        "context",
    ];
    let row = |name| {
        let model = model::load(name)?;
        Ok(vec![
            model.name.clone(),
            grouped(model.parameters()),
            model.layers.to_string(),
            model.hidden.to_string(),
            model.heads.to_string(),
            model.kv_heads.to_string(),
            model.intermediate.to_string(),
            model.vocab.to_string(),
            Tokens::new(model.max_positions).to_string(),
        ])
    };
    let rows = model::shipped().map(row).collect::<Result<_>>()?;
    let numbers = (0..title.len()).map(|column| column > 0).collect();
    Ok((title, numbers, rows))
}

fn profiles() -> Result<Table> {
    let title = vec![
        "profile",
        "device",
        "usable",
        "host",
        "to host",
        "to device",
        "peak",
    ];
    let row = |name| {
        let profile = profile::load(name)?;
        let links = profile.machine.links;
        let rate = |rate: u64| format!("{:.1} GB/s", rate as f64 / 1e9);
        let peak = profile.device.peak_flops_per_s.get(&profile.default_dtype);
        let peak = peak.map_or_else(String::new, |&flops| {
            format!(
                "{:.3} TFLOP/s {}",
                flops as f64 / 1e12,
                profile.default_dtype
            )
        });
        Ok(vec![
            profile.name.clone(),
            profile.device.name.clone(),
            profile.device.budget().to_string(),
            profile.host.memory.to_string(),
            rate(links.d2h.rate.get()),
            rate(links.h2d.rate.get()),
            peak,
        ])
    };
    let rows = profile::shipped().map(row).collect::<Result<_>>()?;
    Ok((
        title,
        vec![false, false, true, true, true, true, true],
        rows,
    ))
}
