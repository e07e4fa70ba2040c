//! A proxy for local programs of a node in userspace mode: SOCKS5 (RFC 1928) and HTTP (CONNECT, and requests with a whole URL: RFC 9110, section 9.3.6,
//! RFC 9112, section 3.2) on one port, told apart by the first byte. It connects into the mesh, and by the system to what is not the mesh's.
//!
//! It asks nobody who he is: whoever reaches its address may use it, so that is to be a loopback address.

mod http;
mod socks;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;

use crate::sys::dial::Stream;
use crate::sys::names::Lookup;
use crate::sys::userspace::Dialer;

/// Connections at a time.
const MAX_CONNECTIONS: usize = 512;
/// How long a program may take to say what it wants.
const PATIENCE: Duration = Duration::from_secs(15);
/// What is read of a connection at a time, in bytes.
const CHUNK: usize = 32 * 1024;
/// The version in the first byte of SOCKS5; no HTTP request begins with it.
const SOCKS5: u8 = 5;

/// What proxies connect with.
#[derive(Debug, Clone)]
struct Way {
    dialer: Dialer,
    names: Lookup,
}

impl Way {
    /// Connects to a host, by name or address.
    ///
    /// # Errors
    /// The name means nothing, the address is not to be reached by a proxy, or nothing answers.
    async fn connect(&self, host: &str, port: u16) -> io::Result<Box<dyn Stream>> {
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let found = match host.parse() {
            Ok(ip) => vec![ip],
            Err(_) => self.names.addresses(host).await,
        };
        if found.is_empty() {
            return Err(io::Error::new(io::ErrorKind::NotFound, "there is no such name"));
        }
        // This machine's own programs are no proxy's business, least of all with a proxy that others reach.
        let usable =
            found.iter().map(std::net::IpAddr::to_canonical).filter(|ip| !ip.is_loopback() && !ip.is_unspecified() && !ip.is_multicast());
        let addresses: Vec<SocketAddr> = usable.map(|ip| SocketAddr::new(ip, port)).collect();
        if addresses.is_empty() {
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, "this machine's own loopback addresses are not served"));
        }
        self.dialer.connect(&addresses).await
    }
}

/// A running proxy. Dropping it ends it, and its connections.
#[derive(Debug)]
pub(in crate::sys) struct Proxy {
    task: JoinHandle<()>,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Proxy {
    /// Serves who comes to an address.
    ///
    /// # Errors
    /// The system gives no socket to wait on.
    pub(in crate::sys) fn start(listener: std::net::TcpListener, dialer: Dialer, names: Lookup) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let listener = TcpListener::from_std(listener)?;
        let address = listener.local_addr()?;
        if !address.ip().is_loopback() {
            tracing::warn!("the proxy on {address} lets everyone into the mesh who reaches that address; a loopback address does not");
        }
        Ok(Self { task: tokio::spawn(accept(listener, Way { dialer, names })) })
    }
}

async fn accept(listener: TcpListener, way: Way) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut tasks = JoinSet::new();
    loop {
        let Ok((stream, from)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        while tasks.try_join_next().is_some() {}
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else { continue };
        let way = way.clone();
        tasks.spawn(async move {
            if let Err(error) = serve(stream, &way).await {
                tracing::debug!(%error, %from, "a connection to the proxy ended");
            }
            drop(place);
        });
    }
}

async fn serve(stream: TcpStream, way: &Way) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut first = [0];
    if timeout(PATIENCE, stream.peek(&mut first)).await.map_err(|_| io::ErrorKind::TimedOut)?? == 0 {
        return Ok(());
    }
    if first == [SOCKS5] { socks::serve(stream, way).await } else { http::serve(stream, way).await }
}

/// Carries data both ways until both ends have no more.
async fn carry(mut one: impl Stream, mut other: impl Stream) {
    // How it ends is the business of the two.
    let _ = tokio::io::copy_bidirectional_with_sizes(&mut one, &mut other, CHUNK, CHUNK).await;
}
