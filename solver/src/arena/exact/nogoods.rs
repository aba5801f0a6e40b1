//! States known to have no completion, in a table of bounded size.
//!
//! A state is known by a fingerprint of 128 bits; that two of the at most 2⁴⁰ states of a search
//! share one has a chance below 2⁻⁴⁸, and such a state would be taken to fail without a look.

/// Fingerprints of failed states; a newer one replaces an older one in its place.
pub(crate) struct Nogoods {
    table: Vec<(u64, u64)>,
}

const SLOTS: usize = 1 << 20;

impl Nogoods {
    pub fn new() -> Self {
        Self {
            table: vec![(0, 0); SLOTS],
        }
    }
    pub fn contains(&self, key: (u64, u64)) -> bool {
        self.table[key.0 as usize % SLOTS] == key
    }
    pub fn insert(&mut self, key: (u64, u64)) {
        self.table[key.0 as usize % SLOTS] = key;
    }
}
