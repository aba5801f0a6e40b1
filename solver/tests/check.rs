//! The referee accepts a good schedule, and refuses it after each single change.
mod support;

use ebbtide_solver::check::{check, Fault};
use ebbtide_solver::ids::Table;
use ebbtide_solver::schedule::{Access, Action, Buffer, Operand, Schedule, ScheduledOp, Stream};
use ebbtide_solver::units::{Bytes, Span};
use support::*;

#[test]
fn the_tiny_schedule_is_accepted() {
    let violations = check(&tiny());
    let lines: Vec<String> = violations.iter().map(ToString::to_string).collect();
    assert!(violations.is_empty(), "{}", lines.join("\n"));
}

#[test]
fn every_fault_has_a_change_that_brings_it_about() {
    let mut names: Vec<&str> = faults::CHANGES.iter().map(|(name, _)| *name).collect();
    let mut known = Fault::NAMES.to_vec();
    names.sort_unstable();
    known.sort_unstable();
    assert_eq!(names, known);
}

#[test]
fn a_change_is_refused_by_its_name() {
    for (name, change) in faults::CHANGES {
        let mut schedule = tiny();
        change(&mut schedule);
        let violations = check(&schedule);
        let lines: Vec<String> = violations.iter().map(ToString::to_string).collect();
        let named = violations.iter().any(|v| v.fault.name() == *name);
        assert!(named, "{name} is not among:\n{}", lines.join("\n"));
    }
}

/// Of gradients and weights too, which no rows divide.
#[test]
fn every_copy_covers_the_rows_of_its_buffers() {
    let good = tiny();
    let mut tried = 0;
    for stream in [Stream::D2h, Stream::H2d] {
        for index in 0..good.streams[stream as usize].len() {
            let mut schedule = good.clone();
            let copy = &mut schedule.streams[stream as usize][index];
            if copy.action != Action::Copy {
                continue;
            }
            copy.rows = Span::new(copy.rows.start + 1, copy.rows.end);
            let violations = check(&schedule);
            let named = violations.iter().any(|v| v.fault.name() == "copy-mismatch");
            assert!(named, "{stream:?}[{index}] is accepted");
            tried += 1;
        }
    }
    assert!(tried > 2, "{tried} copies");
}

/// What a person reads: the fault, the place, the buffer and the other side.
#[test]
fn a_violation_is_one_line() {
    let mut schedule = tiny();
    schedule.streams[Stream::H2d as usize][0].waits.remove(0);
    let lines: Vec<String> = check(&schedule).iter().map(ToString::to_string).collect();
    let expected = "fetch-before-offload: step 1 h2d[0], buffer 17: fetched before it was \
                    offloaded (with step 1 d2h[0])";
    assert_eq!(lines[0], expected);
}

/// The sum `y` of the first micro-batch is made again, rotation and all, and looked at.
fn with_y_made_again(parts: &[(usize, usize)]) -> Schedule {
    let mut s = tiny();
    let y = s.buffers.ids().nth(14).unwrap();
    let copy = Buffer {
        offset: Bytes::new(8704),
        ..s.buffers[y].clone()
    };
    let again = s.buffers.push(copy);
    s.arena_bytes = Bytes::new(9728);
    s.budget.device = Bytes::new(9728);
    for buffer in s.buffers.values_mut() {
        buffer.lifetime.end = 99;
    }
    let look = ScheduledOp {
        required: false,
        writes: Vec::new(),
        ..s.ops[op(LOSS)].clone()
    };
    let look = s.ops.push(look);
    let after = runs(&s, LOSS)[1] + 1;
    let mut reader = s.streams[0][after - 2].clone();
    reader.action = Action::Run(look);
    reader.operands = vec![Operand {
        buffer: again,
        access: Access::Read,
    }];
    let remake = parts.iter().map(|&(index, which)| {
        let mut instruction = s.streams[0][runs(&s, index)[which]].clone();
        instruction.action = Action::Recompute(op(index));
        instruction.operands.last_mut().unwrap().buffer = again;
        instruction
    });
    let remake: Vec<_> = remake.chain([reader]).collect();
    s.streams[0].splice(after..after, remake);
    s
}

#[test]
fn a_recomputation_makes_the_version_that_was_read_before() {
    let names = |parts| -> Vec<_> {
        check(&with_y_made_again(parts))
            .iter()
            .map(|v| v.fault.name())
            .collect()
    };
    assert!(names(&[(OUT, 0), (OUT, 1), (ROTATE, 0)]).is_empty());
    // Without the second head group, without the rotation, with two rotations: no race, yet wrong.
    assert_eq!(names(&[(OUT, 0), (ROTATE, 0)]), ["wrong-version"]);
    assert_eq!(names(&[(OUT, 0), (OUT, 1)]), ["wrong-version"]);
    assert_eq!(
        names(&[(OUT, 0), (OUT, 1), (ROTATE, 0), (ROTATE, 0)]),
        ["wrong-version"]
    );
}

/// A rotated sum is another than a sum of which one part is not rotated.
#[test]
fn contributions_do_not_commute_with_changes_in_place() {
    let mut schedule = tiny();
    let (out, rotate) = (runs(&schedule, OUT)[1], runs(&schedule, ROTATE)[0]);
    let late = schedule.streams[0].remove(out);
    schedule.streams[0].insert(rotate, late);
    let names: Vec<_> = check(&schedule).iter().map(|v| v.fault.name()).collect();
    assert_eq!(names, ["wrong-version"]);
}

/// Whatever a file can hold, the answer is a list and no panic.
#[test]
fn garbage_is_refused_without_a_panic() {
    let huge: &[fn(&mut Schedule)] = &[
        |s| s.tokens = u64::MAX,
        |s| s.tokens = 0,
        |s| s.groups = u64::MAX,
        |s| s.groups = 0,
        |s| s.micro_batches = u32::MAX,
        |s| s.micro_batches = 0,
        |s| s.events = u32::MAX,
        |s| {
            s.buffers
                .values_mut()
                .for_each(|b| b.rows = Span::new(u64::MAX, 3))
        },
        |s| {
            s.buffers
                .values_mut()
                .for_each(|b| b.groups = Span::new(7, u64::MAX))
        },
        |s| s.buffers.values_mut().for_each(|b| b.offset = Bytes::MAX),
        |s| s.buffers.values_mut().for_each(|b| b.bytes = Bytes::MAX),
        |s| s.values.values_mut().for_each(|v| v.row_bytes = u64::MAX),
        |s| {
            s.values
                .values_mut()
                .for_each(|v| v.fixed_bytes = Bytes::MAX)
        },
        |s| {
            s.streams
                .iter_mut()
                .flatten()
                .for_each(|i| i.rows = Span::new(u64::MAX, 0))
        },
        |s| {
            s.streams
                .iter_mut()
                .flatten()
                .for_each(|i| i.rows = Span::new(0, u64::MAX))
        },
        |s| {
            s.streams
                .iter_mut()
                .flatten()
                .for_each(|i| i.groups = Span::new(0, u64::MAX))
        },
        |s| {
            s.streams
                .iter_mut()
                .flatten()
                .for_each(|i| i.groups = Span::new(9, 1))
        },
        |s| {
            s.streams
                .iter_mut()
                .flatten()
                .for_each(|i| i.action = Action::Copy)
        },
        |s| {
            s.streams
                .iter_mut()
                .flatten()
                .for_each(|i| i.micro_batch = u32::MAX)
        },
        |s| s.streams.reverse(),
        |s| s.ops = Table::new(),
        |s| s.values = Table::new(),
        |s| s.buffers = Table::new(),
        |s| s.streams = Default::default(),
        |s| s.passes = 0,
        |s| s.passes = u32::MAX,
    ];
    for (number, spoil) in huge.iter().enumerate() {
        let mut schedule = tiny();
        spoil(&mut schedule);
        let lines: Vec<String> = check(&schedule).iter().map(ToString::to_string).collect();
        // A huge number of events that nothing waits for does no harm.
        assert!(number == 6 || !lines.is_empty(), "{number}");
    }
}

/// A plan takes a second in all, so its referee has a tenth of it for the largest schedules
/// (optimised; the limit here is generous because tests are not).
#[test]
fn a_large_schedule_is_checked_at_once() {
    let schedule = tiny_of(2200);
    let instructions: usize = schedule.streams.iter().map(Vec::len).sum();
    assert!(instructions > 50_000 && schedule.buffers.len() > 26_000);
    let fastest = (0..5).map(|_| {
        let start = std::time::Instant::now();
        assert!(check(&schedule).is_empty());
        start.elapsed()
    });
    let fastest = fastest.min().expect("five");
    println!("{instructions} instructions in {fastest:?}");
    assert!(fastest < std::time::Duration::from_secs(1));
}
