//! TCP and TLS to an origin, marked to stay outside the tunnel.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt as _};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;

use super::{DialError, Origin};
use crate::node::policy_routing::BYPASS_MARK;

/// How long one address is tried alone before the next joins in (RFC 8305, section 8: 250 ms).
const STAGGER: Duration = Duration::from_millis(250);
/// The authorities of a Debian system, if installed: a private authority of the admin's is found there.
const SYSTEM_BUNDLE: &str = "/etc/ssl/certs/ca-certificates.crt";

/// A connection of either kind.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// Marks a socket so that its packets take the machine's own routes. Without the right to (`CAP_NET_ADMIN`) there is no tunnel of ours
/// either, so that refusal is no error.
///
/// # Errors
/// Any other refusal of the system.
pub fn mark_socket<S: std::os::fd::AsFd>(socket: &S) -> io::Result<()> {
    match socket2::SockRef::from(socket).set_mark(BYPASS_MARK) {
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        result => result,
    }
}

/// Connects to an origin, with TLS if it wants it.
pub(super) async fn connect(origin: &Origin) -> Result<Box<dyn Stream>, DialError> {
    let tcp = connect_tcp(origin).await?;
    if !origin.tls {
        return Ok(Box::new(tcp));
    }
    let failed = |source| DialError::Tls { host: origin.host.clone(), source };
    let name = ServerName::try_from(origin.host.clone()).map_err(|e| failed(io::Error::other(e)))?;
    let stream = TlsConnector::from(tls_settings().map_err(failed)?).connect(name, tcp).await.map_err(failed)?;
    Ok(Box::new(stream))
}

/// Tries the addresses of the host, each a little after the one before; the first that answers wins.
async fn connect_tcp(origin: &Origin) -> Result<TcpStream, DialError> {
    let unresolved = |source| DialError::Resolve { host: origin.host.clone(), source };
    let addresses: Vec<SocketAddr> = tokio::net::lookup_host((origin.host.as_str(), origin.port)).await.map_err(unresolved)?.collect();
    let mut attempts: FuturesUnordered<_> = (0u32..)
        .zip(addresses)
        .map(|(n, address)| async move {
            tokio::time::sleep(STAGGER * n).await;
            (address, connect_address(address).await)
        })
        .collect();
    let mut failure = unresolved(io::Error::new(io::ErrorKind::NotFound, "the name has no address"));
    while let Some((address, result)) = attempts.next().await {
        match result {
            Ok(stream) => return Ok(stream),
            Err(source) => failure = DialError::Connect { address, source },
        }
    }
    Err(failure)
}

async fn connect_address(address: SocketAddr) -> io::Result<TcpStream> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    mark_socket(&socket)?;
    let stream = socket.connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// TLS with Mozilla's and the system's authorities. HTTP/1.1 only: the upgrade does not exist in HTTP/2.
fn tls_settings() -> io::Result<Arc<rustls::ClientConfig>> {
    let mut roots = rustls::RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
    if let Ok(certificates) = CertificateDer::pem_file_iter(Path::new(SYSTEM_BUNDLE)) {
        roots.add_parsable_certificates(certificates.filter_map(Result::ok));
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().map_err(io::Error::other)?;
    let mut config = builder.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}
