//! `pvemesh-lab bench`: throughput and latency through the tunnel, next to the bare path of the same run.
//!
//! Two machines (network namespaces) on one veth pair, both ends of the tunnel on this computer: figures are ratios of one run, not
//! absolutes. The namespaces have no name and die with this program; so do the processes in them.

mod forwarding;
#[path = "../../engine/netns.rs"]
#[allow(dead_code, reason = "shared with the engine's tests")]
pub mod machines;
pub mod measure;
mod names;
mod report;
pub mod subject;

use std::path::{Path, PathBuf};

use crate::run::Done;
use machines::Machine;
use measure::{Figures, Load};
use report::Report;
use subject::Subject;

pub use machines::lacking;
pub use subject::EngineOptions;
pub use subject::engine;

#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// The pvemesh program: a coordinator and two nodes of it are measured.
    #[arg(long, required_unless_present = "engine")]
    binary: Option<PathBuf>,
    /// Measure the packet engine alone, without coordinator and nodes.
    #[arg(long)]
    engine: bool,
    /// Measure what goes through a subnet router and an exit node to a machine behind it, with a TUN and without, instead of what ends at a node.
    #[arg(long, conflicts_with_all = ["engine", "against"])]
    forwarding: bool,
    /// Another userspace WireGuard to measure in the same run, with wireguard-go's or boringtun-cli's command line.
    #[arg(long)]
    against: Vec<PathBuf>,
    /// Where to write the figures.
    #[arg(long)]
    result: Option<PathBuf>,
    /// How long each throughput measurement takes.
    #[arg(long, default_value_t = 4)]
    seconds: u32,
    /// How often everything is measured; medians count.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
}

/// Measures, prints a table and writes the figures.
pub fn run(dir: &Path, options: &Options) -> Done {
    if let Some(reason) = lacking() {
        return Err(format!("the bench {reason}"));
    }
    if options.forwarding {
        let binary = options.binary.as_deref().ok_or("--forwarding measures a program: name it with --binary")?;
        let stage = forwarding::Stage::new(binary, &dir.join("bench"))?;
        return measured(&stage.subjects(), &stage.near, &stage.far, options);
    }
    let (a, b) = machines::pair();
    let mut subjects = vec![Subject::bare(names::Asked::echo(&a)?)];
    if let Some(binary) = &options.binary {
        subjects.push(Subject::mesh(binary, &dir.join("bench"), &a, &b)?);
    }
    if options.engine {
        subjects.push(Subject::engine(&a, &b)?);
    }
    for (n, program) in options.against.iter().enumerate() {
        subjects.push(Subject::other(program, n, &a, &b)?);
    }
    measured(&subjects, &a, &b, options)
}

/// Measures the subjects in turn, from one machine to another.
fn measured(subjects: &[Subject], a: &Machine, b: &Machine, options: &Options) -> Done {
    let server = measure::Server::start(b)?;
    let mut figures: Vec<_> = subjects.iter().map(|_| Figures::default()).collect();
    for round in 1..=options.rounds {
        for (subject, figures) in subjects.iter().zip(&mut figures) {
            eprintln!("round {round} of {}: {}", options.rounds, subject.name);
            let load = Load { machine: a, target: &subject.target, seconds: options.seconds };
            figures.ping_idle(&load)?;
            figures.tcp(&load, 1)?;
            figures.tcp(&load, 4)?;
            // A sender without limit takes a third machine's core, too; what is lost then says nothing of forwarding.
            if !options.forwarding {
                figures.udp(&load)?;
            }
            figures.ping_loaded(&load)?;
            figures.names(a, subject.asked.as_ref(), options.seconds)?;
            figures.memory(subject.memory());
        }
    }
    drop(server);
    let report = Report::new(subjects.iter().map(|s| s.name.clone()).zip(figures).collect());
    println!("{report}");
    if let Some(path) = &options.result {
        let text = serde_json::to_string_pretty(&report.json()).map_err(|e| e.to_string())?;
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir).map_err(|e| e.to_string())?;
        }
        std::fs::write(path, text).map_err(|e| format!("{}: {e}", path.display()))?;
        println!("figures: {}", path.display());
    }
    Ok(())
}
