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
                *z *= factor;
            }
        },
    );
    logits[label] -= loss_scale;
    sum.f64().ln() + (most.f64() - chosen.f64())
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;

    #[test]
    fn loss_and_gradient() {
        let logits: Vec<f64> = noise(1, 21).iter().map(|z| 5.0 * z).collect();
        let exact = |z: &[f64]| {
            let sum: f64 = z.iter().map(|z| z.exp()).sum();
            sum.ln() - z[4]
        };
        let mut z = logits.clone();
        let loss = in_place(&mut z, Some(4), 0.25);
        assert!((loss - exact(&logits)).abs() < 1e-14);
        assert_gradient("dz", &logits, &z, |z| 0.25 * exact(z));
        let mut single = narrow(&logits);
        let narrow_loss = in_place(&mut single, Some(4), 0.25);
        assert!((narrow_loss - loss).abs() < 1e-6);
        assert_close("f32 dz", &widen(&single), &z, 1e-6);
        assert_eq!(in_place(&mut z, None, 0.25), 0.0);
        assert!(z.iter().all(|&z| z == 0.0));
    }

    #[test]
    fn large_logits_do_not_overflow() {
        let mut z = [3000.0f32, -3000.0, 2999.0];
        let loss = in_place(&mut z, Some(0), 1.0);
        assert!((loss - 1.0f64.exp().recip().ln_1p()).abs() < 1e-6);
        assert!(in_place(&mut [f32::NAN, 0.0], Some(1), 1.0).is_nan());
    }
}
