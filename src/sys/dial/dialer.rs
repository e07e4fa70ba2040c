//! How a coordinator is reached: its name is resolved anew each time, its addresses race, and the one that worked last is kept for the
//! day its name does not resolve.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustls::pki_types::ServerName;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;

use super::race::first_success;
use super::socket::{Stream, mark_socket};
use super::tls::{self, Trust};
use super::{DialError, Origin};
use crate::coord::client::{Attempt, interleaved};
use crate::sys::clock;
use crate::time::Time;

/// How long one address is tried alone before the next joins in (RFC 8305, section 8: 250 ms).
const STAGGER: Duration = Duration::from_millis(250);
/// Control connections that follow each other sooner than this did not last: see [`crate::coord::client::attempts`].
const HASTE: Duration = Duration::from_secs(120);

/// Opens connections to coordinators. Clones share what is remembered.
#[derive(Debug, Clone, Default)]
pub struct Dialer(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    authority: Option<PathBuf>,
    memory: Mutex<Memory>,
}

#[derive(Debug, Default)]
struct Memory {
    /// Where each host was reached last.
    last_good: BTreeMap<String, IpAddr>,
    /// When the last control connection was opened.
    opened: Option<Time>,
}

/// A connection and its two ends.
pub(super) struct Connected {
    pub(super) stream: Box<dyn Stream>,
    pub(super) local: SocketAddr,
    pub(super) remote: SocketAddr,
}

impl Dialer {
    /// A dialer that trusts a certificate authority of the user's, beside those that everybody trusts.
    pub fn new(authority: Option<PathBuf>) -> Self {
        Self(Arc::new(Shared { authority, memory: Mutex::default() }))
    }

    /// Notes where a host was reached at another time.
    pub fn remember(&self, host: &str, address: IpAddr) {
        self.memory().last_good.insert(host.to_owned(), address);
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.0.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a control connection was opened moments ago.
    pub(super) fn is_hasty(&self) -> bool {
        self.memory().opened.is_some_and(|opened| clock::now().since(opened) < HASTE)
    }

    /// A control connection was opened.
    pub(super) fn note_opened(&self) {
        self.memory().opened = Some(clock::now());
    }

    /// Connects to an origin as its address says, its certificate verified.
    pub(super) async fn connect(&self, origin: &Origin) -> Result<Connected, DialError> {
        let trust = Trust::Authorities(self.0.authority.as_deref());
        self.stream(&origin.host, origin.port, origin.tls.then_some(trust)).await
    }

    /// Connects to an origin in one of the ways for a control connection, which proves the coordinator's key by itself.
    pub(super) async fn attempt(&self, origin: &Origin, attempt: Attempt) -> Result<Connected, DialError> {
        self.stream(&origin.host, attempt.port, attempt.tls.then_some(Trust::Anyone)).await
    }

    async fn stream(&self, host: &str, port: u16, trust: Option<Trust<'_>>) -> Result<Connected, DialError> {
        let tcp = self.tcp(host, port).await?;
        let ends = |tcp: &TcpStream| Ok((tcp.local_addr()?, tcp.peer_addr()?));
        let (local, remote) = ends(&tcp).map_err(|source| DialError::Connect { address: SocketAddr::from(([0; 4], port)), source })?;
        let Some(trust) = trust else { return Ok(Connected { stream: Box::new(tcp), local, remote }) };
        let failed = |source| DialError::Tls { host: host.to_owned(), source };
        let name = ServerName::try_from(host.to_owned()).map_err(|e| failed(io::Error::other(e)))?;
        let stream = TlsConnector::from(tls::settings(trust).map_err(failed)?).connect(name, tcp).await.map_err(failed)?;
        Ok(Connected { stream: Box::new(stream), local, remote })
    }

    /// Tries the addresses of the host, families in turn; the first that answers wins.
    async fn tcp(&self, host: &str, port: u16) -> Result<TcpStream, DialError> {
        let unresolved = |source| DialError::Resolve { host: host.to_owned(), source };
        let last_good = self.memory().last_good.get(host).map(|ip| SocketAddr::new(*ip, port));
        let resolved = tokio::net::lookup_host((host, port)).await;
        let (resolved, failure) = match resolved {
            Ok(addresses) => (addresses.collect(), io::Error::new(io::ErrorKind::NotFound, "the name has no address")),
            Err(error) => (Vec::new(), error),
        };
        let mut addresses = interleaved(resolved);
        if let Some(last) = last_good.filter(|last| !addresses.contains(last)) {
            addresses.push(last);
        }
        let attempts = (0u32..).zip(addresses).map(|(n, address)| {
            (STAGGER * n, async move { connect_address(address).await.map_err(|source| DialError::Connect { address, source }) })
        });
        let stream = first_success(attempts.collect()).await.unwrap_or_else(|| Err(unresolved(failure)))?;
        if let Ok(peer) = stream.peer_addr() {
            self.remember(host, peer.ip());
        }
        Ok(stream)
    }
}

/// When the system asks whether the other end of a silent connection still knows of it (RFC 9293, section 3.8.4), how often it asks again
/// without an answer, and how many times until it takes the connection for lost.
const IDLE: Duration = Duration::from_secs(10);
const PROBE_AGAIN: Duration = Duration::from_secs(5);
const PROBES: u32 = 3;

pub(in crate::sys) async fn connect_address(address: SocketAddr) -> io::Result<TcpStream> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    mark_socket(&socket)?;
    let stream = socket.connect(address).await?;
    stream.set_nodelay(true)?;
    // A server that has given up a client which was away for a moment told it so while it was: without a question of the client's own, it would
    // take itself for connected until the map stream's watchdog ends it after two minutes.
    let probing = TcpKeepalive::new().with_time(IDLE).with_interval(PROBE_AGAIN).with_retries(PROBES);
    SockRef::from(&stream).set_tcp_keepalive(&probing)?;
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_name_that_does_not_resolve_is_reached_where_it_was_last() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let dialer = Dialer::default();
        let error = dialer.tcp("coordinator.invalid", port).await.unwrap_err();
        assert!(matches!(error, DialError::Resolve { .. }), "{error}");
        dialer.remember("coordinator.invalid", IpAddr::from([127, 0, 0, 1]));
        assert_eq!(dialer.tcp("coordinator.invalid", port).await.unwrap().peer_addr().unwrap().port(), port);
        // It is remembered by itself, and given way to what the name says.
        dialer.tcp("localhost", port).await.unwrap();
        assert!(dialer.memory().last_good.contains_key("localhost"));
    }
}
