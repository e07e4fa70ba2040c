//! `pvemesh-interop`: stock peers (tailscaled, derper, Headscale, tailscale-rs) against this program, in network namespaces.
//!
//! It builds the peers by name through the Go module proxy and crates.io, then plays acts on stages. A stage is an internet of its own with
//! one coordinator, two relays and a few machines; an act is a list of rows played one after the other on a stage; a row is one sentence
//! and the function that finds out whether it holds. Rows × (clients, coordinator) make the matrix that is printed at the end.
//!
//! Everything runs in a PID and a mount namespace of its own: when this program ends, whatever ends it, nothing of a stage is left.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    clippy::disallowed_types,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a tool for tests; never installed"
)]
#![allow(missing_docs, unreachable_pub, reason = "a program of its own")]

mod authority;
mod coordinator;
mod internet;
mod machine;
mod member;
mod play;
mod programs;
mod report;
mod retreat;
mod rows;
mod scene;
mod traffic;
mod wait;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;

use programs::Programs;

/// A result whose failure is told to the user.
pub type Done<T = ()> = Result<T, String>;

/// Stock peers against this program, in network namespaces.
#[derive(Debug, Parser)]
#[command(name = "pvemesh-interop")]
pub struct Arguments {
    /// The pvemesh program.
    #[arg(long)]
    binary: PathBuf,
    /// Where the peers are built and kept.
    #[arg(long, default_value = "target/interop")]
    dir: PathBuf,
    /// Where to write the cells.
    #[arg(long, default_value = "target/interop.json")]
    result: PathBuf,
    /// Rows whose sentence, act or column contains this; may be repeated, all must match.
    #[arg(long = "only", value_name = "TEXT")]
    only: Vec<String>,
    /// Stages played at the same time.
    #[arg(long, default_value_t = 6)]
    stages: usize,
    /// List the acts, rows and columns and do nothing.
    #[arg(long)]
    list: bool,
    /// Build the peers and do nothing else.
    #[arg(long)]
    build: bool,
    /// Keep the logs of all programs in this directory.
    #[arg(long)]
    logs: Option<PathBuf>,
    /// Started by itself, in namespaces of its own, with this directory to work in.
    #[arg(long, hide = true)]
    inside: Option<PathBuf>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if arguments.list {
        play::list();
        return ExitCode::SUCCESS;
    }
    if let Some(reason) = retreat::lacking() {
        println!("skipped: {reason}");
        return ExitCode::SUCCESS;
    }
    let result = match &arguments.inside {
        Some(work) => {
            retreat::exit_on_signals();
            Programs::found(&arguments).and_then(|programs| play::all(&arguments, &programs, work))
        }
        None => outside(&arguments),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(why) => {
            eprintln!("pvemesh-interop: {why}");
            ExitCode::FAILURE
        }
    }
}

/// Builds what is missing, then starts this program again where nothing it does is seen by the machine.
fn outside(arguments: &Arguments) -> Done<bool> {
    let start = Instant::now();
    let programs = Programs::build(arguments)?;
    println!("peers: {}; ready after {:.1} s", programs.versions.text(), start.elapsed().as_secs_f64());
    if arguments.build {
        return Ok(true);
    }
    retreat::again()
}
