//! `pvemesh coordinator`: running one, and administering the one on this machine.

mod backup;
mod dns;
mod keys;
mod nodes;
mod policy;
mod relays;
mod routes;
mod serve;
mod span;
mod table;
mod users;

use std::path::PathBuf;

use super::{Exit, Failure, Output};
use crate::sys::admin::{AdminError, LocalAdmin};
use crate::sys::coordinator::SOCKET;

/// The coordinator: who is in the mesh.
#[derive(Debug, clap::Subcommand)]
pub(in crate::cli) enum Coordinator {
    /// Run the coordinator in the foreground until SIGTERM or Ctrl-C.
    Serve(Box<serve::Serve>),
    /// Show what the coordinator on this machine is.
    Info(Place),
    /// Users: whoever owns nodes.
    #[command(subcommand)]
    Users(users::Users),
    /// Join keys: what lets nodes in without anyone's approval.
    #[command(subcommand)]
    Keys(keys::Keys),
    /// Nodes of the mesh.
    #[command(subcommand)]
    Nodes(nodes::Nodes),
    /// Routes that nodes offer to carry.
    #[command(subcommand)]
    Routes(routes::Routes),
    /// The policy: who may reach whom.
    #[command(subcommand)]
    Policy(policy::Policy),
    /// Relays in the relay map.
    #[command(subcommand)]
    Relays(relays::Relays),
    /// Names: how they are resolved on all nodes.
    #[command(subcommand)]
    Dns(dns::Dns),
    /// Save everything the coordinator knows, its key included, to one file.
    Backup(backup::Backup),
    /// Put a backup in place as the state of a coordinator that does not run.
    Restore(backup::Restore),
}

/// Where the coordinator to be administered is.
#[derive(Debug, clap::Args)]
pub(crate) struct Place {
    /// The coordinator's admin socket.
    #[arg(long, value_name = "FILE", default_value = SOCKET)]
    socket: PathBuf,
}

/// Runs a command.
pub(in crate::cli) fn run(command: Coordinator, output: &Output) -> Result<(), Failure> {
    match command {
        Coordinator::Serve(serve) => serve::run(*serve, output),
        Coordinator::Info(place) => info(&place, output),
        Coordinator::Users(users) => users::run(users, output),
        Coordinator::Keys(keys) => keys::run(keys, output),
        Coordinator::Nodes(nodes) => nodes::run(nodes, output),
        Coordinator::Routes(routes) => routes::run(routes, output),
        Coordinator::Policy(policy) => policy::run(policy, output),
        Coordinator::Relays(relays) => relays::run(relays, output),
        Coordinator::Dns(dns) => dns::run(dns, output),
        Coordinator::Backup(backup) => backup::run(&backup, output),
        Coordinator::Restore(restore) => backup::restore(&restore, output),
    }
}

fn info(place: &Place, output: &Output) -> Result<(), Failure> {
    let info = place.ask("ask the coordinator about itself", async |admin| admin.info().await)?;
    let text = format!(
        "url          {}\nbase domain  {}\nserver key   {}\nnodes        {} ({} online)\nversion      {}",
        info.url, info.base_domain, info.server_key, info.nodes, info.online, info.version
    );
    output.result(&info, text);
    Ok(())
}

impl Place {
    /// Asks the coordinator something.
    fn ask<T>(&self, tried: &str, ask: impl AsyncFnOnce(&LocalAdmin) -> Result<T, AdminError>) -> Result<T, Failure> {
        self.run(tried, async |admin| ask(admin).await.map_err(|error| failure(tried, &error)))
    }

    /// The same for what can fail in other ways, too.
    fn run<T>(&self, tried: &str, work: impl AsyncFnOnce(&LocalAdmin) -> Result<T, Failure>) -> Result<T, Failure> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|e| Failure::new(tried, e, "free some memory or file descriptors and try again"))?;
        runtime.block_on(work(&LocalAdmin::connect(&self.socket)))
    }
}

/// An administration error as the user reads it.
fn failure(tried: &str, error: &AdminError) -> Failure {
    let (next, exit) = match error {
        AdminError::Malformed { .. } => ("use the pvemesh that runs the coordinator", Exit::Failed),
        AdminError::Refused { status: 400, .. } => ("correct the command; --help shows what it takes", Exit::Usage),
        AdminError::Refused { status: 403, .. } => ("use a machine key the coordinator trusts", Exit::Denied),
        AdminError::Refused { status: 409, .. } => ("resolve the conflict and try again", Exit::Conflict),
        AdminError::Refused { .. } => ("look at what is there with the `list` commands", Exit::Failed),
        AdminError::Unreachable { .. } => (
            "run this as root on the machine (or in the container) where `pvemesh coordinator serve` runs, or name its socket with --socket",
            Exit::Unreachable,
        ),
    };
    Failure::new(tried, error, next).exit(exit)
}
