//! The command line: commands, output and exit codes; the only place that prints.

#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "the shell may")]

mod connect;
mod coordinator;
mod create;
mod destroy;
mod image;
mod init;
mod interrupt;
mod keys;
mod list;
mod log;
mod node;
mod progress;
mod relay;
mod report;
mod resume;

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
    /// Set up how Proxmox is reached from this machine.
    Init(init::Init),
    /// Make a coordinator in a container: key exchange, addresses and names for the mesh.
    CreateCoordinator(create::CreateCoordinator),
    /// Make an exit node in a container: it takes the internet traffic of other nodes and sends it out at home.
    CreateExitNode(create::NodeArgs),
    /// Make a relay in a container: nodes that have no direct way to each other reach each other through it.
    CreateRelay(create::CreateRelay),
    /// Make a plain mesh node in a container.
    CreateNode(create::NodeArgs),
    /// Make a subnet router in a container: it makes networks behind it reachable.
    CreateSubnetRouter(create::CreateSubnetRouter),
    /// Remove a guest that pvemesh made, with everything that belongs to it.
    Destroy(destroy::Destroy),
    /// Take back what runs that did not come to their end have left.
    Resume(resume::Resume),
    /// Join keys of the known coordinator, for phones, laptops and servers.
    #[command(subcommand)]
    Keys(keys::Keys),
    /// List the guests of pvemesh.
    List(list::List),
    /// Show how a guest, or all of them, are.
    Status(list::Status),
    /// The coordinator: who is in the mesh.
    #[command(subcommand)]
    Coordinator(coordinator::Coordinator),
    /// The relay: for nodes without a direct way to each other.
    #[command(subcommand)]
    Relay(relay::Relay),
    /// The mesh node on this machine.
    Node(node::Node),
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
        Command::Init(args) => run(init::run(args, &output)),
        Command::CreateCoordinator(args) => run(create::coordinator(args, &output)),
        Command::CreateExitNode(args) => run(create::exit_node(args, &output)),
        Command::CreateRelay(args) => run(create::relay(args, &output)),
        Command::CreateNode(args) => run(create::member(args, &output)),
        Command::CreateSubnetRouter(args) => run(create::subnet_router(args, &output)),
        Command::Destroy(args) => run(destroy::run(args, &output)),
        Command::Resume(args) => run(resume::run(args, &output)),
        Command::Keys(command) => run(keys::run(command, &output)),
        Command::List(args) => run(list::list(args, &output)),
        Command::Status(args) => run(list::status(args, &output)),
        Command::Coordinator(command) => coordinator::run(command, &output),
        Command::Relay(command) => relay::run(command, &output),
        Command::Node(node) => run(node::run(&node, &output)),
        Command::Image(command) => image::run(command, &output),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut <Cli as clap::CommandFactory>::command(), "pvemesh", &mut std::io::stdout());
            Ok(())
        }
    };
    output.finish(result)
}

/// Runs a command that waits for others: on one thread, since it only waits.
fn run(command: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|e| Failure::new("start", e, "this system is out of resources"))?;
    runtime.block_on(command)
}
