//! The strategies by name.

/// How a plan is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Strategy {
    /// Everything stays: the floor, if it fits.
    Keep,
    /// Every block input stays, the rest is recomputed (Chen et al. 2016, one block a segment).
    Checkpoint,
    /// Block inputs at every √n-th block stay (Chen et al. 2016).
    CheckpointSqrt,
    /// Only what is cheap to make again is recomputed (Korthikanti et al. 2022).
    Selective,
    /// Everything travels to the host and back.
    Swap,
    /// Block inputs travel, the rest is recomputed.
    CheckpointOffload,
    /// ProTrain (arXiv 2406.08334): blocks swapped, checkpointed or untouched, interleaved.
    ProTrain,
    /// MEMO (arXiv 2407.12117): block input and attention output travel, one fraction for the rest.
    Memo,
    /// Most time saved for its bytes first.
    Greedy,
    /// The linear relaxation, rounded; never slower than any other.
    Ilp,
    /// Every plan of a tiny problem.
    Exhaustive,
}

impl Strategy {
    /// All strategies, simple ones first.
    pub const ALL: [Strategy; 11] = [
        Strategy::Keep,
        Strategy::Checkpoint,
        Strategy::CheckpointSqrt,
        Strategy::Selective,
        Strategy::Swap,
        Strategy::CheckpointOffload,
        Strategy::ProTrain,
        Strategy::Memo,
        Strategy::Greedy,
        Strategy::Ilp,
        Strategy::Exhaustive,
    ];
    /// The strategies that [`Strategy::Ilp`] is never slower than, likely winners first.
    pub(super) const SEEDS: [Strategy; 9] = [
        Strategy::Keep,
        Strategy::Greedy,
        Strategy::Memo,
        Strategy::ProTrain,
        Strategy::CheckpointOffload,
        Strategy::Swap,
        Strategy::Selective,
        Strategy::Checkpoint,
        Strategy::CheckpointSqrt,
    ];

    /// The name in flags and files.
    pub const fn name(self) -> &'static str {
        match self {
            Strategy::Keep => "keep",
            Strategy::Checkpoint => "checkpoint",
            Strategy::CheckpointSqrt => "checkpoint-sqrt",
            Strategy::Selective => "selective",
            Strategy::Swap => "swap",
            Strategy::CheckpointOffload => "checkpoint-offload",
            Strategy::ProTrain => "protrain",
            Strategy::Memo => "memo",
            Strategy::Greedy => "greedy",
            Strategy::Ilp => "ilp",
            Strategy::Exhaustive => "exhaustive",
        }
    }
    /// What it does, in a line.
    pub const fn summary(self) -> &'static str {
        match self {
            Strategy::Keep => "nothing saved: the floor, if it fits",
            Strategy::Checkpoint => "every block input kept, the rest recomputed",
            Strategy::CheckpointSqrt => "every sqrt(n)-th block input kept (Chen et al. 2016)",
            Strategy::Selective => "only the cheap tensors recomputed (Korthikanti et al. 2022)",
            Strategy::Swap => "everything swapped to host memory",
            Strategy::CheckpointOffload => "block inputs swapped, the rest recomputed",
            Strategy::ProTrain => "ProTrain's interleaved blocks and chunks, its own search",
            Strategy::Memo => "MEMO's token fraction, two rounding buffers",
            Strategy::Greedy => "best time saved per byte and link second first",
            Strategy::Ilp => "linear relaxation with a proved bound, seeded with all the others",
            Strategy::Exhaustive => "every plan of a tiny problem: the tests' oracle",
        }
    }
}
