//! The admin's socket: administration requests of the machine's own admin, over HTTP/1.1.

use std::io;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use tokio::net::UnixListener;

use super::body::{self, Allowance, Body, json};
use super::{OUTER_TIME, Shared, admin, listener};
use crate::wire::admin::{ADMIN_PREFIX, AdminFailure};

/// A pause after the system refused a connection (mostly for want of file descriptors).
const REFUSED_PAUSE: Duration = Duration::from_millis(100);
/// Requests served at once.
const PLACES: usize = 32;

/// Opens the socket (mode 0600). A socket that nobody serves any more is replaced.
///
/// # Errors
/// Another coordinator serves it, or the system refuses.
pub(super) fn open(path: &Path) -> io::Result<UnixListener> {
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

/// Serves the socket until told to stop.
pub(super) async fn serve(shared: Arc<Shared>, listener: UnixListener) {
    let places = Arc::new(tokio::sync::Semaphore::new(PLACES));
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
                async move { Ok::<_, std::convert::Infallible>(respond(shared, request).await) }
            })
        };
        shared.clone().spawn(async move {
            let _ = tokio::time::timeout(OUTER_TIME, listener::http(stream, service)).await;
            drop(place);
        });
    }
}

async fn respond(shared: Arc<Shared>, request: Request<Incoming>) -> Response<Body> {
    let (head, incoming) = request.into_parts();
    let Some(rest) = head.uri.path().strip_prefix(ADMIN_PREFIX) else {
        return json(hyper::StatusCode::NOT_FOUND, &AdminFailure { error: "this socket serves administration requests only".to_owned() });
    };
    match body::read(incoming, Allowance::member(&shared.turns)).await {
        Ok(bytes) => admin::answer(&shared.hub, admin::Way::Socket, &head.method, rest, &bytes).await,
        Err(response) => response,
    }
}
