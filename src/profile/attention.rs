//! Attention's samples by family: one curve over the length for each direction and head layout.

use super::cost::{Attention, AttentionDirection, Extrapolation};
use super::{Curve, Rate};
use ebbtide_solver::units::Bytes;

/// How long attention takes.
#[derive(Clone, Debug, PartialEq)]
pub enum AttentionRate {
    /// FLOPs a second, whatever the shape.
    Constant(Rate),
    /// By length, for each measured layout of heads; both directions are there.
    Sampled(Vec<Family>),
}

/// One direction and one layout of heads.
#[derive(Clone, Debug, PartialEq)]
pub struct Family {
    /// Which pass.
    pub direction: AttentionDirection,
    /// Query heads.
    pub heads: u64,
    /// Key and value heads.
    pub kv_heads: u64,
    /// Elements of one head.
    pub head_dim: u64,
    /// Nanoseconds over the tokens of one sequence, less the launch.
    pub curve: Curve,
    /// The largest workspace for each element of the query, if any sample says.
    pub workspace: Option<PerElement>,
}

/// A ratio: bytes for every so many elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PerElement {
    /// The bytes.
    pub bytes: Bytes,
    /// The elements.
    pub elements: u128,
}

impl Family {
    /// Query heads for each key/value head.
    fn group(&self) -> f64 {
        self.heads as f64 / self.kv_heads as f64
    }
}

impl AttentionRate {
    /// The family of this direction that is nearest in head size and heads per key/value head (in
    /// log space), then in heads; nothing for a constant rate.
    pub(super) fn nearest(&self, attention: &Attention) -> Option<&Family> {
        let Self::Sampled(families) = self else {
            return None;
        };
        let far = |a: f64, b: f64| (a / b).ln().abs();
        let group = attention.heads as f64 / attention.kv_heads.max(1) as f64;
        let distance = |family: &Family| {
            let size = far(attention.head_dim as f64, family.head_dim as f64);
            let heads = far(attention.heads as f64, family.heads as f64);
            (size + far(group, family.group()), heads)
        };
        families
            .iter()
            .filter(|family| family.direction == attention.direction)
            .min_by(|a, b| {
                let ((a, a_heads), (b, b_heads)) = (distance(a), distance(b));
                a.total_cmp(&b).then(a_heads.total_cmp(&b_heads))
            })
    }

    /// What of `attention`, served by `family`, was not measured.
    pub(super) fn beyond(&self, attention: &Attention, family: &Family) -> Option<Extrapolation> {
        let Self::Sampled(families) = self else {
            return None;
        };
        let range = |of: fn(&Family) -> u64| {
            let values = families.iter().map(of);
            (values.clone().min().unwrap_or(0), values.max().unwrap_or(0))
        };
        let beyond =
            |quantity, value, (least, most)| Extrapolation::beyond(quantity, value, least, most);
        let group = attention.heads.div_ceil(attention.kv_heads.max(1));
        let groups = range(|family| family.heads.div_ceil(family.kv_heads));
        let sizes = range(|family| family.head_dim);
        family
            .curve
            .beyond("attention tokens", attention.tokens)
            .or_else(|| beyond("attention head_dim", attention.head_dim, sizes))
            .or_else(|| beyond("attention heads per key/value head", group, groups))
    }
}
