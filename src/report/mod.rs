//! What a person reads: tables of plain text. Drawing knows no planning.

pub mod comparison;
pub mod figure;
pub mod infeasible;
pub mod plan;
pub mod profile;
pub mod run;
pub mod timeline;
pub mod tuning;

use std::collections::BTreeMap;

use ebbtide_solver::check::Violation;
use ebbtide_solver::problem::Category;
use ebbtide_solver::units::Bytes;

/// Two columns: a name in a narrow one, words in the other.
#[derive(Default)]
pub struct Sheet {
    text: String,
}

impl Sheet {
    const NARROW: usize = 14;

    /// A row; an empty name continues the one before.
    pub fn row(&mut self, name: &str, words: impl AsRef<str>) {
        let row = format!("{name:<width$} {}", words.as_ref(), width = Self::NARROW);
        self.text.push_str(row.trim_end());
        self.text.push('\n');
    }
    /// Nothing, to part what does not belong together.
    pub fn gap(&mut self) {
        self.text.push('\n');
    }
    /// A whole line.
    pub fn line(&mut self, line: impl AsRef<str>) {
        self.text.push_str(line.as_ref());
        self.text.push('\n');
    }
    /// All of it.
    pub fn text(self) -> String {
        self.text
    }
}

/// Columns as wide as what is in them; those after the first are set right where `numbers` says.
pub fn columns(rows: &[Vec<String>], numbers: &[bool]) -> Vec<String> {
    let wide = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let line = |row: &Vec<String>| {
        let cells = row.iter().enumerate().map(|(column, cell)| {
            let width = wide(column);
            match numbers.get(column) {
                Some(true) => format!("{cell:>width$}"),
                _ => format!("{cell:<width$}"),
            }
        });
        Vec::from_iter(cells).join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect()
}

/// `8,030,261,248`.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `12.3 %` of a whole.
pub fn percent(part: f64) -> String {
    format!("{:.1} %", part * 100.0)
}

/// `weights 15.0 GiB, activations 2.3 GiB`, largest first, nothing that is not there.
pub fn by_category(parts: &[(Category, Bytes)]) -> String {
    let mut parts: Vec<_> = parts.iter().filter(|(_, bytes)| !bytes.is_zero()).collect();
    parts.sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
    let words = parts
        .iter()
        .map(|(category, bytes)| format!("{} {bytes}", category.name().replace('_', " ")));
    Vec::from_iter(words).join(", ")
}

/// `1 block`, `2 blocks`.
pub fn count(number: usize, one: &str) -> String {
    let s = if number == 1 { "" } else { "s" };
    format!("{} {one}{s}", grouped(number as u64))
}

/// The first violations, and how many of each kind there are.
pub fn violations(violations: &[Violation]) -> String {
    const SHOWN: usize = 20;
    let mut kinds: BTreeMap<&str, usize> = BTreeMap::new();
    for violation in violations {
        *kinds.entry(violation.fault.name()).or_default() += 1;
    }
    let mut lines: Vec<String> = violations
        .iter()
        .take(SHOWN)
        .map(Violation::to_string)
        .collect();
    if violations.len() > SHOWN {
        lines.push("…".into());
    }
    let kinds = kinds.iter().map(|(kind, count)| format!("{count} {kind}"));
    let total = count(violations.len(), "violation");
    lines.push(format!("{total}: {}", Vec::from_iter(kinds).join(", ")));
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_in_groups_of_three() {
        assert_eq!(grouped(0), "0");
        assert_eq!(grouped(999), "999");
        assert_eq!(grouped(8_030_261_248), "8,030,261,248");
    }
}
