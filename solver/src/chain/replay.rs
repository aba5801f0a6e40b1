//! The referee: time and memory of a sequence, counted from scratch.
//!
//! It follows the definition of the operations word by word and knows nothing of the searches. An
//! operation that needs something absent, makes something already there, or takes more than the
//! budget is refused with its position.

use super::{Chain, Op};
use crate::units::{Bytes, Nanos};
use std::fmt;

/// What a legal sequence takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Replayed {
    /// Sum of the operations' times.
    pub makespan: Nanos,
    /// The most memory while any operation runs.
    pub peak: Bytes,
}

/// An operation that cannot be executed where it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IllegalOp {
    /// Its position in the sequence; the length when the sequence ends too early.
    pub position: usize,
    /// Why.
    pub reason: Reason,
}

/// Why an operation cannot be executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// There is no such layer or value.
    OutOfRange,
    /// It needs `x_j`, which is not live.
    MissingValue(usize),
    /// It makes `x_j`, which is live already.
    ValueLive(usize),
    /// It needs the internals of this layer, which are not saved.
    MissingInternals(usize),
    /// It saves the internals of this layer a second time.
    InternalsLive(usize),
    /// It needs the gradient of `x_j`, which is not there.
    MissingGradient(usize),
    /// The loss when its gradient has been made already.
    LossAgain,
    /// It takes more memory than the budget.
    OverBudget {
        /// What it takes.
        needed: Bytes,
    },
    /// The sequence ends before the gradient of `x_0` is made.
    Unfinished,
}

impl fmt::Display for IllegalOp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "operation {}: ", self.position)?;
        match self.reason {
            Reason::OutOfRange => write!(f, "no such layer or value"),
            Reason::MissingValue(j) => write!(f, "x{j} is not live"),
            Reason::ValueLive(j) => write!(f, "x{j} is live already"),
            Reason::MissingInternals(i) => write!(f, "the internals of layer {i} are not saved"),
            Reason::InternalsLive(i) => write!(f, "the internals of layer {i} are saved already"),
            Reason::MissingGradient(j) => write!(f, "there is no gradient of x{j}"),
            Reason::LossAgain => write!(f, "the gradient of the loss has been made already"),
            Reason::OverBudget { needed } => write!(f, "needs {needed}, more than the budget"),
            Reason::Unfinished => write!(f, "the gradient of x0 is never made"),
        }
    }
}
impl std::error::Error for IllegalOp {}

/// What is live between two operations.
struct Live<'a> {
    chain: &'a Chain,
    values: Vec<bool>,
    internals: Vec<bool>,
    /// The one `j` whose gradient is live.
    gradient: Option<usize>,
    bytes: Bytes,
}

/// Time and peak of `sequence`, or the first operation that is illegal in `chain`.
///
/// # Errors
/// An operation that lacks its operands, makes what exists, exceeds the budget, or is missing.
pub fn replay(chain: &Chain, sequence: &[Op]) -> Result<Replayed, IllegalOp> {
    let layers = chain.layers.len();
    let mut live = Live {
        chain,
        values: vec![false; layers + 1],
        internals: vec![false; layers],
        gradient: None,
        bytes: chain.input_bytes,
    };
    live.values[0] = true;
    let mut total = Replayed {
        makespan: Nanos::ZERO,
        peak: chain.input_bytes,
    };
    for (position, &op) in sequence.iter().enumerate() {
        let illegal = |reason| IllegalOp { position, reason };
        let (time, needed) = live.execute(op).map_err(illegal)?;
        if needed > chain.budget {
            return Err(illegal(Reason::OverBudget { needed }));
        }
        total.makespan += time;
        total.peak = total.peak.max(needed);
    }
    match live.gradient {
        Some(0) => Ok(total),
        _ => Err(IllegalOp {
            position: sequence.len(),
            reason: Reason::Unfinished,
        }),
    }
}

impl Live<'_> {
    /// Executes one operation: its time and the memory while it runs.
    fn execute(&mut self, op: Op) -> Result<(Nanos, Bytes), Reason> {
        match op {
            Op::Forward(i) => {
                let (time, made) = self.forward(i)?;
                let transient = self.chain.layers[i].nograd_tmp_bytes;
                self.bytes += made;
                Ok((time, self.bytes + transient))
            }
            Op::ForwardSave(i) => {
                let (time, made) = self.forward(i)?;
                if std::mem::replace(&mut self.internals[i], true) {
                    return Err(Reason::InternalsLive(i));
                }
                self.bytes += made + self.chain.layers[i].internal_bytes;
                Ok((time, self.bytes))
            }
            Op::Drop(j) => {
                let held = self.bytes;
                self.free_value(j)?;
                Ok((Nanos::ZERO, held))
            }
            Op::Loss => {
                let last = self.internals.len();
                self.need_value(last)?;
                if self.gradient.is_some() {
                    return Err(Reason::LossAgain);
                }
                self.gradient = Some(last);
                self.bytes += self.chain.x_bytes(last);
                Ok((Nanos::ZERO, self.bytes))
            }
            Op::Backward(i) => self.backward(i),
        }
    }

    /// The part that both forwards share: time, and size of the output.
    fn forward(&mut self, i: usize) -> Result<(Nanos, Bytes), Reason> {
        let layer = self.chain.layers.get(i).ok_or(Reason::OutOfRange)?;
        self.need_value(i)?;
        if std::mem::replace(&mut self.values[i + 1], true) {
            return Err(Reason::ValueLive(i + 1));
        }
        Ok((layer.forward, layer.out_bytes))
    }

    fn backward(&mut self, i: usize) -> Result<(Nanos, Bytes), Reason> {
        let layer = self.chain.layers.get(i).ok_or(Reason::OutOfRange)?;
        self.need_value(i)?;
        self.need_value(i + 1)?;
        if self.gradient != Some(i + 1) {
            return Err(Reason::MissingGradient(i + 1));
        }
        if !std::mem::replace(&mut self.internals[i], false) {
            return Err(Reason::MissingInternals(i));
        }
        self.bytes += self.chain.x_bytes(i);
        let needed = self.bytes;
        self.gradient = Some(i);
        self.bytes = self.bytes - layer.internal_bytes - layer.out_bytes;
        self.free_value(i + 1)?;
        Ok((layer.backward, needed))
    }

    fn need_value(&self, j: usize) -> Result<(), Reason> {
        match self.values.get(j) {
            None => Err(Reason::OutOfRange),
            Some(false) => Err(Reason::MissingValue(j)),
            Some(true) => Ok(()),
        }
    }

    fn free_value(&mut self, j: usize) -> Result<(), Reason> {
        self.need_value(j)?;
        self.values[j] = false;
        self.bytes -= self.chain.x_bytes(j);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chain::Layer;

    /// Two layers with out = 1, internals = 10, transient = 3; x0 = 2; forward 1 ns, backward 2 ns.
    fn chain() -> Chain {
        let layer = Layer {
            forward: Nanos::new(1),
            backward: Nanos::new(2),
            internal_bytes: Bytes::new(10),
            out_bytes: Bytes::new(1),
            nograd_tmp_bytes: Bytes::new(3),
        };
        Chain {
            input_bytes: Bytes::new(2),
            layers: vec![layer; 2],
            budget: Bytes::new(100),
        }
    }

    #[test]
    fn counts_what_is_live_plus_what_is_made() {
        use Op::{Backward, Drop, Forward, ForwardSave, Loss};
        // x0 2 | +int0 10 +x1 1 = 13 | +int1 10 +x2 1 = 24 | +g2 1 = 25 | +g1 1 = 26 | …
        let keep = [
            ForwardSave(0),
            ForwardSave(1),
            Loss,
            Backward(1),
            Backward(0),
        ];
        let replayed = replay(&chain(), &keep);
        assert_eq!(
            replayed,
            Ok(Replayed {
                makespan: Nanos::new(6),
                peak: Bytes::new(26)
            })
        );

        // x0 2 | x1 1 +tmp 3 = 6 | +int1 10 +x2 1 = 14 | +g2 = 15 | +g1 = 16, frees 12 = 4
        // | drop x1 = 3 | +int0 10 +x1 1 = 14 | +g0 2 = 16
        let again = [
            Forward(0),
            ForwardSave(1),
            Loss,
            Backward(1),
            Drop(1),
            ForwardSave(0),
            Backward(0),
        ];
        let replayed = replay(&chain(), &again);
        assert_eq!(
            replayed,
            Ok(Replayed {
                makespan: Nanos::new(7),
                peak: Bytes::new(16)
            })
        );
    }

    #[test]
    fn refuses_what_cannot_be_executed() {
        use Op::{Backward, Drop, Forward, ForwardSave, Loss};
        let refused = |ops: &[Op]| replay(&chain(), ops).expect_err("illegal");
        let at = |position, reason| IllegalOp { position, reason };
        assert_eq!(refused(&[Forward(1)]), at(0, Reason::MissingValue(1)));
        assert_eq!(refused(&[Forward(2)]), at(0, Reason::OutOfRange));
        assert_eq!(refused(&[Drop(3)]), at(0, Reason::OutOfRange));
        assert_eq!(
            refused(&[Forward(0), Forward(0)]),
            at(1, Reason::ValueLive(1))
        );
        assert_eq!(
            refused(&[ForwardSave(0), Drop(1), ForwardSave(0)]),
            at(2, Reason::InternalsLive(0))
        );
        assert_eq!(refused(&[Loss]), at(0, Reason::MissingValue(2)));
        let forwards = [Forward(0), ForwardSave(1), Loss];
        assert_eq!(refused(&forwards), at(3, Reason::Unfinished));
        let then = |op: &[Op]| refused(&[&forwards[..], op].concat());
        assert_eq!(then(&[Loss]), at(3, Reason::LossAgain));
        assert_eq!(then(&[Backward(0)]), at(3, Reason::MissingGradient(1)));
        assert_eq!(
            then(&[Backward(1), Backward(0)]),
            at(4, Reason::MissingInternals(0))
        );
        assert_eq!(
            then(&[Drop(2), Backward(1)]),
            at(4, Reason::MissingValue(2))
        );
        let tight = Chain {
            budget: Bytes::new(13),
            ..chain()
        };
        assert_eq!(
            replay(&tight, &[ForwardSave(0), ForwardSave(1)]),
            Err(at(
                1,
                Reason::OverBudget {
                    needed: Bytes::new(24)
                }
            ))
        );
    }
}
