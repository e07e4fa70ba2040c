//! From a region of the relay map to a stream of frames: the region's relays in order, each by the addresses it has.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::{Duration, Instant};

use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::tls;
use crate::netcheck::{Family, Place, Region, Server};
use crate::sys::dial::{Stream, connect_address, first_success};

/// How long one relay may take to accept a connection.
const CONNECT: Duration = Duration::from_millis(1500);
/// How long all of it may take.
const DIAL: Duration = Duration::from_secs(10);
/// IPv6 is tried alone for so long.
const STAGGER: Duration = Duration::from_millis(200);
/// Addresses of a name that are tried, of each family.
const MAX_ADDRESSES: usize = 4;
/// The longest HTTP answer that is read.
const MAX_ANSWER: usize = 16 * 1024;

/// Why a relay is not reached.
#[derive(Debug, thiserror::Error)]
pub(in crate::sys) enum LinkError {
    /// The region has no relay at all.
    #[error("the region has no relay")]
    NoRelay,
    /// Something did not work.
    #[error("{tried} {host}: {reason}")]
    Failed {
        /// What was tried.
        tried: &'static str,
        /// With whom.
        host: String,
        /// What happened instead.
        reason: String,
    },
}

/// A stream of frames.
pub(super) struct Connected {
    pub(super) stream: Box<dyn Stream>,
    /// What came behind the HTTP answer.
    pub(super) rest: Vec<u8>,
    /// Our end.
    pub(super) local: IpAddr,
}

fn failed(tried: &'static str, server: &Server, reason: impl std::fmt::Display) -> LinkError {
    LinkError::Failed { tried, host: server.host.clone(), reason: reason.to_string() }
}

async fn within<T>(
    limit: Duration,
    tried: &'static str,
    server: &Server,
    work: impl Future<Output = io::Result<T>>,
) -> Result<T, LinkError> {
    let done = timeout(limit, work).await;
    done.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())).map_err(|error| failed(tried, server, error))
}

/// The addresses of a relay in one family.
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

async fn tcp(server: &Server, port: u16) -> io::Result<TcpStream> {
    let (v6, v4) = tokio::join!(addresses(server, Family::V6, port), addresses(server, Family::V4, port));
    let attempts = v6.into_iter().chain(v4).zip(0_u32..).map(|(address, n)| (STAGGER * n, connect_address(address)));
    first_success(attempts.collect()).await.unwrap_or_else(|| Err(io::Error::new(io::ErrorKind::NotFound, "it has no address here")))
}

/// TLS with one relay.
async fn secured(server: &Server, authority: Option<&Path>) -> Result<(Box<dyn Stream>, IpAddr), LinkError> {
    let port = server.relay.ok_or(LinkError::NoRelay)?;
    let tcp = within(CONNECT, "connect to the relay", server, tcp(server, port)).await?;
    let local = tcp.local_addr().map_err(|error| failed("connect to the relay", server, error))?.ip();
    let tried = "agree on TLS with the relay";
    let name = ServerName::try_from(server.host.clone()).map_err(|error| failed(tried, server, error))?;
    let settings = tls::settings(server, authority).map_err(|error| failed(tried, server, error))?;
    let stream = within(DIAL, tried, server, TlsConnector::from(settings).connect(name, tcp)).await?;
    Ok((Box::new(stream), local))
}

/// The head of an HTTP answer, and what came behind it.
async fn answer(stream: &mut dyn Stream) -> io::Result<(String, Vec<u8>)> {
    let mut read = Vec::with_capacity(1024);
    loop {
        if let Some(end) = read.windows(4).position(|four| four == b"\r\n\r\n") {
            let rest = read.split_off(end + 4);
            return Ok((String::from_utf8_lossy(&read).into_owned(), rest));
        }
        if read.len() > MAX_ANSWER {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "its answer has no end"));
        }
        if stream.read_buf(&mut read).await? == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it closed the connection instead of answering"));
        }
    }
}

fn status(head: &str) -> Option<u16> {
    head.strip_prefix("HTTP/1.1 ")?.split([' ', '\r']).next()?.parse().ok()
}

/// Opens the stream of frames to one relay. `ideal` is false if another relay of the region should have been taken.
async fn open(server: &Server, authority: Option<&Path>, ideal: bool) -> Result<Connected, LinkError> {
    let (mut stream, local) = secured(server, authority).await?;
    let mut request = format!("GET /derp HTTP/1.1\r\nHost: {}\r\nUpgrade: DERP\r\nConnection: Upgrade\r\n", bracketed(&server.host));
    if !ideal {
        request += &format!("Ideal-Node: {}\r\n", server.name);
    }
    request += "\r\n";
    let tried = "open a stream to the relay";
    let (head, rest) = within(DIAL, tried, server, async {
        stream.write_all(request.as_bytes()).await?;
        stream.flush().await?;
        answer(&mut *stream).await
    })
    .await?;
    match status(&head) {
        Some(101) => Ok(Connected { stream, rest, local }),
        Some(code) => Err(failed(tried, server, format_args!("it answered {code}"))),
        None => Err(failed(tried, server, "it does not speak HTTP")),
    }
}

/// A host as a `Host` header wants it.
fn bracketed(host: &str) -> String {
    if host.parse::<std::net::Ipv6Addr>().is_ok() { format!("[{host}]") } else { host.to_owned() }
}

/// Opens the stream of frames to a region: to its first relay that can be reached.
pub(super) async fn connect(region: &Region, authority: Option<&Path>) -> Result<Connected, LinkError> {
    let mut last = LinkError::NoRelay;
    for (n, server) in region.servers.iter().filter(|server| server.relay.is_some()).enumerate() {
        match timeout(DIAL, open(server, authority, n == 0)).await {
            Ok(Ok(connected)) => return Ok(connected),
            Ok(Err(error)) => last = error,
            Err(_) => last = failed("connect to the relay", server, "no answer within 10 s"),
        }
    }
    Err(last)
}

/// How long a relay takes to answer a request over HTTPS, on a connection that is open.
pub(in crate::sys) async fn request(server: &Server, authority: Option<&Path>) -> Result<Duration, LinkError> {
    let (mut stream, _) = secured(server, authority).await?;
    let request = format!("GET /derp/latency-check HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", bracketed(&server.host));
    within(DIAL, "time the relay", server, async {
        let started = Instant::now();
        stream.write_all(request.as_bytes()).await?;
        stream.flush().await?;
        answer(&mut *stream).await?;
        Ok(started.elapsed())
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_of_an_answer_is_read() {
        assert_eq!(status("HTTP/1.1 101 Switching Protocols\r\nUpgrade: DERP\r\n\r\n"), Some(101));
        assert_eq!(status("HTTP/1.1 404\r\n\r\n"), Some(404));
        for wrong in ["", "HTTP/1.1 ", "HTTP/2 200 OK", "nonsense"] {
            assert_eq!(status(wrong), None);
        }
    }
}
