//! MEMO's two levels: one layer's requests are placed once and reused by all layers alike.
//!
//! Level one places the requests of one phase of a layer (its forward, its backward) by themselves.
//! Level two replaces each occurrence of the phase by one pseudo request of that height, and places
//! these together with what belongs to no layer (arXiv 2407.12117, section 4.2). The problem
//! shrinks by the number of requests of a layer, and the addresses repeat from layer to layer;
//! the price is that a phase holds its whole height for its whole time, so the height
//! can exceed that of [`place`].

use super::instance::Instance;
use super::mip::{pairs, place_by_mip, MOST_PAIRS};
use super::{lower_bound, place, place_quick, Options, Placement, Request, Status};
use crate::units::Bytes;

/// A phase that all layers of one kind go through alike.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Phase {
    /// What one occurrence asks for, at positions counted from its beginning.
    pub requests: Vec<Request>,
    /// The position at which each occurrence begins.
    pub begins: Vec<u64>,
}

/// All requests one by one: of each phase each occurrence in turn, then `others`.
pub fn flatten(phases: &[Phase], others: &[Request]) -> Vec<Request> {
    let occurrence = |phase: &Phase, begin: u64| {
        let shift = move |r: &Request| Request::new(begin + r.start, begin + r.end, r.size);
        phase.requests.iter().map(shift).collect::<Vec<_>>()
    };
    let phases = phases
        .iter()
        .flat_map(|p| p.begins.iter().flat_map(|&b| occurrence(p, b)));
    phases.chain(others.iter().copied()).collect()
}

/// Places phase by phase, then the phases; offsets are in the order of [`flatten`].
///
/// [`Status::Optimal`] only when the height is the live bytes of all requests one by one.
///
/// # Panics
/// When the sizes sum to 2⁶³ bytes or more.
pub fn place_in_two_levels(phases: &[Phase], others: &[Request], options: &Options) -> Placement {
    let inner = Options {
        capacity: None,
        ..*options
    };
    let within: Vec<Placement> = phases
        .iter()
        .map(|phase| place_phase(&phase.requests, &inner))
        .collect();
    let mut outer = Vec::new();
    for (phase, within) in phases.iter().zip(&within) {
        let first = phase.requests.iter().map(|r| r.start).min().unwrap_or(0);
        let last = phase.requests.iter().map(|r| r.end).max().unwrap_or(0);
        let pseudo = |begin: &u64| Request::new(begin + first, begin + last, within.height);
        outer.extend(phase.begins.iter().map(pseudo));
    }
    let pseudo_requests = outer.len();
    outer.extend_from_slice(others);
    let around = place(&outer, &inner);
    let mut bases = around.offsets.iter();
    let mut offsets: Vec<Bytes> = Vec::new();
    for (phase, within) in phases.iter().zip(&within) {
        for &base in bases.by_ref().take(phase.begins.len()) {
            let real = phase.requests.iter().zip(&within.offsets);
            offsets.extend(real.map(|(request, &offset)| {
                if request.size.is_zero() || request.start >= request.end {
                    Bytes::ZERO
                } else {
                    base + offset
                }
            }));
        }
    }
    offsets.extend_from_slice(&around.offsets[pseudo_requests..]);
    let lower_bound = lower_bound(&flatten(phases, others), options.alignment);
    let status = match options.capacity {
        _ if around.height == lower_bound => Status::Optimal,
        Some(capacity) if lower_bound > capacity => Status::Infeasible,
        _ => Status::Gap,
    };
    Placement {
        offsets,
        height: around.height,
        lower_bound,
        status,
    }
}

/// By the MIP where it is small enough, else by the exact search.
fn place_phase(requests: &[Request], options: &Options) -> Placement {
    let quick = place_quick(requests, options.alignment, Bytes::ZERO);
    if quick.status == Status::Optimal {
        return quick;
    }
    let instance = Instance::new(requests, options.alignment);
    if pairs(&instance).len() <= MOST_PAIRS {
        place_by_mip(requests, options)
    } else {
        place(requests, options)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::arena::validate;

    /// Requests of a list of mallocs (`Ok`, with the size) and frees (`Err`) of numbered tensors.
    fn trace(events: &[(u32, Option<u64>)]) -> Vec<Request> {
        let free = |id: u32| {
            events
                .iter()
                .rposition(|event| *event == (id, None))
                .unwrap() as u64
        };
        let mallocs = events
            .iter()
            .enumerate()
            .filter_map(|(at, &(id, size))| Some((at, id, size?)));
        mallocs
            .map(|(at, id, size)| Request::new(at as u64, free(id), Bytes::mib(size)))
            .collect()
    }

    /// MEMO, figure 3b: the transient tensors of a layer's forward and backward, in MB.
    pub fn figure_3b() -> (Vec<Request>, Vec<Request>) {
        let (m, f) = (|id, size| (id, Some(size)), |id| (id, None));
        let forward = trace(&[
            m(13, 128),
            m(14, 128),
            f(14),
            f(13),
            m(17, 128),
            m(18, 128),
            m(19, 256),
            f(17),
            f(19),
            f(18),
        ]);
        let backward = trace(&[
            m(20, 512),
            f(20),
            m(21, 1024),
            m(22, 256),
            m(23, 128),
            m(24, 512),
            f(21),
            f(22),
            f(23),
            f(24),
        ]);
        (forward, backward)
    }

    #[test]
    fn figure_3b_of_memo_has_its_optimal_peaks() {
        let (forward, backward) = figure_3b();
        for (requests, peak) in [(forward, 512), (backward, 1920)] {
            let placement = place_by_mip(&requests, &Options::default());
            assert_eq!(validate(&requests, Bytes::new(512), &placement), []);
            assert_eq!(placement.height, Bytes::mib(peak));
            assert_eq!(placement.status, Status::Optimal);
        }
    }

    #[test]
    fn layers_alike_share_their_addresses() {
        let (forward, backward) = figure_3b();
        let phases = [
            Phase {
                requests: forward,
                begins: (0..32).map(|layer| 10 * layer).collect(),
            },
            Phase {
                requests: backward,
                begins: (32..64).map(|layer| 10 * layer).collect(),
            },
        ];
        let classifier = [Request::new(300, 340, Bytes::mib(700))];
        let placement = place_in_two_levels(&phases, &classifier, &Options::default());
        let all = flatten(&phases, &classifier);
        assert_eq!(validate(&all, Bytes::new(512), &placement), []);
        assert_eq!(placement.height, Bytes::mib(1920 + 700));
        assert_eq!(placement.status, Status::Optimal);
        assert_eq!(placement.offsets[..5], placement.offsets[5..10]);
    }
}
