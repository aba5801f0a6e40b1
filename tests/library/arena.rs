//! The eleven published instances fit into 1,048,576 bytes.

use ebbtide_solver::arena::{place, validate, Options, Request};
use ebbtide_solver::units::Bytes;
use std::path::Path;
use std::time::{Duration, Instant};

const CAPACITY: Bytes = Bytes::new(1 << 20);

fn read(name: char) -> Vec<Request> {
    let file =
        Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/data/minimalloc/{name}.csv"));
    let text = std::fs::read_to_string(file).unwrap();
    let fields = |line: &str| {
        line.split(',')
            .map(|f| f.parse().unwrap())
            .collect::<Vec<u64>>()
    };
    let requests = text.lines().skip(1).map(fields);
    requests
        .map(|f| Request::new(f[1], f[2], Bytes::new(f[3])))
        .collect()
}

#[test]
fn all_eleven_fit() {
    for name in 'A'..='K' {
        let requests = read(name);
        let begun = Instant::now();
        let options = Options {
            alignment: Bytes::new(1),
            capacity: Some(CAPACITY),
            deadline: Some(begun + Duration::from_secs(60)),
            nodes: u64::MAX,
            ..Options::default()
        };
        let placement = place(&requests, &options);
        println!(
            "{name} {:.3} s, {:?}",
            begun.elapsed().as_secs_f64(),
            placement.status
        );
        assert_eq!(validate(&requests, Bytes::new(1), &placement), [], "{name}");
        assert!(
            placement.height <= CAPACITY,
            "{name}: {}",
            placement.height.get()
        );
    }
}
