//! What viewers are given of a schedule: a Chrome trace and a PyTorch memory snapshot.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::process::Command;

use serde_json::{json, Value};

use super::{prints, refuses, Scratch};

/// A plan that swaps, and its exports.
struct Exports {
    scratch: Scratch,
    schedule: Value,
    trace: Vec<Value>,
}

impl Exports {
    fn new() -> Self {
        let scratch = Scratch::new();
        let [schedule, trace, pickle] =
            ["schedule.json", "trace.json", "memory.pickle"].map(|name| scratch.path(name));
        let plan = [
            "plan",
            "--model=tiny",
            "--profile=h100-sxm5-80gb",
            "--seq=4k",
        ];
        prints(&[&plan[..], &["--device-memory=10MiB", "-o", &schedule]].concat());
        let flags = ["--trace", &trace, "--memory-snapshot", &pickle];
        let said = prints(&[&["simulate", &schedule], &flags[..]].concat());
        assert!(
            said.contains(&format!("\ntrace in {trace}, for ui.perfetto.dev\n")),
            "{said}"
        );
        assert!(
            said.contains(&format!("\nsnapshot in {pickle}, for ")),
            "{said}"
        );
        let schedule = scratch.json("schedule.json");
        let trace = scratch.json("trace.json")["traceEvents"]
            .as_array()
            .unwrap()
            .clone();
        Self {
            scratch,
            schedule,
            trace,
        }
    }
    fn phase(&self, ph: &str) -> impl Iterator<Item = &Value> + use<'_> {
        let ph = ph.to_owned();
        self.trace.iter().filter(move |event| event["ph"] == *ph)
    }
    fn arena(&self) -> u64 {
        number(&self.schedule["predicted"]["arena_bytes"])
    }
    fn pickle(&self) -> String {
        self.scratch.path("memory.pickle")
    }
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("{value}"))
}

/// A time as a reader sees it who multiplies and truncates.
fn nanos(micros: &Value) -> u64 {
    (micros.as_f64().unwrap() * 1000.0) as u64
}

/// Start and end of a complete event.
fn span(event: &Value) -> (u64, u64) {
    let start = nanos(&event["ts"]);
    (start, start + nanos(&event["dur"]))
}

// ---- trace --------------------------------------------------------------------------------------

#[test]
fn every_stream_is_a_named_row_whose_events_do_not_overlap() {
    let exports = Exports::new();
    let mut rows: BTreeMap<u64, Vec<(u64, u64)>> = BTreeMap::new();
    for event in exports.phase("X") {
        let args = &event["args"];
        assert!(args["recompute"].is_boolean() && args["micro_batch"].is_u64());
        assert!(args["rows"][0].is_u64() && args.get("block").is_some());
        let row = rows.entry(number(&event["tid"])).or_default();
        row.push(span(event));
    }
    let step = number(&exports.schedule["predicted"]["step_ns"]);
    for row in rows.values_mut() {
        assert!(row.windows(2).all(|pair| pair[0].1 <= pair[1].0));
        assert!(row.iter().all(|&(_, end)| end <= step));
    }
    assert_eq!(rows.values().flatten().map(|r| r.1).max(), Some(step));
    let names = exports.phase("M").filter(|e| e["name"] == "thread_name");
    let names = names.map(|e| (number(&e["tid"]), e["args"]["name"].as_str().unwrap()));
    let names: BTreeMap<u64, &str> = names.collect();
    for (tid, name) in names {
        let instructions = exports.schedule["streams"][name].as_array().unwrap();
        let barriers = instructions.iter().filter(|i| i["do"] == "barrier");
        let expected = instructions.len() - barriers.count();
        assert_eq!(rows.get(&tid).map_or(0, Vec::len), expected, "{name}");
    }
}

#[test]
fn every_swap_has_its_arrow() {
    let exports = Exports::new();
    let copies = |tid: u64| exports.phase("X").filter(move |e| e["tid"] == tid);
    let ids = |ph| exports.phase(ph).map(|e| (number(&e["id"]), e));
    let outs: HashMap<u64, &Value> = ids("s").collect();
    let backs: HashMap<u64, &Value> = ids("f").collect();
    assert!(!outs.is_empty(), "the plan swaps");
    assert_eq!(outs.len(), backs.len());
    let mut returned = Vec::new();
    for (id, out) in &outs {
        let starts = |end: &Value| {
            let found = copies(number(&end["tid"])).find(|e| e["ts"] == end["ts"]);
            found.expect("an arrow's end lies in a copy").clone()
        };
        let (from, to) = (starts(out), starts(backs[id]));
        assert_eq!((&from["tid"], &to["tid"]), (&json!(2), &json!(3)));
        assert!(span(&from).1 <= span(&to).0, "{from} before {to}");
        let same = from["name"].as_str().unwrap().replace("out", "in");
        assert_eq!(to["name"], same);
        assert_eq!(to["args"]["rows"], from["args"]["rows"]);
        returned.push(from["ts"].to_string());
    }
    // What leaves the device and is an activation comes back.
    let activations = copies(2).filter(|e| e["name"].as_str().unwrap().starts_with("swap out x"));
    let left: Vec<String> = activations.map(|e| e["ts"].to_string()).collect();
    assert!(!left.is_empty());
    assert!(left.iter().all(|ts| returned.contains(ts)));
}

#[test]
fn the_memory_counters_reach_the_peak_and_stay_in_the_arena() {
    let exports = Exports::new();
    let total = |e: &Value| -> u64 { e["args"].as_object().unwrap().values().map(number).sum() };
    let counters: Vec<&Value> = exports.phase("C").collect();
    assert!(counters
        .windows(2)
        .all(|pair| nanos(&pair[0]["ts"]) < nanos(&pair[1]["ts"])));
    let peak = counters.iter().map(|e| total(e)).max().unwrap();
    assert_eq!(
        peak,
        number(&exports.schedule["predicted"]["peak_live_bytes"])
    );
    assert!(peak <= exports.arena());
}

// ---- snapshot -----------------------------------------------------------------------------------

/// Reads the opcodes that the project writes, written from the protocol and not from the writer.
fn unpickle(bytes: &[u8]) -> Value {
    let (mut at, mut stack, mut marks) = (0, Vec::<Value>::new(), Vec::new());
    let mut memo = HashMap::new();
    loop {
        let mut take = |n: usize| {
            at += n;
            &bytes[at - n..at]
        };
        let four = |b: &[u8]| i32::from_le_bytes(b.try_into().unwrap());
        match take(1)[0] {
            0x80 => assert_eq!(take(1), [2], "protocol"),
            b'}' => stack.push(json!({})),
            b']' => stack.push(json!([])),
            b'(' => marks.push(stack.len()),
            b'K' => stack.push(take(1)[0].into()),
            b'J' => stack.push(four(take(4)).into()),
            0x8a => {
                assert_eq!(take(1), [8], "bytes of a long");
                stack.push(i64::from_le_bytes(take(8).try_into().unwrap()).into());
            }
            0x88 => stack.push(true.into()),
            0x89 => stack.push(false.into()),
            b'X' => {
                let length = four(take(4)) as usize;
                stack.push(std::str::from_utf8(take(length)).unwrap().into());
            }
            b'r' => drop(memo.insert(four(take(4)), stack.last().unwrap().clone())),
            b'j' => stack.push(memo[&four(take(4))].clone()),
            0x86 => {
                let second = stack.pop().unwrap();
                let first = stack.pop().unwrap();
                stack.push(json!([first, second]));
            }
            b'e' => {
                let entries = stack.split_off(marks.pop().unwrap());
                stack
                    .last_mut()
                    .unwrap()
                    .as_array_mut()
                    .unwrap()
                    .extend(entries);
            }
            b'u' => {
                let entries = stack.split_off(marks.pop().unwrap());
                let dict = stack.last_mut().unwrap().as_object_mut().unwrap();
                for pair in entries.chunks(2) {
                    dict.insert(pair[0].as_str().unwrap().into(), pair[1].clone());
                }
            }
            b'.' => {
                assert_eq!((at, stack.len(), marks.len()), (bytes.len(), 1, 0));
                return stack.remove(0);
            }
            other => panic!("opcode {other:#x} at {}", at - 1),
        }
    }
}

#[test]
fn allocations_balance_and_no_two_live_blocks_overlap() {
    let exports = Exports::new();
    let snapshot = unpickle(&fs::read(exports.pickle()).unwrap());
    let segment = &snapshot["segments"][0];
    let base = number(&segment["address"]);
    let end = base + exports.arena();
    assert_eq!(number(&segment["total_size"]), exports.arena());
    let events = snapshot["device_traces"][0].as_array().unwrap();
    assert_eq!(events[0]["action"], "segment_alloc");
    let (mut live, mut requested, mut time) = (BTreeMap::<u64, u64>::new(), None, 0);
    let (mut bytes, mut most) = (0, 0);
    for event in &events[1..] {
        let (addr, size) = (number(&event["addr"]), number(&event["size"]));
        assert!(number(&event["time_us"]) >= time, "{event}");
        time = number(&event["time_us"]);
        assert!(event["frames"][0]["name"].is_string() && event["frames"][0]["line"].is_u64());
        match event["action"].as_str().unwrap() {
            "alloc" => {
                assert!(base <= addr && addr + size <= end, "{event}");
                let before = live.range(..addr + size).next_back();
                assert!(before.is_none_or(|(a, s)| a + s <= addr), "{event}");
                live.insert(addr, size);
                bytes += size;
                most = bytes.max(most);
            }
            "free_requested" => requested = Some(addr),
            "free_completed" => {
                assert_eq!(requested.take(), Some(addr));
                assert_eq!(live.remove(&addr), Some(size), "{event}");
                bytes -= size;
            }
            other => panic!("{other}"),
        }
    }
    assert!(
        most * 10 > exports.arena() * 9,
        "{most} of the arena at once"
    );
    // What is left is what the segment shows, and its blocks cover it without a gap.
    let mut at = base;
    for block in segment["blocks"].as_array().unwrap() {
        assert_eq!(number(&block["address"]), at);
        at += number(&block["size"]);
        if block["state"] == "active_allocated" {
            let left = live.remove(&number(&block["address"]));
            assert_eq!(left, Some(number(&block["requested_size"])));
        }
    }
    assert_eq!((at, live.len()), (end, 0));
}

/// The sums that `torch.cuda._memory_viz` asserts or reads, in Python.
const READER: &str = "
import pickle, sys
s = pickle.load(open(sys.argv[1], 'rb'))
assert s['segments'][0]['segment_pool_id'] == (0, 0)
for g in s['segments']:
    active = [b for b in g['blocks'] if b['state'] == 'active_allocated']
    assert sum(b['size'] for b in g['blocks']) == g['total_size']
    assert sum(b['size'] for b in active) == g['allocated_size'] == g['active_size']
    assert sum(b['requested_size'] for b in active) == g['requested_size']
for e in s['device_traces'][0]:
    for f in e['frames']:
        '%s:%d:%s' % (f['filename'].split('/')[-1], f['line'], f['name'])
print(len(s['device_traces'][0]))
";

#[test]
fn python_reads_the_same_snapshot() {
    let exports = Exports::new();
    let mut python = Command::new("python3");
    let Ok(output) = python.args(["-c", READER]).arg(exports.pickle()).output() else {
        eprintln!("not checked: there is no python3");
        return;
    };
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{err}");
    let snapshot = unpickle(&fs::read(exports.pickle()).unwrap());
    let events = snapshot["device_traces"][0].as_array().unwrap().len();
    let counted = String::from_utf8(output.stdout).unwrap();
    assert_eq!(counted.trim(), events.to_string());
}

#[test]
fn a_file_that_cannot_be_written_is_said_so() {
    let exports = Exports::new();
    let schedule = exports.scratch.path("schedule.json");
    for flag in ["--trace", "--memory-snapshot"] {
        let within = format!("{schedule}/x");
        refuses(&["simulate", &schedule, flag, &within], 2, "cannot write");
    }
}
