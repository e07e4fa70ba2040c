//! What nodes cost a coordinator: `make bench-coord`.
//!
//! Opens N nodes against a coordinator in a process of its own, with our client over real Noise and HTTP/2 on loopback, and measures:
//! the time until each node has seen all others, the coordinator's CPU time and memory, and the bytes and latency of joins, leaves and
//! endpoint changes, one at a time and with 1 % of the nodes changing each second. Updates that change nothing have to be silent. The
//! same against Headscale, if its program is given, at the sizes it survives within the limits.
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

mod board;
mod node;
mod phases;
mod report;
mod scan;
mod subject;

use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;

use phases::Limits;
use report::Report;
use subject::{Headscale, Pvemesh, Subject};

#[derive(Debug, Parser)]
struct Args {
    /// The release binary.
    #[arg(long)]
    binary: PathBuf,
    /// The headscale program; if it is not there, only our coordinator is measured.
    #[arg(long)]
    headscale: Option<PathBuf>,
    /// The numbers of nodes.
    #[arg(long, value_delimiter = ',', default_value = "100,1000,5000")]
    sizes: Vec<usize>,
    /// The largest number of nodes Headscale is tried with.
    #[arg(long, default_value_t = 1000)]
    headscale_most: usize,
    /// How long nodes change, in seconds.
    #[arg(long, default_value_t = 30)]
    load: u64,
    /// How long joining may take, in seconds.
    #[arg(long, default_value_t = 180)]
    limit: u64,
    /// Where the figures go (JSON).
    #[arg(long)]
    result: Option<PathBuf>,
}

fn main() {
    let args = Args::parse();
    raise_descriptors();
    let limits = Limits { join: Duration::from_secs(args.limit), load: Duration::from_secs(args.load) };
    let mut report = Report::new();
    for &count in &args.sizes {
        report.add(count, "pvemesh", &run(limits, count, || Pvemesh::start(&args.binary)));
        if let Some(program) = args.headscale.as_ref().filter(|program| count <= args.headscale_most && program.exists()) {
            report.add(count, "headscale", &run(limits, count, || Headscale::start(program)));
        }
    }
    println!("{report}");
    if let Some(path) = &args.result {
        std::fs::write(path, format!("{:#}\n", report.json())).unwrap();
    }
    // Figures of something that does not work are worth nothing.
    assert!(report.is_sound(), "pvemesh failed: see above");
}

/// A runtime of its own for each run: nothing of the one before is left in the way.
fn run<S: Subject>(limits: Limits, count: usize, start: impl FnOnce() -> S) -> phases::Outcome {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let subject = start();
    eprintln!("{} with {count} nodes", subject.name());
    let outcome = runtime.block_on(phases::run(&subject, count, limits));
    runtime.shutdown_timeout(Duration::from_secs(5));
    outcome
}

fn raise_descriptors() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }).unwrap();
}
