//! What relaying costs: `make bench-relay`.
//!
//! The relay is a process of its own, spoken to in TLS over loopback as nodes do. Measured are the packets delivered per second and per second of
//! the relay's CPU time with one pair of nodes and with many, the round trip of a single packet, and the memory of an idle connection. The
//! same against stock derper, if its program is given, in the same run.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    clippy::disallowed_types,
    clippy::print_stdout,
    clippy::print_stderr,
    missing_docs,
    unreachable_pub,
    reason = "a benchmark"
)]

mod subject;
mod traffic;

use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use serde_json::{Value, json};

use subject::Subject;
use traffic::Outcome;

#[derive(Debug, Parser)]
struct Args {
    /// The release binary.
    #[arg(long)]
    binary: PathBuf,
    /// The derper program; if it is not there, only our relay is measured.
    #[arg(long)]
    derper: Option<PathBuf>,
    /// The numbers of pairs.
    #[arg(long, value_delimiter = ',', default_value = "1,100")]
    pairs: Vec<usize>,
    /// How long each number of pairs sends, in seconds.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Idle connections.
    #[arg(long, default_value_t = 2000)]
    idle: usize,
    /// Bytes of a packet: what WireGuard makes of a full one of the tunnel.
    #[arg(long, default_value_t = 1312)]
    size: usize,
    /// Where the figures go (JSON).
    #[arg(long)]
    result: Option<PathBuf>,
}

/// All figures of one relay.
struct Measured {
    name: &'static str,
    throughput: Vec<(usize, Outcome)>,
    round_trip: (Duration, Duration),
    idle_kib: f64,
}

fn main() {
    let args = Args::parse();
    raise_descriptors();
    let mut all = vec![measure(&args, "pvemesh", || Subject::pvemesh(&args.binary))];
    if let Some(program) = args.derper.as_ref().filter(|program| program.exists()) {
        all.push(measure(&args, "derper", || Subject::derper(program)));
    }
    for measured in &all {
        print(measured);
    }
    if let Some(path) = &args.result {
        let figures: Vec<Value> = all.iter().map(|measured| figures(measured, &args)).collect();
        std::fs::write(path, format!("{:#}\n", json!(figures))).unwrap();
    }
    assert!(all[0].throughput.iter().all(|(_, outcome)| outcome.delivered > 0), "our relay delivered nothing");
}

/// A runtime and a process of its own for each figure: nothing of the one before is left in the way.
fn measure(args: &Args, name: &'static str, start: impl Fn() -> Subject) -> Measured {
    let runtime = || tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let throughput = args.pairs.iter().map(|&pairs| {
        eprintln!("{name} with {pairs} pairs");
        let subject = start();
        (pairs, runtime().block_on(traffic::throughput(&subject, pairs, args.size, Duration::from_secs(args.seconds))))
    });
    let throughput = throughput.collect();
    eprintln!("{name}: round trips, idle connections");
    let round_trip = runtime().block_on(traffic::round_trips(&start(), args.size));
    let idle_kib = runtime().block_on(traffic::idle(&start(), args.idle));
    Measured { name, throughput, round_trip, idle_kib }
}

fn print(measured: &Measured) {
    println!("{}", measured.name);
    for (pairs, outcome) in &measured.throughput {
        println!(
            "  {pairs:>4} pairs     {:>8.0} packets/s {:>9.1} Mbit/s   CPU {:>5.1} %   {:>8.0} packets per CPU second   lost {}",
            outcome.rate(),
            outcome.megabits(),
            outcome.cpu_part() * 100.0,
            outcome.per_cpu_second(),
            outcome.lost,
        );
    }
    let (median, slow) = measured.round_trip;
    println!("  round trip     p50 {median:?}, p99 {slow:?}");
    println!("  idle           {:.1} KiB a connection", measured.idle_kib);
}

fn figures(measured: &Measured, args: &Args) -> Value {
    let throughput: Vec<Value> = measured
        .throughput
        .iter()
        .map(|(pairs, outcome)| {
            json!({
                "pairs": pairs, "packets_per_second": outcome.rate(), "megabits_per_second": outcome.megabits(),
                "cpu_percent": outcome.cpu_part() * 100.0, "packets_per_cpu_second": outcome.per_cpu_second(), "lost": outcome.lost,
            })
        })
        .collect();
    json!({
        "relay": measured.name, "packet_bytes": args.size, "throughput": throughput,
        "round_trip_p50_us": measured.round_trip.0.as_micros() as u64, "round_trip_p99_us": measured.round_trip.1.as_micros() as u64,
        "idle_connections": args.idle, "idle_kib_per_connection": measured.idle_kib,
    })
}

fn raise_descriptors() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }).unwrap();
}
