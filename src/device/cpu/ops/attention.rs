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
                                *o *= decay;
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
                *o /= sums[row];
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

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;

    fn attention(sequence: usize, window: Option<usize>) -> Attention {
        Attention {
            heads: Heads {
                heads: 4,
                kv_heads: 2,
                head_dim: 3,
            },
            sequences: 2,
            sequence,
            window,
        }
    }

    /// Softmax over everything seen, written down plainly: o and lse.
    fn plain(a: &Attention, qkv: &[f64]) -> (Vec<f64>, Vec<f64>) {
        let Heads {
            heads,
            kv_heads,
            head_dim,
        } = a.heads;
        let (mut o, mut lse) = (Vec::new(), Vec::new());
        let at = |token: usize, head: usize| {
            &qkv[token * a.heads.width() + head * head_dim..][..head_dim]
        };
        for token in 0..a.sequences * a.sequence {
            let (start, i) = (token / a.sequence * a.sequence, token % a.sequence);
            for head in 0..heads {
                let kv = head * kv_heads / heads;
                let first = a.window.map_or(0, |w| (i + 1).saturating_sub(w));
                let seen = start + first..=start + i;
                let score = |j: usize| dot(at(token, head), at(j, heads + kv)) / 3f64.sqrt();
                let sum: f64 = seen.clone().map(|j| score(j).exp()).sum();
                lse.push(sum.ln());
                for e in 0..head_dim {
                    let v = |j: usize| at(j, heads + kv_heads + kv)[e];
                    o.push(seen.clone().map(|j| score(j).exp() / sum * v(j)).sum());
                }
            }
        }
        (o, lse)
    }

    fn run<T: Real>(a: &Attention, qkv: &[T]) -> (Vec<T>, Vec<T>) {
        let tokens = a.sequences * a.sequence;
        let mut o = vec![T::ZERO; tokens * a.heads.heads * a.heads.head_dim];
        let mut lse = vec![T::ZERO; tokens * a.heads.heads];
        a.forward(qkv, &mut o, &mut lse);
        (o, lse)
    }

    fn input(a: &Attention) -> Vec<f64> {
        let noise = noise(7, a.sequences * a.sequence * a.heads.width());
        noise.iter().map(|x| 2.0 * x).collect()
    }

    #[test]
    fn online_softmax_is_softmax() {
        let windows = [None, Some(1), Some(5), Some(64), Some(70), Some(1000)];
        for sequence in [1, 2, 63, 64, 65, 130, 200] {
            for window in windows {
                let a = attention(sequence, window);
                let qkv = input(&a);
                let ((o, lse), exact) = (run(&a, &qkv), plain(&a, &qkv));
                assert_close("o", &o, &exact.0, 1e-13);
                assert_close("lse", &lse, &exact.1, 1e-13);
                let (o, lse) = run(&a, &narrow(&qkv));
                assert_close("f32 o", &widen(&o), &exact.0, 1e-5);
                assert_close("f32 lse", &widen(&lse), &exact.1, 1e-5);
            }
        }
    }

    #[test]
    fn gradients_in_one_tile_and_across_tiles() {
        for (sequence, window) in [(5, None), (6, Some(2)), (67, None), (67, Some(3))] {
            let mut a = attention(sequence, window);
            if sequence > 64 {
                // Few elements: every one of them costs two forward passes.
                a.sequences = 1;
                a.heads.head_dim = 1;
                a.heads.heads = 2;
                a.heads.kv_heads = 1;
            }
            let qkv = input(&a);
            let (o, lse) = run(&a, &qkv);
            let weights = noise(8, o.len());
            let mut d_qkv = vec![f64::NAN; qkv.len()];
            a.backward((&qkv, &o, &lse, &weights), &mut d_qkv);
            let loss = |qkv: &[f64]| weighted(&run(&a, qkv).0, &weights);
            assert_gradient(&format!("{sequence} {window:?}"), &qkv, &d_qkv, loss);
        }
    }

    /// A group's rows: its q, k and v heads.
    fn group_of(a: &Attention, qkv: &[f32], group: usize) -> Vec<f32> {
        let d = a.heads.head_dim;
        let rows = qkv.chunks(a.heads.width());
        rows.flat_map(|row| {
            let q = &row[group * 2 * d..][..2 * d];
            let k = &row[(4 + group) * d..][..d];
            let v = &row[(6 + group) * d..][..d];
            [q, k, v].concat()
        })
        .collect()
    }

    #[test]
    fn head_groups_give_the_bits_of_the_whole() {
        let whole = attention(130, Some(100));
        let mut part = whole;
        (part.heads.heads, part.heads.kv_heads) = (2, 1);
        let qkv = narrow(&input(&whole));
        let (o, lse) = run(&whole, &qkv);
        let d_o = narrow(&noise(9, o.len()));
        let mut d_qkv = vec![0.0; qkv.len()];
        whole.backward((&qkv, &o, &lse, &d_o), &mut d_qkv);
        let columns = |all: &[f32], width: usize, group: usize| -> Vec<f32> {
            let rows = all.chunks(2 * width);
            rows.flat_map(|row| row[group * width..][..width].to_vec())
                .collect()
        };
        for group in 0..2 {
            let of_group = group_of(&whole, &qkv, group);
            let (group_o, group_lse) = run(&part, &of_group);
            assert_eq!(group_o, columns(&o, 6, group));
            assert_eq!(group_lse, columns(&lse, 2, group));
            let group_d_o = columns(&d_o, 6, group);
            let mut group_d = vec![0.0; of_group.len()];
            part.backward((&of_group, &group_o, &group_lse, &group_d_o), &mut group_d);
            assert_eq!(group_d, group_of(&whole, &d_qkv, group));
        }
    }

    #[test]
    fn sequences_do_not_see_each_other() {
        let a = attention(70, None);
        let mut qkv = input(&a);
        let (o, _) = run(&a, &qkv);
        let half = qkv.len() / 2;
        qkv[..half].fill(f64::NAN);
        let (changed, _) = run(&a, &qkv);
        assert_eq!(o[o.len() / 2..], changed[o.len() / 2..]);
    }
}
