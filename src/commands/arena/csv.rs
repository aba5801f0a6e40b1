//! The CSV format of google/minimalloc: `id,lower,upper,size[,offset]`, half-open lifetimes.
//!
//! A header names the columns in any order; without one they come in the order above. Offsets that
//! are there already are ignored. Columns that would change the problem are refused.

use crate::error::{Error, Result};
use ebbtide_solver::arena::Request;
use ebbtide_solver::units::Bytes;
use std::collections::HashMap;
use std::fmt::Write as _;

/// The requests of a file, with their ids.
#[derive(Debug)]
pub(super) struct Instance<'a> {
    pub ids: Vec<&'a str>,
    pub requests: Vec<Request>,
}

impl Instance<'_> {
    /// Refuses sizes whose sum does not fit into the arithmetic of addresses.
    pub fn check_sum(&self, alignment: u64) -> Result<()> {
        let rounded =
            |r: &Request| u128::from(r.size.get()).next_multiple_of(u128::from(alignment));
        let sum: u128 = self.requests.iter().map(rounded).sum();
        if sum < 1 << 62 {
            return Ok(());
        }
        let message = format!("the sizes sum to {sum} bytes, more than the limit of 2^62");
        Err(Error::bad_input(message).hint("give the sizes in a larger unit"))
    }

    /// Refuses a request that cannot fit by itself.
    pub fn check_sizes(&self, capacity: u64) -> Result<()> {
        let sizes = self.requests.iter().map(|request| request.size.get());
        match self
            .ids
            .iter()
            .zip(sizes)
            .find(|(_, size)| *size > capacity)
        {
            None => Ok(()),
            Some((id, size)) => {
                let message =
                    format!("request {id} has {size} bytes, more than the capacity of {capacity}");
                Err(Error::infeasible(message).hint(format!("raise --capacity to {size} or more")))
            }
        }
    }
}

const NAMES: [&str; 5] = ["id", "lower", "upper", "size", "offset"];

/// Where the columns `id`, `lower`, `upper` and `size` are, and how many there are.
struct Columns {
    at: [usize; 4],
    count: usize,
}

impl Columns {
    fn from_header(fields: &[&str]) -> Result<Self> {
        if let Some(unknown) = fields.iter().find(|field| !NAMES.contains(field)) {
            let message = format!("line 1: column `{unknown}` is not known");
            return Err(Error::bad_input(message).hint("columns: id, lower, upper, size, offset"));
        }
        let mut at = [0; 4];
        for (name, at) in NAMES.iter().zip(&mut at) {
            let mut found = (0..fields.len()).filter(|&i| fields[i] == *name);
            *at = found.next().ok_or_else(|| {
                Error::bad_input(format!("line 1: column `{name}` is missing"))
                    .hint("columns: id, lower, upper, size, and offset if wanted")
            })?;
            if found.next().is_some() {
                return Err(Error::bad_input(format!(
                    "line 1: column `{name}` comes twice"
                )));
            }
        }
        Ok(Self {
            at,
            count: fields.len(),
        })
    }

    /// The columns of a file without a header, whose first line has these fields.
    fn in_order(fields: &[&str]) -> Self {
        Self {
            at: [0, 1, 2, 3],
            count: fields.len().clamp(4, 5),
        }
    }
}

/// The requests of a file's text.
///
/// # Errors
/// `BadInput` naming the line and the field.
pub(super) fn parse(text: &str) -> Result<Instance<'_>> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut lines = text
        .lines()
        .enumerate()
        .filter(|(_, line)| !line.trim().is_empty())
        .peekable();
    let Some(&(_, first)) = lines.peek() else {
        return Err(Error::bad_input("no line of data").hint("columns: id, lower, upper, size"));
    };
    let lowercase = first.to_ascii_lowercase();
    let first: Vec<&str> = lowercase.split(',').map(str::trim).collect();
    let columns = if first.iter().any(|field| NAMES.contains(field)) {
        lines.next();
        Columns::from_header(&first)?
    } else {
        Columns::in_order(&first)
    };
    let mut instance = Instance {
        ids: Vec::new(),
        requests: Vec::new(),
    };
    let mut seen = HashMap::new();
    for (index, line) in lines {
        let (id, request) = parse_line(line, &columns)
            .map_err(|error| error.within(format_args!("line {}", index + 1)))?;
        if let Some(earlier) = seen.insert(id, index + 1) {
            let message = format!("line {}: id `{id}` is on line {earlier} already", index + 1);
            return Err(Error::bad_input(message).hint("give every request its own id"));
        }
        instance.ids.push(id);
        instance.requests.push(request);
    }
    Ok(instance)
}

fn parse_line<'a>(line: &'a str, columns: &Columns) -> Result<(&'a str, Request)> {
    let mut fields = [""; NAMES.len()];
    let mut count = 0;
    for field in line.split(',') {
        if let Some(place) = fields.get_mut(count) {
            *place = field.trim();
        }
        count += 1;
    }
    if count != columns.count {
        let s = if count == 1 { "" } else { "s" };
        let message = format!("{count} field{s} instead of {}", columns.count);
        return Err(
            Error::bad_input(message).hint("fields are parted by commas: id,lower,upper,size")
        );
    }
    let [id, lower, upper, size] = columns.at.map(|at| fields[at]);
    if id.is_empty() || id.contains('"') {
        return Err(Error::bad_input(format!("`{id}` is no id"))
            .hint("an id is not empty and has no quotes or commas"));
    }
    let (start, end) = (number("lower", lower)?, number("upper", upper)?);
    if start >= end {
        let message = format!("lower {start} is not below upper {end}");
        return Err(Error::bad_input(message).hint("a lifetime is lower <= t < upper"));
    }
    Ok((
        id,
        Request::new(start, end, Bytes::new(number("size", size)?)),
    ))
}

fn number(name: &str, field: &str) -> Result<u64> {
    field.parse().map_err(|_| {
        Error::bad_input(format!(
            "{name} `{field}` is no whole number from 0 to {}",
            u64::MAX
        ))
    })
}

/// The instance as CSV with an `offset` column.
pub(super) fn with_offsets(instance: &Instance, offsets: &[Bytes]) -> String {
    let mut text = String::from("id,lower,upper,size,offset\n");
    for ((id, request), offset) in instance.ids.iter().zip(&instance.requests).zip(offsets) {
        let Request { start, end, size } = request;
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{id},{start},{end},{},{}", size.get(), offset.get());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_come_by_name_or_in_order() {
        let expected = vec![
            Request::new(1, 3, Bytes::new(8)),
            Request::new(2, 5, Bytes::ZERO),
        ];
        for text in [
            "id,lower,upper,size\nx,1,3,8\ny,2,5,0\n",
            "x,1,3,8\r\n\r\ny,2,5,0",
            "\u{feff}Size, Upper, ID, lower\n8,3,x,1\n0,5,y,2\n",
            "id,lower,upper,size,offset\nx,1,3,8,99\ny,2,5,0,0\n",
        ] {
            let instance = parse(text).unwrap();
            assert_eq!(instance.ids, ["x", "y"], "{text}");
            assert_eq!(instance.requests, expected, "{text}");
        }
    }

    #[test]
    fn every_mistake_is_named() {
        for (text, expected) in [
            ("", "no line of data"),
            ("id,lower,size\n", "line 1: column `upper` is missing"),
            (
                "id,lower,upper,upper,size\n",
                "line 1: column `upper` comes twice",
            ),
            (
                "id,lower,upper,size,alignment\n",
                "line 1: column `alignment` is not known",
            ),
            ("a,0,1,4\na,0,1,4", "line 2: id `a` is on line 1 already"),
            ("a,0,1", "line 1: 3 fields instead of 4"),
            ("a,0,1,4\nb,0,1,4,5", "line 2: 5 fields instead of 4"),
            ("a,3,3,4", "line 1: lower 3 is not below upper 3"),
            (
                "a,0,1,-4",
                "line 1: size `-4` is no whole number from 0 to 18446744073709551615",
            ),
            (
                "a,x,1,4",
                "line 1: lower `x` is no whole number from 0 to 18446744073709551615",
            ),
            (",0,1,4", "line 1: `` is no id"),
        ] {
            assert_eq!(parse(text).unwrap_err().message, expected);
        }
    }

    #[test]
    fn a_sum_beyond_the_arithmetic_is_refused() {
        let text = format!("a,0,1,{0}\nb,0,1,{0}", u64::MAX);
        let error = parse(&text).unwrap().check_sum(1).unwrap_err();
        assert!(
            error.message.contains("more than the limit of 2^62"),
            "{error}"
        );
    }
}
