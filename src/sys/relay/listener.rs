//! Accepting a relay's connections, TLS, and HTTP until a request upgrades one.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::header::{HeaderValue, LOCATION};
use http::{Method, Response, StatusCode};
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use super::Service;
use super::ahead::Ahead;
use super::front::{self, Answer, Upgrade};
use super::http::Http;
use crate::sys::certificate::CHALLENGE_PROTOCOL;
use crate::sys::gate::Place;

/// How long TLS and HTTP may take until the upgrade.
const OUTER_TIME: Duration = Duration::from_secs(30);
/// Requests on one connection before it is closed.
const MAX_REQUESTS: usize = 32;
/// A pause after the system refused a connection (mostly for want of file descriptors).
const REFUSED_PAUSE: Duration = Duration::from_millis(100);
/// How long the system lets a connection be silent before it asks, and how long sent bytes may stay unacknowledged.
const TCP_KEEPALIVE: Duration = Duration::from_secs(600);
const TCP_USER_TIMEOUT: Duration = Duration::from_secs(15);

/// What is behind a listener's port.
#[derive(Clone)]
pub(super) enum Door {
    /// Everything, without TLS.
    Plain,
    /// Everything, in TLS.
    Tls(TlsAcceptor),
    /// Beside TLS, normally port 80: the check for portals; for the rest there is https.
    BesideTls,
}

/// Accepts connections for ever.
pub(super) async fn serve(service: Arc<Service>, listener: TcpListener, door: Door) {
    loop {
        let (stream, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection: raise the limit of open files if this goes on");
                tokio::time::sleep(REFUSED_PAUSE).await;
                continue;
            }
        };
        // Full: the newest is turned away at once, so that clients try another relay instead of hanging.
        let Some(arrived) = service.gate.arrive() else { continue };
        let (own, door) = (service.clone(), door.clone());
        service.spawn(async move {
            prepare(&stream);
            let Some(place) = own.gate.admit(arrived, from.ip()).await else { return };
            let upgraded = tokio::select! {
                upgraded = tokio::time::timeout(OUTER_TIME, outer(&own, stream, from, &door)) => upgraded,
                () = place.evicted() => return tracing::debug!(%from, "a half-open connection gives way to another"),
            };
            match upgraded {
                Ok(Ok(Some(upgraded))) => upgraded.serve(&own, from, &place).await,
                Ok(Ok(None)) => {}
                Ok(Err(error)) => tracing::debug!(%from, %error, "a connection ended before its upgrade"),
                Err(_) => tracing::debug!(%from, "a connection asked for nothing in time"),
            }
        });
    }
}

fn prepare(stream: &TcpStream) {
    let socket = SockRef::from(stream);
    let _ = socket.set_tcp_nodelay(true);
    let _ = socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(TCP_KEEPALIVE));
    let _ = socket.set_tcp_user_timeout(Some(TCP_USER_TIMEOUT));
}

/// A stream whose frames begin.
enum Upgraded {
    Plain(TcpStream, Vec<u8>, Upgrade),
    Tls(Box<tokio_rustls::server::TlsStream<Ahead<TcpStream>>>, Vec<u8>, Upgrade),
}

impl Upgraded {
    async fn serve(self, service: &Service, from: SocketAddr, place: &Place) {
        place.settle();
        match self {
            Self::Plain(stream, first, upgrade) => service.serve(stream, Some(from), &upgrade, first, place).await,
            Self::Tls(stream, first, upgrade) => service.serve(stream, Some(from), &upgrade, first, place).await,
        }
    }
}

async fn outer(service: &Service, stream: TcpStream, from: SocketAddr, door: &Door) -> io::Result<Option<Upgraded>> {
    match door {
        Door::Plain => Ok(requests(service, stream).await?.map(|(stream, first, upgrade)| Upgraded::Plain(stream, first, upgrade))),
        Door::BesideTls => beside_tls(service, stream).await.map(|()| None),
        Door::Tls(tls) => {
            let mut stream = tls.accept(Ahead::new(stream)).await?;
            // The handshake was the answer to an authority's challenge.
            if stream.get_ref().1.alpn_protocol() == Some(CHALLENGE_PROTOCOL) {
                stream.shutdown().await?;
                return Ok(None);
            }
            tracing::trace!(%from, local = ?stream.get_ref().0.get_ref().local_addr().ok(), "TLS is up");
            Ok(requests(service, stream).await?.map(|(stream, first, upgrade)| Upgraded::Tls(Box::new(stream), first, upgrade)))
        }
    }
}

/// Answers requests until one upgrades the connection.
async fn requests<T>(service: &Service, stream: T) -> io::Result<Option<(T, Vec<u8>, Upgrade)>>
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let mut http = Http::new(stream);
    for _ in 0..MAX_REQUESTS {
        let Some(head) = http.next().await? else { return Ok(None) };
        match front::answer(&service.key(), &head.method, &head.path, &head.headers) {
            Answer::Upgrade(upgrade) => {
                if let Some(response) = &upgrade.response {
                    http.respond(response, &head).await?;
                }
                let (stream, first) = http.into_parts();
                return Ok(Some((stream, first, upgrade)));
            }
            Answer::Page(response) => http.respond(&response, &head).await?,
        }
        if !head.keep_alive {
            break;
        }
    }
    let (mut stream, _) = http.into_parts();
    stream.shutdown().await?;
    Ok(None)
}

async fn beside_tls(service: &Service, stream: TcpStream) -> io::Result<()> {
    let mut http = Http::new(stream);
    let Some(mut head) = http.next().await? else { return Ok(()) };
    head.keep_alive = false;
    let response = match front::answer(&service.key(), &head.method, &head.path, &head.headers) {
        Answer::Page(response) if head.path != "/" => response,
        _ => elsewhere(&head),
    };
    http.respond(&response, &head).await?;
    http.into_parts().0.shutdown().await
}

fn elsewhere(head: &super::http::Head) -> Response<String> {
    let host = head.headers.get(http::header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let host = host.rsplit_once(':').map_or(host, |(name, _)| name);
    let mut response = Response::new(String::new());
    *response.status_mut() =
        if host.is_empty() || head.method == Method::POST { StatusCode::NOT_FOUND } else { StatusCode::PERMANENT_REDIRECT };
    if let Ok(location) = HeaderValue::try_from(format!("https://{host}{}", head.path)) {
        response.headers_mut().insert(LOCATION, location);
    }
    response
}
