//! A relay: its listeners, TLS, the STUN server, around [`crate::relay::server`].

mod admission;
mod ahead;
mod asked;
pub mod dial;
pub(in crate::sys) mod front;
mod http;
mod listener;
mod mesh;
mod session;
mod stun;
mod trust;

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::{Notify, mpsc, watch};

pub use admission::{Admission, Asked, Known, listed};
pub use mesh::Mesh;

use crate::ident::{RelayPrivate, RelayPublic};
use crate::relay::server::{Arrival, Config, Rate, Relay as Core, Snapshot};
use crate::settings::{Acme, CertificateFiles};
use crate::sys::certificate::{self, Source, self_signed};
use crate::sys::gate::{Gate, Limits, Place};
use crate::sys::web_socket::WebSocket;
use crate::sys::{clock, entropy, files};
use listener::Door;

/// Where a relay keeps its key and certificates unless told otherwise.
pub const STATE_DIR: &str = "/var/lib/pvemesh/relay";
/// How long stopping waits for clients to read that the relay restarts, and then for connections to let go.
const STOP_TIME: Duration = Duration::from_millis(700);
/// What clients are told when the relay stops: when to come back, and for how long to try.
const RESTART: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// Where a relay's certificate comes from.
#[derive(Debug, Clone)]
pub enum Tls {
    /// We make one for this name or address; clients know it by its fingerprint.
    SelfSigned(String),
    /// Files.
    Files(CertificateFiles),
    /// An ACME authority.
    Acme(Acme),
    /// No TLS: behind something that has it, or for tests. Stock clients need TLS.
    None,
}

/// What a relay is started with.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where clients connect; `None` if another server's listener hands them over.
    pub listen: Option<SocketAddr>,
    /// The certificate of that listener.
    pub tls: Tls,
    /// A second listener without TLS, normally port 80, for the check whether a portal stands in the way.
    pub listen_http: Option<SocketAddr>,
    /// Where STUN is answered.
    pub stun: Option<SocketAddr>,
    /// Directory of the key and of certificates; made with mode 0700.
    pub state_dir: PathBuf,
    /// Who is served.
    pub admission: Admission,
    /// The other relays of the region.
    pub mesh: Option<Mesh>,
    /// What each client may send.
    pub rate: Option<Rate>,
}

/// Why a relay does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A file cannot be used.
    #[error("cannot {what} {path}: {source}")]
    Path {
        /// What was tried.
        what: &'static str,
        /// With what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A listener cannot be opened.
    #[error("cannot listen on {address} ({what}): {source}")]
    Listen {
        /// For what.
        what: &'static str,
        /// Where.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The system gives no randomness.
    #[error("{0}")]
    Randomness(io::Error),
}

/// What all connections share.
#[derive(Debug)]
pub(in crate::sys) struct Service {
    core: Arc<Core>,
    admission: Admission,
    gate: Arc<Gate>,
    stop: watch::Receiver<bool>,
    /// Held by every task; stopping waits until all are gone.
    alive: mpsc::Sender<()>,
}

impl Service {
    pub(in crate::sys) fn key(&self) -> RelayPublic {
        self.core.key()
    }

    /// Runs a task until it ends or the relay stops.
    fn spawn(self: &Arc<Self>, task: impl Future<Output = ()> + Send + 'static) {
        let (mut stop, alive) = (self.stop.clone(), self.alive.clone());
        tokio::spawn(async move {
            tokio::select! {
                () = task => {}
                _ = stop.wait_for(|stop| *stop) => {}
            }
            drop(alive);
        });
    }

    /// Serves a connection from where its frames begin. `first`: what was read of them already. `place`: to be proven once the node is let in.
    async fn serve<T>(&self, stream: T, from: Option<SocketAddr>, upgrade: &front::Upgrade, first: Vec<u8>, place: &Place)
    where
        T: AsyncRead + AsyncWrite + Unpin,
    {
        let address = from.map(|from| SocketAddr::new(from.ip().to_canonical(), from.port()));
        let arrival = Arrival { address, not_ideal: upgrade.not_ideal };
        let Ok(connection) = self.core.connect(clock::now(), arrival) else {
            tracing::debug!(?address, "the relay is full");
            return;
        };
        let ask = async |key| {
            let source = address.map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |address| address.ip());
            let served = self.admission.allows(key, source).await;
            if served {
                place.prove();
            }
            served
        };
        let ended = if upgrade.web_socket {
            session::serve(WebSocket::server(stream).await, connection, first, ask).await
        } else {
            session::serve(stream, connection, first, ask).await
        };
        tracing::debug!(?address, %ended, "a relayed connection ended");
    }

    /// Serves a connection that another server's listener has upgraded; its place is proven once the node is let in.
    pub(in crate::sys) fn adopt<T>(self: &Arc<Self>, stream: T, upgrade: front::Upgrade, place: Arc<Place>)
    where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let service = self.clone();
        self.spawn(async move { service.serve(stream, None, &upgrade, Vec::new(), &place).await });
    }
}

/// A running relay.
#[derive(Debug)]
pub struct Relay {
    address: Option<SocketAddr>,
    http_address: Option<SocketAddr>,
    stun_address: Option<SocketAddr>,
    pin: Option<String>,
    service: Arc<Service>,
    reread: Arc<Notify>,
    stop: watch::Sender<bool>,
    ended: mpsc::Receiver<()>,
}

impl Relay {
    /// Opens the key, the listeners and the certificate, and serves them.
    ///
    /// # Errors
    /// See [`StartError`]; nothing is left running then.
    pub async fn start(options: Options) -> Result<Self, StartError> {
        files::make_state_dir(&options.state_dir).map_err(path_error("make the directory", &options.state_dir))?;
        let key_file = options.state_dir.join("relay.key");
        let key: RelayPrivate = files::key(&key_file, entropy::relay_key).map_err(path_error("read or make the relay's key", &key_file))?;
        let tls = tls(&options, key.public())?;
        let descriptors = crate::sys::gate::descriptors();
        let config = Config {
            key,
            mesh_key: options.mesh.as_ref().map(|mesh| mesh.key.clone()),
            max_connections: usize::try_from(descriptors).unwrap_or(usize::MAX),
            rate: options.rate,
        };
        let core = Core::new(config, entropy::seed().map_err(StartError::Randomness)?);

        let listener = match options.listen {
            Some(wanted) => Some(listen("the relay", wanted).await?),
            None => None,
        };
        let address = listener.as_ref().map(|(_, address)| *address);
        let http = match options.listen_http {
            Some(wanted) => Some(listen("the check for portals", wanted).await?),
            None => None,
        };
        let http_address = http.as_ref().map(|(_, address)| *address);
        let stun = match options.stun {
            Some(wanted) => Some(bind_stun(wanted).await?),
            None => None,
        };
        let stun_address = stun.as_ref().map(|(_, address)| *address);

        let (stop, stopped) = watch::channel(false);
        let (alive, ended) = mpsc::channel(1);
        let gate = Arc::new(Gate::new(Limits::within(descriptors)));
        let service = Arc::new(Service { core, admission: options.admission, gate, stop: stopped, alive });
        let (reread, mut pin, mut door) = (Arc::new(Notify::new()), None, Door::Plain);
        if let Some(tls) = tls {
            pin = tls.pin;
            door = Door::Tls(tls.acceptor);
            service.spawn(tls.key.keep_fresh());
            if let Some(source) = tls.source {
                service.spawn(source.keep_fresh(reread.clone()));
            }
        }
        if let Some((listener, _)) = listener {
            service.spawn(listener::serve(service.clone(), listener, door));
        }
        if let Some((listener, _)) = http {
            service.spawn(listener::serve(service.clone(), listener, Door::BesideTls));
        }
        if let Some(mesh) = options.mesh {
            for relay in mesh.relays {
                service.spawn(mesh::keep(service.core.clone(), relay, mesh.key.clone()));
            }
        }
        if let Some((socket, _)) = stun {
            service.spawn(stun::serve(socket));
        }
        tracing::info!(?address, stun = ?stun_address, key = %service.key(), "relay is up");
        Ok(Self { address, http_address, stun_address, pin, service, reread, stop, ended })
    }

    /// Where clients connect, if it listens itself.
    pub fn address(&self) -> Option<SocketAddr> {
        self.address
    }

    /// Where the listener without TLS is, if there is one.
    pub fn http_address(&self) -> Option<SocketAddr> {
        self.http_address
    }

    /// Where STUN is answered, if it is.
    pub fn stun_address(&self) -> Option<SocketAddr> {
        self.stun_address
    }

    /// How clients know the certificate that we made: a relay map's `CertName`.
    pub fn pin(&self) -> Option<&str> {
        self.pin.as_deref()
    }

    /// Its key.
    pub fn key(&self) -> RelayPublic {
        self.service.key()
    }

    /// What was counted.
    pub fn counters(&self) -> Snapshot {
        self.service.core.counters()
    }

    /// Nodes connected now.
    pub fn nodes(&self) -> usize {
        self.service.core.nodes()
    }

    /// What serves connections of other listeners.
    pub(in crate::sys) fn service(&self) -> Arc<Service> {
        self.service.clone()
    }

    /// Ends the connections of nodes that are no longer to be served.
    pub fn keep_only(&self, serve: impl FnMut(&crate::ident::NodePublic) -> bool) {
        self.service.core.keep_only(serve);
    }

    /// Reads the certificate's files again now. That happens by itself, too, soon after they change.
    pub fn reread_certificate(&self) {
        self.reread.notify_one();
    }

    /// Changes what each client may send, those connected already included.
    pub fn set_rate(&self, rate: Option<Rate>) {
        self.service.core.set_rate(rate);
    }

    /// Stops: clients are told when to come back, then connections are cut. Takes a second at most.
    pub async fn stop(mut self) {
        if self.service.core.nodes() > 0 {
            self.service.core.announce_restart(RESTART.0, RESTART.1);
            tokio::time::sleep(STOP_TIME / 3).await;
        }
        self.service.core.stop();
        self.stop.send_replace(true);
        drop(self.service);
        let _ = tokio::time::timeout(STOP_TIME, self.ended.recv()).await;
    }
}

struct Prepared {
    acceptor: tokio_rustls::TlsAcceptor,
    key: Arc<self_signed::WithKey>,
    source: Option<Source>,
    pin: Option<String>,
}

/// TLS for the listener.
fn tls(options: &Options, key: RelayPublic) -> Result<Option<Prepared>, StartError> {
    let failed = |(path, source): (PathBuf, io::Error)| StartError::Path { what: "use for the certificate", path, source };
    let (resolver, source, pin): (Arc<dyn rustls::server::ResolvesServerCert>, _, _) = match &options.tls {
        Tls::None => return Ok(None),
        Tls::SelfSigned(host) => {
            // A certificate for each name: whoever moves and comes back finds the old fingerprint.
            let name: String = host.chars().map(|c| if c.is_ascii_alphanumeric() || c == '.' || c == '-' { c } else { '_' }).collect();
            let path = options.state_dir.join(format!("{name}.pem"));
            let made = self_signed::open(&path, host).map_err(|e| failed((path.clone(), e)))?;
            (made.served, None, Some(made.pin))
        }
        Tls::Files(wanted) => {
            let files = certificate::Files::open(wanted).map_err(failed)?;
            (files.served(), Some(Source::Files(files)), None)
        }
        Tls::Acme(settings) => {
            let acme = certificate::acme::Acme::open(settings, options.state_dir.join("acme")).map_err(failed)?;
            (acme.certificates(), Some(Source::Acme(acme)), None)
        }
    };
    let failed = |e| failed((options.state_dir.clone(), e));
    let key = self_signed::WithKey::new(resolver, key).map_err(failed)?;
    let challenges = matches!(options.tls, Tls::Acme(_));
    let acceptor = certificate::acceptor_13(key.clone(), challenges).map_err(failed)?;
    Ok(Some(Prepared { acceptor, key, source, pin }))
}

fn path_error(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StartError + use<> {
    let path = path.to_owned();
    move |source| StartError::Path { what, path, source }
}

/// The address to use instead where a machine has no IPv6.
fn without_ipv6(wanted: SocketAddr) -> Option<SocketAddr> {
    let all = wanted.is_ipv6() && wanted.ip().is_unspecified();
    all.then(|| SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), wanted.port()))
}

fn has_no_ipv6(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error().map(rustix::io::Errno::from_raw_os_error),
        Some(rustix::io::Errno::AFNOSUPPORT | rustix::io::Errno::ADDRNOTAVAIL)
    )
}

async fn listen(what: &'static str, wanted: SocketAddr) -> Result<(TcpListener, SocketAddr), StartError> {
    let failed = |source| StartError::Listen { what, address: wanted, source };
    let bound = match TcpListener::bind(wanted).await {
        Err(error) if has_no_ipv6(&error) => match without_ipv6(wanted) {
            Some(other) => TcpListener::bind(other).await,
            None => Err(error),
        },
        bound => bound,
    };
    let listener = bound.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    Ok((listener, address))
}

async fn bind_stun(wanted: SocketAddr) -> Result<(UdpSocket, SocketAddr), StartError> {
    let failed = |source| StartError::Listen { what: "STUN", address: wanted, source };
    let bound = match UdpSocket::bind(wanted).await {
        Err(error) if has_no_ipv6(&error) => match without_ipv6(wanted) {
            Some(other) => UdpSocket::bind(other).await,
            None => Err(error),
        },
        bound => bound,
    };
    let socket = bound.map_err(failed)?;
    let address = socket.local_addr().map_err(failed)?;
    Ok((socket, address))
}
