//! `ebbtide compare` itself: what it writes, how it goes on, what it refuses, its exit codes.

use std::fs;

use super::{ebbtide, json, Scratch};

/// Compares three strategies of the tiny model on the unit machine.
fn compare(seq: &str, output: &str, more: &[&str]) -> (i32, String, String) {
    compare_on("unit", seq, output, more)
}

/// The same on another machine.
fn compare_on(profile: &str, seq: &str, output: &str, more: &[&str]) -> (i32, String, String) {
    let mut args = vec!["compare", "--model", "tiny", "--profile", profile];
    args.extend(["--strategy", "keep,checkpoint,ilp", "--method", "sgd,lomo"]);
    args.extend(["--seq", seq, "-o", output]);
    args.extend(more);
    ebbtide(&args)
}

#[test]
fn a_comparison_is_written_whole_and_agrees_with_what_is_printed() {
    let scratch = Scratch::new();
    let (code, out, err) = compare("256..1k", &scratch.path("new/deep"), &["--json"]);
    assert_eq!(code, 0, "{err}");
    let printed = json(&out);
    let stored = scratch.json("new/deep/comparison.json");
    assert_eq!(printed, stored);
    let groups = printed["groups"].as_array().unwrap();
    assert_eq!(groups.len(), 6);
    let csv = scratch.text("new/deep/cells.csv");
    for group in groups {
        for cell in group["cells"].as_array().unwrap() {
            let step = &cell["fits"]["step_ns"];
            assert!(step.is_u64() && csv.contains(&step.to_string()), "{cell}");
        }
    }
    for figure in ["speed-sgd", "memory-lomo", "budget", "longest"] {
        let svg = scratch.text(&format!("new/deep/{figure}.svg"));
        assert!(svg.starts_with("<svg ") && svg.trim_end().ends_with("</svg>"));
        let png = fs::read(scratch.0.join(format!("new/deep/{figure}.png"))).unwrap();
        assert!(png.starts_with(b"\x89PNG"), "{figure}");
    }
}

#[test]
fn the_page_needs_nothing_else_and_is_small() {
    let scratch = Scratch::new();
    let (code, _, err) = compare("256,512", &scratch.path("."), &[]);
    assert_eq!(code, 0, "{err}");
    let page = scratch.text("index.html");
    assert!(page.len() < 2 << 20, "{} bytes", page.len());
    assert!(page.contains("prefers-color-scheme:dark"));
    assert!(page.contains("which strategy when"));
    assert_eq!(
        page.matches("<svg ").count(),
        page.matches("</svg>").count()
    );
    for figure in ["speed-sgd", "memory-lomo", "budget", "longest"] {
        assert!(
            page.contains(&format!("<figure id=\"{figure}\">")),
            "{figure}"
        );
    }
    for outside in ["src=\"", "href=\"http", "@import", "url(", "{{"] {
        assert!(!page.contains(outside), "{outside}");
    }
}

#[test]
fn a_comparison_goes_on_from_what_is_stored() {
    let scratch = Scratch::new();
    assert_eq!(compare("256", &scratch.path("."), &[]).0, 0);
    let mut stored = scratch.json("comparison.json");
    // A mark that planning again would overwrite.
    let cells = stored["groups"][0]["cells"].as_array_mut().unwrap();
    cells[0]["fits"]["step_ns"] = 123_456_789.into();
    scratch.file("comparison.json", stored.to_string());
    let (code, out, err) = compare("256..512", &scratch.path("."), &["--json"]);
    assert_eq!(code, 0, "{err}");
    let printed = json(&out);
    assert_eq!(printed["groups"].as_array().unwrap().len(), 4);
    assert_eq!(
        printed["groups"][0]["cells"][0]["fits"]["step_ns"],
        123_456_789
    );

    let (code, _, err) = compare("256", &scratch.path("."), &["--batch", "2"]);
    assert_eq!(code, 2, "{err}");
    assert!(err.contains("a comparison of something else"), "{err}");

    // What nothing can be drawn of.
    let cells = stored["groups"][1]["cells"].as_array_mut().unwrap();
    cells[0]["fits"]["mfu"] = 1e19.into();
    scratch.file("comparison.json", stored.to_string());
    let (code, _, err) = compare("256", &scratch.path("."), &[]);
    assert_eq!(code, 2, "{err}");
    assert!(err.contains("groups[1].cells[0].fits.mfu: "), "{err}");
}

#[test]
fn a_page_of_something_else_is_not_overwritten() {
    let scratch = Scratch::new();
    scratch.file("index.html", "mine");
    let (code, out, err) = compare("256", &scratch.path("."), &[]);
    assert_eq!((code, out.as_str()), (2, ""), "{err}");
    assert!(err.contains("index.html: it is there"), "{err}");
    assert_eq!(scratch.text("index.html"), "mine");
    assert!(!scratch.has("comparison.json"));
}

#[test]
fn where_no_strategy_fits_all_is_written_and_the_exit_code_says_so() {
    let scratch = Scratch::new();
    let (code, _, err) = compare("1k,2k", &scratch.path("."), &["--device-memory", "1MiB"]);
    assert_eq!(code, 3, "{err}");
    assert!(err.contains("no strategy fits tiny on unit"), "{err}");
    assert!(err.contains("the shortest being 1k"), "{err}");
    let stored = scratch.json("comparison.json");
    for group in stored["groups"].as_array().unwrap() {
        for cell in group["cells"].as_array().unwrap() {
            assert!(cell["misses"].as_str().is_some_and(|why| !why.is_empty()));
        }
    }
    assert!(scratch.text("index.html").contains("nothing fits"));
}

#[test]
fn bad_input_is_refused_before_anything_is_planned() {
    let scratch = Scratch::new();
    let target = scratch.path("out");
    for (seq, fragment) in [("8k..4k", "is empty"), ("0..4k", "at least one token")] {
        let (code, out, err) = compare(seq, &target, &[]);
        assert_eq!((code, out.as_str()), (2, ""), "{err}");
        assert!(err.contains(fragment), "{err}");
    }
    let (code, _, err) = compare("256", &target, &["--run", &scratch.path("none.json")]);
    assert_eq!(code, 2, "{err}");
    assert!(err.contains("none.json: cannot read"), "{err}");
    assert!(!scratch.has("out"));
    let (code, _, err) = compare("256", &target, &["--strategy", "exhaustive"]);
    assert!(code == 2 && err.contains("at most 1000000 plans"), "{err}");
    assert!(!scratch.has("out"), "an empty directory");

    // Of somebody else.
    fs::create_dir(&target).unwrap();
    scratch.file("out/report.md", "mine");
    let (code, _, err) = compare("256", &target, &[]);
    assert!(code == 2 && err.contains("nothing is overwritten"), "{err}");
    assert_eq!(scratch.text("out/report.md"), "mine");
    fs::remove_dir_all(&target).unwrap();

    // A file stands where the directory should be.
    scratch.file("out", "a file");
    for path in [target.clone(), scratch.path("out/below")] {
        let (code, out, err) = compare("256", &path, &[]);
        assert_eq!((code, out.as_str()), (2, ""), "{err}");
        assert!(err.contains("cannot make this directory"), "{err}");
    }
    assert_eq!(scratch.text("out"), "a file");

    fs::remove_file(&target).unwrap();
    fs::create_dir(&target).unwrap();
    scratch.file("out/comparison.json", "{\"schema\":");
    let (code, _, err) = compare("256", &target, &[]);
    assert_eq!(code, 2, "{err}");
    assert!(err.contains("comparison.json"), "{err}");
    assert!(err.contains("hint: delete it"), "{err}");
    assert_eq!(scratch.text("out/comparison.json"), "{\"schema\":");
}

#[test]
fn lengths_that_the_profile_has_not_measured_are_marked() {
    let scratch = Scratch::new();
    let (code, _, err) = compare_on("h100-sxm5-80gb", "8k,1m", &scratch.path("."), &[]);
    assert_eq!(code, 0, "{err}");
    let report = scratch.text("report.md");
    assert!(
        report.contains("1 length is outside the lengths that the profile measured: 1m"),
        "{report}"
    );
    assert!(scratch
        .text("speed-sgd.svg")
        .contains("beyond the measured lengths"));
}
