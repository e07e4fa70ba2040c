//! `pvemesh inside`: chores that the provisioner has this program do in a guest. Not for people, so it is in no list of commands; what it prints
//! is JSON.

use std::path::PathBuf;

use clap::Subcommand;

use super::{Exit, Failure, Output};
use crate::ident::Secret;
use crate::plan::guest::{LOG, Service};
use crate::sys::chores::{self, ChoreError};
use crate::sys::daemon::{DEFAULT_STATE_DIR, DaemonError, rejoin};
use crate::sys::log_ring;

/// A join key is far shorter.
const MAX_KEY: u64 = 4096;

/// Chores in a guest.
#[derive(Debug, Subcommand)]
pub(super) enum Inside {
    /// The SHA-256 of a file.
    Sha256 {
        /// The file.
        path: PathBuf,
    },
    /// Write a file from standard input, whole or not at all.
    Write {
        /// The file.
        path: PathBuf,
        /// Its permission bits, octal.
        #[arg(long, value_parser = mode, default_value = "600")]
        mode: u32,
    },
    /// Put a file in another's place.
    Place {
        /// The new one.
        from: PathBuf,
        /// Its place.
        to: PathBuf,
        /// What was there is kept here.
        #[arg(long)]
        keep: Option<PathBuf>,
    },
    /// Remove files and directories, if they are there.
    Remove {
        /// Which.
        paths: Vec<PathBuf>,
    },
    /// A new program in the old one's place, until told otherwise.
    #[command(subcommand)]
    Trial(Trial),
    /// New keys for the node here, joined with a key from standard input.
    #[command(subcommand)]
    Rejoin(Rejoin),
    /// The end of the node's log.
    Log {
        /// How many lines.
        #[arg(long, default_value_t = 100)]
        lines: usize,
        /// Go on with what is added.
        #[arg(long)]
        follow: bool,
        /// The log.
        #[arg(long, default_value = LOG)]
        file: PathBuf,
    },
}

/// A trial.
#[derive(Debug, Subcommand)]
pub(super) enum Trial {
    /// Begin one.
    Begin {
        /// The new program.
        program: PathBuf,
        /// The old one.
        #[arg(long)]
        installed: PathBuf,
        /// Who keeps the service running.
        #[arg(long)]
        service: Service,
        /// How long the new one may stay unless confirmed.
        #[arg(long)]
        seconds: u64,
    },
    /// The new one stays.
    Confirm {
        /// The old one is kept here.
        #[arg(long)]
        keep: PathBuf,
    },
    /// The old one comes back.
    Abort,
    /// Wait for the end (started by `begin`).
    Guard,
}

/// New keys.
#[derive(Debug, Subcommand)]
pub(super) enum Rejoin {
    /// Join as a new node.
    Begin(Member),
    /// The new one stays.
    Keep(Member),
    /// The old one comes back.
    TakeBack(Member),
}

/// The node and who runs it.
#[derive(Debug, clap::Args)]
pub(super) struct Member {
    /// Its files.
    #[arg(long, default_value = DEFAULT_STATE_DIR)]
    state_dir: PathBuf,
    /// Who keeps it running.
    #[arg(long)]
    service: Service,
}

fn mode(text: &str) -> Result<u32, String> {
    u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o7777).ok_or_else(|| "permission bits are octal, as in 600".to_owned())
}

/// Does a chore.
pub(super) fn run(chore: Inside) -> Result<(), Failure> {
    let value = match chore {
        Inside::Sha256 { path } => chores::sha256(&path).map(|hash| serde_json::json!({ "sha256": hash })),
        Inside::Write { path, mode } => chores::write(&path, mode, std::io::stdin()).map(|()| serde_json::json!({})),
        Inside::Place { from, to, keep } => chores::place(&from, &to, keep.as_deref()).map(|()| serde_json::json!({})),
        Inside::Remove { paths } => chores::remove(&paths).map(|removed| serde_json::json!({ "removed": removed })),
        Inside::Trial(trial) => return try_out(trial).map(|()| print(&serde_json::json!({}))),
        Inside::Rejoin(rejoin) => return join_anew(rejoin).map(|done| print(&serde_json::json!({ "done": done }))),
        Inside::Log { lines, follow, file } => return log(&file, lines, follow),
    };
    print(&value.map_err(failure)?);
    Ok(())
}

fn try_out(trial: Trial) -> Result<(), Failure> {
    let done = match trial {
        Trial::Begin { program, installed, service, seconds } => chores::trial::begin(&program, &installed, service, seconds),
        Trial::Confirm { keep } => chores::trial::confirm(&keep),
        Trial::Abort => chores::trial::abort(),
        Trial::Guard => {
            chores::trial::guard();
            Ok(())
        }
    };
    done.map_err(|e| Failure::new("try a new program", e, "the old one is still there"))
}

fn join_anew(rejoin: Rejoin) -> Result<bool, Failure> {
    let failed = |e: DaemonError| Failure::new("join with new keys", &e, e.next());
    let restart = |member: &Member| {
        chores::trial::restart(member.service).map_err(|e| Failure::new("join with new keys", e, "restart the node's service"))
    };
    match rejoin {
        Rejoin::Begin(member) => {
            let mut text = zeroize::Zeroizing::new(String::new());
            let read = std::io::Read::read_to_string(&mut std::io::Read::take(std::io::stdin(), MAX_KEY), &mut text);
            read.map_err(|e| Failure::new("read the join key", e, "give it on standard input"))?;
            rejoin::ask(&member.state_dir, &Secret::new(text.trim())).map_err(failed)?;
            restart(&member).map(|()| true)
        }
        Rejoin::Keep(member) => rejoin::keep(&member.state_dir).map_err(failed),
        Rejoin::TakeBack(member) => {
            let back = rejoin::take_back(&member.state_dir).map_err(failed)?;
            restart(&member).map(|()| back)
        }
    }
}

fn log(file: &std::path::Path, lines: usize, follow: bool) -> Result<(), Failure> {
    use std::io::Write as _;
    let mut out = std::io::stdout().lock();
    let mut sink = |bytes: &[u8]| out.write_all(bytes).and_then(|()| out.flush());
    let shown = if follow { log_ring::follow(file, lines, &mut sink) } else { log_ring::tail(file, lines).and_then(|text| sink(&text)) };
    match shown {
        // The reader has gone.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => other.map_err(|e| Failure::new(format!("read {}", file.display()), e, "has the node ever run here?")),
    }
}

/// The result, JSON whatever the options say: a program reads it.
fn print(value: &serde_json::Value) {
    let output = Output::new(&super::Global { json: true, verbose: 0 });
    output.result(value, "");
}

fn failure(error: ChoreError) -> Failure {
    Failure::new("do a chore in this guest", error, "look at the guest's disk and permissions").exit(Exit::Failed)
}
