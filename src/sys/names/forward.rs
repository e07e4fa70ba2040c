//! Asking other servers: all of them at once, and the first good answer counts.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::net::{TcpSocket, UdpSocket};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::over_http::HttpClient;
use super::{read_message, unspecified, write_message};
use crate::names::{Upstream, is_reply_to, with_id};
use crate::sys::dial::{Stream, mark_socket};
use crate::sys::entropy;
use crate::sys::userspace::Dialer;

/// How long all of it may take: programs ask again after five seconds.
pub(super) const LIMIT: Duration = Duration::from_millis(4500);
/// Servers that are asked.
const MAX_SERVERS: usize = 8;
/// When a question is sent again, counted from the last time.
const AGAIN: [Duration; 3] = [Duration::from_millis(700), Duration::from_millis(1500), Duration::from_secs(3)];
/// When a server that has not answered by UDP is asked by TCP, too: there may be something in between that lets no UDP through.
const TCP_AFTER: Duration = Duration::from_secs(2);
pub(super) const MAX_REPLY: usize = 65_535;
/// The codes of a server that cannot or will not answer (RFC 1035, section 4.1.1).
const SOFT_FAILURES: [u8; 2] = [2, 5];

/// By which way servers are asked.
#[derive(Debug, Clone, Copy)]
pub(super) enum Way<'d> {
    /// Past the tunnel: the machine's own servers are its network's.
    Outside,
    /// As everything else: a server that the coordinator names may be behind a subnet router, and is asked through an exit node in use. Where the
    /// system knows no way into the mesh, this does.
    Routed(Option<&'d Dialer>),
}

impl Way<'_> {
    fn prepare<S: std::os::fd::AsFd>(self, socket: &S) -> io::Result<()> {
        match self {
            Self::Outside => mark_socket(socket),
            Self::Routed(_) => Ok(()),
        }
    }

    /// What connects to a server, if the system does not.
    fn dialer(&self, server: SocketAddr) -> Option<&Dialer> {
        match self {
            Self::Routed(Some(dialer)) if dialer.leads_into_mesh(server.ip()) => Some(dialer),
            _ => None,
        }
    }
}

/// The reply of the first server that has a good one; with none, what one of them said instead. `None`: nobody has answered.
pub(super) async fn ask(http: &HttpClient, servers: &[Upstream], question: &[u8], way: Way<'_>, by_tcp: bool) -> Option<Vec<u8>> {
    let one = |server: &Upstream| {
        let server = server.clone();
        async move {
            match server {
                Upstream::At(address) => plain(address, question, way, by_tcp).await,
                Upstream::Url(url) => http.ask(&url, question).await,
            }
        }
    };
    first_good(servers.iter().take(MAX_SERVERS).map(one).collect()).await
}

/// The same of those that are asked by DNS.
pub(super) async fn plainly(servers: &[Upstream], question: &[u8], way: Way<'_>) -> Option<Vec<u8>> {
    let addresses = servers.iter().filter_map(|server| if let Upstream::At(address) = server { Some(*address) } else { None });
    first_good(addresses.take(MAX_SERVERS).map(|address| plain(address, question, way, false)).collect()).await
}

async fn first_good(mut asked: FuturesUnordered<impl Future<Output = io::Result<Vec<u8>>>>) -> Option<Vec<u8>> {
    let deadline = Instant::now() + LIMIT;
    let mut soft = None;
    while let Ok(Some(reply)) = timeout_at(deadline, asked.next()).await {
        match reply {
            Ok(reply) if reply.get(3).is_some_and(|flags| SOFT_FAILURES.contains(&(flags & 15))) => soft = Some(reply),
            Ok(reply) => return Some(reply),
            Err(error) => tracing::debug!(%error, "a name server does not answer"),
        }
    }
    soft
}

/// Asks one server, under a number of its own, and gives the reply the question's.
async fn plain(address: SocketAddr, question: &[u8], way: Way<'_>, by_tcp: bool) -> io::Result<Vec<u8>> {
    let number = entropy::bytes::<2>().map(u16::from_be_bytes)?;
    let numbered = with_id(question, number);
    let reply = if let Some(dialer) = way.dialer(address) {
        let connected = async { converse(dialer.connect(&[address]).await?, &numbered).await };
        timeout(LIMIT, connected).await.map_err(|_| io::ErrorKind::TimedOut)??
    } else if by_tcp {
        stream(address, &numbered, way).await?
    } else {
        tokio::select! {
            Ok(reply) = datagram(address, &numbered, way) => reply,
            Ok(reply) = async { sleep(TCP_AFTER).await; stream(address, &numbered, way).await } => reply,
            else => return Err(io::ErrorKind::TimedOut.into()),
        }
    };
    let number = question.first_chunk::<2>().copied().map_or(0, u16::from_be_bytes);
    Ok(with_id(&reply, number))
}

async fn datagram(server: SocketAddr, question: &[u8], way: Way<'_>) -> io::Result<Vec<u8>> {
    let socket = UdpSocket::bind(unspecified(server.ip())).await?;
    way.prepare(&socket)?;
    socket.connect(server).await?;
    let mut buffer = vec![0; MAX_REPLY];
    for wait in AGAIN {
        socket.send(question).await?;
        let until = Instant::now() + wait;
        while let Ok(length) = timeout_at(until, socket.recv(&mut buffer)).await {
            let reply = buffer.get(..length?).unwrap_or_default();
            if is_reply_to(reply, question) {
                return Ok(reply.to_vec());
            }
        }
    }
    Err(io::ErrorKind::TimedOut.into())
}

async fn stream(server: SocketAddr, question: &[u8], way: Way<'_>) -> io::Result<Vec<u8>> {
    let work = async {
        let socket = if server.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        way.prepare(&socket)?;
        converse(socket.connect(server).await?, question).await
    };
    timeout(LIMIT, work).await.map_err(|_| io::ErrorKind::TimedOut)?
}

/// Asks on a connection (RFC 7766).
async fn converse(mut stream: impl Stream, question: &[u8]) -> io::Result<Vec<u8>> {
    write_message(&mut stream, question).await?;
    loop {
        let reply = read_message(&mut stream).await?;
        if is_reply_to(&reply, question) {
            return Ok(reply);
        }
    }
}
