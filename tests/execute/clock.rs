//! The null device, whose commands take what the simulator says they take: every instruction then
//! begins and ends when the simulator says so, or else executor and simulator would not mean the
//! same by streams and events.

use std::cell::RefCell;
use std::collections::BTreeSet;

use ebbtide::device::null::NullDevice;
use ebbtide::device::Operator;
use ebbtide::execute::timing::{measured, simulated};
use ebbtide::execute::Session;
use ebbtide::methods::Method;
use ebbtide::training::initial;
use ebbtide_solver::schedule::Stream;
use ebbtide_solver::simulate::try_simulate;

use super::models::{self, model};
use super::plans::{file_of, mixed, problem, Cut};
use super::runs::{batches, optimizer, run};

#[test]
fn the_executor_and_the_simulator_agree_on_when_everything_runs() {
    for name in models::names() {
        for method in Method::ALL {
            let model = model(name);
            let cut = Cut::new(method, 2);
            let file = file_of(&model, &cut, mixed(&problem(&model, &cut)));
            let expected = simulated(&try_simulate(&file.schedule).unwrap());
            // What an instruction takes, its first operator takes.
            let (spans, begun) = (expected.clone(), RefCell::new(BTreeSet::new()));
            let took = move |stream: Stream, at: u32, _: Option<&Operator>| {
                let first = begun.borrow_mut().insert((stream, at));
                let span = spans[stream as usize][at as usize].filter(|_| first);
                span.map_or(0, |(start, end)| end - start)
            };
            let device = Box::new(NullDevice::new(Box::new(took)));
            let mut session = Session::begin(&file, &model, device, false).unwrap();
            let weights = |place| initial::values(&model, place, 1);
            session.load(weights).unwrap();
            let batches = batches(&file, &model, 0, 1);
            session.attempt(0, &batches, &optimizer()).unwrap();
            let found = measured(&file.schedule, session.trace());
            let mut ran = 0;
            for stream in Stream::ALL {
                let both = found[stream as usize]
                    .iter()
                    .zip(&expected[stream as usize]);
                for (at, (found, expected)) in both.enumerate() {
                    // A barrier is no command.
                    if found.is_some() {
                        let what = format!("{name} {method}, {at} of {}", stream.name());
                        assert_eq!(found, expected, "{what}");
                        ran += 1;
                    }
                }
            }
            assert!(ran > 100, "{name} {method}: {ran} instructions");
            let (_, used) = run(&file, &model, Default::default(), 1).unwrap();
            assert_eq!(session.arena_use(), used, "{name} {method}");
        }
    }
}
