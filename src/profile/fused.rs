//! What cuDNN's fused attention is asked to serve, and the memory that it takes beside its
//! operands. Plans book by this and the CUDA device lays its memory out by it, so that they agree.

use super::Dtype;

/// The largest head, in elements.
const LARGEST_HEAD: u64 = 128;
/// Elements of 16 bytes of bf16: all rows of a head begin at such an address.
const HEAD_STEP: u64 = 8;
/// What an execution plan asks for in any case, and to which each of its tensors is rounded up.
const PLAN_BYTES: u128 = 256;
const PLAN_STEP: u128 = 128;

/// The sizes of a call: all heads of a tensor, or some of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FusedShape {
    /// Tokens of all sequences.
    pub rows: u64,
    /// Query heads.
    pub heads: u64,
    /// Key and value heads.
    pub kv_heads: u64,
    /// Elements of one head.
    pub head_dim: u64,
}

/// Why cuDNN is not asked, where it is not; `window` is one that hides tokens.
pub fn fused_refuses(dtype: Dtype, head_dim: u64, window: Option<u64>) -> Option<String> {
    if dtype != Dtype::Bf16 {
        Some(format!("cuDNN is not asked for {dtype}"))
    } else if head_dim == 0 || head_dim > LARGEST_HEAD || head_dim % HEAD_STEP != 0 {
        Some(format!(
            "cuDNN is not asked for heads of {head_dim}, but for multiples of {HEAD_STEP} up to \
             {LARGEST_HEAD}"
        ))
    } else {
        window.map(|window| format!("cuDNN is not asked for a window of {window} tokens"))
    }
}

impl FusedShape {
    /// Bytes of the backward's f32 accumulator of dQ, `[sequences, heads, length, head_dim]`.
    pub fn accumulator_bytes(self) -> u128 {
        product(&[4, self.rows, self.heads, self.head_dim])
    }

    /// Bytes of the f32 row sums of dO · O, `[sequences, heads, length]`.
    pub fn row_sum_bytes(self) -> u128 {
        product(&[4, self.rows, self.heads])
    }

    /// What the forward's execution plan asks for.
    pub fn forward_bytes(self) -> u128 {
        PLAN_BYTES
    }

    /// What the backward's execution plan asks for: with fewer key/value heads than heads, dK and
    /// dV of every head in bf16.
    pub fn backward_plan_bytes(self) -> u128 {
        let every = match self.kv_heads < self.heads {
            true => product(&[2, self.rows, self.heads, self.head_dim]),
            false => 0,
        };
        let each = every.div_ceil(PLAN_STEP).saturating_mul(PLAN_STEP);
        each.saturating_mul(2).saturating_add(PLAN_BYTES)
    }

    /// All that the backward takes beside its operands.
    pub fn backward_bytes(self) -> u128 {
        let parts = [
            self.backward_plan_bytes(),
            self.accumulator_bytes(),
            self.row_sum_bytes(),
        ];
        parts.into_iter().fold(0, u128::saturating_add)
    }

    /// The same for so many key/value heads and the query heads that they serve.
    pub fn part(self, kv_heads: u64) -> Self {
        Self {
            heads: kv_heads * (self.heads / self.kv_heads.max(1)),
            kv_heads,
            ..self
        }
    }

    /// How many key/value heads have their backward in so many bytes at once.
    pub fn backward_fits(self, bytes: u64) -> u64 {
        let fits = |&count: &u64| self.part(count).backward_bytes() <= bytes.into();
        (1..=self.kv_heads).rev().find(fits).unwrap_or(0)
    }
}

fn product(factors: &[u64]) -> u128 {
    let factors = factors.iter().map(|&factor| u128::from(factor));
    factors.fold(1, u128::saturating_mul)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// cuDNN 9.19's own answers on an H100 at 4096 tokens, and without a device at the others:
    /// the plan's workspace and, with what the caller gives, all of it (`tests/cudnn` asks again).
    #[test]
    fn bytes_are_those_that_cudnn_asked_for() {
        for (rows, kv_heads, plan, all) in [
            (4096, 32, 256, 67_633_408),
            (4096, 8, 67_109_120, 134_742_272),
            (16_384, 32, 256, 270_532_864),
            (16_384, 8, 268_435_712, 538_968_320),
            (65_536, 32, 256, 1_082_130_688),
            (65_536, 8, 1_073_742_080, 2_155_872_512),
        ] {
            let shape = FusedShape {
                rows,
                heads: 32,
                kv_heads,
                head_dim: 128,
            };
            assert_eq!(shape.forward_bytes(), 256);
            assert_eq!(shape.backward_plan_bytes(), plan, "{shape:?}");
            assert_eq!(shape.backward_bytes(), all, "{shape:?}");
        }
    }

    #[test]
    fn as_many_heads_as_fit() {
        for kv_heads in [8, 4] {
            let shape = FusedShape {
                rows: 40,
                heads: 8,
                kv_heads,
                head_dim: 16,
            };
            let whole = u64::try_from(shape.backward_bytes()).unwrap();
            assert_eq!(shape.backward_fits(whole), kv_heads);
            assert_eq!(shape.backward_fits(whole - 1), kv_heads - 1);
            assert_eq!(shape.backward_fits(u64::MAX), kv_heads);
            for few in 1..=kv_heads {
                let bytes = u64::try_from(shape.part(few).backward_bytes()).unwrap();
                assert_eq!(shape.backward_fits(bytes), few, "{few} of {kv_heads}");
            }
            assert_eq!(shape.backward_fits(0), 0);
        }
    }

    #[test]
    fn what_it_is_asked_for() {
        let refused = |dtype, head_dim, window| fused_refuses(dtype, head_dim, window).is_some();
        for head_dim in [8, 64, 72, 128] {
            assert!(!refused(Dtype::Bf16, head_dim, None), "{head_dim}");
        }
        for head_dim in [0, 4, 65, 136, 256] {
            assert!(refused(Dtype::Bf16, head_dim, None), "{head_dim}");
        }
        assert!(refused(Dtype::F32, 64, None));
        assert!(refused(Dtype::Bf16, 64, Some(4096)));
    }
}
