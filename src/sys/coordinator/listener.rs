//! Accepting connections: plain or TLS for the mesh, a unix socket for the machine's own admin.

use std::io;
use std::net::IpAddr;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::sync::OwnedSemaphorePermit;
use tokio_rustls::TlsAcceptor;

use super::body::{self, Body, json};
use super::{OUTER_TIME, Shared, admin, front};
use crate::wire::admin::{ADMIN_PREFIX, AdminFailure};

/// How long a request's head may take.
const HEAD_TIME: Duration = Duration::from_secs(10);
/// Room for a request's head; the handshake header is 136 characters of it.
const HEAD_ROOM: usize = 16 * 1024;
/// A pause after the system refused a connection (mostly for want of file descriptors).
const REFUSED_PAUSE: Duration = Duration::from_millis(100);
/// Requests of the local admin served at once.
const LOCAL_PLACES: usize = 32;

/// Accepts the mesh's connections until told to stop.
pub(super) async fn serve(shared: Arc<Shared>, listener: TcpListener, tls: Option<TlsAcceptor>) {
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
        let task = connection(shared.clone(), stream, from.ip(), arrived, tls.clone());
        shared.clone().spawn(task);
    }
}

async fn connection(shared: Arc<Shared>, stream: TcpStream, from: IpAddr, arrived: OwnedSemaphorePermit, tls: Option<TlsAcceptor>) {
    let Some(place) = shared.gate.admit(arrived, from).await else { return };
    let place = Arc::new(place);
    let _ = stream.set_nodelay(true);
    let service = {
        let shared = shared.clone();
        service_fn(move |request| {
            let (shared, place) = (shared.clone(), place.clone());
            async move { Ok::<_, std::convert::Infallible>(front::respond(shared, place, request).await) }
        })
    };
    // Everything before the upgrade fits into this; what takes longer is no client of ours.
    let outer = async {
        match tls {
            Some(tls) => match tls.accept(stream).await {
                Ok(stream) => http(stream, service).await,
                Err(error) => tracing::debug!(%error, "TLS handshake failed"),
            },
            None => http(stream, service).await,
        }
    };
    let _ = tokio::time::timeout(OUTER_TIME, outer).await;
}

async fn http<T, S, F>(stream: T, service: S)
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

/// Opens the admin's socket (mode 0600). A socket that nobody serves any more is replaced.
///
/// # Errors
/// Another coordinator serves it, or the system refuses.
pub(super) fn open_local(path: &Path) -> io::Result<UnixListener> {
    if let Ok(found) = std::fs::symlink_metadata(path) {
        if !found.file_type().is_socket() {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, "it exists and is not a socket"));
        }
        if std::os::unix::net::UnixStream::connect(path).is_ok() {
            return Err(io::Error::new(io::ErrorKind::AddrInUse, "another coordinator serves it"));
        }
        std::fs::remove_file(path)?;
    }
    // The mask closes the moment between making the socket and setting its mode.
    let mask = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o177));
    let listener = UnixListener::bind(path);
    rustix::process::umask(mask);
    let listener = listener?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Serves the admin's socket until told to stop.
pub(super) async fn serve_local(shared: Arc<Shared>, listener: UnixListener) {
    let places = Arc::new(tokio::sync::Semaphore::new(LOCAL_PLACES));
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(REFUSED_PAUSE).await;
            continue;
        };
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let service = {
            let shared = shared.clone();
            service_fn(move |request| {
                let shared = shared.clone();
                async move { Ok::<_, std::convert::Infallible>(local(shared, request).await) }
            })
        };
        shared.clone().spawn(async move {
            let _ = tokio::time::timeout(OUTER_TIME, http(stream, service)).await;
            drop(place);
        });
    }
}

async fn local(shared: Arc<Shared>, request: Request<Incoming>) -> Response<Body> {
    let (head, incoming) = request.into_parts();
    let Some(rest) = head.uri.path().strip_prefix(ADMIN_PREFIX) else {
        return json(hyper::StatusCode::NOT_FOUND, &AdminFailure { error: "this socket serves administration requests only".to_owned() });
    };
    match body::read(incoming, &shared.turns).await {
        Ok(bytes) => admin::answer(&shared.hub, admin::Way::Socket, &head.method, rest, &bytes).await,
        Err(response) => response,
    }
}
