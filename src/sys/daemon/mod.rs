//! The mesh node's process: packet engine, routing and control session of one machine, and a local socket to steer it.
//!
//! One process per state directory, held by a lock. Stopping it (SIGTERM, SIGINT, or by the socket) takes routes, rules, firewall and
//! TUN away; what a killed one left is cleared at the next start. Keys and preferences are on disk before anything depends on them.

mod binding;
mod changes;
mod chooser;
mod effect;
mod guest;
mod kept_map;
mod member;
mod membership;
mod naming;
mod outside;
mod pings;
mod questions;
pub mod rejoin;
mod resolver;
mod session;
pub mod state;
mod surroundings;
mod upkeep;
mod userspace;
mod watch;

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;

use crate::node::TunOffload;
use crate::settings::GuestError;
use crate::sys::local_api::{Refused, Reply, Request, Server};
use crate::sys::router::{self, RouterError};
use binding::GuestKeys;
use changes::{Change, Changes};
use member::Member;
use state::Store;
pub use state::check_directory;
use state::private_directory;
pub use userspace::Ground;

/// Where a node's files are unless told otherwise.
pub const DEFAULT_STATE_DIR: &str = "/var/lib/pvemesh/node";

/// How often the machine's own networks are looked at: a laptop that changes networks is reachable again within this time.
const LOOK: Duration = Duration::from_secs(5);

/// How often it is looked whether routing, firewall and kernel settings still are as they were set. The kernel tells at once of rules and
/// routes that another program removes, of the others it does not.
const KEEP: Duration = Duration::from_millis(1500);

/// How often a node without keys of its own looks whether its host has brought a join key.
const AWAIT_KEY: Duration = Duration::from_secs(1);

/// What a node is started with.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where its files are.
    pub state_dir: PathBuf,
    /// Where its local socket is.
    pub socket: PathBuf,
    /// How the mesh's packets reach this machine.
    pub ground: Ground,
    /// The UDP port; absent means what the guest's configuration says, or else the usual one.
    pub port: Option<u16>,
    /// The most of the kernel's offloads to use.
    pub offload: TunOffload,
    /// The guest's configuration, in the appliance.
    pub guest_config: Option<PathBuf>,
    /// It was started in the background by `up`, so it ends with `down`.
    pub background: bool,
}

/// Why a node does not run.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// Another process has the state directory.
    #[error("another node runs with the files in {}", .0.display())]
    Running(PathBuf),
    /// A file cannot be used.
    #[error("{tried} {}: {source}", path.display())]
    File {
        /// What was tried.
        tried: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A state file is damaged.
    #[error("{} is damaged ({reason}); restore it, or remove it to start with a new identity", path.display())]
    Broken {
        /// The file.
        path: PathBuf,
        /// Where.
        reason: String,
    },
    /// The guest's configuration is not usable.
    #[error("{}: {source}", path.display())]
    Guest {
        /// The file.
        path: PathBuf,
        /// Why.
        source: GuestError,
    },
    /// The guest's configuration is for something else.
    #[error("{} has no [node] section", .0.display())]
    NoNode(PathBuf),
    /// The packet engine does not start.
    #[error(transparent)]
    Engine(io::Error),
    /// An address for a proxy is not to be had.
    #[error("listen on {address} for programs that use the proxy: {source}")]
    Proxy {
        /// The address.
        address: std::net::SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// Routing cannot be set up.
    #[error(transparent)]
    Router(#[from] RouterError),
    /// The system has no randomness.
    #[error(transparent)]
    Entropy(io::Error),
    /// Signals cannot be received.
    #[error("wait for signals: {0}")]
    Signals(io::Error),
}

impl DaemonError {
    /// What the user may do about it.
    pub fn next(&self) -> &'static str {
        match self {
            Self::Running(_) => "use the one that runs, or give this one other --state-dir, --socket and --tun",
            Self::Engine(error) => match error.kind() {
                io::ErrorKind::NotFound => {
                    "in a container, pass /dev/net/tun through (on Proxmox: `dev0: /dev/net/tun`); elsewhere, `modprobe tun`; or do without by `--tun userspace`"
                }
                io::ErrorKind::PermissionDenied => {
                    "run as root with CAP_NET_ADMIN; a container needs the right in its own network; `--tun userspace` needs none"
                }
                io::ErrorKind::AlreadyExists | io::ErrorKind::ResourceBusy => {
                    "give this node another interface name with --tun, or remove that one"
                }
                _ => "run as root; in a container, pass /dev/net/tun through (on Proxmox: `dev0: /dev/net/tun`)",
            },
            Self::Proxy { .. } => "name another address, or end the program that has it",
            Self::Router(_) => "run as root (or with CAP_NET_ADMIN), on a kernel with policy routing and nftables",
            Self::Guest { .. } | Self::NoNode(_) => "correct the guest's configuration",
            Self::File { source, .. } => match source.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "free some space there, or name another --state-dir",
                io::ErrorKind::ReadOnlyFilesystem => "make it writable, or name another --state-dir",
                io::ErrorKind::PermissionDenied => "run as root, or name a --state-dir that this user can write",
                _ => "see the message above; `-v` says more",
            },
            _ => "see the message above; `-v` says more",
        }
    }
}

impl From<DaemonError> for Refused {
    fn from(error: DaemonError) -> Self {
        Self { next: error.next().to_owned(), error: error.to_string() }
    }
}

/// Runs a node until it is told to stop.
///
/// # Errors
/// It cannot start. Once it runs, nothing but a signal or the socket ends it.
pub async fn run(options: Options) -> Result<(), DaemonError> {
    if let Ground::Tun(name) = &options.ground
        && !router::is_interface_name(name)
    {
        return Err(RouterError::Name(name.escape_default().to_string()).into());
    }
    let store = Store::open(&options.state_dir)?;
    let _lock = store.lock()?;
    if let Some(parent) = options.socket.parent() {
        private_directory(parent)?;
    }
    let mut signals = Signals {
        terminate: signal(SignalKind::terminate()).map_err(DaemonError::Signals)?,
        interrupt: signal(SignalKind::interrupt()).map_err(DaemonError::Signals)?,
    };
    let keys = options.guest_config.as_deref().map(|config| GuestKeys::new(&options.state_dir, config));
    loop {
        if let Some(keys) = &keys {
            while !keys.settle()? {
                tokio::select! {
                    () = tokio::time::sleep(AWAIT_KEY) => {}
                    () = signals.stop() => return Ok(()),
                }
            }
        }
        if life(&options, &store, keys.as_ref(), &mut signals).await? == End::Stopped {
            return Ok(());
        }
        tracing::info!("the host has brought a new identity; starting again with it");
    }
}

/// What ends a node from outside.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    async fn stop(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// How a node's life under one identity ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Stopped,
    /// The host wants it to have another one.
    Renewed,
}

async fn life(options: &Options, store: &Store, keys: Option<&GuestKeys>, signals: &mut Signals) -> Result<End, DaemonError> {
    if let Ground::Tun(name) = &options.ground {
        let cleared = router::clean_leftovers(name).await;
        if let Err(error) = &cleared {
            tracing::warn!(%error, "what an earlier run left could not all be cleared");
        }
        // What is there is not left over if another node runs.
        if !matches!(cleared, Err(RouterError::Held(_))) {
            resolver::clean_leftovers(name);
        }
    }
    let (questions, mut asked) = mpsc::channel(16);
    let socket = options.socket.clone();
    let background = options.background;
    let mut member = Member::start(options.clone(), store.clone()).await?;
    let server = Server::listen(&socket, questions);
    let _server = server.map_err(|source| DaemonError::File { tried: "listen on", path: socket, source })?;
    tracing::info!("the node runs");

    let mut look = tokio::time::interval(LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut keep = tokio::time::interval(KEEP);
    keep.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut changes = Changes::listen();
    let mut end = End::Stopped;
    loop {
        tokio::select! {
            news = member.next_news() => member.on_news(news).await,
            _ = look.tick() => member.look_around().await,
            _ = keep.tick() => {
                if keys.is_some_and(GuestKeys::is_renewed) {
                    end = End::Renewed;
                    break;
                }
                member.keep().await;
            }
            change = changes.next() => match change {
                Change::Networks => {
                    member.look_around().await;
                    member.keep().await;
                }
                Change::Routing => member.keep().await,
            },
            () = signals.stop() => break,
            question = asked.recv() => {
                let Some(asked) = question else { break };
                let Some((request, answer)) = member.answer_later(asked).await else { continue };
                let ends = matches!(request, Request::Stop) || (background && matches!(request, Request::Down));
                let reply: Result<Reply, Refused> = member.answer(request).await;
                let ends = ends && reply.is_ok();
                // Whoever asked may have gone.
                let _ = answer.send(reply);
                if ends {
                    // Let the answer leave before the socket closes.
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    break;
                }
            }
        }
    }
    member.stop().await;
    tracing::info!("the node has stopped");
    Ok(end)
}
