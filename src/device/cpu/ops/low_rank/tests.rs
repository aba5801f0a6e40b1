//! Identities of random projections, GaLore, APOLLO and FLORA, in f64; the names are those of the
//! oracles that methods are held to.

mod compact;

use super::super::factored;
use super::super::philox::{Draws, Purpose};
use super::super::testing::noise;
use super::*;

fn sizes(long: usize, short: usize, rank: usize) -> Sizes {
    Sizes { long, short, rank }
}

fn step(step: u64) -> StepParameters {
    StepParameters {
        step,
        learning_rate: 0.01,
        ..StepParameters::STILL
    }
}

/// A random projection `[r × μ]` of variance `1/r`.
fn drawn(seed: u32, sizes: Sizes) -> Vec<f64> {
    let draws = Draws {
        key: 11,
        epoch: seed,
        purpose: Purpose::Projection,
    };
    let mut matrix = vec![0.0f32; sizes.rank * sizes.short];
    draws.fill(0, (sizes.rank as f32).sqrt().recip(), &mut matrix);
    matrix.into_iter().map(f64::from).collect()
}

fn norm(values: &[f64]) -> f64 {
    values.iter().map(|v| v * v).sum::<f64>().sqrt()
}

fn apart(a: &[f64], b: &[f64]) -> f64 {
    let difference: Vec<f64> = a.iter().zip(b).map(|(a, b)| a - b).collect();
    norm(&difference)
}

/// Orthonormal rows `[r × μ]`.
fn orthonormal(seed: u64, sizes: Sizes) -> Vec<f64> {
    let basis = noise(seed, sizes.rank * sizes.short);
    let whole = noise(seed + 1, sizes.long * sizes.short);
    iterated_basis(&whole, &basis, sizes)
}

fn identity(size: usize) -> Vec<f64> {
    (0..size * size)
        .map(|i| f64::from(u8::from(i / size == i % size)))
        .collect()
}

fn product(a: &[f64], b: &[f64], (m, k, n): (usize, usize, usize)) -> Vec<f64> {
    back(a, b, sizes(m, n, k))
}

#[test]
fn r1_gram_matrices_tend_to_the_identity_from_one_side_only() {
    let (sizes, draws) = (sizes(0, 32, 8), 4000);
    let (mut inner, mut outer) = (vec![0.0; 32 * 32], 0.0);
    for seed in 0..draws {
        let a = drawn(seed, sizes);
        for i in 0..32 {
            for j in 0..32 {
                let sum: f64 = (0..8).map(|k| a[k * 32 + i] * a[k * 32 + j]).sum();
                inner[i * 32 + j] += sum / f64::from(draws);
            }
        }
        outer += a.iter().map(|a| a * a).sum::<f64>() / 8.0 / f64::from(draws);
    }
    // Off the diagonal 1/√(rK), on it √2 of that.
    let deviation = (8.0 * f64::from(draws)).sqrt().recip();
    for (i, (found, one)) in inner.iter().zip(identity(32)).enumerate() {
        assert!((found - one).abs() < 6.0 * 1.42 * deviation, "{i}: {found}");
    }
    // AAᵀ tends to n/r = 4 on its diagonal.
    assert!((outer - 4.0).abs() < 0.05, "{outer}");
}

#[test]
fn r2_r3_r4_the_noise_of_a_projection_is_known() {
    let (sizes, draws) = (sizes(12, 64, 16), 3000);
    let g = noise(1, 12 * 64);
    let whole = norm(&g).powi(2);
    let mut sums = [0.0; 3];
    for seed in 0..draws {
        let a = drawn(seed, sizes);
        let small = project(&g, &a, sizes);
        let again = back(&small, &a, sizes);
        let found = [
            apart(&again, &g).powi(2),
            norm(&again).powi(2),
            norm(&small).powi(2),
        ];
        for (sum, found) in sums.iter_mut().zip(found) {
            *sum += found / whole / f64::from(draws);
        }
    }
    // n + 1 and n + r + 1 for normals; the elements' kurtosis is 1/16 smaller.
    let expected = [(65.0 - 1.0 / 16.0) / 16.0, (81.0 - 1.0 / 16.0) / 16.0, 1.0];
    for (found, expected) in sums.iter().zip(expected) {
        assert!((found / expected - 1.0).abs() < 0.02, "{sums:?}");
    }
}

#[test]
fn r5_orthonormal_rows_lose_less() {
    let (n, r) = (32, 8);
    let sizes = sizes(20, n, r);
    let g = noise(5, 20 * n);
    let draws = 600;
    let mut error = 0.0;
    for seed in 0..draws {
        let p = orthonormal(1000 + 3 * seed, sizes);
        let stretched: Vec<f64> = p.iter().map(|p| p * (n as f64 / r as f64).sqrt()).collect();
        let again = back(&project(&g, &stretched, sizes), &stretched, sizes);
        error += (apart(&again, &g) / norm(&g)).powi(2) / draws as f64;
    }
    assert!(
        (error - (n as f64 / r as f64 - 1.0)).abs() < 0.15,
        "{error}"
    );
    let whole = super::Sizes { rank: n, ..sizes };
    let p = orthonormal(7, whole);
    assert!(apart(&back(&project(&g, &p, whole), &p, whole), &g) < 1e-12);
}

#[test]
fn f1_orthogonal_projections_lose_no_momentum_even_when_renewed() {
    let sizes = sizes(10, 6, 6);
    let (mut full, mut small) = (vec![0.0; 60], vec![0.0; 60]);
    let mut a = orthonormal(1, sizes);
    for t in 0..200 {
        let g = noise(100 + t, 60);
        if t % 20 == 19 {
            let new = orthonormal(500 + t, sizes);
            small = project(&back(&small, &a, sizes), &new, sizes);
            a = new;
        }
        let down = project(&g, &a, sizes);
        for (m, g) in full.iter_mut().zip(&g).chain(small.iter_mut().zip(&down)) {
            *m = 0.9 * *m + 0.1 * g;
        }
    }
    assert!(apart(&back(&small, &a, sizes), &full) < 1e-13);
}

#[test]
fn f2_g10_sums_may_be_projected_before_or_after() {
    let sizes = sizes(9, 7, 3);
    let a = drawn(1, sizes);
    let (mut sum, mut small) = (vec![0.0; 63], vec![0.0; 27]);
    for t in 0..5 {
        let g = noise(t, 63);
        let down = project(&g, &a, sizes);
        for (s, g) in sum.iter_mut().zip(&g).chain(small.iter_mut().zip(&down)) {
            *s += g;
        }
    }
    assert!(apart(&project(&sum, &a, sizes), &small) < 1e-13);
}

#[test]
fn f3_a_transfer_is_unbiased() {
    let sizes = sizes(4, 16, 6);
    let (m, a) = (noise(1, 24), drawn(0, sizes));
    let expected = back(&m, &a, sizes);
    let mut mean = vec![0.0; 64];
    let draws = 20_000;
    for seed in 1..=draws {
        let new = drawn(seed, sizes);
        let moved = back(&project(&expected, &new, sizes), &new, sizes);
        for (mean, moved) in mean.iter_mut().zip(moved) {
            *mean += moved / f64::from(draws);
        }
    }
    let error = apart(&mean, &expected) / norm(&expected);
    assert!(error < 0.03, "{error}");
}

#[test]
fn f5_g9_what_was_projected_has_its_rank() {
    let sizes = sizes(12, 10, 3);
    let mut sum = vec![0.0; 120];
    for cycle in 0..3 {
        let a = drawn(cycle, sizes);
        let update = back(&project(&noise(cycle.into(), 120), &a, sizes), &a, sizes);
        sum.iter_mut().zip(update).for_each(|(s, u)| *s += u);
        let svd = Mat::from_fn(12, 10, |i, j| sum[i * 10 + j])
            .thin_svd()
            .expect("converges");
        let values = svd.S();
        let rank = (0..10).filter(|&i| values[i] > 1e-10).count();
        assert_eq!(rank, 3 * (cycle as usize + 1));
    }
}

/// Weights after steps of GaLore on a fixed basis.
fn galore(p: &[f64], sizes: Sizes, steps: u64) -> Vec<f64> {
    let mut w = vec![0.0; sizes.long * sizes.short];
    let (mut m, mut v) = (vec![0.0; sizes.projected()], vec![0.0; sizes.projected()]);
    for t in 1..=steps {
        let g = noise(40 + t, w.len());
        let mut r = project(&g, p, sizes);
        adam(&mut r, &mut m, &mut v, &step(t));
        descend(&mut w, &back(&r, p, sizes), 0.01, &step(t));
    }
    w
}

#[test]
fn g1_full_rank_descent_and_momentum_are_dense() {
    let sizes = sizes(9, 6, 6);
    let p = singular_basis(&noise(3, 54), sizes).expect("converges");
    let (mut w, mut dense) = (vec![0.0; 54], vec![0.0; 54]);
    let (mut small, mut momentum) = (vec![0.0; 54], vec![0.0; 54]);
    for t in 1..30 {
        let g = noise(t, 54);
        let r = project(&g, &p, sizes);
        for (m, g) in small.iter_mut().zip(&r).chain(momentum.iter_mut().zip(&g)) {
            *m = 0.9 * *m + g;
        }
        descend(&mut w, &back(&small, &p, sizes), 0.1, &step(t));
        descend(&mut dense, &momentum, 0.1, &step(t));
    }
    assert!(apart(&w, &dense) < 1e-13);
}

#[test]
fn g2_g3_full_rank_galore_is_adam_in_its_own_axes_only() {
    let sizes = sizes(8, 5, 5);
    let dense = galore(&identity(5), sizes, 30);
    // A signed permutation.
    let mut turned = vec![0.0; 25];
    for (row, (column, sign)) in [(2, 1.0), (0, -1.0), (4, 1.0), (1, -1.0), (3, -1.0)]
        .into_iter()
        .enumerate()
    {
        turned[row * 5 + column] = sign;
    }
    assert_eq!(galore(&turned, sizes, 30), dense);
    // Any other basis turns Adam's axes.
    let p = singular_basis(&noise(41, 40), sizes).expect("converges");
    let other = galore(&p, sizes, 30);
    assert!(apart(&other, &dense) / norm(&dense) > 0.1);
}

#[test]
fn g4_signs_of_a_basis_do_not_matter_but_turns_within_it_do() {
    let sizes = sizes(8, 6, 3);
    let p = singular_basis(&noise(2, 48), sizes).expect("converges");
    let dense = galore(&p, sizes, 20);
    let flipped: Vec<f64> = (0..18)
        .map(|i| if i / 6 == 1 { -p[i] } else { p[i] })
        .collect();
    assert_eq!(galore(&flipped, sizes, 20), dense);
    let (cos, sin) = (0.6, 0.8);
    let turn = [cos, sin, 0.0, -sin, cos, 0.0, 0.0, 0.0, 1.0];
    let turned = product(&turn, &p, (3, 3, 6));
    assert!(apart(&galore(&turned, sizes, 20), &dense) / norm(&dense) > 0.05);
}

#[test]
fn g5_g6_the_exact_basis_leaves_the_smallest_singular_values() {
    let sizes = sizes(12, 9, 4);
    let g = noise(6, 108);
    let p = singular_basis(&g, sizes).expect("converges");
    let svd = Mat::from_fn(12, 9, |i, j| g[i * 9 + j])
        .thin_svd()
        .expect("converges");
    let values = svd.S();
    let left: f64 = (4..9).map(|i| values[i] * values[i]).sum();
    let error = apart(&back(&project(&g, &p, sizes), &p, sizes), &g).powi(2);
    assert!((error - left).abs() < 1e-12 * left, "{error} {left}");
    let iterated = iterated_basis(&g, &drawn(3, sizes), sizes);
    for basis in [&p, &iterated] {
        // P Pᵀ = I: as r rows.
        let gram = project(basis, basis, super::Sizes { long: 4, ..sizes });
        assert!(apart(&gram, &identity(4)) < 1e-13);
    }
    // Two iterations from a random start leave more than the least, and less than chance.
    let more = apart(&back(&project(&g, &iterated, sizes), &iterated, sizes), &g).powi(2);
    assert!(
        more > left && more < norm(&g).powi(2) * 5.0 / 9.0,
        "{more} {left}"
    );
    // Where the gradient has the basis' rank, nothing is left.
    let thin = back(&noise(8, 48), &noise(9, 36), sizes);
    let exact = iterated_basis(&thin, &drawn(3, sizes), sizes);
    assert!(apart(&back(&project(&thin, &exact, sizes), &exact, sizes), &thin) < 1e-11);
}

#[test]
fn g7_the_first_step_takes_signs() {
    let sizes = sizes(10, 7, 4);
    let p = orthonormal(3, sizes);
    let g = noise(4, 70);
    let mut small = project(&g, &p, sizes);
    let signs: Vec<f64> = small.iter().map(|r| r.signum()).collect();
    let (mut m, mut v) = (vec![0.0; 40], vec![0.0; 40]);
    adam(&mut small, &mut m, &mut v, &step(1));
    let mut w = vec![0.0; 70];
    descend(&mut w, &back(&small, &p, sizes), 0.01 * 0.25, &step(1));
    let length = 0.01 * 0.25 * 40f64.sqrt();
    assert!((norm(&w) - length).abs() < 1e-4 * length);
    let exact: Vec<f64> = back(&signs, &p, sizes)
        .iter()
        .map(|u| -0.0025 * u)
        .collect();
    assert!(apart(&w, &exact) < 1e-4 * length);
}

#[test]
fn g11_apollo_at_full_rank_normalises_rows() {
    let sizes = sizes(9, 5, 5);
    let mut g = noise(2, 45);
    let r = project(&g, &identity(5), sizes);
    let (mut m, mut v) = (vec![0.0; 45], vec![0.0; 45]);
    let mut scaled = r.clone();
    let exact = StepParameters {
        epsilon: 0.0,
        ..step(1)
    };
    adam(&mut scaled, &mut m, &mut v, &exact);
    let before = g.clone();
    scale_as(&mut g, &r, &scaled, sizes, true);
    for (row, old) in g.chunks(5).zip(before.chunks(5)) {
        let factor = 5f64.sqrt() / norm(old);
        for (g, old) in row.iter().zip(old) {
            assert!((g - factor * old).abs() < 1e-6, "{g} {old}");
        }
    }
    // One factor for all is the same for the whole matrix.
    let mut whole = before.clone();
    scale_as(&mut whole, &r, &scaled, sizes, false);
    let factor = 45f64.sqrt() / norm(&before);
    let exact: Vec<f64> = before.iter().map(|g| factor * g).collect();
    assert!(apart(&whole, &exact) < 1e-6);
}

#[test]
fn g12_updates_grow_slowly() {
    let mut before = 0.0;
    for t in 1..50 {
        let mut u = noise(t, 30);
        u.iter_mut().for_each(|u| *u *= t as f64);
        let free = norm(&u);
        let now = limit_growth(&mut u, before);
        assert!((norm(&u) - now).abs() < 1e-12 * now);
        assert!(before == 0.0 || now <= 1.01 * before * (1.0 + 1e-14));
        assert!(now <= free * (1.0 + 1e-14));
        before = now;
    }
    assert!(
        before < norm(&noise(49, 30)) * 49.0 / 10.0,
        "it never limited"
    );
}

#[test]
fn g13_firas_residual_is_what_the_projection_loses() {
    let g = noise(3, 54);
    let left = |rank: usize, scale: f64| {
        let sizes = sizes(9, 6, rank);
        let p = singular_basis(&g, sizes).expect("converges");
        let r = project(&g, &p, sizes);
        let scaled: Vec<f64> = r.iter().map(|r| 3.0 * r).collect();
        let mut left = g.clone();
        residual(&mut left, (&r, &scaled), &p, scale, sizes);
        let inside = project(&left, &p, sizes);
        (norm(&left), norm(&inside), norm(&r))
    };
    assert!(left(6, 1.0).0 < 1e-12);
    // Scaled by 3 as the rows of what was projected; half of it is left inside the basis.
    let (_, inside, r) = left(6, 0.5);
    assert!((inside - 1.5 * r).abs() < 1e-6 * r, "{inside} {r}");
    let (outside, inside, r) = left(4, 1.0);
    let lost = (norm(&g).powi(2) - r.powi(2)).sqrt();
    assert!(
        inside < 1e-12 && (outside - 3.0 * lost).abs() < 1e-6,
        "{outside}"
    );
}

#[test]
fn a_matrix_of_zeros_moves_nothing() {
    let sizes = sizes(6, 4, 2);
    let zeros = vec![0.0; 24];
    for p in [
        singular_basis(&zeros, sizes).expect("converges"),
        iterated_basis(&zeros, &drawn(1, sizes), sizes),
    ] {
        let mut r = project(&zeros, &p, sizes);
        let (mut m, mut v) = (vec![0.0; 12], vec![0.0; 12]);
        adam(&mut r, &mut m, &mut v, &step(1));
        let mut w = vec![1.0; 24];
        descend(&mut w, &back(&r, &p, sizes), 0.1, &step(1));
        assert_eq!(w, [1.0; 24]);
    }
    let mut u = zeros;
    assert_eq!(limit_growth(&mut u, 1.0), 0.0);
    assert!(factored::rms(&u) == 0.0);
}
