//! Cross entropy with its gradient in place.

use super::{largest, vectorised, Real};

/// Turns a row of logits into their gradient and gives the row's loss; no label: no loss.
pub fn in_place<T: Real>(logits: &mut [T], label: Option<usize>, loss_scale: T) -> f64 {
    let Some(label) = label else {
        logits.fill(T::ZERO);
        return 0.0;
    };
    let chosen = logits[label];
    let (most, sum) = vectorised(
        #[inline(always)]
        || {
            let most = largest(logits);
            for z in logits.iter_mut() {
                *z = (*z - most).exponential();
            }
            (most, super::sum_of(logits, logits, |a, _| a))
        },
    );
    vectorised(
        #[inline(always)]
        || {
            let factor = loss_scale / sum;
            for z in logits.iter_mut() {
                *z = *z * factor;
            }
        },
    );
    logits[label] = logits[label] - loss_scale;
    sum.f64().ln() + (most.f64() - chosen.f64())
}
