//! The command line: commands, output and exit codes; the only place that prints.

#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "the shell may")]

mod apply;
mod ask;
mod attach;
mod carry;
mod connect;
mod coordinator;
mod create;
mod destroy;
mod doctor;
mod enroll;
mod golden;
mod hook;
mod hosts;
mod image;
mod init;
mod inside;
mod interrupt;
mod keys;
mod list;
mod log;
mod logs;
mod node;
mod progress;
mod rekey;
mod relay;
mod report;
mod resident;
mod resume;
mod rights;
mod sync;
mod upgrade;
mod ways;

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
    /// Give a guest without a client a name in the mesh, and a route if it is wanted.
    Attach(attach::Attach),
    /// Take a guest without a client out of the mesh again.
    Detach(attach::Detach),
    /// What Proxmox calls when a guest starts and stops; and its installation.
    Hook(hook::Hook),
    /// Bring guests, notes, names and routes up to date: everything that hooks missed.
    Sync(sync::Sync),
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
    /// Make, change and start the guests that a file declares.
    Apply(apply::Apply),
    /// Remove a guest that pvemesh made, with everything that belongs to it.
    Destroy(destroy::Destroy),
    /// Put a node into an existing container, of any distribution.
    Enroll(enroll::Enroll),
    /// Take a node out of a container again, and leave that as it was.
    Unenroll(enroll::Unenroll),
    /// Show what a guest's node, coordinator or relay has said.
    Logs(logs::Logs),
    /// Say what is wrong with guests, hosts and mesh, and what to do about it.
    Doctor(doctor::Doctor),
    /// Give guests a new program, look at them from outside, and roll back what is not well.
    Upgrade(upgrade::Upgrade),
    /// Give a node new keys, because its key has expired or may be known to others.
    Rekey(rekey::Rekey),
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
    /// Chores that the provisioner has this program do inside a guest.
    #[command(subcommand, hide = true)]
    Inside(inside::Inside),
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
        Command::Attach(args) => run(attach::attach(args, &output)),
        Command::Detach(args) => run(attach::detach(args, &output)),
        Command::Hook(args) => hook::run(args, &output),
        Command::Sync(args) => run(sync::run(args, &output)),
        Command::Init(args) => run(init::run(args, &output)),
        Command::CreateCoordinator(args) => run(create::coordinator(args, &output)),
        Command::CreateExitNode(args) => run(create::exit_node(args, &output)),
        Command::CreateRelay(args) => run(create::relay(args, &output)),
        Command::CreateNode(args) => run(create::member(args, &output)),
        Command::CreateSubnetRouter(args) => run(create::subnet_router(args, &output)),
        Command::Apply(args) => run(apply::run(args, &output)),
        Command::Destroy(args) => run(destroy::run(args, &output)),
        Command::Enroll(args) => run(enroll::enroll(args, &output)),
        Command::Unenroll(args) => run(enroll::unenroll(args, &output)),
        Command::Logs(args) => run(logs::run(args, &output)),
        Command::Doctor(args) => run(doctor::run(args, &output)),
        Command::Upgrade(args) => run(upgrade::run(args, &output)),
        Command::Rekey(args) => run(rekey::run(args, &output)),
        Command::Resume(args) => run(resume::run(args, &output)),
        Command::Keys(command) => run(keys::run(command, &output)),
        Command::List(args) => run(list::list(args, &output)),
        Command::Status(args) => run(list::status(args, &output)),
        Command::Coordinator(command) => coordinator::run(command, &output),
        Command::Relay(command) => relay::run(command, &output),
        Command::Node(node) => run(node::run(&node, &output)),
        Command::Image(command) => run(image::run(command, &output)),
        Command::Inside(chore) => inside::run(chore),
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
