//! The resolver of this machine's programs, on 100.100.100.100 and fd7a:115c:a1e0::53: sockets for what `crate::names` decides.
//!
//! It hears what programs here send to these addresses of the tunnel's, and not the LAN; what comes from the mesh for them, the packet filter
//! drops. A question costs a task while others are asked about it; beyond [`IN_FLIGHT`] of them questions are dropped, and come again.

mod asked;
mod forward;
mod lookup;
mod over_http;
mod peer_api;
mod program;
mod resolv_conf;
mod system;

use asked::Asked;
use forward::Way;
pub(in crate::sys) use lookup::Lookup;
use over_http::HttpClient;
pub(in crate::sys) use peer_api::PeerApi;
pub(in crate::sys) use system::System;

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::ident::{QUAD100_V4, QUAD100_V6, is_quad100};
use crate::names::{MAX_MESSAGE, Table, Upstream, Verdict, answer, failed, fitted, refused};
use crate::sys::dial::Stream;
use crate::sys::userspace::Dialer;

const PORT: u16 = 53;
/// Questions that others are asked about at a time.
const IN_FLIGHT: usize = 256;
/// Connections at a time.
const MAX_CONNECTIONS: usize = 64;
/// How long a connection may be silent.
const IDLE: Duration = Duration::from_secs(45);

/// What is known at this moment.
#[derive(Debug, Default)]
struct Known {
    table: Arc<Table>,
    /// The machine's own servers, for what belongs to nobody.
    fallback: Arc<[Upstream]>,
}

#[derive(Debug)]
struct Shared {
    known: Arc<RwLock<Known>>,
    http: HttpClient,
    asked: Asked,
    /// What connects into the mesh where the system does not.
    dialer: Option<Dialer>,
    in_flight: Arc<Semaphore>,
    connections: Arc<Semaphore>,
}

/// A running resolver. Dropping it ends it.
#[derive(Debug)]
pub(in crate::sys) struct NameServer {
    shared: Arc<Shared>,
    addresses: Vec<IpAddr>,
    tasks: Vec<JoinHandle<()>>,
}

impl Drop for NameServer {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

/// A socket on an address of the resolver's, which need not exist yet, heard by this machine's own programs only.
fn bound(interface: &str, ip: IpAddr, kind: Type, protocol: Protocol) -> io::Result<Socket> {
    let socket = Socket::new(if ip.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 }, kind, Some(protocol))?;
    socket.set_reuse_address(true)?;
    if ip.is_ipv4() {
        socket.set_freebind_v4(true)?;
    } else {
        socket.set_only_v6(true)?;
        socket.set_freebind_v6(true)?;
    }
    // The kernel counts what a machine sends to itself as come in by the interface that has the address.
    socket.bind_device(Some(interface.as_bytes()))?;
    socket.bind(&SocketAddr::new(ip, PORT).into())?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// The sockets of one address: for datagrams, and for connections.
fn listen(interface: &str, ip: IpAddr) -> io::Result<(UdpSocket, TcpListener)> {
    let datagrams = UdpSocket::from_std(bound(interface, ip, Type::DGRAM, Protocol::UDP)?.into())?;
    let listener = bound(interface, ip, Type::STREAM, Protocol::TCP)?;
    listener.listen(16)?;
    Ok((datagrams, TcpListener::from_std(listener.into())?))
}

impl NameServer {
    /// Listens on the tunnel's interface, which is there; until a table is set everything is asked elsewhere. A kernel without IPv6 is no fault.
    ///
    /// # Errors
    /// The system gives no such sockets.
    pub(in crate::sys) fn start(interface: &str) -> io::Result<Self> {
        let mut addresses = vec![IpAddr::V4(QUAD100_V4)];
        let mut sockets = vec![listen(interface, IpAddr::V4(QUAD100_V4))?];
        match listen(interface, IpAddr::V6(QUAD100_V6)) {
            Ok(more) => {
                addresses.push(IpAddr::V6(QUAD100_V6));
                sockets.push(more);
            }
            Err(error) => tracing::debug!("names are not resolved on {QUAD100_V6}: {error}"),
        }
        let shared = Shared::new(None);
        let tasks = sockets.into_iter().flat_map(|(datagrams, listener)| {
            [tokio::spawn(by_udp(shared.clone(), Arc::new(datagrams))), tokio::spawn(by_tcp(shared.clone(), listener))]
        });
        Ok(Self { tasks: tasks.collect(), addresses, shared })
    }

    /// Where it listens.
    pub(in crate::sys) fn addresses(&self) -> &[IpAddr] {
        &self.addresses
    }

    /// One that listens nowhere, for a node without a TUN: the proxy asks it, and the peer API. Servers in the mesh it asks by `dialer`.
    pub(in crate::sys) fn in_process(dialer: Dialer) -> Self {
        Self { shared: Shared::new(Some(dialer)), addresses: Vec::new(), tasks: Vec::new() }
    }

    /// For those who want addresses of names.
    pub(in crate::sys) fn lookup(&self) -> Lookup {
        Lookup(self.shared.clone())
    }

    /// For those who have questions of others.
    pub(in crate::sys) fn questions(&self) -> Questions {
        Questions(self.shared.clone())
    }

    /// What names mean from now on, and the machine's own servers.
    pub(in crate::sys) fn set(&self, table: Arc<Table>, fallback: Vec<Upstream>) {
        let mut known = self.shared.known.write().unwrap_or_else(PoisonError::into_inner);
        *known = Known { table, fallback: fallback.into_iter().filter(|server| !is_own(server)).collect() };
    }
}

/// The resolver as other nodes may use it.
#[derive(Debug, Clone)]
pub(in crate::sys) struct Questions(Arc<Shared>);

impl Questions {
    /// The reply to another node's question. What the mesh's names mean it knows itself, as far as it may. `None` for what is no question.
    pub(in crate::sys) async fn of_others(&self, question: &[u8]) -> Option<Vec<u8>> {
        let (table, fallback) = self.0.known();
        match answer(&table, question) {
            Verdict::Reply(_) => Some(refused(question)),
            Verdict::Drop => None,
            Verdict::Ask(servers) => {
                let _permit = self.0.in_flight.acquire().await.ok()?;
                Some(self.0.ask(servers, &fallback, question, false).await)
            }
        }
    }
}

/// Whether a server is this resolver itself: asking it would never end.
fn is_own(server: &Upstream) -> bool {
    matches!(server, Upstream::At(address) if is_quad100(address.ip()))
}

impl Shared {
    fn new(dialer: Option<Dialer>) -> Arc<Self> {
        let known = Arc::<RwLock<Known>>::default();
        Arc::new(Self {
            http: HttpClient::new(known.clone(), dialer.clone()),
            asked: Asked::default(),
            known,
            dialer,
            in_flight: Arc::new(Semaphore::new(IN_FLIGHT)),
            connections: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
        })
    }

    /// The reply to a question; `None` if there is none to give.
    async fn reply(&self, question: &[u8], by_tcp: bool) -> Option<Vec<u8>> {
        let (table, fallback) = self.known();
        match answer(&table, question) {
            Verdict::Reply(reply) => Some(reply),
            Verdict::Drop => None,
            Verdict::Ask(servers) => Some(self.ask(servers, &fallback, question, by_tcp).await),
        }
    }

    fn known(&self) -> (Arc<Table>, Arc<[Upstream]>) {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        (known.table.clone(), known.fallback.clone())
    }

    /// The reply of these servers, or if they are none, of the machine's own.
    async fn ask(&self, servers: Vec<Upstream>, fallback: &[Upstream], question: &[u8], by_tcp: bool) -> Vec<u8> {
        let (servers, way) = if servers.is_empty() {
            (fallback.to_vec(), Way::Outside)
        } else {
            (servers.into_iter().filter(|server| !is_own(server)).collect(), Way::Routed(self.dialer.as_ref()))
        };
        let reply = self.asked.once(question, by_tcp, forward::ask(&self.http, &servers, question, way, by_tcp)).await;
        reply.unwrap_or_else(|| failed(question))
    }
}

async fn by_udp(shared: Arc<Shared>, socket: Arc<UdpSocket>) {
    let mut buffer = [0; MAX_MESSAGE];
    loop {
        let Ok((length, from)) = socket.recv_from(&mut buffer).await else {
            tokio::task::yield_now().await;
            continue;
        };
        let Ok(permit) = shared.in_flight.clone().try_acquire_owned() else { continue };
        let (shared, socket, question) = (shared.clone(), socket.clone(), buffer.get(..length).unwrap_or_default().to_vec());
        tokio::spawn(async move {
            if let Some(reply) = shared.reply(&question, false).await
                && let Err(error) = socket.send_to(&fitted(reply, &question), from).await
            {
                tracing::debug!(%error, "a reply was not sent");
            }
            drop(permit);
        });
    }
}

async fn by_tcp(shared: Arc<Shared>, listener: TcpListener) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let Ok(permit) = shared.connections.clone().try_acquire_owned() else { continue };
        let shared = shared.clone();
        tokio::spawn(async move {
            let _ = converse(&shared, stream).await;
            drop(permit);
        });
    }
}

/// Questions on one connection, one after the other (RFC 7766).
async fn converse(shared: &Shared, mut stream: TcpStream) -> io::Result<()> {
    loop {
        let question = timeout(IDLE, read_message(&mut stream)).await.map_err(|_| io::ErrorKind::TimedOut)??;
        let _permit = shared.in_flight.acquire().await.map_err(io::Error::other)?;
        let Some(reply) = shared.reply(&question, true).await else { return Ok(()) };
        timeout(IDLE, write_message(&mut stream, &reply)).await.map_err(|_| io::ErrorKind::TimedOut)??;
    }
}

/// A message behind its length (RFC 1035, section 4.2.2).
async fn read_message(stream: &mut impl Stream) -> io::Result<Vec<u8>> {
    let length = usize::from(stream.read_u16().await?);
    let mut message = vec![0; length];
    stream.read_exact(&mut message).await?;
    Ok(message)
}

async fn write_message(stream: &mut impl Stream, message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(io::Error::other)?;
    let mut bytes = length.to_be_bytes().to_vec();
    bytes.extend_from_slice(message);
    stream.write_all(&bytes).await
}

/// Any address of a family, any port.
fn unspecified(like: IpAddr) -> SocketAddr {
    match like {
        IpAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        IpAddr::V6(_) => (std::net::Ipv6Addr::UNSPECIFIED, 0).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_form_of_the_resolvers_own_address_is_asked() {
        for own in [
            "100.100.100.100",
            "100.100.100.100:5353",
            "fd7a:115c:a1e0::53",
            "[fd7a:115c:a1e0::53]:53",
            "::ffff:100.100.100.100",
            "[::ffff:6464:6464]:53",
        ] {
            assert!(is_own(&Upstream::read(own).unwrap()), "{own}");
        }
        for other in ["100.100.100.101", "fd7a:115c:a1e0::54", "::ffff:100.100.100.101", "https://dns.test/dns-query", "100.64.0.1"] {
            assert!(!is_own(&Upstream::read(other).unwrap()), "{other}");
        }
    }
}
