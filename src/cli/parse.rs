//! From the text of a flag to a value. Quantities demand a unit; what is refused says what is not.

use crate::device::arithmetic::Arithmetic;
use crate::device::packed::Storage;
use crate::export::System;
use crate::methods::{Layers, Method, Rank};
use crate::profile::Dtype;
use crate::training::learning_rate::Shape;
use crate::training::tokens::IdType;
use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use ebbtide_solver::search::Strategy;
use ebbtide_solver::units::{Bytes, BytesPerSec};
use std::time::Duration;

/// What clap wants to know of a text that is refused.
type Parsed<T> = std::result::Result<T, String>;

/// `4096`, `128k` (× 1024) or `1m` (× 1024²) tokens.
///
/// # Errors
/// Anything else, and what does not fit in 64 bits.
pub fn tokens(text: &str) -> Parsed<u64> {
    let wrong = || format!("`{text}` is no number of tokens such as 4096, 128k or 1m");
    let lower = text.to_ascii_lowercase();
    let (digits, unit) = match lower.as_bytes().last() {
        Some(b'k') => (&lower[..lower.len() - 1], 1 << 10),
        Some(b'm') => (&lower[..lower.len() - 1], 1 << 20),
        _ => (&lower[..], 1),
    };
    let number: u64 = whole(digits).ok_or_else(wrong)?;
    number.checked_mul(unit).ok_or_else(wrong)
}

/// Lengths: `4k..1m` for 4k, 8k and so on up to 1m, or one length alone; at least one, none of
/// them zero.
///
/// # Errors
/// Anything else, and a range in which there is nothing.
pub fn lengths(text: &str) -> Parsed<Vec<u64>> {
    let (first, last) = match text.split_once("..") {
        Some((first, last)) => (tokens(first)?, tokens(last)?),
        None => (tokens(text)?, tokens(text)?),
    };
    if first == 0 {
        return Err(format!("`{text}`: a sequence has at least one token"));
    }
    if first > last {
        return Err(format!(
            "the range `{text}` is empty: it ends before it begins"
        ));
    }
    let doubled = std::iter::successors(Some(first), |length| length.checked_mul(2));
    Ok(doubled.take_while(|&length| length <= last).collect())
}

/// A whole number from `MIN` to `MAX`.
///
/// # Errors
/// Anything else.
pub fn within<T: TryFrom<u64>, const MIN: u64, const MAX: u64>(text: &str) -> Parsed<T> {
    let number = whole(text).filter(|number| (MIN..=MAX).contains(number));
    let number = number.and_then(|number| T::try_from(number).ok());
    number.ok_or_else(|| match MAX {
        u64::MAX => format!("`{text}` is no whole number from {MIN} on"),
        _ => format!("`{text}` is no whole number from {MIN} to {MAX}"),
    })
}

/// The units of [`bytes`].
const BYTE_UNITS: [(&str, u64); 9] = [
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("kB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("B", 1),
];

/// `72GiB`, `1.5GiB`, `80GB`: a number and a unit, rounded down to whole bytes.
///
/// # Errors
/// A number without a unit, a negative one, and what is more than an exabyte.
pub fn bytes(text: &str) -> Parsed<Bytes> {
    let units = || BYTE_UNITS.map(|(name, _)| name).join(", ");
    if text.trim_start().starts_with('-') {
        return Err(format!("`{text}` is negative"));
    }
    let split = text
        .bytes()
        .take_while(|b| b.is_ascii_digit() || *b == b'.')
        .count();
    let (number, unit) = (&text[..split], text[split..].trim());
    if number.is_empty() {
        return Err(format!("`{text}` is no size such as 72GiB or 1.5GiB"));
    }
    if unit.is_empty() {
        return Err(format!("`{text}` has no unit; valid units are {}", units()));
    }
    let Some(&(_, scale)) = BYTE_UNITS.iter().find(|(name, _)| *name == unit) else {
        return Err(format!(
            "`{unit}` is no unit of size; valid are {}",
            units()
        ));
    };
    let wrong = || format!("`{text}` is no size up to 1000000TB");
    let (before, after) = number.split_once('.').unwrap_or((number, "0"));
    let (Some(before), Some(fraction)) = (whole(before), whole(after)) else {
        return Err(wrong());
    };
    let ten = 10u128
        .checked_pow(u32::try_from(after.len()).unwrap_or(u32::MAX))
        .ok_or_else(wrong)?;
    let scale = u128::from(scale);
    let size = u128::from(before) * scale + u128::from(fraction) * scale / ten;
    u64::try_from(size)
        .ok()
        .filter(|&size| size <= crate::format::number::LARGEST)
        .map(Bytes::new)
        .ok_or_else(wrong)
}

/// `90s`, `500ms` or `2m`.
///
/// # Errors
/// Anything else.
pub fn time(text: &str) -> Parsed<Duration> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let wrong = || format!("`{text}` is no length of time such as 500ms, 60s or 2m");
    let number = whole(number).ok_or_else(wrong)?;
    match unit {
        "ms" => Ok(Duration::from_millis(number)),
        "s" => Ok(Duration::from_secs(number)),
        "m" => number
            .checked_mul(60)
            .map(Duration::from_secs)
            .ok_or_else(wrong),
        _ => Err(wrong()),
    }
}

/// `0.5%` or `0.005`: a fraction from 0 to 1.
///
/// # Errors
/// Anything else.
pub fn gap(text: &str) -> Parsed<f64> {
    let wrong = || format!("`{text}` is no gap such as 0.5% or 0.005");
    let (number, scale) = match text.strip_suffix('%') {
        Some(number) => (number, 100.0),
        None => (text, 1.0),
    };
    let number: f64 = number.parse().map_err(|_| wrong())?;
    let fraction = number / scale;
    if (0.0..=1.0).contains(&fraction) {
        Ok(fraction)
    } else {
        Err(wrong())
    }
}

/// `2GB/s`: a size and `/s`, not zero.
///
/// # Errors
/// Anything else.
pub fn rate(text: &str) -> Parsed<BytesPerSec> {
    let wrong = || format!("`{text}` is no rate such as 2GB/s");
    let size = text.strip_suffix("/s").map(bytes);
    let size = size.and_then(Parsed::ok).ok_or_else(wrong)?;
    BytesPerSec::new(size.get()).ok_or_else(wrong)
}

/// A number from 0 on.
///
/// # Errors
/// Anything else.
pub fn not_negative(text: &str) -> Parsed<f64> {
    let number = text
        .parse()
        .ok()
        .filter(|n: &f64| n.is_finite() && *n >= 0.0);
    number.ok_or_else(|| format!("`{text}` is no number from 0 on, such as 0.01 or 1e-4"))
}

/// A number above 0.
///
/// # Errors
/// Anything else.
pub fn positive(text: &str) -> Parsed<f64> {
    let number = not_negative(text).ok().filter(|n| *n > 0.0);
    number.ok_or_else(|| format!("`{text}` is no number above 0, such as 1.0"))
}

/// `0.9,0.999`: two fractions from 0 to below 1.
///
/// # Errors
/// Anything else.
pub fn betas(text: &str) -> Parsed<(f64, f64)> {
    let beta = |text: &str| not_negative(text).ok().filter(|beta| *beta < 1.0);
    let both = text.split_once(',');
    let both = both.and_then(|(first, second)| Some((beta(first)?, beta(second)?)));
    both.ok_or_else(|| format!("`{text}` is no pair of numbers from 0 to below 1 as 0.9,0.999"))
}

/// Digits only: `parse` alone would take a sign.
fn whole(digits: &str) -> Option<u64> {
    let only = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    digits.parse().ok().filter(|_| only)
}

/// One of `all`, by name; help and completions show the names.
fn named<T: Copy + Send + Sync + 'static>(
    all: &'static [T],
    name: fn(T) -> &'static str,
) -> impl TypedValueParser<Value = T> {
    let values = all
        .iter()
        .map(move |&value| PossibleValue::new(name(value)));
    PossibleValuesParser::new(values).map(move |text| {
        let found = all.iter().find(|&&value| name(value) == text);
        *found.expect("one of the possible values")
    })
}

/// A strategy.
pub fn strategy() -> impl TypedValueParser<Value = Strategy> {
    named(&Strategy::ALL, Strategy::name)
}

/// A training method.
pub fn method() -> impl TypedValueParser<Value = Method> {
    named(&Method::ALL, Method::name)
}

/// A rank: `128`, or `1/4` of an input.
pub fn rank(text: &str) -> Result<Rank, String> {
    let (part, number) = match text.strip_prefix("1/") {
        Some(parts) => (true, parts),
        None => (false, text),
    };
    match number.parse() {
        Ok(parts) if part && parts > 0 => Ok(Rank::Part(parts)),
        Ok(rank) if !part => Ok(Rank::Of(rank)),
        _ => Err("a rank is a number such as 128, or a part of the input such as 1/4".into()),
    }
}

/// Layers whose inputs are compressed, by name.
pub fn layers(text: &str) -> Result<Layers, String> {
    let known = || {
        format!(
            "layers are {}, separated by commas",
            Layers::NAMES.join(", ")
        )
    };
    Layers::named(text.split(',')).ok_or_else(known)
}

/// A training method, or `auto`.
pub fn method_or_auto() -> impl TypedValueParser<Value = Choice> {
    let names = Method::ALL.map(Method::name).into_iter().chain(["auto"]);
    PossibleValuesParser::new(names).map(|name| match name.parse() {
        Ok(method) => Choice::One(method),
        Err(_) => Choice::Auto,
    })
}

/// What may change what is learnt.
pub fn allowed() -> impl TypedValueParser<Value = Allowed> {
    const STORAGES: [(&str, Storage); 2] = [
        ("fp8-storage", Storage::Fp8),
        ("int8-storage", Storage::Int8),
    ];
    let names = Method::ALL.map(Method::name).into_iter();
    let names = names.chain(Arithmetic::ROUNDED.map(Arithmetic::name));
    let names = names.chain(STORAGES.map(|storage| storage.0));
    PossibleValuesParser::new(names).map(|name| {
        let storage = STORAGES.into_iter().find(|storage| storage.0 == name);
        match (storage, name.parse(), name.parse()) {
            (Some((_, storage)), _, _) => Allowed::Storage(storage),
            (None, Ok(arithmetic), _) => Allowed::Arithmetic(arithmetic),
            (None, Err(_), Ok(method)) => Allowed::Method(method),
            (None, Err(_), Err(_)) => unreachable!("one of the names"),
        }
    })
}

/// What `--allow` lists.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Allowed {
    /// A method.
    Method(Method),
    /// A storage of what travels.
    Storage(Storage),
    /// How linear layers multiply.
    Arithmetic(Arithmetic),
}

/// How the training method is chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Choice {
    /// By the user.
    One(Method),
    /// By the tokens a second that it allows.
    Auto,
}

/// A system with settings of its own.
pub fn system() -> impl TypedValueParser<Value = System> {
    named(&System::ALL, System::name)
}

/// A type of weights and activations.
pub fn dtype() -> impl TypedValueParser<Value = Dtype> {
    named(&[Dtype::Bf16, Dtype::F32], |dtype| match dtype {
        Dtype::F32 => "f32",
        Dtype::Bf16 => "bf16",
        Dtype::Fp8 => "fp8",
    })
}

/// A course of the learning rate.
pub fn learning_rate() -> impl TypedValueParser<Value = Shape> {
    named(&Shape::ALL, Shape::name)
}

/// How token ids are stored.
pub fn id_type() -> impl TypedValueParser<Value = IdType> {
    named(&[IdType::U16, IdType::U32], |id| match id {
        IdType::U16 => "u16",
        IdType::U32 => "u32",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_in_powers_of_two() {
        assert_eq!(tokens("4096"), Ok(4096));
        assert_eq!(tokens("128k"), Ok(131_072));
        assert_eq!(tokens("1M"), Ok(1 << 20));
        for wrong in ["", "k", "-1", "+1", "1.5k", "1g", "99999999999999999999"] {
            assert!(tokens(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn lengths_double_within_their_range() {
        assert_eq!(lengths("4k..16k"), Ok(vec![4096, 8192, 16384]));
        assert_eq!(lengths("3k..10k"), Ok(vec![3072, 6144]));
        assert_eq!(lengths("128k"), Ok(vec![131_072]));
        for wrong in ["", "0", "0..4k", "8k..4k", "..4k", "4k..", "4k..8k..16k"] {
            assert!(lengths(wrong).is_err(), "{wrong}");
        }
        assert!(lengths("8k..4k").unwrap_err().contains("empty"));
    }

    #[test]
    fn counts_are_whole_numbers() {
        let count = within::<u64, 0, { u64::MAX }>;
        assert_eq!(count("1048576"), Ok(1 << 20));
        for wrong in ["", "-1", "1MiB", "1e3", "1.5", "18446744073709551616"] {
            assert!(count(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn bytes_need_a_unit() {
        assert_eq!(bytes("72GiB"), Ok(Bytes::gib(72)));
        assert_eq!(bytes("1.5GiB"), Ok(Bytes::mib(1536)));
        assert_eq!(bytes("80GB"), Ok(Bytes::new(80_000_000_000)));
        assert_eq!(bytes("0.001 kB"), Ok(Bytes::new(1)));
        for wrong in [
            "",
            "72",
            "-1GiB",
            "GiB",
            "1.GiB",
            ".5GiB",
            "1.2.3GiB",
            "1e3GiB",
            "1GIB",
            "2000000TB",
        ] {
            assert!(bytes(wrong).is_err(), "{wrong}");
        }
        assert!(bytes("72").unwrap_err().contains("GiB"));
    }

    #[test]
    fn times_need_a_unit() {
        assert_eq!(time("1500ms"), Ok(Duration::from_millis(1500)));
        assert_eq!(time("2m"), Ok(Duration::from_secs(120)));
        for wrong in ["", "60", "s", "-1s", "1h", "1.5s", "99999999999999999999s"] {
            assert!(time(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn rates_and_numbers_are_in_their_ranges() {
        assert_eq!(rate("2GB/s"), Ok(BytesPerSec::new(2_000_000_000).unwrap()));
        for wrong in ["2GB", "0GB/s", "2/s", "-1GB/s", "fast"] {
            assert!(rate(wrong).is_err(), "{wrong}");
        }
        assert_eq!(not_negative("1e-4"), Ok(1e-4));
        assert_eq!(positive("0.5"), Ok(0.5));
        for wrong in ["-1", "NaN", "inf", ""] {
            assert!(
                not_negative(wrong).is_err() && positive(wrong).is_err(),
                "{wrong}"
            );
        }
        assert!(positive("0").is_err());
        assert_eq!(betas("0.9,0.95"), Ok((0.9, 0.95)));
        for wrong in ["0.9", "0.9,1", "-0.1,0.9", "0.9,0.95,0.99", "NaN,0.9", ","] {
            assert!(betas(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn gaps_are_fractions() {
        assert_eq!(gap("0.5%"), Ok(0.005));
        assert_eq!(gap("0.005"), Ok(0.005));
        for wrong in ["", "%", "-1%", "101%", "NaN", "inf"] {
            assert!(gap(wrong).is_err(), "{wrong}");
        }
    }
}
