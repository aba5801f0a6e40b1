//! What is saved in 8 bits: how rows are packed on their way to the host and unpacked on their way
//! back, within the copy; and likewise between two regions of the device.
//!
//! Each [`GROUP`] of elements of a row (the last may be shorter) shares an f32 scale, its largest
//! magnitude over the format's largest number. A piece `[rows, width]` with f32 `[rows, extras]`
//! behind it becomes codes `[rows, width]`, scales `[rows, groups]` and the extras as they are: a
//! row of it means the same wherever it is cut. Coarser scales lose more to single large elements;
//! FP8 training stores activations in groups of 16 to 128 (COAT, Xi et al. 2024, arXiv 2410.19313).

use std::fmt;
use std::str::FromStr;

use super::Region;
use crate::error::Error;

/// Elements that share a scale.
pub const GROUP: u64 = 128;

/// How elements are packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Storage {
    /// FP8 with 4 bits of exponent and 3 of mantissa (e4m3), rounded to nearest.
    Fp8,
    /// Integers from −127 to 127, rounded to nearest.
    Int8,
}

impl Storage {
    /// The name in files.
    pub const fn name(self) -> &'static str {
        match self {
            Storage::Fp8 => "fp8",
            Storage::Int8 => "int8",
        }
    }

    /// Packed bytes of a row of `width` elements and `extras` f32.
    pub const fn row_bytes(width: u64, extras: u64) -> u64 {
        width + 4 * (width.div_ceil(GROUP) + extras)
    }
}

impl fmt::Display for Storage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Storage {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self, Error> {
        let known = [Storage::Fp8, Storage::Int8];
        let found = known.into_iter().find(|storage| storage.name() == text);
        found.ok_or_else(|| Error::bad_input(format!("storage is {text:?}, not fp8 or int8")))
    }
}

/// What a copy packs or unpacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packing {
    /// How.
    pub storage: Storage,
    /// Rows of the piece.
    pub rows: u64,
    /// Elements of a row.
    pub width: u64,
    /// f32 of a row behind the elements.
    pub extras: u64,
    /// Whether it unpacks.
    pub unpacks: bool,
}

impl Packing {
    /// Bytes of the packed side.
    pub const fn packed_bytes(&self) -> u64 {
        self.rows * Storage::row_bytes(self.width, self.extras)
    }

    /// Bytes of the other side, whose elements are of `size` bytes.
    pub const fn plain_bytes(&self, size: u64) -> u64 {
        self.rows * (self.width * size + 4 * self.extras)
    }

    /// Of a copy the side that is not packed, and the one that is.
    pub const fn sides(&self, from: Region, to: Region) -> (Region, Region) {
        match self.unpacks {
            true => (to, from),
            false => (from, to),
        }
    }

    /// Where the f32 behind the elements, which are copied as they are, come from and go to.
    pub fn extras(&self, from: Region, to: Region) -> Option<(Region, Region)> {
        let bytes = 4 * self.rows * self.extras;
        let last = |region: Region| region.part(region.bytes - bytes, bytes);
        (bytes > 0).then(|| (last(from), last(to)))
    }
}
