//! `pvemesh-lab`: a Proxmox host, a home, an internet and a cafe in network namespaces of this machine, and the demo played in them.
//!
//! Everything it makes is named `pvl-*` or lies below its state directory, and `down` removes all of it, after a crash too.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    clippy::disallowed_types,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a tool for tests and the demo; never installed"
)]
#![allow(missing_docs, unreachable_pub, reason = "a program of its own")]

mod bench;
mod demo;
mod host;
mod measure;
mod namespaces;
mod network;
mod peers;
mod pvesh;
mod run;
#[path = "../pve/standin/mod.rs"]
mod standin;
mod stress;
mod summary;
mod sweep;
mod web;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// The lab: a Proxmox host, a home, an internet and a cafe in network namespaces.
#[derive(Debug, Parser)]
#[command(name = "pvemesh-lab")]
struct Arguments {
    /// Where the lab keeps its state; containers' roots too, so every user must be able to walk there.
    #[arg(long, global = true, default_value = "target/lab")]
    dir: PathBuf,
    /// The caller holds the machine's lab lock.
    #[arg(long, global = true, hide = true)]
    no_lock: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make the networks and start the Proxmox stand-in.
    Up {
        /// The Proxmox release played.
        #[arg(long, default_value = "9.1")]
        pve_version: standin::Version,
        /// Proxmox hosts in the cluster.
        #[arg(long, default_value_t = 1)]
        hosts: u8,
    },
    /// Remove every trace, of a crashed lab too.
    Down,
    /// Bring the lab up and play the main job in it.
    Demo(demo::Options),
    /// Measure throughput and latency through the tunnel, next to the bare path.
    Bench(bench::Options),
    /// Measure our node next to other userspace WireGuards.
    BenchPeers(peers::Options),
    /// Measure what many peers cost, whether a heavy one starves others, and what floods do.
    BenchStress(stress::Options),
    /// One end of a tunnel for the bench.
    #[command(hide = true)]
    Engine(bench::EngineOptions),
    /// What is there: namespaces, containers, processes.
    Status,
    /// Run a command in a namespace: pve, home, inet, cafe or laptop.
    Exec {
        /// Which one.
        namespace: String,
        /// The command.
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Fetch a page over plain HTTP from a namespace.
    Fetch {
        /// Which one.
        namespace: String,
        /// Address and port.
        #[arg(default_value = "192.0.2.80:80")]
        server: String,
        /// What to ask for.
        #[arg(default_value = "/")]
        path: String,
    },
    /// The stand-in for the host's `pvesh` command.
    Pvesh {
        /// The stand-in's socket.
        #[arg(long)]
        socket: PathBuf,
        /// What `pvesh` is given.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// The stand-in itself, in the host's namespace (started by `up`).
    #[command(hide = true)]
    Host {
        #[arg(long)]
        pve_version: standin::Version,
        #[arg(long, default_value_t = 1)]
        hosts: u8,
    },
    /// The web server that tells callers their address (started by `up`).
    #[command(hide = true)]
    Web,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let result = match arguments.command {
        Command::Pvesh { socket, arguments } => return pvesh::main(&socket, &arguments),
        Command::Web => web::serve(),
        Command::Up { pve_version, hosts } => {
            let free = if arguments.no_lock { Ok(()) } else { sweep::not_anothers(&arguments.dir) };
            free.and_then(|()| run::prepare(&arguments.dir)).and_then(|dir| host::up(&dir, pve_version, hosts))
        }
        Command::Host { pve_version, hosts } => run::prepare(&arguments.dir).and_then(|dir| host::serve(&dir, pve_version, hosts)),
        Command::Down => {
            let free = if arguments.no_lock { Ok(()) } else { sweep::not_anothers(&arguments.dir) };
            free.and_then(|()| sweep::down(&arguments.dir))
        }
        Command::Demo(options) => return demo::main(&arguments.dir, options, arguments.no_lock),
        Command::Bench(options) => bench::run(&arguments.dir, &options),
        Command::BenchPeers(options) => peers::run(&arguments.dir, &options),
        Command::BenchStress(options) => stress::run(&arguments.dir, &options),
        Command::Engine(options) => bench::engine(&options),
        Command::Status => host::status(&arguments.dir),
        Command::Fetch { namespace, server, path } => {
            measure::fetch(&namespaces::full(&namespace), &server, &path).map(|page| println!("{page}"))
        }
        Command::Exec { namespace, command } => return namespaces::exec(&namespace, &command),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("pvemesh-lab: {why}");
            ExitCode::FAILURE
        }
    }
}
