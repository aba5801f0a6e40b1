//! Memory that any thread may touch at any time: pages, each behind a lock.
//!
//! A schedule that was not checked may let two streams meet on the same bytes. With plain memory
//! that would be undefined; here the second waits until the first has left the page, and finds a
//! wrong number, which is what a test wants to see. It needs no `unsafe`, and whoever has a page
//! has plain memory, over which loops are vectorised.
//!
//! Nobody waits for a page while it holds another, so that nobody waits for ever:
//! [`Memory::exclusive`] gives up instead, and then bytes go through the stack.
//!
//! Regions begin at any byte: elements behind each other need not be aligned.

use std::ops::{Deref, DerefMut, Range};
use std::sync::{PoisonError, RwLock, RwLockWriteGuard, TryLockError};

use half::bf16;

use super::machine;
use super::ops::vectorised;
use crate::profile::Dtype;

/// What unwritten memory is full of: a NaN in every type.
pub const POISON: u8 = 0xFF;

/// Bytes of a page: so many that its lock costs nothing beside them.
const PAGE: usize = 1 << 16;

/// Bytes that go through the stack at a time: they fit the first-level cache.
const BLOCK: usize = 1 << 13;

const _: () = assert!(
    cfg!(target_endian = "little"),
    "buffers hold little-endian numbers"
);

/// Aligned to a cache line, and so for every type.
#[repr(align(64))]
struct Page([u8; PAGE]);

/// A memory of fixed size.
pub struct Memory {
    pages: Vec<RwLock<Page>>,
    bytes: u64,
}

/// Bytes of one page that nobody else reads or writes meanwhile.
pub struct Exclusive<'a> {
    page: RwLockWriteGuard<'a, Page>,
    within: Range<usize>,
}

impl Deref for Exclusive<'_> {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.page.0[self.within.clone()]
    }
}

impl DerefMut for Exclusive<'_> {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.page.0[self.within.clone()]
    }
}

impl Memory {
    /// A memory full of poison; none where it cannot be had.
    pub fn new(bytes: u64) -> Option<Memory> {
        // Linux also grants more than it has, and ends the process that uses it.
        let machine = machine::memory();
        if machine.is_ok_and(|machine| bytes > machine.available.get()) {
            return None;
        }
        let count = usize::try_from(bytes.div_ceil(PAGE as u64)).ok()?;
        let mut pages = Vec::new();
        pages.try_reserve_exact(count).ok()?;
        pages.resize_with(count, || RwLock::new(Page([POISON; PAGE])));
        Some(Memory { pages, bytes })
    }

    /// Its size.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// How many bytes from `offset` on are within one page.
    pub fn run(offset: u64) -> u64 {
        PAGE as u64 - offset % PAGE as u64
    }

    /// Bytes for whoever calls, alone and in place; none where they are not all in one page, or
    /// where somebody has that page now, the caller included.
    ///
    /// # Panics
    /// When they are outside the memory.
    pub fn exclusive(&self, offset: u64, bytes: u64) -> Option<Exclusive<'_>> {
        self.assert_within(offset, bytes);
        if bytes > Memory::run(offset) {
            return None;
        }
        let page = match self.pages.get((offset / PAGE as u64) as usize)?.try_write() {
            Ok(page) => page,
            Err(TryLockError::Poisoned(page)) => page.into_inner(),
            Err(TryLockError::WouldBlock) => return None,
        };
        let first = (offset % PAGE as u64) as usize;
        Some(Exclusive {
            page,
            within: first..first + bytes as usize,
        })
    }

    /// Reads bytes.
    ///
    /// # Panics
    /// When they are outside the memory.
    pub fn read(&self, offset: u64, bytes: &mut [u8]) {
        for (at, page, within) in self.parts(offset, bytes.len() as u64) {
            let page = page.read().unwrap_or_else(PoisonError::into_inner);
            bytes[at..at + within.len()].copy_from_slice(&page.0[within]);
        }
    }

    /// Writes bytes.
    ///
    /// # Panics
    /// When they are outside the memory.
    pub fn write(&self, offset: u64, bytes: &[u8]) {
        for (at, page, within) in self.parts(offset, bytes.len() as u64) {
            let mut page = page.write().unwrap_or_else(PoisonError::into_inner);
            page.0[within.clone()].copy_from_slice(&bytes[at..at + within.len()]);
        }
    }

    /// Fills a range with a byte.
    ///
    /// # Panics
    /// When it is outside the memory.
    pub fn fill(&self, offset: u64, bytes: u64, byte: u8) {
        for (_, page, within) in self.parts(offset, bytes) {
            let mut page = page.write().unwrap_or_else(PoisonError::into_inner);
            page.0[within].fill(byte);
        }
    }

    /// Copies bytes from another memory, or another place of this one.
    ///
    /// # Panics
    /// When they are outside either memory.
    pub fn copy_from(&self, offset: u64, from: &Memory, from_offset: u64, bytes: u64) {
        for (at, page, within) in from.parts(from_offset, bytes) {
            let mut next = offset + at as u64;
            let mut from = within.start;
            while from < within.end {
                let count = (within.end - from).min(Memory::run(next) as usize);
                let source = page.read().unwrap_or_else(PoisonError::into_inner);
                if let Some(mut target) = self.exclusive(next, count as u64) {
                    target.copy_from_slice(&source.0[from..from + count]);
                } else {
                    let mut stack = [0; PAGE];
                    stack[..count].copy_from_slice(&source.0[from..from + count]);
                    drop(source);
                    self.write(next, &stack[..count]);
                }
                from += count;
                next += count as u64;
            }
        }
    }

    /// Decodes `out.len()` elements.
    ///
    /// # Panics
    /// When they are outside the memory.
    pub fn load(&self, offset: u64, dtype: Dtype, out: &mut [f32]) {
        if dtype == Dtype::F32 {
            return self.read(offset, bytemuck::cast_slice_mut(out));
        }
        let size = dtype.bytes();
        let mut block = [0; BLOCK];
        for (at, count) in blocks(out.len() as u64, BLOCK / size as usize) {
            let block = &mut block[..count * size as usize];
            self.read(offset + at * size, block);
            decode(block, &mut out[at as usize..][..count]);
        }
    }

    /// Stores elements, rounded to the type.
    ///
    /// # Panics
    /// When they are outside the memory.
    pub fn store(&self, offset: u64, dtype: Dtype, values: &[f32]) {
        if dtype == Dtype::F32 {
            return self.write(offset, bytemuck::cast_slice(values));
        }
        let size = dtype.bytes();
        let mut block = [0; BLOCK];
        for (at, count) in blocks(values.len() as u64, BLOCK / size as usize) {
            let block = &mut block[..count * size as usize];
            encode(&values[at as usize..][..count], block);
            self.write(offset + at * size, block);
        }
    }

    fn assert_within(&self, offset: u64, bytes: u64) {
        let end = offset.checked_add(bytes);
        assert!(
            end.is_some_and(|end| end <= self.bytes),
            "{bytes} bytes at {offset} of {}",
            self.bytes
        );
    }

    /// A range page by page: where each part begins in the range, its page, its place in there.
    fn parts(
        &self,
        offset: u64,
        bytes: u64,
    ) -> impl Iterator<Item = (usize, &RwLock<Page>, Range<usize>)> {
        self.assert_within(offset, bytes);
        let end = offset + bytes;
        let mut next = offset;
        std::iter::from_fn(move || {
            if next == end {
                return None;
            }
            let at = next;
            next = end.min(at + Memory::run(at));
            let first = (at % PAGE as u64) as usize;
            let within = first..first + (next - at) as usize;
            let page = &self.pages[(at / PAGE as u64) as usize];
            Some(((at - offset) as usize, page, within))
        })
    }
}

/// Decodes bf16.
pub fn decode(bytes: &[u8], out: &mut [f32]) {
    let elements = out.iter_mut().zip(bytes.chunks_exact(2));
    vectorised(
        #[inline(always)]
        || {
            for (out, half) in elements {
                let half = u16::from_le_bytes([half[0], half[1]]);
                *out = f32::from_bits(u32::from(half) << 16);
            }
        },
    );
}

/// Encodes bf16.
pub fn encode(values: &[f32], bytes: &mut [u8]) {
    let elements = bytes.chunks_exact_mut(2).zip(values);
    vectorised(
        #[inline(always)]
        || {
            for (half, &value) in elements {
                half.copy_from_slice(&round_bf16(value).to_le_bytes());
            }
        },
    );
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

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: usize = 2 * PAGE + 5000;

    #[test]
    fn any_bytes_at_any_offset_come_back_and_leave_their_neighbours() {
        for offset in [0, 1, 7, 8, PAGE - 9, PAGE - 1, PAGE, 2 * PAGE - 3] {
            for count in [0, 1, 2, 3, 7, 8, 9, 17, 4099, PAGE, PAGE + 11] {
                let end = (offset + count).min(SIZE);
                let memory = Memory::new(SIZE as u64).unwrap();
                let bytes: Vec<u8> = (offset..end).map(|i| (i * 7 % 251) as u8).collect();
                memory.write(offset as u64, &bytes);
                let mut back = vec![0; SIZE];
                memory.read(0, &mut back);
                assert_eq!(back[offset..end], bytes, "{count} at {offset}");
                assert!(back[..offset].iter().all(|&byte| byte == POISON));
                assert!(back[end..].iter().all(|&byte| byte == POISON));
                memory.fill(offset as u64, (end - offset) as u64, 3);
                memory.read(0, &mut back);
                let filled = |(i, &byte)| {
                    byte == if (offset..end).contains(&i) {
                        3
                    } else {
                        POISON
                    }
                };
                assert!(back.iter().enumerate().all(filled));
            }
        }
    }

    #[test]
    fn a_part_of_a_page_is_had_by_one_at_a_time() {
        let memory = Memory::new(SIZE as u64).unwrap();
        let edge = PAGE as u64;
        let mut part = memory.exclusive(edge - 4, 4).unwrap();
        part.copy_from_slice(&[1, 2, 3, 4]);
        assert!(memory.exclusive(0, 4).is_none(), "its page is taken");
        assert!(memory.exclusive(edge - 3, 4).is_none(), "in two pages");
        assert!(memory.exclusive(edge, 4).is_some(), "another page");
        drop(part);
        let mut back = [0; 4];
        memory.read(edge - 5, &mut back);
        assert_eq!(back, [POISON, 1, 2, 3]);
        assert_eq!(Memory::run(edge - 4), 4);
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
        let size = SIZE as u64;
        let (a, b) = (Memory::new(size).unwrap(), Memory::new(size).unwrap());
        let bytes: Vec<u8> = (0..PAGE + 4001).map(|i| (i * 31 % 251) as u8).collect();
        a.write(5, &bytes);
        b.copy_from(3, &a, 5, bytes.len() as u64);
        let mut back = vec![0; bytes.len()];
        b.read(3, &mut back);
        assert_eq!(back, bytes);
    }

    #[test]
    fn too_much_memory_is_none() {
        assert!(Memory::new(u64::MAX / 4).is_none());
    }
}
