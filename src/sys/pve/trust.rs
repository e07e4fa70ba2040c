//! Which certificate is believed: the system's authorities, a CA file, or one fingerprint.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use sha2::{Digest as _, Sha256};

use super::CallError;
use crate::pve::Fingerprint;

/// The authorities of a Debian system, if installed.
const SYSTEM_BUNDLE: &str = "/etc/ssl/certs/ca-certificates.crt";
/// The cluster's own authority, there on a Proxmox host.
const CLUSTER_CA: &str = "/etc/pve/pve-root-ca.pem";
const PROBE_LIMIT: Duration = Duration::from_secs(10);

/// What makes a certificate acceptable.
#[derive(Debug, Clone)]
pub enum Trust {
    /// Signed by an authority of the system, of Mozilla's list, or (on a Proxmox host) of the cluster.
    System,
    /// Signed by an authority in this PEM file, as `/etc/pve/pve-root-ca.pem` of a host.
    CaFile(PathBuf),
    /// Exactly this certificate, whatever its names and dates say.
    Fingerprint(Fingerprint),
    /// Signed by the cluster's own authority in this file, whatever names are in it: nobody but the cluster's hosts has a certificate of
    /// that authority, and they are reached under names it does not know (tunnels, forwarded ports).
    Cluster {
        /// The authority, PEM.
        file: PathBuf,
        /// The certificate seen last, named when another one comes that the authority did not sign.
        last: Option<Fingerprint>,
    },
}

#[derive(Debug)]
enum Rule {
    Authorities(Arc<WebPkiServerVerifier>),
    Cluster(Arc<WebPkiServerVerifier>, Option<Fingerprint>),
    Pinned(Fingerprint),
    /// Accepts any certificate to learn its fingerprint; the connection is closed after the handshake.
    Learn,
}

/// A certificate check that remembers the fingerprint it saw, so that an error can show it.
#[derive(Debug)]
pub(super) struct Verifier {
    rule: Rule,
    provider: Arc<CryptoProvider>,
    seen: Mutex<Option<Fingerprint>>,
}

impl Verifier {
    pub(super) fn new(trust: &Trust) -> Result<Arc<Self>, CallError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let rule = match trust {
            Trust::Fingerprint(pinned) => Rule::Pinned(*pinned),
            Trust::CaFile(path) => Rule::Authorities(authorities(roots_of(path)?, &provider)?),
            Trust::Cluster { file, last } => Rule::Cluster(authorities(roots_of(file)?, &provider)?, *last),
            Trust::System => {
                let mut roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
                for path in [SYSTEM_BUNDLE, CLUSTER_CA] {
                    if let Ok(more) = roots_of(Path::new(path)) {
                        roots.roots.extend(more.roots);
                    }
                }
                Rule::Authorities(authorities(roots, &provider)?)
            }
        };
        Ok(Arc::new(Self { rule, provider, seen: Mutex::new(None) }))
    }

    fn learning() -> Arc<Self> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        Arc::new(Self { rule: Rule::Learn, provider, seen: Mutex::new(None) })
    }

    /// The TLS settings of a client that uses this check.
    pub(super) fn client_config(self: &Arc<Self>) -> Result<ClientConfig, CallError> {
        let config = ClientConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_safe_default_protocol_versions()
            .map_err(|e| CallError::Setup(format!("TLS cannot be set up: {e}")))?;
        let check: Arc<dyn ServerCertVerifier> = Arc::clone(self) as Arc<dyn ServerCertVerifier>;
        Ok(config.dangerous().with_custom_certificate_verifier(check).with_no_client_auth())
    }

    /// The fingerprint of the certificate shown last.
    pub(super) fn seen(&self) -> Option<Fingerprint> {
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Turns a failed connection into an error about the certificate, if that was the cause.
    pub(super) fn explain(&self, place: &str, why: &str) -> Option<CallError> {
        let seen = self.seen()?;
        match self.rule {
            Rule::Pinned(expected) if expected != seen => Some(CallError::CertificateChanged { place: place.to_owned(), seen, expected }),
            Rule::Cluster(_, Some(expected)) if expected != seen && why.contains("certificate") => {
                Some(CallError::CertificateChanged { place: place.to_owned(), seen, expected })
            }
            Rule::Authorities(_) | Rule::Cluster(..) if why.contains("certificate") => {
                Some(CallError::CertificateUntrusted { place: place.to_owned(), seen, why: why.to_owned() })
            }
            _ => None,
        }
    }
}

fn authorities(roots: RootCertStore, provider: &Arc<CryptoProvider>) -> Result<Arc<WebPkiServerVerifier>, CallError> {
    WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider))
        .build()
        .map_err(|e| CallError::Setup(format!("no usable authority to check certificates against: {e}")))
}

fn roots_of(path: &Path) -> Result<RootCertStore, CallError> {
    let unreadable = |why: String| CallError::File { path: path.to_owned(), source: std::io::Error::other(why) };
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(path).map_err(|e| unreadable(e.to_string()))? {
        // A bundle may hold an odd entry; the others still count.
        let _ = roots.add(certificate.map_err(|e| unreadable(e.to_string()))?);
    }
    if roots.is_empty() { Err(unreadable("no certificate in it".to_owned())) } else { Ok(roots) }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let fingerprint = Fingerprint::from_bytes(Sha256::digest(end_entity.as_ref()).into());
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = Some(fingerprint);
        match &self.rule {
            Rule::Authorities(check) => check.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now),
            Rule::Cluster(check, _) => match check.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now) {
                // The signature and the dates are checked before the names.
                Err(rustls::Error::InvalidCertificate(
                    CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
                )) => Ok(ServerCertVerified::assertion()),
                checked => checked,
            },
            Rule::Pinned(pinned) if *pinned == fingerprint => Ok(ServerCertVerified::assertion()),
            Rule::Pinned(_) => Err(rustls::Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure)),
            Rule::Learn => Ok(ServerCertVerified::assertion()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// Connects to `url`, learns the fingerprint of its certificate and disconnects. No credentials are sent.
///
/// # Errors
/// If the address is no `https` address, nothing answers, or what answers speaks no TLS.
pub async fn probe_fingerprint(url: &reqwest::Url) -> Result<Fingerprint, CallError> {
    handshake(url, &Verifier::learning()).await
}

/// Connects to `url`, checks its certificate by `trust`, gives its fingerprint and disconnects. No credentials are sent.
///
/// # Errors
/// As [`probe_fingerprint`], and if the certificate is not believed.
pub async fn probe_trust(url: &reqwest::Url, trust: &Trust) -> Result<Fingerprint, CallError> {
    handshake(url, &Verifier::new(trust)?).await
}

async fn handshake(url: &reqwest::Url, verifier: &Arc<Verifier>) -> Result<Fingerprint, CallError> {
    let place = url.as_str().trim_end_matches('/').to_owned();
    let unreachable = |why: String| CallError::Unreachable { place: place.clone(), why };
    let host = url.host_str().ok_or_else(|| CallError::Setup(format!("{url} names no host")))?;
    let port = url.port_or_known_default().unwrap_or(443);
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let name = ServerName::try_from(bare.to_owned()).map_err(|e| CallError::Setup(format!("{host}: {e}")))?;
    let connector = tokio_rustls::TlsConnector::from(Arc::new(verifier.client_config()?));
    let handshake = async {
        let stream = tokio::net::TcpStream::connect((bare, port)).await?;
        connector.connect(name, stream).await
    };
    match tokio::time::timeout(PROBE_LIMIT, handshake).await {
        Ok(Ok(_)) => verifier.seen().ok_or_else(|| unreachable("it showed no certificate".to_owned())),
        Ok(Err(e)) => Err(verifier.explain(&place, &e.to_string()).unwrap_or_else(|| unreachable(e.to_string()))),
        Err(_) => Err(unreachable(format!("no answer within {} seconds", PROBE_LIMIT.as_secs()))),
    }
}
