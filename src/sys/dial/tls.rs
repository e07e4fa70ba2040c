//! TLS to a coordinator.

use std::io;
use std::path::Path;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, SignatureScheme};

/// The authorities of a Debian system, if installed: a private authority of the admin's is found there.
const SYSTEM_BUNDLE: &str = "/etc/ssl/certs/ca-certificates.crt";

/// Whose certificates count.
#[derive(Debug, Clone, Copy)]
pub(super) enum Trust<'a> {
    /// Mozilla's and the system's authorities, and those in a file.
    Authorities(Option<&'a Path>),
    /// Anybody's: what runs inside proves the coordinator's key by itself, and the certificate adds nothing to that. An expired one, a
    /// clock that is a year late, or a proxy that unpacks TLS do not cut a node off from a coordinator it knows.
    Anyone,
}

/// The settings. HTTP/1.1 only: the upgrade does not exist in HTTP/2.
pub(super) fn settings(trust: Trust<'_>) -> io::Result<Arc<rustls::ClientConfig>> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions();
    let builder = builder.map_err(io::Error::other)?;
    let mut config = match trust {
        Trust::Authorities(file) => builder.with_root_certificates(roots(file)?).with_no_client_auth(),
        Trust::Anyone => builder.dangerous().with_custom_certificate_verifier(Arc::new(AnyCertificate(provider))).with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

pub(in crate::sys) fn roots(file: Option<&Path>) -> io::Result<rustls::RootCertStore> {
    let mut roots = rustls::RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
    if let Ok(certificates) = CertificateDer::pem_file_iter(Path::new(SYSTEM_BUNDLE)) {
        roots.add_parsable_certificates(certificates.filter_map(Result::ok));
    }
    if let Some(file) = file {
        let failed = |what: &dyn std::fmt::Display| io::Error::other(format!("read the authority in {}: {what}", file.display()));
        let certificates = CertificateDer::pem_file_iter(file).map_err(|e| failed(&e))?;
        let (added, _) = roots.add_parsable_certificates(certificates.filter_map(Result::ok));
        if added == 0 {
            return Err(failed(&"it holds no certificate in PEM form"));
        }
    }
    Ok(roots)
}

/// Takes any certificate, but its holder has to own its key: a broken TLS is still refused.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
