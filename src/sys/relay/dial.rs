//! Reaching a relay: addresses, TLS, the upgrade. What follows is a stream of frames for [`crate::relay::client::Client`].
//!
//! Nodes come here through `sys::relay_links`, relays that mesh directly, and so do the provisioner and the tests.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::{Duration, Instant};

use rustls::ProtocolVersion;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::ahead::Ahead;
use super::trust;
use crate::ident::RelayPublic;
use crate::netcheck::{Family, Place, Server, server};
use crate::sys::certificate;
use crate::sys::dial::{connect_address, first_success};
use crate::wire::control::DerpNode;
use crate::wire::derp::http::{MAX_HEAD, Reply, Request, metacert_key};

/// How long a relay may take to accept a connection.
pub const CONNECT_LIMIT: Duration = Duration::from_millis(1500);
/// How much later each further address is tried, IPv6 first.
const STAGGER: Duration = Duration::from_millis(200);
/// Addresses of a name that are tried, of each family.
const MAX_ADDRESSES: usize = 4;
/// How long all of it may take.
pub const DIAL_LIMIT: Duration = Duration::from_secs(10);
const DEFAULT_PORT: u16 = 443;

/// A stream of either kind.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// A relay that was reached.
pub struct Dialed {
    /// Where its frames come from and ours go.
    pub stream: Box<dyn Stream>,
    /// Its key, if its certificate told it: the upgrade was asked for without waiting for an answer then.
    pub relay: Option<RelayPublic>,
    /// Frames that came together with the answer.
    pub first: Vec<u8>,
    /// Its address.
    pub remote: SocketAddr,
    /// Ours.
    pub local: IpAddr,
}

impl fmt::Debug for Dialed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dialed").field("remote", &self.remote).field("relay", &self.relay).finish_non_exhaustive()
    }
}

/// Why a relay was not reached.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// It has no address, or none answers.
    #[error("cannot reach relay {host}: {source}")]
    Connect {
        /// Its name.
        host: String,
        /// Why.
        source: io::Error,
    },
    /// Its certificate is not what the relay map says, or TLS failed otherwise.
    #[error("TLS with relay {host}: {source}")]
    Tls {
        /// Its name.
        host: String,
        /// Why.
        source: io::Error,
    },
    /// It does not speak DERP.
    #[error("relay {host}: {why}")]
    Upgrade {
        /// Its name.
        host: String,
        /// Why.
        why: String,
    },
    /// All of it took too long.
    #[error("relay {host} did not answer within 10 s")]
    Timeout {
        /// Its name.
        host: String,
    },
}

impl DialError {
    fn connect(server: &Server) -> impl Fn(io::Error) -> Self {
        let host = server.host.clone();
        move |source| Self::Connect { host: host.clone(), source }
    }

    fn tls(server: &Server) -> impl Fn(io::Error) -> Self {
        let host = server.host.clone();
        move |source| Self::Tls { host: host.clone(), source }
    }
}

/// How a relay is to be reached.
#[derive(Debug, Clone, Copy, Default)]
pub(in crate::sys) struct How<'a> {
    /// An authority to trust beside the usual ones.
    pub(in crate::sys) authority: Option<&'a Path>,
    /// The region's first relay, if this is another one.
    pub(in crate::sys) ideal: Option<&'a str>,
    /// Without TLS.
    pub(in crate::sys) plain: bool,
}

/// Connects to a relay. `ideal`: the region's first relay, if this is another one.
///
/// A relay with `InsecureForTests` is spoken to in TLS all the same; only where `plain` is set there is none.
///
/// # Errors
/// See [`DialError`].
pub async fn dial(node: &DerpNode, ideal: Option<&str>, plain: bool) -> Result<Dialed, DialError> {
    reach(&server(node), How { authority: None, ideal, plain }).await
}

/// The same for a relay as the check of the network knows it.
///
/// # Errors
/// See [`DialError`].
pub(in crate::sys) async fn reach(server: &Server, how: How<'_>) -> Result<Dialed, DialError> {
    let work = async {
        let (stream, remote) = connect(server).await?;
        if how.plain {
            let local = local(&stream, server)?;
            return upgrade(stream, server, how.ideal, None, (remote, local)).await;
        }
        let (stream, local) = secured(server, stream, how.authority).await?;
        let tls = stream.get_ref().1;
        let encrypted = tls.protocol_version() == Some(ProtocolVersion::TLSv1_3);
        let told = tls.peer_certificates().unwrap_or_default().iter().skip(1).find_map(|certificate| metacert_key(certificate));
        let key = told.filter(|_| encrypted);
        upgrade(stream, server, how.ideal, key, (remote, local)).await
    };
    timeout(DIAL_LIMIT, work).await.unwrap_or_else(|_| Err(DialError::Timeout { host: server.host.clone() }))
}

/// How long a relay takes to answer a request over HTTPS, on a connection that is open.
///
/// # Errors
/// See [`DialError`].
pub(in crate::sys) async fn round_trip(server: &Server, authority: Option<&Path>) -> Result<Duration, DialError> {
    let failed = |why: String| DialError::Upgrade { host: server.host.clone(), why };
    let work = async {
        let (stream, _) = connect(server).await?;
        let (mut stream, _) = secured(server, stream, authority).await?;
        let request = format!("GET /derp/latency-check HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", host_header(server));
        let started = Instant::now();
        let mut first = [0];
        let asked = async {
            stream.write_all(request.as_bytes()).await?;
            stream.flush().await?;
            stream.read(&mut first).await
        };
        match asked.await.map_err(|e| failed(e.to_string()))? {
            0 => Err(failed("it closed the connection instead of answering".to_owned())),
            _ => Ok(started.elapsed()),
        }
    };
    timeout(DIAL_LIMIT, work).await.unwrap_or_else(|_| Err(DialError::Timeout { host: server.host.clone() }))
}

/// The certificate of a relay at an address as a relay map names it (`CertName`), whatever it is: for one that was just made.
///
/// # Errors
/// It cannot be reached, or does not speak TLS.
pub async fn certificate(address: SocketAddr, host: &str) -> Result<String, DialError> {
    let anyone = server(&DerpNode { host_name: host.to_owned(), insecure_for_tests: true, ..DerpNode::default() });
    let work = async {
        let stream = connect_address(address).await.map_err(DialError::connect(&anyone))?;
        let (stream, _) = secured(&anyone, stream, None).await?;
        let shown = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
        shown
            .map(|certificate| certificate::pin(certificate))
            .ok_or_else(|| DialError::tls(&anyone)(io::Error::other("it shows no certificate")))
    };
    timeout(DIAL_LIMIT, work).await.unwrap_or_else(|_| Err(DialError::Timeout { host: host.to_owned() }))
}

fn local(stream: &TcpStream, server: &Server) -> Result<IpAddr, DialError> {
    stream.local_addr().map(|address| address.ip()).map_err(DialError::connect(server))
}

/// TLS with a relay, and our own address.
async fn secured(server: &Server, stream: TcpStream, authority: Option<&Path>) -> Result<(TlsStream<Ahead<TcpStream>>, IpAddr), DialError> {
    let local = local(&stream, server)?;
    let failed = DialError::tls(server);
    let config = trust::config(server, authority).map_err(&failed)?;
    let name = ServerName::try_from(server.host.clone()).map_err(|e| failed(io::Error::other(e)))?;
    let stream = TlsConnector::from(config).connect(name, Ahead::new(stream)).await.map_err(&failed)?;
    Ok((stream, local))
}

/// A relay's name as a `Host` header wants it.
fn host_header(server: &Server) -> String {
    let host = if server.host.parse::<std::net::Ipv6Addr>().is_ok() { format!("[{}]", server.host) } else { server.host.clone() };
    match server.relay {
        None | Some(DEFAULT_PORT) => host,
        Some(port) => format!("{host}:{port}"),
    }
}

/// Asks for the upgrade; with a known key nobody answers.
async fn upgrade<T>(
    mut stream: T,
    server: &Server,
    ideal: Option<&str>,
    key: Option<RelayPublic>,
    (remote, local): (SocketAddr, IpAddr),
) -> Result<Dialed, DialError>
where
    T: Stream + 'static,
{
    let failed = |why: String| DialError::Upgrade { host: server.host.clone(), why };
    let request = Request { host: &host_header(server), fast_start: key.is_some(), ideal_node: ideal }.to_bytes();
    stream.write_all(&request).await.map_err(|e| failed(e.to_string()))?;
    stream.flush().await.map_err(|e| failed(e.to_string()))?;
    if key.is_some() {
        return Ok(Dialed { stream: Box::new(stream), relay: key, first: Vec::new(), remote, local });
    }
    let mut head = Vec::new();
    loop {
        if let Some(reply) = Reply::parse(&head).map_err(|e| failed(e.to_string()))? {
            let first = head.split_off(reply.length);
            return Ok(Dialed { stream: Box::new(stream), relay: None, first, remote, local });
        }
        let mut piece = [0; MAX_HEAD / 4];
        match stream.read(&mut piece).await {
            Ok(0) => return Err(failed("the connection ended before its answer".to_owned())),
            Ok(count) => head.extend_from_slice(piece.get(..count).unwrap_or_default()),
            Err(error) => return Err(failed(error.to_string())),
        }
    }
}

/// The addresses of a relay in one family, as the relay map says; names are resolved.
async fn addresses(server: &Server, family: Family, port: u16) -> Vec<SocketAddr> {
    match server.place(family) {
        Place::At(ip) => vec![SocketAddr::new(*ip, port)],
        Place::Nowhere => Vec::new(),
        Place::Named => {
            let found = tokio::net::lookup_host((server.host.as_str(), port)).await.map(Iterator::collect::<Vec<_>>).unwrap_or_default();
            found.into_iter().filter(|address| Family::of(address.ip()) == family).take(MAX_ADDRESSES).collect()
        }
    }
}

async fn connect(server: &Server) -> Result<(TcpStream, SocketAddr), DialError> {
    let failed = DialError::connect(server);
    let port = server.relay.ok_or_else(|| failed(io::Error::new(io::ErrorKind::NotFound, "it answers STUN only")))?;
    let race = async {
        let (v6, v4) = tokio::join!(addresses(server, Family::V6, port), addresses(server, Family::V4, port));
        let to = |address| async move { connect_address(address).await.map(|stream| (stream, address)) };
        let attempts = v6.into_iter().chain(v4).zip(0_u32..).map(|(address, n)| (STAGGER * n, to(address)));
        let nowhere = || Err(io::Error::new(io::ErrorKind::NotFound, "it has no address here"));
        first_success(attempts.collect()).await.unwrap_or_else(nowhere)
    };
    let reached = timeout(CONNECT_LIMIT, race).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
    reached.map_err(failed)
}
