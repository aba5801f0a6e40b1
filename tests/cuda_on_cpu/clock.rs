//! Profile, plan, run on the stand-in's virtual clock: what is measured there is known, so the
//! profiler's arithmetic and the trace of a step are held to it.

use serde_json::Value;

use super::is_there;
use super::place::{ebbtide, folder, stderr};

const VIRTUAL: (&str, &str) = ("EBBTIDE_STANDIN_CLOCK", "virtual");

fn succeeds(args: &[&str], environment: &[(&str, &str)]) -> String {
    let out = ebbtide(args, environment);
    assert_eq!(out.status.code(), Some(0), "{args:?}: {}", stderr(&out));
    String::from_utf8(out.stdout).unwrap()
}

#[test]
fn profile_plan_and_step_follow_a_clock_that_is_known() {
    if !is_there() {
        return;
    }
    let folder = folder("clock");
    let [profile, schedule] = ["p.json", "s.json"].map(|name| folder.join(name));
    let [profile, schedule] = [&profile, &schedule].map(|path| path.to_str().unwrap());
    let what = "profile --model tiny --device cuda:0 --seq 64 --dtype f32 -o";
    let args: Vec<&str> = what.split(' ').chain([profile]).collect();
    succeeds(&args, &[VIRTUAL]);
    let measured: Value = serde_json::from_slice(&std::fs::read(profile).unwrap()).unwrap();
    assert_eq!(measured["device"]["name"], "the stand-in card");
    // A kernel of one block takes 5100 ns, which is then the timer's; a copy 5000 ns and 1 ns for
    // every 25 bytes.
    assert_eq!(measured["operators"]["launch"]["ns"], 5100);
    for direction in ["d2h", "h2d"] {
        for sample in measured["links"][direction]["samples"].as_array().unwrap() {
            let bytes = sample["bytes"].as_u64().unwrap();
            assert_eq!(sample["ns"], 5000 + bytes / 25, "{bytes} bytes {direction}");
            assert_eq!(sample["spread_ns"], 0);
        }
    }
    // cuDNN is there, and not asked for f32: plans book for what it is asked for.
    let attention = &measured["operators"]["attention"];
    assert_eq!(attention["workspace"], "cudnn");
    let source = attention["source"].as_str().unwrap();
    let by = "; attention_backward by ebbtide's kernels (cuDNN is not asked for f32)";
    assert!(source.ends_with(by), "{source}");
    let overhead = measured["device"]["overhead_bytes"].as_u64().unwrap();
    assert!((384 << 20..385 << 20).contains(&overhead), "{overhead}");
    // Of four algorithms the third is the fastest.
    let algorithms = &measured["operators"]["gemm"]["algorithms"];
    assert_eq!(algorithms["library"], "cuBLASLt 130000");
    let fastest = algorithms["fastest"].as_object().unwrap();
    assert!(fastest.len() > 5, "{fastest:?}");
    for (product, timed) in fastest {
        let digits = timed["algorithm"].as_str().unwrap();
        assert_eq!(digits[16..32], *"0000000000000002", "{product}");
        let [ns, first] = ["ns", "first_ns"].map(|key| timed[key].as_u64().unwrap());
        assert!(
            (13 * ns).abs_diff(10 * first) < 20,
            "{product}: {ns} {first}"
        );
        assert_eq!(timed["timed"], 4, "{product}");
    }
    let what = "plan --model tiny --seq 64 --method lomo --device-memory 700KiB --profile";
    let args: Vec<&str> = what.split(' ').chain([profile, "-o", schedule]).collect();
    succeeds(&args, &[]);
    let args = [
        "run",
        schedule,
        "--device",
        "cuda:0",
        "--steps",
        "3",
        "--json",
        "--profile",
        profile,
    ];
    let delayed = ("EBBTIDE_STANDIN_DELAYS", "3");
    let ran: Value = serde_json::from_str(&succeeds(&args, &[VIRTUAL, delayed])).unwrap();
    let compute = |which: &str| {
        let ns = |key: &str| ran[which][key].as_u64().unwrap() as f64;
        ns("step_ns") - ns("stall_ns") - ns("optimizer_tail_ns")
    };
    let fast = compute("measured");
    let ratio = fast / compute("predicted");
    assert!(
        (0.98..1.02).contains(&ratio),
        "measured is {ratio} of predicted"
    );
    // Without the profile products take the first choice, and with another library, which says so.
    let plain: Value = serde_json::from_str(&succeeds(&args[..7], &[VIRTUAL])).unwrap();
    let ns = |key: &str| plain["measured"][key].as_u64().unwrap() as f64;
    let slow = ns("step_ns") - ns("stall_ns") - ns("optimizer_tail_ns");
    assert!(slow > 1.05 * fast, "{slow} {fast}");
    let other = ("EBBTIDE_STANDIN_CUBLASLT", "130100");
    let told = [&args[..6], &args[7..]].concat();
    let told = succeeds(&told, &[VIRTUAL, other]);
    let note =
        "algorithms of cuBLASLt 130000; this is cuBLASLt 130100; the library's first choices";
    assert!(told.contains(note), "{told}");
    for key in ["arena_bytes", "d2h_bytes", "h2d_bytes"] {
        assert_eq!(ran["measured"][key], ran["predicted"][key], "{key}");
    }
}
