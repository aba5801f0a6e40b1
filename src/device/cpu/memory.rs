//! Memory that any thread may touch at any time: words of 64 bits, loaded and stored one by one.
//!
//! A schedule that was not checked may let two streams meet on the same bytes. With plain memory
//! that would be undefined; with relaxed atomic words it is a wrong number, which is what a test
//! wants to see, and it needs no `unsafe`. Words cannot be vectorised, so that whoever computes
//! moves blocks of words to a stack array that fits the first-level cache and works there: see
//! [`Words`].
//!
//! Regions begin at any byte: elements behind each other need not be aligned. A word that lies
//! across the edge of a region is changed by compare-and-swap, so that neighbours are safe.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use half::bf16;

use super::machine;
use super::ops::vectorised;
use crate::profile::Dtype;

/// Every 16 and every 32 bits of it are a NaN.
pub const POISON: u64 = 0x7FC1_7FC1_7FC1_7FC1;

/// Words of a block: 512 bytes, so that the processor fetches one while it works on another.
pub const BLOCK: usize = 64;

/// A block on its way between memory and arithmetic. Little-endian.
pub type Words = [u64; BLOCK];

const _: () = assert!(
    cfg!(target_endian = "little"),
    "buffers hold little-endian numbers"
);

/// A memory of fixed size.
pub struct Memory {
    /// One more than needed, so that an unaligned read may look at the next word.
    words: Vec<AtomicU64>,
    bytes: u64,
}

impl Memory {
    /// A memory full of poison; none where it cannot be had.
    pub fn new(bytes: u64) -> Option<Memory> {
        // Linux also grants more than it has, and ends the process that uses it.
        let machine = machine::memory();
        if machine.is_ok_and(|machine| bytes > machine.available.get()) {
            return None;
        }
        let count = usize::try_from(bytes.div_ceil(8)).ok()?.checked_add(1)?;
        let mut words = Vec::new();
        words.try_reserve_exact(count).ok()?;
        words.resize_with(count, || AtomicU64::new(POISON));
        Some(Memory { words, bytes })
    }

    /// Its size.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Reads whole words from any byte on; what lies behind the memory reads as anything.
    ///
    /// # Panics
    /// When the words begin more than a word behind the memory.
    pub fn read(&self, offset: u64, words: &mut [u64]) {
        let first = (offset / 8) as usize;
        let shift = (offset % 8) * 8;
        let end = (first + words.len()).min(self.words.len());
        if shift == 0 {
            let there = end - first;
            load_words(&mut words[..there], &self.words[first..end]);
            return;
        }
        let mut low = self.words[first].load(Relaxed);
        let behind = (first + 1..first + 1 + words.len()).map(|at| at.min(self.words.len() - 1));
        for (word, at) in words.iter_mut().zip(behind) {
            let high = self.words[at].load(Relaxed);
            *word = (low >> shift) | (high << (64 - shift));
            low = high;
        }
    }

    /// Writes the first `bytes` bytes of `words` from any byte on.
    ///
    /// # Panics
    /// When they do not fit.
    pub fn write(&self, offset: u64, words: &[u64], bytes: usize) {
        assert!(
            offset + bytes as u64 <= self.bytes && bytes <= words.len() * 8,
            "{bytes} bytes at {offset} of {}",
            self.bytes
        );
        let mut at = (offset / 8) as usize;
        let shift = ((offset % 8) * 8) as u32;
        let whole = bytes / 8;
        let rest = ((bytes % 8) * 8) as u32;
        let tail = if rest > 0 { words[whole] } else { 0 };
        if shift == 0 {
            store_words(&words[..whole], &self.words[at..]);
            self.merge(at + whole, tail, low_bits(rest));
            return;
        }
        let mut carried = 0;
        let mut mask = !low_bits(shift);
        for &word in &words[..whole] {
            let value = (word << shift) | carried;
            if mask == u64::MAX {
                self.words[at].store(value, Relaxed);
            } else {
                self.merge(at, value, mask);
            }
            carried = word >> (64 - shift);
            mask = u64::MAX;
            at += 1;
        }
        // At most 15 bytes are left: those carried over and the tail.
        let left = u128::from(carried) | (u128::from(tail) << shift);
        let valid = low_bits128(shift + rest);
        let valid = valid & (u128::from(mask) | (u128::from(u64::MAX) << 64));
        self.merge(at, left as u64, valid as u64);
        self.merge(at + 1, (left >> 64) as u64, (valid >> 64) as u64);
    }

    /// Changes the bits of a word that `mask` names.
    fn merge(&self, at: usize, value: u64, mask: u64) {
        if mask != 0 {
            let merged = |old| Some((old & !mask) | (value & mask));
            // Never fails: the closure always has a value.
            let _ = self.words[at].fetch_update(Relaxed, Relaxed, merged);
        }
    }

    /// Fills a range with a word's pattern (a multiple of 16 bits from any even byte on).
    pub fn fill(&self, offset: u64, bytes: u64, pattern: u64) {
        let block = [pattern; BLOCK];
        for (at, count) in blocks(bytes, 8 * BLOCK) {
            self.write(offset + at, &block, count);
        }
    }

    /// Decodes `out.len()` elements.
    pub fn load(&self, offset: u64, dtype: Dtype, out: &mut [f32]) {
        if dtype == Dtype::F32 {
            if let Ok(words) = bytemuck::try_cast_slice_mut(out) {
                return self.read(offset, words);
            }
        }
        let mut words = [0; BLOCK];
        let size = dtype.bytes();
        for (at, count) in blocks(out.len() as u64, elements_of_block(dtype)) {
            let out = &mut out[at as usize..][..count];
            let words = &mut words[..(count * size as usize).div_ceil(8)];
            self.read(offset + at * size, words);
            decode(words, dtype, out);
        }
    }

    /// Stores elements, rounded to the type.
    pub fn store(&self, offset: u64, dtype: Dtype, values: &[f32]) {
        if dtype == Dtype::F32 {
            if let Ok(words) = bytemuck::try_cast_slice(values) {
                return self.write(offset, words, 8 * words.len());
            }
        }
        let mut words = [0; BLOCK];
        let size = dtype.bytes();
        for (at, count) in blocks(values.len() as u64, elements_of_block(dtype)) {
            encode(&values[at as usize..][..count], dtype, &mut words);
            self.write(offset + at * size, &words, count * size as usize);
        }
    }

    /// Copies bytes from another memory, or another place of this one.
    pub fn copy_from(&self, offset: u64, from: &Memory, from_offset: u64, bytes: u64) {
        let mut words = [0; BLOCK];
        for (at, count) in blocks(bytes, 8 * BLOCK) {
            from.read(from_offset + at, &mut words[..count.div_ceil(8)]);
            self.write(offset + at, &words, count);
        }
    }

    /// Writes bytes.
    pub fn write_bytes(&self, offset: u64, bytes: &[u8]) {
        let mut words = [0; BLOCK];
        for (at, count) in blocks(bytes.len() as u64, 8 * BLOCK) {
            bytemuck::cast_slice_mut(&mut words)[..count]
                .copy_from_slice(&bytes[at as usize..][..count]);
            self.write(offset + at, &words, count);
        }
    }

    /// Reads bytes.
    pub fn read_bytes(&self, offset: u64, bytes: &mut [u8]) {
        let mut words = [0; BLOCK];
        for (at, count) in blocks(bytes.len() as u64, 8 * BLOCK) {
            self.read(offset + at, &mut words[..count.div_ceil(8)]);
            bytes[at as usize..][..count].copy_from_slice(&bytemuck::cast_slice(&words)[..count]);
        }
    }
}

/// Words that are moved without looking up: the compiler unrolls no loop over atomics.
const UNROLLED: usize = 8;

fn load_words(words: &mut [u64], from: &[AtomicU64]) {
    let mut runs = words.chunks_exact_mut(UNROLLED);
    let mut of_runs = from.chunks_exact(UNROLLED);
    for (words, from) in (&mut runs).zip(&mut of_runs) {
        for i in 0..UNROLLED {
            words[i] = from[i].load(Relaxed);
        }
    }
    for (word, from) in runs.into_remainder().iter_mut().zip(of_runs.remainder()) {
        *word = from.load(Relaxed);
    }
}

fn store_words(words: &[u64], to: &[AtomicU64]) {
    let to = &to[..words.len()];
    let runs = words.chunks_exact(UNROLLED).zip(to.chunks_exact(UNROLLED));
    for (words, to) in runs {
        for i in 0..UNROLLED {
            to[i].store(words[i], Relaxed);
        }
    }
    let rest = words.len() / UNROLLED * UNROLLED;
    for (word, to) in words[rest..].iter().zip(&to[rest..]) {
        to.store(*word, Relaxed);
    }
}

/// Elements of a block.
pub const fn elements_of_block(dtype: Dtype) -> usize {
    8 * BLOCK / dtype.bytes() as usize
}

/// Decodes the first `out.len()` elements of `words`.
///
/// # Panics
/// On a type in which nothing is computed.
pub fn decode(words: &[u64], dtype: Dtype, out: &mut [f32]) {
    match dtype {
        Dtype::F32 => out.copy_from_slice(&bytemuck::cast_slice(words)[..out.len()]),
        Dtype::Bf16 => {
            let halves: &[u16] = bytemuck::cast_slice(words);
            vectorised(
                #[inline(always)]
                || {
                    for (out, &half) in out.iter_mut().zip(halves) {
                        *out = f32::from_bits(u32::from(half) << 16);
                    }
                },
            );
        }
        Dtype::Fp8 => unreachable!("refused when memory is reserved"),
    }
}

/// Encodes `values` into the first words.
///
/// # Panics
/// On a type in which nothing is computed.
pub fn encode(values: &[f32], dtype: Dtype, words: &mut [u64]) {
    match dtype {
        Dtype::F32 => bytemuck::cast_slice_mut(words)[..values.len()].copy_from_slice(values),
        Dtype::Bf16 => {
            let halves: &mut [u16] = bytemuck::cast_slice_mut(words);
            vectorised(
                #[inline(always)]
                || {
                    for (half, &value) in halves.iter_mut().zip(values) {
                        *half = round_bf16(value);
                    }
                },
            );
        }
        Dtype::Fp8 => unreachable!("refused when memory is reserved"),
    }
}

/// The bits of the nearest bf16, ties to even: [`bf16::from_f32`] without its branch, so that loops
/// over it are vectorised.
#[inline(always)]
fn round_bf16(value: f32) -> u16 {
    let bits = value.to_bits();
    let rounded = (bits.wrapping_add(0x7FFF + ((bits >> 16) & 1)) >> 16) as u16;
    let quiet_nan = (bits >> 16) as u16 | 0x40;
    if value.is_nan() {
        quiet_nan
    } else {
        rounded
    }
}

/// The value that an element has once it has been stored.
pub fn rounded(value: f32, dtype: Dtype) -> f32 {
    match dtype {
        Dtype::F32 => value,
        _ => bf16::from_f32(value).to_f32(),
    }
}

/// Cuts `0..total` into runs of at most `block`: starts and lengths.
fn blocks(total: u64, block: usize) -> impl Iterator<Item = (u64, usize)> {
    let starts = (0..total).step_by(block);
    starts.map(move |at| (at, (total - at).min(block as u64) as usize))
}

const fn low_bits(count: u32) -> u64 {
    low_bits128(count) as u64
}

const fn low_bits128(count: u32) -> u128 {
    (1 << count) - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_bytes_at_any_offset_come_back_and_leave_their_neighbours() {
        for offset in 0..9u64 {
            for count in [0usize, 1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 31, 4096, 4099] {
                let memory = Memory::new(5000).unwrap();
                let bytes: Vec<u8> = (0..count).map(|i| (i * 7 + 3) as u8).collect();
                memory.write_bytes(offset, &bytes);
                let mut back = vec![0; 5000];
                memory.read_bytes(0, &mut back);
                let end = offset as usize + count;
                assert_eq!(back[offset as usize..end], bytes, "{count} at {offset}");
                let poison = POISON.to_le_bytes();
                let outside = (0..offset as usize).chain(end..5000);
                assert!(outside.into_iter().all(|i| back[i] == poison[i % 8]));
                let mut read = vec![0; count];
                memory.read_bytes(offset, &mut read);
                assert_eq!(read, bytes);
            }
        }
    }

    #[test]
    fn elements_round_like_bf16_and_poison_is_nan() {
        let memory = Memory::new(4096).unwrap();
        let mut poisoned = [0.0; 8];
        memory.load(2, Dtype::Bf16, &mut poisoned);
        assert!(poisoned.iter().all(|v| v.is_nan()));
        memory.load(4, Dtype::F32, &mut poisoned);
        assert!(poisoned.iter().all(|v| v.is_nan()));
        let values: Vec<f32> = (0..300)
            .map(|i| (i as f32 - 150.0).exp2() * 1.2345)
            .chain([f32::INFINITY, -0.0, f32::MAX, 257.0 / 256.0, 259.0 / 256.0])
            .collect();
        let mut back = vec![0.0; values.len()];
        memory.store(6, Dtype::Bf16, &values);
        memory.load(6, Dtype::Bf16, &mut back);
        for (value, back) in values.iter().zip(&back) {
            assert_eq!(back.to_bits(), bf16::from_f32(*value).to_f32().to_bits());
        }
        memory.store(6, Dtype::Bf16, &[f32::NAN]);
        memory.load(6, Dtype::Bf16, &mut back[..1]);
        assert!(back[0].is_nan());
        memory.store(12, Dtype::F32, &values);
        memory.load(12, Dtype::F32, &mut back);
        assert_eq!(back, values);
    }

    #[test]
    fn copies_reach_from_any_place_to_any_other() {
        let (a, b) = (Memory::new(9000).unwrap(), Memory::new(9000).unwrap());
        let bytes: Vec<u8> = (0..8191).map(|i| (i * 31 % 251) as u8).collect();
        a.write_bytes(5, &bytes);
        b.copy_from(3, &a, 5, 8191);
        let mut back = vec![0; 8191];
        b.read_bytes(3, &mut back);
        assert_eq!(back, bytes);
    }

    #[test]
    fn too_much_memory_is_none() {
        assert!(Memory::new(u64::MAX / 4).is_none());
    }
}
