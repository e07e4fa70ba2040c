//! `pvemesh-lab bench-stress`: what many peers cost, whether a heavy one starves others, and what floods do to who is let in.
//!
//! The packet engine as a process on the far machine; its peers, or those who flood it, are threads of this program on the near one.

mod crowd;
mod fairness;
mod flood;
mod members;

use std::path::{Path, PathBuf};

use serde_json::json;

use crate::bench::lacking;
use crate::run::Done;

#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// The pvemesh program, for the floods; without it they are left out.
    #[arg(long)]
    binary: Option<PathBuf>,
    /// Where to write the figures.
    #[arg(long)]
    result: Option<PathBuf>,
    /// How often everything is measured; medians count.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
}

/// Measures, prints and writes the figures.
pub fn run(dir: &Path, options: &Options) -> Done {
    if let Some(reason) = lacking() {
        return Err(format!("the bench {reason}"));
    }
    let crowd = crowd::measure(options.rounds)?;
    let fairness = fairness::measure(options.rounds)?;
    let floods = options.binary.as_deref().map(|binary| flood::measure(binary, &dir.join("bench-stress"), options.rounds)).transpose()?;
    let report = json!({ "crowd": crowd, "fairness": fairness, "floods": floods });
    if let Some(path) = &options.result {
        let text = serde_json::to_string_pretty(&report).map_err(|e| e.to_string())?;
        std::fs::write(path, text).map_err(|e| format!("{}: {e}", path.display()))?;
        println!("figures: {}", path.display());
    }
    Ok(())
}
