//! How linear layers multiply: in the step's own type, or with operands rounded to 8 bits.
//!
//! Every row that is summed over has a scale of its own, its largest magnitude over the format's
//! largest number, so that a row means the same in whichever tile it is: in `y = x Wᵀ` the rows of
//! `x` and of `W`, in `dx = dy W` the rows of `dy` and the columns of `W`. A weight's gradient sums
//! over tokens and is made in the step's own type, as the rowwise recipe of torchao's float8 that
//! keeps weight gradients in high precision does. What is saved for backward stays in the step's
//! type: these save time and no memory.
//!
//! Quantisation-aware training (Jacob et al. 2018, arXiv 1712.05877) rounds the rows of weights
//! alone, in forward as in backward, and passes gradients straight through to the weights that it
//! trains, which stay in the step's type.

use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use super::packed::Storage;
use crate::error::Error;
use crate::profile::Dtype;

/// What operands of linear layers are rounded to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Arithmetic {
    /// Nothing beside the step's type.
    #[default]
    Plain,
    /// Both operands to FP8, products in FP8.
    Fp8,
    /// Both operands to integers of 8 bits, products in these.
    Int8,
    /// Weights to FP8, products in the step's type.
    QatFp8,
    /// Weights to integers of 8 bits, products in the step's type.
    QatInt8,
}

impl Arithmetic {
    /// All but the plain one.
    pub const ROUNDED: [Self; 4] = [Self::Fp8, Self::Int8, Self::QatFp8, Self::QatInt8];

    /// The name in flags and files; none has the plain one.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Fp8 => "fp8-compute",
            Self::Int8 => "int8-compute",
            Self::QatFp8 => "qat-fp8",
            Self::QatInt8 => "qat-int8",
        }
    }
    /// What is rounded to.
    pub const fn format(self) -> Option<Storage> {
        match self {
            Self::Plain => None,
            Self::Fp8 | Self::QatFp8 => Some(Storage::Fp8),
            Self::Int8 | Self::QatInt8 => Some(Storage::Int8),
        }
    }
    /// Whether weights alone are rounded, so that it trains weights that bear it and saves nothing.
    pub const fn is_aware(self) -> bool {
        matches!(self, Self::QatFp8 | Self::QatInt8)
    }
}

impl fmt::Display for Arithmetic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Arithmetic {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self, Error> {
        let found = Self::ROUNDED.into_iter().find(|a| a.name() == text);
        found.ok_or_else(|| Error::bad_input(format!("no arithmetic is called {text:?}")))
    }
}

/// The memory that a product with rounded operands needs beside them: codes and f32 scales of the
/// weight and then of the rows, each row filled up to whole 16 bytes; or the rounded weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scratch {
    /// Bytes for the weight.
    pub fixed: u64,
    /// Bytes for each row.
    pub row: u64,
    /// Codes of a row: as many as are summed over, and zeros.
    pub summed: u64,
    /// Rows of codes of the weight: as many as columns are made, and zeros.
    pub made: u64,
}

impl Scratch {
    /// Numbers that are summed over or made, in whole 16 bytes of codes.
    const WHOLE: u64 = 16;

    /// That of a product that sums over `summed` numbers to make `made` columns.
    pub fn new(arithmetic: Arithmetic, (summed, made): (u64, u64), dtype: Dtype) -> Scratch {
        let weight = summed * made * dtype.bytes();
        let [summed, made] = [summed, made].map(|n| n.next_multiple_of(Self::WHOLE));
        let (fixed, row) = match arithmetic {
            Arithmetic::Plain => (0, 0),
            Arithmetic::Fp8 | Arithmetic::Int8 => (made * (summed + 4), summed + 4),
            Arithmetic::QatFp8 | Arithmetic::QatInt8 => (weight, 0),
        };
        Scratch {
            fixed,
            row,
            summed,
            made,
        }
    }

    /// All of it.
    pub fn bytes(self, rows: u64) -> u64 {
        self.fixed + rows * self.row
    }

    /// Where codes and scales of the weight and of `rows` rows lie in it.
    pub fn codes(self, rows: u64) -> [(Range<u64>, Range<u64>); 2] {
        [(0, self.made), (self.fixed, rows)].map(|(first, rows)| {
            let scales = first + rows * self.summed;
            (first..scales, scales..scales + 4 * rows)
        })
    }
}
