//! The referee against random faults: what does harm is refused.
mod support;

use support::mutation::inject_faults;
use support::tiny;

#[test]
fn no_harmful_fault_is_missed() {
    let faults = std::env::var("FAULTS").map_or(200, |n| n.parse().expect("FAULTS is a number"));
    println!("{:40} refused  strict  harmless", "");
    let mut missed = Vec::new();
    let mut refused = 0;
    for tally in inject_faults(&tiny(), faults) {
        let kind = tally.kind;
        println!(
            "{kind:40} {:7} {:7} {:9}",
            tally.refused, tally.strict, tally.harmless
        );
        refused += tally.refused;
        missed.extend(
            tally
                .missed
                .into_iter()
                .map(|which| format!("{kind}, {which}")),
        );
    }
    assert!(
        missed.is_empty(),
        "{} missed:\n{}",
        missed.len(),
        missed.join("\n")
    );
    assert!(refused > 0, "no fault did harm");
}
