//! ebbtide: what fits, how fast, with which plan.
