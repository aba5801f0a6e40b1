//! Says whether a placement is one, slowly and obviously.
//!
//! Looks at every pair of requests and shares nothing with the search but the plain data.

use super::{Placement, Request};
use crate::units::Bytes;
use std::fmt;

/// What is wrong with a placement. Requests are named by their position in the list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// There is not one offset for each request.
    Count {
        /// Requests in the list.
        requests: usize,
        /// Offsets in the placement.
        offsets: usize,
    },
    /// A lifetime ends before it begins.
    Reversed {
        /// The request.
        request: usize,
    },
    /// An offset is no multiple of the alignment.
    Misaligned {
        /// The request.
        request: usize,
        /// Its offset.
        offset: Bytes,
    },
    /// Two requests are alive at once and share bytes.
    Overlap {
        /// One of them.
        first: usize,
        /// The other, later in the list.
        second: usize,
    },
    /// A request ends above the height that the placement claims.
    TooHigh {
        /// The request.
        request: usize,
        /// Where it ends.
        end: u128,
        /// The height claimed.
        height: Bytes,
    },
    /// No request ends as high as the placement claims.
    TooLow {
        /// Where the highest request ends, rounded up to the alignment.
        end: u128,
        /// The height claimed.
        height: Bytes,
    },
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Count { requests, offsets } => {
                write!(f, "{offsets} offsets for {requests} requests")
            }
            Fault::Reversed { request } => {
                write!(f, "the lifetime of request {request} ends before it begins")
            }
            Fault::Misaligned { request, offset } => {
                write!(
                    f,
                    "request {request} lies at byte {}, not aligned",
                    offset.get()
                )
            }
            Fault::Overlap { first, second } => {
                write!(
                    f,
                    "requests {first} and {second} share bytes while both are alive"
                )
            }
            Fault::TooHigh {
                request,
                end,
                height,
            } => {
                write!(
                    f,
                    "request {request} ends at {end}, above the height {}",
                    height.get()
                )
            }
            Fault::TooLow { end, height } => {
                write!(
                    f,
                    "the highest request ends at {end}, below the height {}",
                    height.get()
                )
            }
        }
    }
}
impl std::error::Error for Fault {}

/// Every fault of `placement` as an answer to `requests`; none when it is a valid placement.
///
/// Takes time quadratic in the number of requests.
pub fn validate(requests: &[Request], alignment: Bytes, placement: &Placement) -> Vec<Fault> {
    let offsets = &placement.offsets;
    if offsets.len() != requests.len() {
        return vec![Fault::Count {
            requests: requests.len(),
            offsets: offsets.len(),
        }];
    }
    let mut faults = Vec::new();
    let mut highest = 0;
    let occupies = |request: &Request| !request.size.is_zero() && request.start < request.end;
    let begin = |i: usize| u128::from(offsets[i].get());
    let end = |i: usize| begin(i) + u128::from(requests[i].size.get());
    for (first, request) in requests.iter().enumerate() {
        if request.start > request.end {
            faults.push(Fault::Reversed { request: first });
        }
        if alignment.get() > 0 && offsets[first].get() % alignment.get() != 0 {
            faults.push(Fault::Misaligned {
                request: first,
                offset: offsets[first],
            });
        }
        if !occupies(request) {
            continue;
        }
        if end(first) > u128::from(placement.height.get()) {
            let height = placement.height;
            faults.push(Fault::TooHigh {
                request: first,
                end: end(first),
                height,
            });
        }
        let grain = u128::from(alignment.get().max(1));
        highest = highest.max(end(first).div_ceil(grain) * grain);
        for (second, other) in requests.iter().enumerate().skip(first + 1) {
            let both_alive = request.start < other.end && other.start < request.end;
            let share_bytes = begin(first) < end(second) && begin(second) < end(first);
            if occupies(other) && both_alive && share_bytes {
                faults.push(Fault::Overlap { first, second });
            }
        }
    }
    if u128::from(placement.height.get()) > highest {
        faults.push(Fault::TooLow {
            end: highest,
            height: placement.height,
        });
    }
    faults
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arena::Status;

    fn check(spans: &[(u64, u64, u64)], offsets: &[u64], height: u64, expected: &[Fault]) {
        let requests: Vec<_> = spans
            .iter()
            .map(|&(s, e, size)| Request::new(s, e, Bytes::new(size)))
            .collect();
        let placement = Placement {
            offsets: offsets.iter().map(|&o| Bytes::new(o)).collect(),
            height: Bytes::new(height),
            lower_bound: Bytes::ZERO,
            status: Status::Gap,
        };
        assert_eq!(validate(&requests, Bytes::new(4), &placement), expected);
    }

    #[test]
    fn one_placement_for_every_fault() {
        check(&[(0, 3, 8), (3, 5, 8)], &[0, 0], 8, &[]);
        check(&[(0, 3, 8), (2, 5, 8)], &[0, 8], 16, &[]);
        check(
            &[(0, 3, 8)],
            &[],
            8,
            &[Fault::Count {
                requests: 1,
                offsets: 0,
            }],
        );
        check(
            &[(3, 0, 8)],
            &[0],
            8,
            &[
                Fault::Reversed { request: 0 },
                Fault::TooLow {
                    end: 0,
                    height: Bytes::new(8),
                },
            ],
        );
        let misaligned = Fault::Misaligned {
            request: 0,
            offset: Bytes::new(2),
        };
        check(&[(0, 3, 6)], &[2], 8, &[misaligned]);
        check(
            &[(0, 3, 8), (2, 5, 8)],
            &[0, 4],
            12,
            &[Fault::Overlap {
                first: 0,
                second: 1,
            }],
        );
        let too_high = Fault::TooHigh {
            request: 0,
            end: 8,
            height: Bytes::new(4),
        };
        check(&[(0, 3, 8)], &[0], 4, &[too_high]);
        check(
            &[(0, 3, 8)],
            &[0],
            12,
            &[Fault::TooLow {
                end: 8,
                height: Bytes::new(12),
            }],
        );
        // Of no size or no lifetime: meets nobody.
        check(&[(0, 3, 8), (0, 3, 0), (1, 1, 8)], &[0, 4, 0], 8, &[]);
    }
}
