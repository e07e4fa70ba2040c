//! The coordinator's server: listener, Noise, HTTP/2, database, around [`crate::coord::server`].

mod admin;
mod body;
mod encoding;
mod forwarded;
mod front;
mod hub;
mod listener;
mod local;
mod map_stream;
mod page;
mod patience;
mod relay;
mod setup;
mod tunnel;
mod upgrade;

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use tokio::net::TcpListener;
use tokio::sync::{Notify, Semaphore, mpsc, watch};

use crate::coord::server::{EPHEMERAL_AFTER, KEY_LIFE, LoadError, Moment, Server};
use crate::ident::MachinePublic;
use crate::settings;
use crate::sys::gate::{Gate, Limits};
use crate::sys::store::{Store, StoreError, backup};
use crate::sys::{clock, entropy, files, gate};
use hub::Hub;
use listener::Door;
use setup::path_error;

/// Where a coordinator keeps its state unless told otherwise.
pub const STATE_DIR: &str = "/var/lib/pvemesh/coordinator";
/// Where a coordinator's admin socket is unless told otherwise.
pub const SOCKET: &str = "/run/pvemesh/coordinator.sock";

/// How long a connection may take until it is upgraded, and a local one in all.
const OUTER_TIME: Duration = Duration::from_secs(30);
/// Long request bodies read at once, each up to 1 MiB.
const BODY_TURNS: usize = 64;
/// How long stopping waits for connections to let go.
const STOP_TIME: Duration = Duration::from_millis(700);

/// What a coordinator is started with.
#[derive(Debug, Clone)]
pub struct Options {
    /// Address, listeners, certificate, suffix, admins.
    pub settings: settings::Coordinator,
    /// Directory of the database and the server's key; made with mode 0700.
    pub state_dir: PathBuf,
    /// The admin socket; its directory is made if it is missing.
    pub socket: PathBuf,
    /// A relay map (JSON) to tell clients.
    pub derp_map: Option<PathBuf>,
    /// How long keys and ephemeral nodes live.
    pub lifetimes: Lifetimes,
}

/// How long things live.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lifetimes {
    /// A node key after a login; `None` for ever. Tagged nodes' keys do not expire.
    pub key: Option<Duration>,
    /// An ephemeral node after it went offline.
    pub ephemeral: Duration,
}

impl Default for Lifetimes {
    fn default() -> Self {
        Self { key: Some(KEY_LIFE), ephemeral: EPHEMERAL_AFTER }
    }
}

/// Why a coordinator does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Stored state contradicts itself.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// A file or socket cannot be used.
    #[error("cannot {what} {path}: {source}")]
    Path {
        /// What was tried.
        what: &'static str,
        /// With what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The listener cannot be opened.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The database cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The relay cannot be started.
    #[error("start the relay: {0}")]
    Relay(#[from] crate::sys::relay::StartError),
    /// A setting makes no sense.
    #[error("{0}")]
    Setting(String),
}

/// What all connections share.
#[derive(Debug)]
struct Shared {
    hub: Arc<Hub>,
    gate: Arc<Gate>,
    /// The address clients are told.
    url: String,
    trusted_proxies: Vec<IpNet>,
    turns: Semaphore,
    relay: Option<Arc<crate::sys::relay::Service>>,
    stop: watch::Receiver<bool>,
    /// Held by every task; stopping waits until all are gone.
    alive: mpsc::Sender<()>,
}

impl Shared {
    /// Runs a task until it ends or the coordinator stops.
    fn spawn(self: Arc<Self>, task: impl Future<Output = ()> + Send + 'static) {
        let (mut stop, alive) = (self.stop.clone(), self.alive.clone());
        tokio::spawn(async move {
            tokio::select! {
                () = task => {}
                _ = stop.wait_for(|stop| *stop) => {}
            }
            drop(alive);
        });
    }
}

/// A running coordinator.
#[derive(Debug)]
pub struct Coordinator {
    address: SocketAddr,
    http_address: Option<SocketAddr>,
    socket: PathBuf,
    derp_map: Option<PathBuf>,
    relay: Option<relay::Embedded>,
    server_key: MachinePublic,
    hub: Arc<Hub>,
    reread: Arc<Notify>,
    stop: watch::Sender<bool>,
    ended: mpsc::Receiver<()>,
}

impl Coordinator {
    /// Opens the state, the listener and the admin socket, and serves them.
    ///
    /// # Errors
    /// See [`StartError`]; nothing is left running then.
    pub async fn start(options: Options) -> Result<Self, StartError> {
        let settings = setup::check(&options)?;
        files::make_state_dir(&options.state_dir).map_err(path_error("make the directory", &options.state_dir))?;
        let key_file = options.state_dir.join(backup::KEY);
        let key = files::key(&key_file, entropy::machine_key).map_err(path_error("read or make the server's key", &key_file))?;
        let (acceptor, certificate) = setup::tls(&options)?.unzip();
        let (store, snapshot) = Store::open(&options.state_dir.join(backup::DATABASE))?;
        let seed = entropy::seed().map_err(path_error("read", Path::new("system randomness")))?;
        let at = Moment { now: clock::now(), wall: clock::wall() };
        let url = settings.url.clone();
        let server = Server::new(settings, seed, snapshot, at)?;
        let server_key = key.public();
        let hub = Arc::new(Hub::new(server, store, key, options.settings.admin_keys.clone()));

        let (listener, address) = listen(options.settings.listen).await?;
        let front = options.settings.front.clone();
        let http = match front.listen_http {
            Some(wanted) => Some(listen(wanted).await?),
            None => None,
        };
        let http_address = http.as_ref().map(|(_, address)| *address);
        if let Some(parent) = options.socket.parent() {
            files::make_dir(parent, 0o755).map_err(path_error("make the directory", parent))?;
        }
        let relay = relay::start(&options, acceptor.is_some(), &hub).await?;
        let local = local::open(&options.socket).map_err(path_error("open the admin socket", &options.socket))?;

        let (stop, stopped) = watch::channel(false);
        let (alive, ended) = mpsc::channel(1);
        let shared = Arc::new(Shared {
            hub: hub.clone(),
            gate: Arc::new(Gate::new(Limits::within(gate::descriptors()))),
            url,
            trusted_proxies: front.trusted_proxies,
            turns: Semaphore::new(BODY_TURNS),
            relay: relay.as_ref().map(relay::Embedded::service),
            stop: stopped,
            alive,
        });
        let (timekeeper, reread) = (hub.clone(), Arc::new(Notify::new()));
        shared.clone().spawn(async move { timekeeper.keep_time().await });
        if let Some(relay) = &relay {
            shared.clone().spawn(relay.keep_members(hub.clone()));
        }
        if let Some(certificate) = certificate {
            shared.clone().spawn(certificate.keep_fresh(reread.clone()));
        }
        shared.clone().spawn(listener::serve(shared.clone(), listener, acceptor.map_or(Door::Plain, Door::Tls)));
        if let Some((listener, _)) = http {
            shared.clone().spawn(listener::serve(shared.clone(), listener, Door::BesideTls));
        }
        shared.clone().spawn(local::serve(shared.clone(), local));
        tracing::info!(%address, url = shared.url, key = %server_key, "coordinator is up");
        Ok(Self { address, http_address, socket: options.socket, derp_map: options.derp_map, relay, server_key, hub, reread, stop, ended })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where the second listener without TLS is, if there is one.
    pub fn http_address(&self) -> Option<SocketAddr> {
        self.http_address
    }

    /// Reads the relay map again, and tells all clients if it has changed.
    ///
    /// # Errors
    /// It does not read; clients keep the one they have.
    pub fn reread_derp_map(&self) -> Result<(), StartError> {
        let Some(path) = &self.derp_map else { return Ok(()) };
        let map = setup::read_derp_map(path)?;
        let map = match &self.relay {
            Some(relay) => relay.complete(map),
            None => map,
        };
        let _ = self.hub.call(|server, _| server.set_derp_map(Some(map)));
        Ok(())
    }

    /// Reads the certificate's files again now. That happens by itself, too, soon after they change.
    pub fn reread_certificate(&self) {
        self.reread.notify_one();
    }

    /// The relay in it, if there is one.
    pub fn relay(&self) -> Option<&crate::sys::relay::Relay> {
        self.relay.as_ref().map(relay::Embedded::relay)
    }

    /// The key clients pin.
    pub fn server_key(&self) -> MachinePublic {
        self.server_key
    }

    /// Stops: connections are cut, everything is on disk when this returns. Takes a second at most.
    pub async fn stop(mut self) {
        let relay = self.relay.take().map(relay::Embedded::stop);
        self.stop.send_replace(true);
        let ended = tokio::time::timeout(STOP_TIME, self.ended.recv());
        match relay {
            Some(relay) => drop(tokio::join!(relay, ended)),
            None => drop(ended.await),
        }
        let hub = self.hub.clone();
        let _ = tokio::task::spawn_blocking(move || hub.close()).await;
        let _ = std::fs::remove_file(&self.socket);
    }
}

async fn listen(wanted: SocketAddr) -> Result<(TcpListener, SocketAddr), StartError> {
    let failed = |source| StartError::Listen { address: wanted, source };
    let listener = TcpListener::bind(wanted).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    Ok((listener, address))
}
