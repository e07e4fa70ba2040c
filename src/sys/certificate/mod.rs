//! The certificates of our listeners: read from files and read again when they change, had by ACME, or made here.

pub(in crate::sys) mod acme;
pub(in crate::sys) mod self_signed;

use std::io;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use sha2::{Digest as _, Sha256};
use tokio::sync::Notify;
use tokio_rustls::TlsAcceptor;

use crate::settings::CertificateFiles;

/// How often the files are looked at.
const LOOK: Duration = Duration::from_secs(5);
/// The protocol that ACME's challenge is answered in (RFC 8737, section 3).
pub(in crate::sys) const CHALLENGE_PROTOCOL: &[u8] = b"acme-tls/1";

/// The certificate being served; replaced while connections go on.
#[derive(Debug, Default)]
pub(in crate::sys) struct Served(RwLock<Option<Arc<CertifiedKey>>>);

impl Served {
    pub(in crate::sys) fn replace(&self, certificate: CertifiedKey) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(certificate));
    }

    pub(in crate::sys) fn current(&self) -> Option<Arc<CertifiedKey>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl ResolvesServerCert for Served {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.current()
    }
}

/// TLS with certificates from somewhere. The upgrade to the control protocol is HTTP/1.1: nothing else is offered.
pub(in crate::sys) fn acceptor(certificates: Arc<dyn ResolvesServerCert>, challenges: bool) -> io::Result<TlsAcceptor> {
    acceptor_of(certificates, challenges, rustls::DEFAULT_VERSIONS)
}

/// The same with TLS 1.3 alone: certificates are encrypted there.
pub(in crate::sys) fn acceptor_13(certificates: Arc<dyn ResolvesServerCert>, challenges: bool) -> io::Result<TlsAcceptor> {
    acceptor_of(certificates, challenges, &[&rustls::version::TLS13])
}

fn acceptor_of(
    certificates: Arc<dyn ResolvesServerCert>,
    challenges: bool,
    versions: &[&'static rustls::SupportedProtocolVersion],
) -> io::Result<TlsAcceptor> {
    let mut config = rustls::ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(versions)
        .map_err(io::Error::other)?
        .with_no_client_auth()
        .with_cert_resolver(certificates);
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    if challenges {
        config.alpn_protocols.push(CHALLENGE_PROTOCOL.to_vec());
    }
    Ok(TlsAcceptor::from(Arc::new(config)))
}

pub(in crate::sys) fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// A chain and its key, which has to fit.
pub(in crate::sys) fn certified(chain: Vec<CertificateDer<'static>>, key: PrivateKeyDer<'static>) -> io::Result<CertifiedKey> {
    CertifiedKey::from_der(chain, key, &provider()).map_err(io::Error::other)
}

/// A certificate as a relay map names it: `sha256-raw:` and hex.
pub(in crate::sys) fn pin(certificate: &CertificateDer<'_>) -> String {
    let digest: String = Sha256::digest(certificate).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256-raw:{digest}")
}

/// Where the listener's certificate comes from.
#[derive(Debug)]
pub(in crate::sys) enum Source {
    /// Files, with their state when they were last read.
    Files(Files),
    /// An ACME authority.
    Acme(acme::Acme),
}

impl Source {
    /// Keeps the certificate fresh, for ever. `asked`: look now.
    pub(in crate::sys) async fn keep_fresh(self, asked: Arc<Notify>) {
        match self {
            Self::Files(files) => files.keep_fresh(&asked).await,
            Self::Acme(acme) => acme.keep_fresh().await,
        }
    }
}

/// A certificate in files.
#[derive(Debug)]
pub(in crate::sys) struct Files {
    files: CertificateFiles,
    served: Arc<Served>,
    seen: Stamp,
}

/// What tells one content of the two files from another: times of change and lengths.
type Stamp = [Option<(SystemTime, u64)>; 2];

impl Files {
    /// Reads them for the first time.
    ///
    /// # Errors
    /// The file that does not read, and why.
    pub(in crate::sys) fn open(files: &CertificateFiles) -> Result<Self, (std::path::PathBuf, io::Error)> {
        let (served, seen) = (Arc::new(Served::default()), stamp(files));
        served.replace(read(files)?);
        Ok(Self { files: files.clone(), served, seen })
    }

    /// What is served, now and after changes.
    pub(in crate::sys) fn served(&self) -> Arc<Served> {
        self.served.clone()
    }

    async fn keep_fresh(mut self, asked: &Notify) {
        loop {
            let asked = tokio::time::timeout(LOOK, asked.notified()).await.is_ok();
            let now = stamp(&self.files);
            if now == self.seen && !asked {
                continue;
            }
            match read(&self.files) {
                Ok(certificate) => {
                    self.served.replace(certificate);
                    tracing::info!(file = %self.files.chain.display(), "the certificate was read again");
                }
                // The two are written one after the other: the next look may find them fitting. The old one serves on.
                Err((file, error)) => {
                    tracing::warn!(file = %file.display(), %error, "the new certificate does not read: the old one stays")
                }
            }
            self.seen = now;
        }
    }
}

fn stamp(files: &CertificateFiles) -> Stamp {
    [&files.chain, &files.key].map(|path| std::fs::metadata(path).and_then(|data| Ok((data.modified()?, data.len()))).ok())
}

fn read(files: &CertificateFiles) -> Result<CertifiedKey, (std::path::PathBuf, io::Error)> {
    let of = |path: &Path| {
        let path = path.to_owned();
        move |e: rustls_pki_types::pem::Error| (path, io::Error::other(e))
    };
    let chain: Vec<_> = CertificateDer::pem_file_iter(&files.chain).and_then(Iterator::collect).map_err(of(&files.chain))?;
    let key = PrivateKeyDer::from_pem_file(&files.key).map_err(of(&files.key))?;
    certified(chain, key).map_err(|e| (files.chain.clone(), e))
}
