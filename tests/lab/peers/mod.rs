//! `pvemesh-lab bench-peers`: our node next to other userspace WireGuards, one after the other in the same run.
//!
//! Each implementation has a stage of its own, all alike; one is measured at a time, and all of them once in every round, so that what else this
//! computer does meets all of them. Both ends of a tunnel share its processors: the ratios count, not the figures.

mod figures;
mod implementations;
mod report;
mod search;
mod stage;

use std::path::{Path, PathBuf};

use crate::bench::lacking;
use crate::run::Done;
use figures::Figures;
use implementations::Subject;
use report::Report;

#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// The pvemesh program.
    #[arg(long)]
    binary: PathBuf,
    /// Where the other programs lie: tailscaled and tailscale, wireguard (wireguard-go), boringtun-cli, gotatun. What is missing is left out.
    #[arg(long)]
    peers: PathBuf,
    /// Where to write the figures.
    #[arg(long)]
    result: Option<PathBuf>,
    /// How long each throughput measurement takes.
    #[arg(long, default_value_t = 4)]
    seconds: u32,
    /// How often everything is measured; medians count.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Measure only these (bare, pvemesh, tailscaled, wireguard-go, boringtun-cli, gotatun), and no more of each than its tunnel.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
}

/// Measures, prints the table and what is asked of our node, and writes the figures.
pub fn run(dir: &Path, options: &Options) -> Done {
    if let Some(reason) = lacking() {
        return Err(format!("the bench {reason}"));
    }
    let dir = dir.join("bench-peers");
    let subjects = Subject::all(&options.binary, &options.peers, &dir, &options.only)?;
    let mut figures: Vec<Figures> = subjects.iter().map(|_| Figures::default()).collect();
    for round in 1..=options.rounds {
        for (subject, figures) in subjects.iter().zip(&mut figures) {
            eprintln!("round {round} of {}: {}", options.rounds, subject.name);
            figures.measure(subject, options.seconds).map_err(|e| format!("{}: {e}", subject.name))?;
        }
    }
    let report = Report::new(subjects.iter().map(|s| (s.name, s.version.clone())).zip(figures).collect());
    println!("{report}");
    if let Some(path) = &options.result {
        let text = serde_json::to_string_pretty(&report.json()).map_err(|e| e.to_string())?;
        std::fs::write(path, text).map_err(|e| format!("{}: {e}", path.display()))?;
        println!("figures: {}", path.display());
    }
    drop(subjects);
    let _ = std::fs::remove_dir_all(dir);
    Ok(())
}
