//! Certificates made for a test, and a client that trusts exactly one.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use pvemesh::settings::CertificateFiles;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use crate::net::within;

/// A self-signed certificate for [`NAME`].
pub struct Made {
    pub certificate: CertificateDer<'static>,
    pub chain: String,
    pub key: String,
}

pub const NAME: &str = "coord.example.test";

pub fn make() -> Made {
    let made = rcgen::generate_simple_self_signed(vec![NAME.to_owned()]).unwrap();
    Made { certificate: made.cert.der().clone(), chain: made.cert.pem(), key: made.signing_key.serialize_pem() }
}

pub fn files(dir: &Path) -> CertificateFiles {
    CertificateFiles { chain: dir.join("chain.pem"), key: dir.join("key.pem") }
}

impl Made {
    pub fn write(&self, files: &CertificateFiles) {
        replace(&files.chain, &self.chain);
        replace(&files.key, &self.key);
    }
}

/// Writes a file as certificate tools do: beside it, then over it.
pub fn replace(path: &PathBuf, text: &str) {
    let beside = path.with_extension("new");
    std::fs::write(&beside, text).unwrap();
    std::fs::rename(&beside, path).unwrap();
}

/// TLS to an address, trusting the given certificates and no other; offers HTTP/2, as browsers do.
pub async fn connect(address: SocketAddr, name: &str, roots: &[CertificateDer<'static>]) -> std::io::Result<TlsStream<TcpStream>> {
    connect_for(&[b"h2", b"http/1.1"], address, name, roots).await
}

pub async fn connect_for(
    protocols: &[&[u8]],
    address: SocketAddr,
    name: &str,
    roots: &[CertificateDer<'static>],
) -> std::io::Result<TlsStream<TcpStream>> {
    let mut store = rustls::RootCertStore::empty();
    for root in roots {
        store.add(root.clone()).unwrap();
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let mut config = builder.with_root_certificates(store).with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    let tcp = TcpStream::connect(address).await?;
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    within("TLS", connector.connect(ServerName::try_from(name.to_owned()).unwrap(), tcp)).await
}

/// The certificate a server shows.
pub fn shown(stream: &TlsStream<TcpStream>) -> CertificateDer<'static> {
    stream.get_ref().1.peer_certificates().unwrap()[0].clone().into_owned()
}
