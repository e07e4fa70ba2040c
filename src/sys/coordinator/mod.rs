//! The coordinator's server: listener, Noise, HTTP/2, database, around [`crate::coord::server`].

mod admin;
mod body;
mod encoding;
mod files;
mod front;
mod gate;
mod hub;
mod listener;
mod map_stream;
mod tunnel;

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_rustls::TlsAcceptor;

use crate::coord::server::{LoadError, Moment, Server};
use crate::ident::MachinePublic;
use crate::settings;
use crate::sys::store::{Store, StoreError, backup};
use crate::sys::{clock, entropy};
use crate::wire::control::{DerpMap, json as lenient};
use gate::{Gate, Limits};
use hub::Hub;

/// Where a coordinator keeps its state unless told otherwise.
pub const STATE_DIR: &str = "/var/lib/pvemesh/coordinator";
/// Where a coordinator's admin socket is unless told otherwise.
pub const SOCKET: &str = "/run/pvemesh/coordinator.sock";

/// How long a connection may take until it is upgraded, and a local one in all.
const OUTER_TIME: Duration = Duration::from_secs(30);
/// A DNS name has 253 characters; a node's name and a dot come before the base domain.
const MAX_BASE_DOMAIN: usize = 253 - 64;
/// Request bodies read at once, each up to 1 MiB, and how many of them may be strangers'.
const BODY_TURNS: usize = 64;
const STRANGER_BODY_TURNS: usize = 8;
/// How long stopping waits for connections to let go.
const STOP_TIME: Duration = Duration::from_millis(700);

/// What a coordinator is started with.
#[derive(Debug, Clone)]
pub struct Options {
    /// Address, listener, suffix, admins.
    pub settings: settings::Coordinator,
    /// Directory of the database and the server's key; made with mode 0700.
    pub state_dir: PathBuf,
    /// The admin socket; its directory is made if it is missing.
    pub socket: PathBuf,
    /// Certificate chain and key (PEM); without them the listener speaks plain HTTP.
    pub tls: Option<(PathBuf, PathBuf)>,
    /// A relay map (JSON) to tell clients.
    pub derp_map: Option<PathBuf>,
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
    /// A setting makes no sense.
    #[error("{0}")]
    Setting(String),
}

/// What all connections share.
#[derive(Debug)]
struct Shared {
    hub: Arc<Hub>,
    gate: Arc<Gate>,
    turns: Semaphore,
    stranger_turns: Semaphore,
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
    socket: PathBuf,
    server_key: MachinePublic,
    hub: Arc<Hub>,
    stop: watch::Sender<bool>,
    ended: mpsc::Receiver<()>,
}

impl Coordinator {
    /// Opens the state, the listener and the admin socket, and serves them.
    ///
    /// # Errors
    /// See [`StartError`]; nothing is left running then.
    pub async fn start(options: Options) -> Result<Self, StartError> {
        let settings = check(&options)?;
        files::make_state_dir(&options.state_dir).map_err(path_error("make the directory", &options.state_dir))?;
        let key_file = options.state_dir.join(backup::KEY);
        let key = files::machine_key(&key_file).map_err(path_error("read or make the server's key", &key_file))?;
        let tls = options.tls.as_ref().map(|(chain, key)| acceptor(chain, key)).transpose()?;
        let (store, snapshot) = Store::open(&options.state_dir.join(backup::DATABASE))?;
        let seed = entropy::seed().map_err(path_error("read", Path::new("system randomness")))?;
        let at = Moment { now: clock::now(), wall: clock::wall() };
        let server = Server::new(settings, seed, snapshot, at)?;
        let server_key = key.public();
        let hub = Arc::new(Hub::new(server, store, key, options.settings.admin_keys.clone()));

        let listen = options.settings.listen;
        let listen_error = |source| StartError::Listen { address: listen, source };
        let listener = TcpListener::bind(listen).await.map_err(listen_error)?;
        let address = listener.local_addr().map_err(listen_error)?;
        if let Some(parent) = options.socket.parent() {
            files::make_dir(parent, 0o755).map_err(path_error("make the directory", parent))?;
        }
        let local = listener::open_local(&options.socket).map_err(path_error("open the admin socket", &options.socket))?;

        let (stop, stopped) = watch::channel(false);
        let (alive, ended) = mpsc::channel(1);
        let shared = Arc::new(Shared {
            hub: hub.clone(),
            gate: Arc::new(Gate::new(Limits::within(descriptors()))),
            turns: Semaphore::new(BODY_TURNS),
            stranger_turns: Semaphore::new(STRANGER_BODY_TURNS),
            stop: stopped,
            alive,
        });
        let timekeeper = hub.clone();
        shared.clone().spawn(async move { timekeeper.keep_time().await });
        shared.clone().spawn(listener::serve(shared.clone(), listener, tls));
        shared.clone().spawn(listener::serve_local(shared.clone(), local));
        tracing::info!(%address, url = options.settings.url, key = %server_key, "coordinator is up");
        Ok(Self { address, socket: options.socket, server_key, hub, stop, ended })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The key clients pin.
    pub fn server_key(&self) -> MachinePublic {
        self.server_key
    }

    /// Stops: connections are cut, everything is on disk when this returns. Takes a second at most.
    pub async fn stop(mut self) {
        self.stop.send_replace(true);
        let _ = tokio::time::timeout(STOP_TIME, self.ended.recv()).await;
        let hub = self.hub.clone();
        let _ = tokio::task::spawn_blocking(move || hub.close()).await;
        let _ = std::fs::remove_file(&self.socket);
    }
}

fn path_error(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StartError + use<> {
    let path = path.to_owned();
    move |source| StartError::Path { what, path, source }
}

/// The core's settings, if those of the options make sense.
fn check(options: &Options) -> Result<crate::coord::server::Settings, StartError> {
    let setting = |text: String| Err(StartError::Setting(text));
    let url = options.settings.url.trim_end_matches('/').to_owned();
    let uri: http::Uri = match url.parse() {
        Ok(uri) => uri,
        Err(e) => return setting(format!("the address {url} is not a URL ({e}): give http(s)://HOST[:PORT]")),
    };
    let (Some("http" | "https"), Some(host), "" | "/") = (uri.scheme_str(), uri.host(), uri.path()) else {
        return setting(format!("the address {url} is not of the form http(s)://HOST[:PORT]"));
    };
    let base = options.settings.base_domain.clone();
    let labels_fit = base.split('.').all(|label| label.parse::<crate::ident::NodeName>().is_ok());
    if base.len() > MAX_BASE_DOMAIN || !labels_fit {
        return setting(format!("the base domain {base} is not a domain name such as mesh.internal"));
    }
    // Names under the base domain are resolved through the mesh: the way to the coordinator must not need the mesh.
    if host.eq_ignore_ascii_case(&base) || host.to_ascii_lowercase().ends_with(&format!(".{}", base.to_ascii_lowercase())) {
        return setting(format!("the coordinator's own name {host} lies under the base domain {base}: choose another base domain"));
    }
    let derp_map = options.derp_map.as_deref().map(read_derp_map).transpose()?;
    Ok(crate::coord::server::Settings { derp_map, ..crate::coord::server::Settings::new(url, base.to_ascii_lowercase()) })
}

fn read_derp_map(path: &Path) -> Result<DerpMap, StartError> {
    let bytes = std::fs::read(path).map_err(path_error("read the relay map", path))?;
    lenient::from_slice(&bytes).map_err(|e| path_error("read the relay map", path)(io::Error::other(e)))
}

fn acceptor(chain: &Path, key: &Path) -> Result<TlsAcceptor, StartError> {
    use rustls_pki_types::pem::PemObject as _;
    use rustls_pki_types::{CertificateDer, PrivateKeyDer};
    let read = |path: &Path| path_error("read the certificate", path);
    let certificates: Vec<_> =
        CertificateDer::pem_file_iter(chain).and_then(Iterator::collect).map_err(|e| read(chain)(io::Error::other(e)))?;
    let private = PrivateKeyDer::from_pem_file(key).map_err(|e| read(key)(io::Error::other(e)))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map(|builder| builder.with_no_client_auth())
        .and_then(|builder| builder.with_single_cert(certificates, private))
        .map_err(|e| read(chain)(io::Error::other(e)))?;
    // The upgrade is HTTP/1.1: nothing else is offered.
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// How many files may be open, after asking for as many as are allowed.
fn descriptors() -> u64 {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        let wanted = rustix::process::Rlimit { current: limit.maximum, maximum: limit.maximum };
        if setrlimit(Resource::Nofile, wanted).is_ok() {
            limit = getrlimit(Resource::Nofile);
        }
    }
    limit.current.unwrap_or(u64::MAX)
}
