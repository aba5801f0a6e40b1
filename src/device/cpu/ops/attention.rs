//! Attention in square tiles, forward by online softmax, backward from its log-sum-exp.
//!
//! ```text
//!           keys ──►            one query tile walks over the key tiles that its rows may see:
//! queries  ■ ■ ▚ · ·            ■ all seen, ▚ partly (the diagonal, the window's edge), · none
//!    │     · ■ ■ ▚ ·
//!    ▼     · · ■ ■ ▚            backward: one key tile walks down over the query tiles
//! ```
//! Tiles are of a fixed size that depends on nothing but the sequence, so a head's result is the
//! same in whatever group it is computed.

use super::linear::{matrix, multiply, Shape};
use super::rotary::Heads;
use super::{dot, largest, sum_of, vectorised, Real};

/// Rows and columns of a tile of scores: 16 KiB of f32.
const TILE: usize = 64;

/// Heads, sequences and what a token sees.
#[derive(Clone, Copy, Debug)]
pub struct Attention {
    /// The heads.
    pub heads: Heads,
    /// Sequences.
    pub sequences: usize,
    /// Tokens of a sequence.
    pub sequence: usize,
    /// A token sees itself and the `window - 1` before it.
    pub window: Option<usize>,
}

/// Where a head's q, k, v, o, lse start, and the strides.
#[derive(Clone, Copy)]
struct Head {
    q: usize,
    k: usize,
    v: usize,
    o: usize,
    lse: usize,
}

impl Attention {
    fn head(&self, sequence: usize, head: usize) -> Head {
        let Heads {
            heads,
            kv_heads,
            head_dim,
        } = self.heads;
        let (row, kv) = (sequence * self.sequence, head / (heads / kv_heads));
        let at = |head: usize| row * self.heads.width() + head * head_dim;
        Head {
            q: at(head),
            k: at(heads + kv),
            v: at(heads + kv_heads + kv),
            o: (row * heads + head) * head_dim,
            lse: row * heads + head,
        }
    }

    /// The shape of `rows` rows of one head in `qkv`.
    fn in_qkv(&self, rows: usize) -> Shape {
        Shape::of(rows, self.heads.head_dim, self.heads.width())
    }

    /// The shape of `rows` rows of one head in `o`.
    fn in_o(&self, rows: usize) -> Shape {
        Shape::of(
            rows,
            self.heads.head_dim,
            self.heads.heads * self.heads.head_dim,
        )
    }

    fn score_factor<T: Real>(&self) -> T {
        T::of(1.0 / (self.heads.head_dim as f64).sqrt())
    }

    /// Keys that a query sees: a range.
    #[inline(always)]
    fn seen(&self, query: usize) -> (usize, usize) {
        let first = self.window.map_or(0, |w| (query + 1).saturating_sub(w));
        (first, query + 1)
    }

    /// The tiles as ranges of tokens.
    fn tiles(&self) -> impl DoubleEndedIterator<Item = (usize, usize)> {
        let length = self.sequence;
        let starts = (0..length).step_by(TILE);
        starts.map(move |start| (start, (start + TILE).min(length)))
    }

    /// Whether any query of a tile sees any key of another.
    fn meet(&self, queries: (usize, usize), keys: (usize, usize)) -> bool {
        keys.0 < queries.1 && self.seen(queries.0).0 < keys.1
    }

    /// Scores of a tile, `−∞` where unseen.
    fn scores<T: Real>(
        &self,
        qkv: &[T],
        at: Head,
        queries: (usize, usize),
        keys: (usize, usize),
        scores: &mut [T],
    ) {
        let (rows, columns) = (queries.1 - queries.0, keys.1 - keys.0);
        let width = self.heads.width();
        let q = matrix(&qkv[at.q + queries.0 * width..], self.in_qkv(rows));
        let k = matrix(&qkv[at.k + keys.0 * width..], self.in_qkv(columns));
        let shape = Shape::dense(rows, columns);
        multiply(
            (scores, shape),
            false,
            (q, k.transpose()),
            self.score_factor(),
        );
        for (row, scores) in scores.chunks_exact_mut(columns).take(rows).enumerate() {
            let (first, end) = self.seen(queries.0 + row);
            for score in &mut scores[..first.saturating_sub(keys.0).min(columns)] {
                *score = T::NEG_INFINITY;
            }
            for score in &mut scores[end.saturating_sub(keys.0).min(columns)..] {
                *score = T::NEG_INFINITY;
            }
        }
    }

    /// `o` and `lse` from `qkv`.
    pub fn forward<T: Real>(&self, qkv: &[T], o: &mut [T], lse: &mut [T]) {
        for sequence in 0..self.sequences {
            for head in 0..self.heads.heads {
                let at = self.head(sequence, head);
                for queries in self.tiles() {
                    self.forward_tile(qkv, at, queries, o, lse);
                }
            }
        }
    }

    fn forward_tile<T: Real>(
        &self,
        qkv: &[T],
        at: Head,
        queries: (usize, usize),
        o: &mut [T],
        lse: &mut [T],
    ) {
        let (rows, head_dim) = (queries.1 - queries.0, self.heads.head_dim);
        let mut scores = [T::ZERO; TILE * TILE];
        let mut sums = [T::ZERO; TILE];
        let mut most = [T::NEG_INFINITY; TILE];
        let o_width = self.heads.heads * head_dim;
        let o = &mut o[at.o + queries.0 * o_width..];
        let of_row = |row: usize| row * o_width..row * o_width + head_dim;
        let mut begun = false;
        for keys in self.tiles().filter(|&keys| self.meet(queries, keys)) {
            let columns = keys.1 - keys.0;
            self.scores(qkv, at, queries, keys, &mut scores);
            for row in 0..rows {
                let scores = &mut scores[row * columns..][..columns];
                let (sum, top, decay) = vectorised(
                    #[inline(always)]
                    || absorb(scores, sums[row], most[row]),
                );
                (sums[row], most[row]) = (sum, top);
                if begun {
                    vectorised(
                        #[inline(always)]
                        || {
                            for o in &mut o[of_row(row)] {
                                *o = *o * decay;
                            }
                        },
                    );
                }
            }
            let p = matrix(&scores, Shape::dense(rows, columns));
            let v = matrix(
                &qkv[at.v + keys.0 * self.heads.width()..],
                self.in_qkv(columns),
            );
            multiply((o, self.in_o(rows)), begun, (p, v), T::ONE);
            begun = true;
        }
        for row in 0..rows {
            for o in &mut o[of_row(row)] {
                *o = *o / sums[row];
            }
            lse[at.lse + (queries.0 + row) * self.heads.heads] = most[row] + sums[row].logarithm();
        }
    }

    /// `d_qkv` from everything.
    pub fn backward<T: Real>(&self, (qkv, o, lse, d_o): (&[T], &[T], &[T], &[T]), d_qkv: &mut [T]) {
        d_qkv.fill(T::ZERO);
        let mut delta = vec![T::ZERO; self.sequence];
        for sequence in 0..self.sequences {
            for head in 0..self.heads.heads {
                let at = self.head(sequence, head);
                let (o_width, head_dim) = (self.in_o(1).stride, self.heads.head_dim);
                for (token, delta) in delta.iter_mut().enumerate() {
                    let range = at.o + token * o_width..at.o + token * o_width + head_dim;
                    *delta = vectorised(
                        #[inline(always)]
                        || dot(&o[range.clone()], &d_o[range]),
                    );
                }
                for keys in self.tiles() {
                    for queries in self.tiles().filter(|&queries| self.meet(queries, keys)) {
                        let given = (qkv, lse, d_o, &delta[..]);
                        self.backward_tile(given, at, queries, keys, d_qkv);
                    }
                }
            }
        }
    }

    fn backward_tile<T: Real>(
        &self,
        (qkv, lse, d_o, delta): (&[T], &[T], &[T], &[T]),
        at: Head,
        queries: (usize, usize),
        keys: (usize, usize),
        d_qkv: &mut [T],
    ) {
        let (rows, columns) = (queries.1 - queries.0, keys.1 - keys.0);
        let (width, tile) = (self.heads.width(), Shape::dense(rows, columns));
        let mut p = [T::ZERO; TILE * TILE];
        let mut d_s = [T::ZERO; TILE * TILE];
        self.scores(qkv, at, queries, keys, &mut p);
        for (row, p) in p.chunks_exact_mut(columns).take(rows).enumerate() {
            let lse = lse[at.lse + (queries.0 + row) * self.heads.heads];
            vectorised(
                #[inline(always)]
                || {
                    for p in p.iter_mut() {
                        *p = (*p - lse).exponential();
                    }
                },
            );
        }
        let (q_at, k_at) = (at.q + queries.0 * width, at.k + keys.0 * width);
        let v_at = at.v + keys.0 * width;
        let d_o = matrix(
            &d_o[at.o + queries.0 * self.in_o(1).stride..],
            self.in_o(rows),
        );
        let of_keys = self.in_qkv(columns);
        let probabilities = matrix(&p, tile);
        multiply(
            (&mut d_qkv[v_at..], of_keys),
            true,
            (probabilities.transpose(), d_o),
            T::ONE,
        );
        let v = matrix(&qkv[v_at..], of_keys);
        multiply((&mut d_s, tile), false, (d_o, v.transpose()), T::ONE);
        let row_pairs = d_s.chunks_exact_mut(columns).zip(p.chunks_exact(columns));
        for (row, (d_s, p)) in row_pairs.take(rows).enumerate() {
            let delta = delta[queries.0 + row];
            vectorised(
                #[inline(always)]
                || {
                    for (d_s, &p) in d_s.iter_mut().zip(p) {
                        *d_s = p * (*d_s - delta);
                    }
                },
            );
        }
        let d_s = matrix(&d_s, tile);
        let (q, k) = (
            matrix(&qkv[q_at..], self.in_qkv(rows)),
            matrix(&qkv[k_at..], of_keys),
        );
        let factor = self.score_factor();
        multiply(
            (&mut d_qkv[q_at..], self.in_qkv(rows)),
            true,
            (d_s, k),
            factor,
        );
        multiply(
            (&mut d_qkv[k_at..], of_keys),
            true,
            (d_s.transpose(), q),
            factor,
        );
    }
}

/// Takes a row of scores into a running softmax: turns them into exponentials; gives the new sum,
/// the new maximum and the factor of what was summed before.
#[inline(always)]
fn absorb<T: Real>(scores: &mut [T], sum: T, most: T) -> (T, T, T) {
    let here = largest(scores);
    let top = if most >= here { most } else { here };
    if top == T::NEG_INFINITY {
        // Nothing seen yet: the window begins further right.
        scores.fill(T::ZERO);
        return (sum, top, T::ONE);
    }
    let decay = (most - top).exponential();
    for score in scores.iter_mut() {
        *score = (*score - top).exponential();
    }
    (sum * decay + sum_of(scores, scores, |a, _| a), top, decay)
}
