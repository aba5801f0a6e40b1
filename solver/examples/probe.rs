//! wip: plain text chains on stdin
use ebbtide_solver::chain::*;
use ebbtide_solver::units::*;
fn main() {
    let args: Vec<String> = std::env::args().collect();
    for path in &args[2..] {
        let text = std::fs::read_to_string(path).unwrap();
        let n: Vec<u64> = text.split_whitespace().map(|w| w.parse().unwrap()).collect();
        let layers = n[2..].chunks(5).map(|c| Layer { forward: Nanos::new(c[0]), backward: Nanos::new(c[1]),
            internal_bytes: Bytes::new(c[2]), out_bytes: Bytes::new(c[3]), nograd_tmp_bytes: Bytes::new(c[4]) }).collect();
        let chain = Chain { input_bytes: Bytes::new(n[0]), budget: Bytes::new(n[1]), layers };
        let name = path.rsplit('/').next().unwrap();
        print!("{name:16} floor {:>8.1}", chain.floor().get() as f64 / 1e6);
        for s in args[1].split(',') {
            let t = std::time::Instant::now();
            let dl = Some(t + std::time::Duration::from_secs(20));
            let r = match s { "rotor" => rotor::solve(&chain, dl), "ilp" => ilp::solve(&chain, dl), "ex" => exhaustive::solve(&chain, dl), _ => panic!() };
            match r {
                Ok(r) => print!("  {s} {:>8.1} b {:>8.1} {:.3}s", r.makespan.get() as f64 / 1e6, r.bound.get() as f64/1e6, t.elapsed().as_secs_f64()),
                Err(e) => print!("  {s} {e:?} {:.3}s", t.elapsed().as_secs_f64()),
            }
        }
        println!();
    }
}
