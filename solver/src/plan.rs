//! The plan: what becomes of every storable tensor and of every group of model states.

use crate::ids::{Id, Table, TensorId};
use crate::problem::Problem;

/// What becomes of the pieces of one tensor. Pieces `[0, keep)` stay on the device, the next `pack`
/// stay there packed, the next `swap` travel to the host and back, the rest are made again when
/// backward needs them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Fate {
    /// Pieces that stay on the device.
    pub keep: u32,
    /// Pieces that are packed after their last use in forward, stay on the device so, and are
    /// unpacked before their first use in backward. Only of a value that [packs].
    ///
    /// [packs]: crate::problem::Value::packs
    pub pack: u32,
    /// Pieces that travel to host memory and back.
    pub swap: u32,
}

/// Where the weights, gradients and optimizer states of one group live.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Placement {
    /// All on the device, updated there.
    Resident,
    /// Weights on the device; states on the host, which updates them from the gradients sent there.
    HostOptimizer,
    /// Weights fetched from the host for forward and again for backward; states on the host.
    Streamed,
}

/// How long attention tensors live once they have been made again, or fetched to make another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Hold {
    /// The attention output stays from its recomputation until its last use in backward.
    pub output: bool,
    /// So do the projections that attention reads.
    pub projections: bool,
    /// What was fetched to make another stays like what was made; else it is fetched again when it
    /// is due itself.
    pub fetched: bool,
    /// In blocks below this one, so does what was made for a later block's input; else it is made
    /// again for its own block. The first blocks' turn comes last, when memory is free again.
    pub ahead: u32,
}

/// One decision for everything that can be decided.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Plan {
    /// For every storable tensor.
    pub fates: Table<TensorId, Fate>,
    /// For every group of model states, in the problem's order.
    pub placements: Vec<Placement>,
    /// What is held of recomputed attention.
    pub hold: Hold,
    /// Streamed weights stay between two uses that are at most this many steps apart.
    pub weight_gap: u32,
}

impl Fate {
    /// All `pieces` stay.
    pub const fn kept(pieces: u32) -> Self {
        Self {
            keep: pieces,
            ..Self::RECOMPUTED
        }
    }
    /// All `pieces` stay, packed.
    pub const fn packed(pieces: u32) -> Self {
        Self {
            pack: pieces,
            ..Self::RECOMPUTED
        }
    }
    /// All `pieces` travel.
    pub const fn swapped(pieces: u32) -> Self {
        Self {
            swap: pieces,
            ..Self::RECOMPUTED
        }
    }
    /// Every piece is made again.
    pub const RECOMPUTED: Self = Self {
        keep: 0,
        pack: 0,
        swap: 0,
    };

    /// How many are stored in whatever way, and so not made again.
    pub const fn retained(self) -> u32 {
        self.keep + self.pack + self.swap
    }

    /// How many of `pieces` are made again.
    pub const fn recompute(self, pieces: u32) -> u32 {
        pieces - self.retained()
    }
}

impl Hold {
    /// Whatever has been made again stays until its last use.
    pub const ALL: Self = Self {
        output: true,
        projections: true,
        fetched: true,
        ahead: u32::MAX,
    };
    /// The attention output stays for its own block only: made again it takes long, held it takes
    /// much memory.
    pub const OUTPUT: Self = Self {
        output: true,
        ..Self::NONE
    };
    /// Every sensible choice, the one that holds most first.
    pub const CHOICES: [Self; 4] = [
        Self::ALL,
        Self {
            projections: false,
            ..Self::ALL
        },
        Self::OUTPUT,
        Self::NONE,
    ];
    /// Nothing is held from one step to the next.
    pub const NONE: Self = Self {
        output: false,
        projections: false,
        fetched: false,
        ahead: 0,
    };
}

impl Plan {
    /// Long enough that a block's two halves, and the turn from forward to backward in the last
    /// block, use one copy of its weights.
    pub const WEIGHT_GAP: u32 = 2;

    /// Everything stays on the device: the floor, where it fits.
    pub fn keep_all(problem: &Problem) -> Self {
        Self {
            fates: problem
                .tensors
                .values()
                .map(|t| Fate::kept(t.pieces))
                .collect(),
            placements: vec![Placement::Resident; problem.states.len()],
            hold: Hold::ALL,
            weight_gap: Self::WEIGHT_GAP,
        }
    }
    /// The tensors in order with their fates.
    pub fn iter(&self) -> impl Iterator<Item = (TensorId, Fate)> + '_ {
        self.fates
            .values()
            .enumerate()
            .map(|(i, fate)| (TensorId::from_index(i), *fate))
    }
}
