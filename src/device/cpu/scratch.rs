//! Vectors that a thread uses again and again, so that operators allocate nothing once warm.

use std::cell::RefCell;
use std::ops::{Deref, DerefMut};

/// A thread's free vectors.
#[derive(Default)]
pub struct Scratch {
    free: RefCell<Vec<Vec<f32>>>,
}

impl Scratch {
    /// A vector of some length with any content.
    pub fn take(&self, elements: usize) -> Loan<'_> {
        let mut free = self.free.borrow_mut();
        // The smallest that is large enough, or else the largest.
        let capacity = |&at: &usize| free[at].capacity();
        let fits = (0..free.len()).filter(|&at| free[at].capacity() >= elements);
        let best = fits.min_by_key(capacity);
        let best = best.or_else(|| (0..free.len()).max_by_key(capacity));
        let mut vector = best.map_or_else(Vec::new, |at| free.swap_remove(at));
        vector.resize(elements, 0.0);
        Loan {
            vector,
            owner: self,
        }
    }

    /// A vector of zeros.
    pub fn zeros(&self, elements: usize) -> Loan<'_> {
        let mut loan = self.take(elements);
        loan.fill(0.0);
        loan
    }
}

/// A vector that returns to its owner.
pub struct Loan<'a> {
    vector: Vec<f32>,
    owner: &'a Scratch,
}

impl Deref for Loan<'_> {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        &self.vector
    }
}

impl DerefMut for Loan<'_> {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.vector
    }
}

impl Drop for Loan<'_> {
    fn drop(&mut self) {
        let vector = std::mem::take(&mut self.vector);
        self.owner.free.borrow_mut().push(vector);
    }
}
