//! The command line: commands, output and exit codes; the only place that prints.

#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "the shell may")]

mod image;
mod report;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

pub use report::{Exit, Failure, Output};

/// A Tailscale-compatible mesh for the homelab, run from Proxmox VE.
#[derive(Debug, Parser)]
#[command(name = "pvemesh", version, propagate_version = true)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// Options every command takes.
#[derive(Debug, Clone, clap::Args)]
pub struct Global {
    /// Print the result as JSON on standard output; progress and errors stay on standard error.
    #[arg(long, global = true)]
    pub json: bool,
    /// Say more on standard error; twice for debugging.
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// The appliance root file system.
    #[command(subcommand)]
    Image(image::Image),
    /// Print a completion script for a shell.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

/// Runs the program with the process's arguments.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let output = Output::new(&cli.global);
    let result = match cli.command {
        Command::Image(command) => image::run(command, &output),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut <Cli as clap::CommandFactory>::command(), "pvemesh", &mut std::io::stdout());
            Ok(())
        }
    };
    output.finish(result)
}
