//! The members of a mesh: our node, stock tailscaled, tailscale-rs, behind one set of commands.

mod own;
mod rust_client;
mod status;
mod stock;

use std::path::{Path, PathBuf};
use std::time::Duration;

pub use rust_client::RustClient;
pub use status::{Peer, Status};

use crate::Done;
use crate::machine::Machine;
use crate::programs::Programs;
use crate::wait::{get, secs, until};

/// Which program a member is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Ours,
    Stock,
}

/// How long a client may take until it runs.
pub const JOIN_LIMIT: Duration = secs(25);

/// What a member knows of a peer beside its status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Detail {
    pub endpoints: Vec<String>,
    /// The home relay; 0 for none.
    pub home: i64,
    pub disco: String,
}

/// How many messages of the map stream a member has got, as far as it counts them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Messages {
    pub streams: u64,
    pub maps: u64,
    pub deltas: u64,
}

/// A join that is wished for.
#[derive(Debug, Clone, Default)]
pub struct Join<'a> {
    pub url: &'a str,
    pub key: Option<&'a str>,
    /// Flags of `tailscale up` and `pvemesh node up`.
    pub flags: &'a [&'a str],
}

pub trait Member: Send + Sync {
    fn machine(&self) -> &Machine;
    /// Starts the daemon, unless it runs.
    fn start(&mut self) -> Done;
    /// Ends the daemon in order; its state stays.
    fn stop(&mut self);
    /// The `up` command. It returns when the member runs, or says why it does not.
    fn up(&self, join: &Join<'_>) -> Done;
    /// Another command of the client: `down`, `set` ...
    fn tell(&self, words: &[&str]) -> Done<String>;
    fn status(&self) -> Done<Status>;
    /// Pings a peer by the client's own command; gives what it printed.
    fn ping(&self, target: &str) -> Done<String>;
    /// What the last map said of a peer.
    fn detail(&self, peer: &str) -> Done<Detail>;
    /// What it counted; `None` if it does not count.
    fn messages(&self) -> Done<Option<Messages>>;
    /// Where its state is.
    fn state_dir(&self) -> PathBuf;

    /// Starts to join without a key and gives the address that the user is to visit.
    fn ask_to_join(&self, url: &str) -> Done<String> {
        let name = format!("--hostname={}", self.machine().name());
        // It does not end before the user has decided, so it is not waited for.
        let refused = self.up(&Join { url, key: None, flags: &[&name, "--timeout=1s"] });
        get("a page to visit is named", secs(10), || {
            let status = self.status()?;
            Ok((!status.auth_url.is_empty()).then_some(status.auth_url))
        })
        .map_err(|e| format!("{e}; {refused:?}"))
    }

    fn running(&self) -> Done<bool> {
        Ok(self.status()?.state == "Running")
    }

    /// Waits until the member is in a state.
    fn becomes(&self, state: &str, limit: Duration) -> Done<Duration> {
        until(&format!("{} becomes {state}", self.machine().name()), limit, || {
            let status = self.status()?;
            if status.state == state { Ok(true) } else { Err(format!("it is {} {:?} {:?}", status.state, status.health, status.auth_url)) }
        })
    }
}

/// A member on a machine, its daemon not started. Its wall clock is wrong by `offset`, unless that is empty; our node may be without a TUN.
pub fn new(kind: Kind, programs: &Programs, machine: &Machine, offset: &'static str, userspace: bool) -> Box<dyn Member> {
    let daemon = Daemon { machine: machine.clone(), skew: programs.skew.clone(), offset };
    match kind {
        Kind::Ours => Box::new(own::Own::new(programs, daemon, userspace)),
        Kind::Stock => Box::new(stock::Stock::new(programs, daemon)),
    }
}

/// Where a member's daemon runs, and by which clock.
#[derive(Debug)]
struct Daemon {
    machine: Machine,
    skew: PathBuf,
    offset: &'static str,
}

impl Daemon {
    fn command(&self, program: &Path) -> std::process::Command {
        if self.offset.is_empty() {
            return self.machine.command(program);
        }
        let mut command = self.machine.command(&self.skew);
        command.arg(self.offset).arg(program);
        command
    }
}

/// Copies a state directory, as cloning a machine does.
pub fn copy_state(from: &Path, to: &Path) -> Done {
    let _ = std::fs::remove_dir_all(to);
    crate::machine::run(&["cp", "-a", &from.display().to_string(), &to.display().to_string()]).map(drop)
}
