//! A comparison for people: tables, figures and one page, all drawn from the comparison's file.

mod figures;
mod page;
mod tables;
mod words;

use std::path::{Path, PathBuf};

use crate::error::Result;
use crate::files::write_atomically;
use crate::format::comparison::ComparisonFile;
use crate::format::run::Measured;
use crate::report::figure;
pub use tables::csv;
use tables::Table;

/// Writes all that is drawn into a directory: `report.md`, `cells.csv`, `index.html`, and every
/// figure as SVG and PNG.
///
/// # Errors
/// Bad input: what cannot be written, said of the file.
pub fn write(file: &ComparisonFile, runs: &[Measured], directory: &Path) -> Result<()> {
    let figures = figures::all(file, runs);
    let tables = tables::all(file);
    for figure in &figures {
        let name = |extension: &str| directory.join(format!("{}.{extension}", figure.name));
        write_atomically(&name("svg"), figure::svg(figure))?;
        write_atomically(&name("png"), figure::png(figure))?;
    }
    write_atomically(&directory.join("cells.csv"), csv(file))?;
    write_atomically(
        &directory.join("report.md"),
        markdown(file, &tables, &figures),
    )?;
    write_atomically(
        &directory.join("index.html"),
        page::page(file, &tables, &figures),
    )
}

/// A file in a directory that [`write()`] might write over.
///
/// # Errors
/// A directory that cannot be read.
pub fn would_replace(directory: &Path) -> std::io::Result<Option<PathBuf>> {
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        let names = ["index.html", "report.md", "cells.csv"].map(|name| directory.join(name));
        let figure = path.extension().is_some_and(|e| e == "svg" || e == "png");
        if figure || names.contains(&path) {
            return Ok(Some(path));
        }
    }
    Ok(None)
}

/// What is printed: the words, and the tables of steps.
pub fn summary(file: &ComparisonFile) -> String {
    let mut lines = vec![words::title(file), String::new()];
    lines.extend(words::summary(file));
    for table in tables::steps(file) {
        lines.push(String::new());
        lines.push(table.title.clone());
        lines.extend(table.lines());
    }
    lines.join("\n") + "\n"
}

fn markdown(file: &ComparisonFile, tables: &[Table], figures: &[figure::Figure]) -> String {
    let mut text = format!("# {}\n\n", words::title(file));
    for line in words::summary(file).iter().chain(&words::provenance(file)) {
        text.push_str(&format!("- {line}\n"));
    }
    for table in tables {
        text.push_str(&table.markdown());
    }
    text.push_str("\n## Figures\n\n");
    for figure in figures {
        let name = &figure.name;
        text.push_str(&format!(
            "- [{}](index.html#{name}): {}\n",
            figure.title, figure.words
        ));
    }
    text
}
