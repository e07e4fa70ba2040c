//! Accepting the mesh's connections, plain or TLS, and HTTP/1.1 on them until a request upgrades one.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use super::body::Body;
use super::front::{self, Visitor, Whose};
use super::patience::Patient;
use super::{OUTER_TIME, Shared, forwarded};
use crate::sys::certificate::CHALLENGE_PROTOCOL;
use crate::sys::gate::Arrived;

/// How long a request's head may take.
const HEAD_TIME: Duration = Duration::from_secs(10);
/// Room for a request's head; the handshake header is 136 characters of it.
const HEAD_ROOM: usize = 16 * 1024;
/// A pause after the system refused a connection (mostly for want of file descriptors).
const REFUSED_PAUSE: Duration = Duration::from_millis(100);

/// What is behind a listener's port.
#[derive(Clone)]
pub(super) enum Door {
    /// Everything, without TLS: on a LAN, or behind a proxy that has the certificate.
    Plain,
    /// Everything, in TLS.
    Tls(TlsAcceptor),
    /// Without TLS beside a door with it, normally port 80: only what needs none.
    BesideTls,
}

/// Accepts the mesh's connections until told to stop.
pub(super) async fn serve(shared: Arc<Shared>, listener: TcpListener, door: Door) {
    loop {
        let (stream, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection: raise the limit of open files if this goes on");
                tokio::time::sleep(REFUSED_PAUSE).await;
                continue;
            }
        };
        // Full: the newest is turned away at once, so that clients try again instead of hanging.
        let Some(arrived) = shared.gate.arrive() else { continue };
        let task = connection(shared.clone(), stream, from.ip(), arrived, door.clone());
        shared.clone().spawn(task);
    }
}

async fn connection(shared: Arc<Shared>, stream: TcpStream, from: IpAddr, arrived: Arrived, door: Door) {
    let _ = stream.set_nodelay(true);
    let (stream, patience) = Patient::new(stream);
    if forwarded::is_trusted(&shared.trusted_proxies, from) {
        // Its requests come from many: each gets its own place when its head has said from whom it is.
        let visitor = Visitor { whose: Whose::Proxied { proxy: from, arrived }, patience };
        return outer(&shared, stream, &door, visitor).await;
    }
    let Some(place) = shared.gate.admit(arrived, from).await else { return };
    let place = Arc::new(place);
    let visitor = Visitor { whose: Whose::Direct(place.clone()), patience };
    tokio::select! {
        () = outer(&shared, stream, &door, visitor) => {}
        () = place.evicted() => tracing::debug!(%from, "a half-open connection gives way to another"),
    }
}

/// Everything before an upgrade. What takes longer than this is no client of ours.
async fn outer(shared: &Arc<Shared>, stream: Patient, door: &Door, visitor: Visitor) {
    let beside_tls = matches!(door, Door::BesideTls);
    let service = service_fn(|request| {
        let (shared, visitor) = (shared.clone(), visitor.clone());
        async move {
            let response = if beside_tls {
                front::respond_beside_tls(shared, visitor, request).await
            } else {
                front::respond(shared, visitor, request).await
            };
            Ok::<_, std::convert::Infallible>(response)
        }
    });
    let served = async {
        let Door::Tls(tls) = door else { return http(stream, service).await };
        match tls.accept(stream).await {
            // The handshake was the answer to an authority's challenge.
            Ok(mut stream) if stream.get_ref().1.alpn_protocol() == Some(CHALLENGE_PROTOCOL) => {
                let _ = stream.shutdown().await;
            }
            Ok(stream) => http(stream, service).await,
            Err(error) => tracing::debug!(%error, "TLS handshake failed"),
        }
    };
    let _ = tokio::time::timeout(OUTER_TIME, served).await;
}

/// HTTP/1.1 on one connection.
pub(super) async fn http<T, S, F>(stream: T, service: S)
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: hyper::service::Service<Request<Incoming>, Response = Response<Body>, Error = std::convert::Infallible, Future = F>,
    F: Future<Output = Result<Response<Body>, std::convert::Infallible>> + Send,
{
    let ended = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME)
        .max_buf_size(HEAD_ROOM)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades()
        .await;
    if let Err(error) = ended {
        tracing::debug!(%error, "connection ended");
    }
}
