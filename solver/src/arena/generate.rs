//! Instances whose optimum is known by construction, for tests and benches.
//!
//! A rectangle of time × capacity is cut into pieces, each piece becomes a request, and the order
//! is shuffled: the pieces can be put back, so the capacity is attainable; and where nothing
//! is taken away every position is full, so nothing lower is.

use super::Request;
use crate::units::Bytes;

/// SplitMix64: the same numbers for the same seed, everywhere.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The generator of this seed.
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }
    /// The next 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
    /// A number in `0..limit`.
    ///
    /// # Panics
    /// When `limit` is zero.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.bits() % limit
    }
    /// Puts `list` into a random order.
    pub fn shuffle<T>(&mut self, list: &mut [T]) {
        for last in (1..list.len()).rev() {
            list.swap(last, self.below(last as u64 + 1) as usize);
        }
    }
}

/// How the rectangle is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// Straight through, across or along, at random: every mixture of long and short lifetimes.
    Guillotine,
    /// Like [`Cut::Guillotine`], but now and then into five around a pinwheel, which no straight
    /// cut can part.
    Pinwheel,
    /// Mostly along time: many long lifetimes, many alive at once.
    Long,
    /// Mostly across time: many short lifetimes, few alive at once.
    Short,
}

impl Cut {
    /// All of them.
    pub const ALL: [Cut; 4] = [Cut::Guillotine, Cut::Pinwheel, Cut::Long, Cut::Short];
}

/// What [`cut_rectangle`] makes.
#[derive(Clone, Copy, Debug)]
pub struct Rectangle {
    /// Positions of time.
    pub time: u64,
    /// Height, attainable by construction.
    pub capacity: u64,
    /// Into how many pieces it is cut.
    pub pieces: usize,
    /// How many of a hundred pieces lose an eighth of their size afterwards; with none, the
    /// capacity is the optimum.
    pub shrunk_percent: u64,
    /// How it is cut.
    pub cut: Cut,
}

/// Requests that fit into `rectangle.capacity`, in random order.
pub fn cut_rectangle(rectangle: &Rectangle, seed: u64) -> Vec<Request> {
    let mut random = Random::new(seed);
    // (start, end, bottom, top)
    let mut pieces = vec![(0, rectangle.time, 0, rectangle.capacity)];
    let mut stuck = 0;
    while pieces.len() < rectangle.pieces && stuck < 1000 {
        // A piece chosen among three by area keeps the sizes mixed but not extreme.
        let area = |p: &(u64, u64, u64, u64)| u128::from(p.1 - p.0) * u128::from(p.3 - p.2);
        let choices = [0; 3].map(|_: i32| random.below(pieces.len() as u64) as usize);
        let chosen = choices
            .into_iter()
            .max_by_key(|&i| area(&pieces[i]))
            .unwrap_or(0);
        match cut_piece(pieces[chosen], rectangle, &mut random) {
            Some(parts) => {
                pieces.swap_remove(chosen);
                pieces.extend(parts);
                stuck = 0;
            }
            None => stuck += 1,
        }
    }
    let mut requests: Vec<_> = pieces
        .into_iter()
        .map(|(start, end, bottom, top)| {
            let shrunk = random.below(100) < rectangle.shrunk_percent;
            let size = top - bottom - if shrunk { (top - bottom) / 8 } else { 0 };
            Request::new(start, end, Bytes::new(size))
        })
        .collect();
    random.shuffle(&mut requests);
    requests
}

type Piece = (u64, u64, u64, u64);

fn cut_piece(piece: Piece, rectangle: &Rectangle, random: &mut Random) -> Option<Vec<Piece>> {
    let (start, end, bottom, top) = piece;
    let along = match rectangle.cut {
        Cut::Guillotine | Cut::Pinwheel => random.below(2) == 0,
        Cut::Long => random.below(4) > 0,
        Cut::Short => random.below(4) == 0,
    };
    let (width, height) = (end - start, top - bottom);
    if rectangle.cut == Cut::Pinwheel && random.below(4) == 0 && width >= 3 && height >= 3 {
        let left = start + 1 + random.below(width - 2);
        let right = left + 1 + random.below(end - left - 1);
        let low = bottom + 1 + random.below(height - 2);
        let high = low + 1 + random.below(top - low - 1);
        return Some(vec![
            (start, right, bottom, low),
            (right, end, bottom, high),
            (left, end, high, top),
            (start, left, low, top),
            (left, right, low, high),
        ]);
    }
    if along && height >= 2 {
        let middle = bottom + 1 + random.below(height - 1);
        Some(vec![
            (start, end, bottom, middle),
            (start, end, middle, top),
        ])
    } else if !along && width >= 2 {
        let middle = start + 1 + random.below(width - 1);
        Some(vec![
            (start, middle, bottom, top),
            (middle, end, bottom, top),
        ])
    } else {
        None
    }
}

/// Requests that keep exactly `live` bytes alive over `time` positions.
///
/// At every position one or two requests end and one or two begin in their place, of other sizes.
/// Nothing says that they lie side by side, so the optimum is often above the live bytes.
pub fn churn(live: u64, time: u64, seed: u64) -> Vec<Request> {
    let mut random = Random::new(seed);
    // (start, size) of what is alive.
    let mut alive = Vec::new();
    let mut requests = Vec::new();
    let mut free = live;
    for position in 0..time {
        let ending = if position == 0 {
            0
        } else {
            1 + random.below(2)
        };
        for _ in 0..ending.min(alive.len() as u64) {
            let (start, size) = alive.swap_remove(random.below(alive.len() as u64) as usize);
            requests.push(Request::new(start, position, Bytes::new(size)));
            free += size;
        }
        let pieces = if position == 0 { 4 } else { 2 };
        for piece in 1..=pieces {
            let size = if piece == pieces {
                free
            } else {
                random.below(free + 1)
            };
            free -= size;
            if size > 0 {
                alive.push((position, size));
            }
        }
    }
    let last = |(start, size)| Request::new(start, time, Bytes::new(size));
    requests.extend(alive.into_iter().map(last));
    random.shuffle(&mut requests);
    requests
}

/// Requests like those of a training step of `blocks` blocks, about `per_block` for each.
///
/// Forward, every block leaves activations behind, some kept until its backward (a stack) and some
/// until their copy out has completed (a queue); backward, copies come in some positions early; and
/// both use transients. Nothing is known of the optimum but the live bytes.
pub fn training_step(blocks: u64, per_block: u64, seed: u64) -> Vec<Request> {
    let mut random = Random::new(seed);
    let mib = |n: u64| Bytes::mib(n);
    let tensors = per_block.div_ceil(4);
    let sizes: Vec<u64> = (0..tensors).map(|_| 1 + random.below(8)).collect();
    let kept: Vec<bool> = (0..tensors).map(|_| random.below(2) == 0).collect();
    let end = 2 * blocks * per_block;
    let mut requests = Vec::new();
    for block in 0..blocks {
        let (forward, backward) = (block * per_block, end - (block + 1) * per_block);
        for (i, (&size, &kept)) in sizes.iter().zip(&kept).enumerate() {
            let i = i as u64;
            let (made, used) = (forward + 4 * i, backward + per_block - 4 * i);
            if kept {
                requests.push(Request::new(made, used, mib(size)));
            } else {
                requests.push(Request::new(made, made + per_block / 2, mib(size)));
                requests.push(Request::new(
                    used - used.min(per_block / 2),
                    used,
                    mib(size),
                ));
            }
            requests.push(Request::new(made, made + 2, mib(2 * size)));
            requests.push(Request::new(used - used.min(3), used, mib(3 * size)));
        }
    }
    requests
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_whole_rectangle_is_full_at_every_position() {
        for cut in Cut::ALL {
            let rectangle = Rectangle {
                time: 40,
                capacity: 1000,
                pieces: 60,
                shrunk_percent: 0,
                cut,
            };
            let requests = cut_rectangle(&rectangle, 7);
            assert_eq!(requests.len() / 5, 12, "{cut:?}");
            for position in 0..40 {
                let alive = requests
                    .iter()
                    .filter(|r| r.start <= position && position < r.end);
                assert_eq!(
                    alive.map(|r| r.size).sum::<Bytes>(),
                    Bytes::new(1000),
                    "{cut:?}"
                );
            }
        }
    }
}
