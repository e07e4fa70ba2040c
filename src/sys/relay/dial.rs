//! Reaching a relay: addresses, TLS, the upgrade. What follows is a stream of frames for [`crate::relay::client::Client`].

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use rustls::ProtocolVersion;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;

use super::ahead::Ahead;
use super::trust;
use crate::ident::RelayPublic;
use crate::sys::certificate;
use crate::sys::dial::mark_socket;
use crate::wire::control::DerpNode;
use crate::wire::derp::http::{MAX_HEAD, Reply, Request, metacert_key};

/// How long reaching one address may take.
pub const CONNECT_LIMIT: Duration = Duration::from_millis(1500);
/// How much later IPv4 begins where there is IPv6, too.
const V4_DELAY: Duration = Duration::from_millis(200);
/// How long all of it may take.
pub const DIAL_LIMIT: Duration = Duration::from_secs(10);
const DEFAULT_PORT: u16 = 443;
/// What a relay map says for "not this family".
const NONE: &str = "none";

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

/// Connects to a relay. `ideal`: the region's first relay, if this is another one.
///
/// A relay with `InsecureForTests` is spoken to in TLS all the same; only where `plain` is set there is none.
///
/// # Errors
/// See [`DialError`].
pub async fn dial(node: &DerpNode, ideal: Option<&str>, plain: bool) -> Result<Dialed, DialError> {
    let host = node.host_name.clone();
    let work = async {
        let (stream, remote) = connect(node).await.map_err(|source| DialError::Connect { host: host.clone(), source })?;
        let _ = stream.set_nodelay(true);
        if plain {
            return upgrade(stream, node, ideal, None, remote).await;
        }
        let failed = |source| DialError::Tls { host: host.clone(), source };
        let config = trust::config(node).map_err(failed)?;
        let name = ServerName::try_from(host.clone()).map_err(|e| failed(io::Error::other(e)))?;
        let stream = TlsConnector::from(config).connect(name, Ahead::new(stream)).await.map_err(failed)?;
        let tls = stream.get_ref().1;
        let encrypted = tls.protocol_version() == Some(ProtocolVersion::TLSv1_3);
        let told = tls.peer_certificates().unwrap_or_default().iter().skip(1).find_map(|certificate| metacert_key(certificate));
        let key = told.filter(|_| encrypted);
        upgrade(stream, node, ideal, key, remote).await
    };
    tokio::time::timeout(DIAL_LIMIT, work).await.unwrap_or_else(|_| Err(DialError::Timeout { host: host.clone() }))
}

/// The certificate of a relay at an address as a relay map names it (`CertName`), whatever it is: for one that was just made.
///
/// # Errors
/// It cannot be reached, or does not speak TLS.
pub async fn certificate(address: SocketAddr, host: &str) -> Result<String, DialError> {
    let node = DerpNode { host_name: host.to_owned(), insecure_for_tests: true, ..DerpNode::default() };
    let work = async {
        let stream = to(address).await.map_err(|source| DialError::Connect { host: host.to_owned(), source })?;
        let failed = |source| DialError::Tls { host: host.to_owned(), source };
        let name = ServerName::try_from(host.to_owned()).map_err(|e| failed(io::Error::other(e)))?;
        let stream = TlsConnector::from(trust::config(&node).map_err(failed)?).connect(name, stream).await.map_err(failed)?;
        let shown = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
        shown.map(|certificate| certificate::pin(certificate)).ok_or_else(|| failed(io::Error::other("it shows no certificate")))
    };
    tokio::time::timeout(DIAL_LIMIT, work).await.unwrap_or_else(|_| Err(DialError::Timeout { host: host.to_owned() }))
}

/// Asks for the upgrade; with a known key nobody answers.
async fn upgrade<T>(
    mut stream: T,
    node: &DerpNode,
    ideal: Option<&str>,
    key: Option<RelayPublic>,
    remote: SocketAddr,
) -> Result<Dialed, DialError>
where
    T: Stream + 'static,
{
    let failed = |why: String| DialError::Upgrade { host: node.host_name.clone(), why };
    let host = match node.derp_port {
        0 | DEFAULT_PORT => node.host_name.clone(),
        port => format!("{}:{port}", node.host_name),
    };
    let request = Request { host: &host, fast_start: key.is_some(), ideal_node: ideal }.to_bytes();
    stream.write_all(&request).await.map_err(|e| failed(e.to_string()))?;
    stream.flush().await.map_err(|e| failed(e.to_string()))?;
    if key.is_some() {
        return Ok(Dialed { stream: Box::new(stream), relay: key, first: Vec::new(), remote });
    }
    let mut head = Vec::new();
    loop {
        if let Some(reply) = Reply::parse(&head).map_err(|e| failed(e.to_string()))? {
            let first = head.split_off(reply.length);
            return Ok(Dialed { stream: Box::new(stream), relay: None, first, remote });
        }
        let mut piece = [0; MAX_HEAD / 4];
        match stream.read(&mut piece).await {
            Ok(0) => return Err(failed("the connection ended before its answer".to_owned())),
            Ok(count) => head.extend_from_slice(piece.get(..count).unwrap_or_default()),
            Err(error) => return Err(failed(error.to_string())),
        }
    }
}

/// The addresses of a relay by family, as its entry in the relay map says; names are resolved.
///
/// # Errors
/// Nothing is left, or the name does not resolve.
pub async fn addresses(node: &DerpNode) -> io::Result<Vec<IpAddr>> {
    let literal = |text: &str| text.parse::<IpAddr>().ok();
    let mut found: Vec<IpAddr> = [&node.ipv6, &node.ipv4].into_iter().filter_map(|text| literal(text)).collect();
    if found.is_empty() {
        let wanted = |ip: &IpAddr| if ip.is_ipv6() { node.ipv6 != NONE } else { node.ipv4 != NONE };
        match literal(node.host_name.trim_matches(['[', ']'])) {
            Some(ip) => found.push(ip),
            None => found.extend(tokio::net::lookup_host((node.host_name.as_str(), DEFAULT_PORT)).await?.map(|address| address.ip())),
        }
        found.retain(wanted);
        found.sort_by_key(|ip| !ip.is_ipv6());
    }
    if found.is_empty() { Err(io::Error::other("it has no address")) } else { Ok(found) }
}

async fn connect(node: &DerpNode) -> io::Result<(TcpStream, SocketAddr)> {
    let port = if node.derp_port == 0 { DEFAULT_PORT } else { node.derp_port };
    let found = addresses(node).await?;
    let (v6, v4): (Vec<_>, Vec<_>) = found.iter().map(|ip| SocketAddr::new(*ip, port)).partition(SocketAddr::is_ipv6);
    let delay = if v6.is_empty() { Duration::ZERO } else { V4_DELAY };
    let first_v6 = in_turn(&v6);
    let then_v4 = async {
        tokio::time::sleep(delay).await;
        in_turn(&v4).await
    };
    tokio::pin!(first_v6, then_v4);
    tokio::select! {
        reached = &mut first_v6 => match reached { Ok(reached) => Ok(reached), Err(error) if v4.is_empty() => Err(error), Err(_) => then_v4.await },
        reached = &mut then_v4 => match reached { Ok(reached) => Ok(reached), Err(error) if v6.is_empty() => Err(error), Err(_) => first_v6.await },
    }
}

async fn in_turn(addresses: &[SocketAddr]) -> io::Result<(TcpStream, SocketAddr)> {
    let mut failure = io::Error::other("it has no address of this family");
    for address in addresses {
        match tokio::time::timeout(CONNECT_LIMIT, to(*address)).await {
            Ok(Ok(stream)) => return Ok((stream, *address)),
            Ok(Err(error)) => failure = error,
            Err(_) => failure = io::ErrorKind::TimedOut.into(),
        }
    }
    Err(failure)
}

async fn to(address: SocketAddr) -> io::Result<TcpStream> {
    let socket = if address.is_ipv6() { TcpSocket::new_v6() } else { TcpSocket::new_v4() }?;
    mark_socket(&socket)?;
    socket.connect(address).await
}
