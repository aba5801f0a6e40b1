//! The chain as bare numbers: what the searches' inner loops read.

use super::{Chain, Failure};
use crate::units::Nanos;

/// A chain in nanoseconds and bytes, with the sums that every search needs.
#[derive(Clone, Debug)]
pub(super) struct Costs {
    pub layers: usize,
    pub budget: u64,
    pub forward: Vec<u64>,
    pub backward: Vec<u64>,
    pub internals: Vec<u64>,
    pub transient: Vec<u64>,
    /// Size of `x_j`, j = 0..=L.
    pub x: Vec<u64>,
    /// `forward_before[i]`: the forwards of layers `0..i` together.
    pub forward_before: Vec<u64>,
}

/// No sum of the chain's numbers may exceed this.
const LARGEST: u64 = 1 << 60;
/// More layers than this are refused: tables are quadratic in them.
pub(super) const MOST_LAYERS: usize = 1024;

impl Costs {
    /// The numbers of `chain`.
    ///
    /// # Errors
    /// A chain without layers or with too many, or numbers whose sums might overflow.
    pub fn of(chain: &Chain) -> Result<Self, Failure> {
        let layers = chain.layers.len();
        if layers == 0 {
            return Err(Failure::Empty);
        }
        if layers > MOST_LAYERS {
            return Err(Failure::TooManyLayers {
                layers,
                limit: MOST_LAYERS,
            });
        }
        let of = |get: fn(&super::Layer) -> u64| chain.layers.iter().map(get).collect::<Vec<_>>();
        let forward = of(|layer| layer.forward.get());
        let backward = of(|layer| layer.backward.get());
        let internals = of(|layer| layer.internal_bytes.get());
        let transient = of(|layer| layer.nograd_tmp_bytes.get());
        let mut x = vec![chain.input_bytes.get()];
        x.extend(of(|layer| layer.out_bytes.get()));
        let sum = |terms: &[u64]| terms.iter().map(|&term| u128::from(term)).sum::<u128>();
        if sum(&internals) + sum(&transient) + 2 * sum(&x) > u128::from(LARGEST) {
            return Err(Failure::TooLarge("sizes"));
        }
        // The worst schedule computes every layer once for every layer above it.
        let repeats = layers as u128 + 1;
        if sum(&forward) * repeats + sum(&backward) > u128::from(LARGEST) {
            return Err(Failure::TooLarge("times"));
        }
        let mut forward_before = vec![0];
        for (i, time) in forward.iter().enumerate() {
            forward_before.push(forward_before[i] + time);
        }
        let budget = chain.budget.get().min(LARGEST);
        Ok(Self {
            layers,
            budget,
            forward,
            backward,
            internals,
            transient,
            x,
            forward_before,
        })
    }

    /// The forwards of layers `from..to` together.
    pub fn forwards(&self, from: usize, to: usize) -> u64 {
        self.forward_before[to] - self.forward_before[from]
    }

    /// What a saved layer holds until its backward: internals and output.
    pub fn saved(&self, i: usize) -> u64 {
        self.internals[i] + self.x[i + 1]
    }

    /// What is live during the backward of `i`, its input aside.
    pub fn backward_needs(&self, i: usize) -> u64 {
        self.saved(i) + self.x[i + 1] + self.x[i]
    }

    /// The time when nothing is computed twice.
    pub fn floor(&self) -> u64 {
        self.forward_before[self.layers] + self.backward.iter().sum::<u64>()
    }

    /// The makespan of a schedule with this much recomputation.
    pub fn floor_with(&self, extra: u64) -> Nanos {
        Nanos::new(self.floor() + extra)
    }
}
