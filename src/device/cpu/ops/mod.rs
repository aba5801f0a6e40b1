//! The operators' arithmetic on plain slices: no addresses, no dtypes, no threads.
//!
//! Everything is generic over the float, so that tests compare the very same code with finite
//! differences in f64. Formulas and sources are at [`crate::device::Operator`]; here is only what
//! the order of operations adds. Loops run through [`vectorised`], which compiles them for the
//! widest vectors that the processor has; Rust never fuses or reorders, so their results do not
//! depend on that width.

pub mod activation;
pub mod attention;
pub mod cross_entropy;
pub mod embedding;
pub mod factored;
pub mod linear;
pub mod low_rank;
pub mod norm;
pub mod packed;
pub mod philox;
pub mod quantised;
pub mod real;
pub mod rotary;
pub mod rounding;
pub mod update;

pub use real::Real;

/// Runs a loop compiled for the widest vectors at hand. The loop must be all inlined.
#[inline]
pub fn vectorised<R>(work: impl FnOnce() -> R) -> R {
    pulp::Arch::new().dispatch(work)
}

/// Partial sums of a reduction: as many as the widest vectors can hold twice.
const LANES: usize = 16;

/// `Σ f(a_i, b_i)` in a fixed number of partial sums, which are then added in order.
#[inline(always)]
pub fn sum_of<T: Real>(a: &[T], b: &[T], f: impl Fn(T, T) -> T) -> T {
    let mut sums = [T::ZERO; LANES];
    let (a_rows, b_rows) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let (a_rest, b_rest) = (a_rows.remainder(), b_rows.remainder());
    for (a, b) in a_rows.zip(b_rows) {
        for lane in 0..LANES {
            sums[lane] += f(a[lane], b[lane]);
        }
    }
    for lane in 0..a_rest.len() {
        sums[lane] += f(a_rest[lane], b_rest[lane]);
    }
    sums.into_iter().fold(T::ZERO, |sum, lane| sum + lane)
}

/// `Σ a_i b_i`.
#[inline(always)]
pub fn dot<T: Real>(a: &[T], b: &[T]) -> T {
    sum_of(a, b, |a, b| a * b)
}

/// The largest element, or a NaN if there is one.
#[inline(always)]
pub fn largest<T: Real>(values: &[T]) -> T {
    let mut lanes = [T::NEG_INFINITY; LANES];
    let rows = values.chunks_exact(LANES);
    let rest = rows.remainder();
    let larger = |a: T, b: T| if a >= b { a } else { b };
    for row in rows {
        for lane in 0..LANES {
            lanes[lane] = larger(lanes[lane], row[lane]);
        }
    }
    for lane in 0..rest.len() {
        lanes[lane] = larger(lanes[lane], rest[lane]);
    }
    lanes.into_iter().fold(T::NEG_INFINITY, larger)
}

#[cfg(test)]
pub mod testing;
