//! Whose certificates a client of a relay believes, by what the relay map says of it.

use std::io;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, DigitallySignedStruct, SignatureScheme};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use crate::sys::certificate::provider;
use crate::wire::control::DerpNode;
use crate::wire::derp::http::metacert_key;

/// The authorities of a Debian system, if installed.
const SYSTEM_BUNDLE: &str = "/etc/ssl/certs/ca-certificates.crt";
/// How a relay map names a certificate instead of a name.
const PIN_PREFIX: &str = "sha256-raw:";

/// What is asked of a relay's certificate.
#[derive(Debug)]
enum Wanted {
    /// A chain to an authority for this name, which need not be the one that is asked for in the handshake.
    Name(ServerName<'static>, Arc<WebPkiServerVerifier>),
    /// This certificate, valid for the host.
    Pinned([u8; 32]),
    /// Anything: tests say so.
    Anything,
}

#[derive(Debug)]
struct Verifier {
    wanted: Wanted,
    provider: Arc<CryptoProvider>,
}

fn authorities() -> Arc<rustls::RootCertStore> {
    static ROOTS: OnceLock<Arc<rustls::RootCertStore>> = OnceLock::new();
    let roots = ROOTS.get_or_init(|| {
        let mut roots = rustls::RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
        if let Ok(certificates) = CertificateDer::pem_file_iter(Path::new(SYSTEM_BUNDLE)) {
            roots.add_parsable_certificates(certificates.filter_map(Result::ok));
        }
        Arc::new(roots)
    });
    roots.clone()
}

/// TLS to a relay. HTTP/1.1 only: the upgrade does not exist in HTTP/2.
///
/// # Errors
/// The relay map asks for something that cannot be.
pub(super) fn config(node: &DerpNode) -> io::Result<Arc<rustls::ClientConfig>> {
    let provider = provider();
    let wanted = match node.cert_name.strip_prefix(PIN_PREFIX) {
        _ if node.insecure_for_tests => Wanted::Anything,
        Some(digits) => {
            Wanted::Pinned(fingerprint(digits).ok_or_else(|| io::Error::other("the relay map names a certificate by no fingerprint"))?)
        }
        None => {
            let name = if node.cert_name.is_empty() { &node.host_name } else { &node.cert_name };
            let verifier =
                WebPkiServerVerifier::builder_with_provider(authorities(), provider.clone()).build().map_err(io::Error::other)?;
            Wanted::Name(ServerName::try_from(name.clone()).map_err(io::Error::other)?, verifier)
        }
    };
    let builder = rustls::ClientConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions();
    let verifier = Arc::new(Verifier { wanted, provider });
    let builder = builder.map_err(io::Error::other)?.dangerous().with_custom_certificate_verifier(verifier);
    let mut config = builder.with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

fn fingerprint(digits: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    if digits.len() != 64 || !digits.is_ascii() {
        return None;
    }
    for (n, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(digits.get(2 * n..2 * n + 2)?, 16).ok()?;
    }
    Some(bytes)
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
        // The certificate that tells the relay's key is no part of the chain.
        let chain: Vec<_> = intermediates.iter().filter(|certificate| metacert_key(certificate).is_none()).cloned().collect();
        match &self.wanted {
            Wanted::Anything => Ok(ServerCertVerified::assertion()),
            Wanted::Name(name, verifier) => verifier.verify_server_cert(end_entity, &chain, name, ocsp_response, now),
            Wanted::Pinned(pin) => {
                let same: bool = Sha256::digest(end_entity).as_slice().ct_eq(pin).into();
                if !same || !chain.is_empty() {
                    return Err(CertificateError::ApplicationVerificationFailure.into());
                }
                rustls::client::verify_server_name(&rustls::server::ParsedCertificate::try_from(end_entity)?, server_name)?;
                Ok(ServerCertVerified::assertion())
            }
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
