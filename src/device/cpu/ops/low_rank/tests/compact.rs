//! Identities of CompAct: of gradients made of projected inputs, in f64.

use super::super::super::linear::weight_gradient;
use super::*;

const ROWS: usize = 11;
const INPUTS: usize = 8;
const OUTPUTS: usize = 6;

/// Rows of a batch, as the projection of a matrix with so many rows.
fn batch(rank: usize) -> Sizes {
    sizes(ROWS, INPUTS, rank)
}

/// A matrix and its gradient.
fn matrix_sizes(rank: usize) -> Sizes {
    sizes(OUTPUTS, INPUTS, rank)
}

fn gradient(d_y: &[f64], x: &[f64], inputs: usize) -> Vec<f64> {
    let mut gradient = vec![0.0; OUTPUTS * inputs];
    weight_gradient(d_y, x, &mut gradient, (ROWS, inputs, OUTPUTS));
    gradient
}

#[test]
fn c1_the_small_gradient_is_the_projected_one() {
    let (x, d_y) = (noise(1, ROWS * INPUTS), noise(2, ROWS * OUTPUTS));
    let p = drawn(3, batch(3));
    let small = gradient(&d_y, &project(&x, &p, batch(3)), 3);
    let whole = gradient(&d_y, &x, INPUTS);
    assert!(apart(&small, &project(&whole, &p, matrix_sizes(3))) < 1e-13);
    // A projection keeps the norm in the mean, which clipping relies on.
    assert!(norm(&small) > 0.0);
}

/// Weights after steps on gradients that are made of rows projected to `rank` by `p`.
fn trained(p: &[f64], rank: usize, steps: u64) -> Vec<f64> {
    let mut w = vec![0.0; OUTPUTS * INPUTS];
    let mut moments = [(); 2].map(|()| vec![0.0; OUTPUTS * rank]);
    for t in 1..=steps {
        let (x, d_y) = (noise(90 + t, ROWS * INPUTS), noise(50 + t, ROWS * OUTPUTS));
        let mut g = gradient(&d_y, &project(&x, p, batch(rank)), rank);
        let [m, v] = &mut moments;
        adam(&mut g, m, v, &step(t));
        let update = back(&g, p, matrix_sizes(rank));
        descend(&mut w, &update, 0.01 * 0.25, &step(t));
    }
    w
}

/// The same by GaLore on a fixed basis of the right side, or by Adam where there is none.
fn reference(p: Option<(&[f64], usize)>, steps: u64) -> Vec<f64> {
    let mut w = vec![0.0; OUTPUTS * INPUTS];
    let rank = p.map_or(INPUTS, |p| p.1);
    let mut moments = [(); 2].map(|()| vec![0.0; OUTPUTS * rank]);
    for t in 1..=steps {
        let (x, d_y) = (noise(90 + t, ROWS * INPUTS), noise(50 + t, ROWS * OUTPUTS));
        let whole = gradient(&d_y, &x, INPUTS);
        let mut g = match p {
            Some((p, rank)) => project(&whole, p, matrix_sizes(rank)),
            None => whole,
        };
        let [m, v] = &mut moments;
        adam(&mut g, m, v, &step(t));
        let update = match p {
            Some((p, rank)) => back(&g, p, matrix_sizes(rank)),
            None => g,
        };
        descend(&mut w, &update, 0.01 * 0.25, &step(t));
    }
    w
}

#[test]
fn c3_at_full_rank_without_a_turn_it_is_adam() {
    let found = trained(&identity(INPUTS), INPUTS, 20);
    assert_eq!(found, reference(None, 20));
    // A turn of the axes changes what Adam does.
    let turned = orthonormal(4, sizes(20, INPUTS, INPUTS));
    let other = trained(&turned, INPUTS, 20);
    assert!(apart(&other, &found) > 0.1 * norm(&found));
}

#[test]
fn c4_it_is_galore_of_the_right_side_on_the_same_projection() {
    let p = drawn(7, batch(3));
    let (found, expected) = (trained(&p, 3, 20), reference(Some((&p, 3)), 20));
    assert!(apart(&found, &expected) < 1e-12 * norm(&expected));
}
