//! The schedule file: there and back, its JSON Schema, and what is refused.

use ebbtide::device::arithmetic::Arithmetic;
use ebbtide::device::packed::Storage;
use ebbtide::error::Kind;
use ebbtide::format::schedule::{read, write, ScheduleFile, Status};
use ebbtide::methods::{Layers, LowRank, Rank};
use ebbtide_solver::check::check;
use ebbtide_solver::ids::{BufferId, Id, OpId};
use ebbtide_solver::problem::{Category, Domain};
use ebbtide_solver::schedule::{Access, Action, Operand, Space};
use ebbtide_solver::units::{Bytes, Nanos, Span};

use super::support::tiny::random::Random;
use super::support::{tiny, tiny_file};

/// Small, large and the largest numbers.
fn number(random: &mut Random) -> u64 {
    let bits = random.below(65) as u32;
    random.next().checked_shr(bits).unwrap_or(u64::MAX)
}
fn span(random: &mut Random) -> Span {
    Span {
        start: number(random),
        end: number(random),
    }
}
fn id<I: Id>(random: &mut Random) -> I {
    I::from_index(number(random) as u32 as usize)
}
fn ids<I: Id>(random: &mut Random) -> Vec<I> {
    (0..random.below(3)).map(|_| id(random)).collect()
}
fn text(random: &mut Random) -> String {
    let letters = ['a', 'ß', '"', '\\', '\n', '\u{0}', '漢', '🌊'];
    (0..random.below(6))
        .map(|_| random.pick(&letters))
        .collect()
}

/// A file whose every field is arbitrary: the referee would not like it.
fn arbitrary(random: &mut Random) -> ScheduleFile {
    let mut file = tiny_file();
    file.model.name = text(random);
    file.model.config = (random.below(2) > 0).then(|| {
        let value = serde_json::json!([number(random), null, {text(random): text(random)}]);
        [(text(random), value)].into_iter().collect()
    });
    file.method = text(random);
    file.method_options = (random.below(2) > 0).then(|| LowRank {
        rank: Some(match random.below(2) {
            0 => Rank::Of(number(random).max(1)),
            _ => Rank::Part(number(random).max(1)),
        }),
        refresh: (number(random) as u32).max(1),
        scale: number(random).max(1) as f64 / 7.0,
        per_layer: random.below(2) > 0,
        svd: random.below(2) > 0,
        eight_bit: random.below(2) > 0,
        layers: Layers {
            qkv: random.below(2) > 0,
            gate_up: random.below(2) > 0,
            down: random.below(2) > 0,
        },
        accumulated: false,
    });
    file.storage = random.pick(&[None, Some(Storage::Fp8), Some(Storage::Int8)]);
    file.arithmetic = random.pick(&[Arithmetic::Plain, Arithmetic::Fp8, Arithmetic::QatInt8]);
    file.model.parameters = number(random);
    file.hardware.overhead = Bytes::new(number(random));
    file.solver.status = random.pick(&[
        Status::Optimal,
        Status::Gap,
        Status::TimeLimit,
        Status::Unproved,
    ]);
    file.solver.bound = (random.below(2) > 0).then(|| Nanos::new(number(random)));
    file.solver.gap = (random.below(2) > 0).then(|| number(random) as f64 / 7.0);
    file.predicted.mfu = f64::from_bits(random.next() >> 2);
    file.decisions[0].block = (random.below(2) > 0).then(|| number(random) as u32);
    let s = &mut file.schedule;
    // A reader refuses what contradicts itself in tokens.
    s.tokens = number(random);
    (file.workload.seq, file.workload.batch) = (s.tokens, 1);
    for decision in &mut file.decisions {
        decision.keep_tokens = s.tokens / 2;
        decision.packed_tokens = random.below(2) as u64 * (s.tokens / 3);
        decision.swap_tokens = s.tokens - s.tokens / 2;
        decision.recompute_tokens = 0;
    }
    s.groups = number(random);
    s.events = number(random) as u32;
    s.micro_batches = number(random) as u32;
    s.passes = number(random) as u32;
    for group in &mut s.state_groups {
        group.name = text(random);
        for list in [&mut group.weights, &mut group.gradients] {
            *list = ids(random);
        }
        group.states = (random.below(2) > 0).then(|| id(random));
        group.on_host = random.below(2) > 0;
    }
    for op in s.ops.values_mut() {
        op.name = text(random);
        op.domain = random.pick(&[
            Domain::Rows,
            Domain::RowsOfGroup,
            Domain::Group,
            Domain::Whole,
        ]);
        let lists = [
            &mut op.reads,
            &mut op.writes,
            &mut op.accumulates,
            &mut op.updates,
        ];
        lists.into_iter().for_each(|list| *list = ids(random));
        op.required = random.below(2) > 0;
    }
    for value in s.values.values_mut() {
        value.category = random.pick(&Category::ALL);
        value.row_bytes = number(random);
        value.packed_row_bytes = (random.below(2) > 0).then(|| number(random));
        value.fixed_bytes = Bytes::new(number(random));
        value.by_groups = random.below(2) > 0;
    }
    for buffer in s.buffers.values_mut() {
        buffer.value = (random.below(2) > 0).then(|| id(random));
        buffer.space = random.pick(&[Space::Device, Space::Host]);
        buffer.category = random.pick(&Category::ALL);
        buffer.offset = Bytes::new(number(random));
        buffer.bytes = Bytes::new(number(random));
        buffer.packed = random.below(2) > 0;
        (buffer.rows, buffer.groups, buffer.lifetime) = (span(random), span(random), span(random));
        buffer.persistent = random.below(2) > 0;
    }
    for i in s.streams.iter_mut().flatten() {
        let op: OpId = id(random);
        let state = number(random) as u32;
        let actions = [
            Action::Run(op),
            Action::Recompute(op),
            Action::HostUpdate(state),
            Action::Copy,
            Action::Barrier,
        ];
        i.action = random.pick(&actions);
        (i.rows, i.groups) = (span(random), span(random));
        i.micro_batch = number(random) as u32;
        i.duration = Nanos::new(number(random));
        i.waits = ids(random);
        i.signals = (random.below(2) > 0).then(|| id(random));
        let access = [Access::Read, Access::Write, Access::Update];
        i.operands = (0..random.below(4))
            .map(|_| Operand {
                buffer: id::<BufferId>(random),
                access: random.pick(&access),
            })
            .collect();
    }
    file
}

fn validator() -> jsonschema::Validator {
    let schema = include_str!("../../schemas/schedule.schema.json");
    let schema = serde_json::from_str(schema).expect("the published schema is JSON");
    jsonschema::draft202012::new(&schema).expect("the published schema is a schema")
}

fn assert_valid(validator: &jsonschema::Validator, text: &str) {
    let value = serde_json::from_str(text).expect("what is written is JSON");
    let errors: Vec<String> = validator
        .iter_errors(&value)
        .map(|e| format!("{}: {e}", e.instance_path))
        .collect();
    assert!(errors.is_empty(), "{}", errors.join("\n"));
}

#[test]
fn what_is_written_is_read_back_and_valid() {
    let validator = validator();
    let file = tiny_file();
    let text = write(&file);
    assert_eq!(read(&text).unwrap(), file);
    assert_valid(&validator, &text);
}

#[test]
fn arbitrary_files_are_read_back_valid_and_never_make_the_referee_panic() {
    let validator = validator();
    for seed in 1..=200 {
        let file = arbitrary(&mut Random::new(seed));
        let text = write(&file);
        assert_eq!(
            read(&text).unwrap_or_else(|e| panic!("seed {seed}: {e}")),
            file,
            "seed {seed}"
        );
        assert_valid(&validator, &text);
        assert!(!check(&file.schedule).is_empty(), "seed {seed}");
    }
}

/// The schema refuses what reading refuses.
#[test]
fn the_schema_is_as_strict_as_reading() {
    let validator = validator();
    let text = write(&tiny_file());
    for (good, bad) in SPOILS {
        let spoilt = text.replacen(good, bad, 1);
        assert_ne!(spoilt, text, "{good} is not in the file");
        if let Ok(value) = serde_json::from_str(&spoilt) {
            assert!(!validator.is_valid(&value), "{bad}");
        }
        assert!(read(&spoilt).is_err(), "{bad}");
    }
}

/// Good text and what it is replaced by.
const SPOILS: &[(&str, &str)] = &[
    ("schedule/1", "schedule/2"),
    ("schedule/1", "profile/1"),
    ("\"schema\":\"ebbtide/schedule/1\",", ""),
    ("\"seq\":8", "\"seq\":-8"),
    ("\"seq\":8", "\"seq\":8.5"),
    ("\"seq\":8", "\"seq\":18446744073709551616"),
    ("\"seq\":8", "\"seq\":\"8\""),
    ("\"seq\":8", "\"seq\":8,\"sequence\":8"),
    ("\"seq\":8,", ""),
    ("\"mfu\":0.125", "\"mfu\":NaN"),
    ("\"mfu\":0.125", "\"mfu\":null"),
    ("\"mfu\":0.125", "\"mfu\":-0.125"),
    ("\"gap\":0.25", "\"gap\":-1"),
    ("\"bytes_per_s\":1000000000", "\"bytes_per_s\":0"),
    ("\"status\":\"unproved\"", "\"status\":\"perfect\""),
    ("\"category\":\"weights\"", "\"category\":\"waits\""),
    ("\"do\":\"run\",\"op\":0", "\"do\":\"run\""),
    ("\"do\":\"copy\"", "\"do\":\"copy\",\"op\":0"),
    (
        "\"do\":\"host_update\",\"state\":0",
        "\"do\":\"host_update\",\"op\":0",
    ),
    ("\"r0\"", "\"x0\""),
    ("\"r0\"", "\"r\""),
    ("\"r0\"", "\"r+1\""),
    ("\"r0\"", "\"é0\""),
    ("\"rows\":[0,8]", "\"rows\":[0]"),
    ("\"rows\":[0,8]", "\"rows\":[0,8,9]"),
];

#[track_caller]
fn refused(text: &str, expected: &str) {
    let error = read(text).expect_err("must be refused");
    assert_eq!(error.kind, Kind::BadInput);
    assert!(
        error.to_string().contains(expected),
        "{error} instead of {expected}"
    );
}

#[test]
fn refusals_say_what_is_wrong_where_and_what_to_do() {
    let text = write(&tiny_file());
    let with = |good: &str, bad: &str| text.replacen(good, bad, 1);
    refused("", "cut off at line 1");
    refused("{}", "no \"schema\"");
    refused("[1, 2]", "unusable");
    refused("no json", "unusable");
    refused(
        &with("schedule/1", "schedule/2"),
        "this ebbtide reads ebbtide/schedule/1\nhint: plan",
    );
    refused(&with("schedule/1", "profile/1"), "not a schedule");
    refused(
        &with("\"seq\":8", "\"seq\":-8"),
        "workload.seq: invalid value: integer `-8`",
    );
    refused(
        &with("\"seq\":8", "\"sequence\":8"),
        "unknown field `sequence`",
    );
    refused(&with("\"mfu\":0.125", "\"mfu\":NaN"), "unusable");
    refused(
        &with("\"r0\"", "\"x0\""),
        "streams.compute[1].operands[0]: operand \"x0\"",
    );
    refused(
        &with("\"bytes_per_s\":1000000000", "\"bytes_per_s\":0"),
        "d2h.bytes_per_s is 0",
    );
    refused(
        &with("\"do\":\"copy\"", "\"do\":\"run\""),
        "streams.d2h[0]: run and recompute need",
    );
    let deep = format!(
        "{{\"schema\":\"ebbtide/schedule/1\",\"model\":{}",
        "[".repeat(100_000)
    );
    refused(&deep, "cut off");
    refused(
        &format!("{deep}{}}}", "]".repeat(100_000)),
        "unusable at model",
    );
}

#[test]
fn a_file_that_is_cut_off_anywhere_is_refused() {
    let text = write(&tiny_file());
    let end = text.trim_end().len();
    for at in (0..end)
        .filter(|&at| text.is_char_boundary(at))
        .step_by(37)
        .chain([end - 1])
    {
        refused(&text[..at], "cut off");
    }
}

/// Large schedules stay small enough to keep and quick enough to read.
#[test]
fn an_instruction_takes_some_two_hundred_bytes() {
    let mut file = tiny_file();
    file.schedule = tiny::tiny_of(650);
    let text = write(&file);
    let instructions: usize = file.schedule.streams.iter().map(Vec::len).sum();
    assert!(instructions > 15_000);
    println!("{} bytes for {instructions} instructions", text.len());
    assert!(
        text.len() < 4 << 20,
        "{} bytes for {instructions} instructions",
        text.len()
    );
    assert!(read(&text).unwrap() == file);
}
