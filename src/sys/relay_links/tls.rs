//! TLS to relays, whose certificates may be checked in more ways than by their name.

use std::io;
use std::path::Path;
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, SignatureScheme};
use sha2::{Digest as _, Sha256};

use crate::netcheck::Server;
use crate::sys::dial::roots;

/// How a relay map writes the hash of a certificate.
const PIN: &str = "sha256-raw:";

/// What makes a certificate the right one.
#[derive(Debug)]
enum Check {
    /// Nothing: for tests.
    Any,
    /// Its hash, and that it is for this host.
    Pinned([u8; 32]),
    /// An authority vouches for it, under this name if not the host's.
    Vouched(Arc<WebPkiServerVerifier>, Option<ServerName<'static>>),
}

/// Checks a relay's certificate.
#[derive(Debug)]
struct RelayCertificate {
    check: Check,
    provider: Arc<CryptoProvider>,
}

fn pin(text: &str) -> Option<[u8; 32]> {
    let digits = text.as_bytes();
    let digit = |at: usize| char::from(*digits.get(at)?).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let mut bytes = [0; 32];
    for (n, byte) in bytes.iter_mut().enumerate() {
        *byte = digit(2 * n)? << 4 | digit(2 * n + 1)?;
    }
    (digits.len() == 64).then_some(bytes)
}

/// The settings for a relay. HTTP/1.1 only: the upgrade does not exist in HTTP/2.
pub(super) fn settings(server: &Server, authority: Option<&Path>) -> io::Result<Arc<rustls::ClientConfig>> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let wrong = |what: &str| io::Error::new(io::ErrorKind::InvalidInput, format!("the relay map's {what}"));
    let vouched = |name| {
        let roots = Arc::new(roots(authority)?);
        let verifier = WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(&provider)).build().map_err(io::Error::other)?;
        Ok::<_, io::Error>(Check::Vouched(verifier, name))
    };
    let check = match server.certificate.as_str() {
        _ if server.insecure => Check::Any,
        "" => vouched(None)?,
        text => match text.strip_prefix(PIN) {
            Some(hash) => Check::Pinned(pin(hash).ok_or_else(|| wrong("certificate hash is none"))?),
            None => vouched(Some(ServerName::try_from(text.to_owned()).map_err(|_| wrong("certificate name is none"))?))?,
        },
    };
    let verifier = Arc::new(RelayCertificate { check, provider: Arc::clone(&provider) });
    let builder = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let builder = builder.map_err(io::Error::other)?.dangerous();
    let mut config = builder.with_custom_certificate_verifier(verifier).with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

impl ServerCertVerifier for RelayCertificate {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        host: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        match &self.check {
            Check::Any => Ok(ServerCertVerified::assertion()),
            Check::Pinned(hash) => {
                // Beside it there may be the one that tells the relay's key.
                if Sha256::digest(leaf).as_slice() != hash || others.len() > 1 {
                    return Err(rustls::Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure));
                }
                rustls::client::verify_server_name(&ParsedCertificate::try_from(leaf)?, host)?;
                Ok(ServerCertVerified::assertion())
            }
            Check::Vouched(verifier, name) => {
                let name = name.as_ref().unwrap_or(host);
                let verdict = verifier.verify_server_cert(leaf, others, name, ocsp, now);
                // A relay's last certificate tells its key and belongs to no chain.
                match others.split_last() {
                    Some((_, chain)) if verdict.is_err() => verifier.verify_server_cert(leaf, chain, name, ocsp, now).or(verdict),
                    _ => verdict,
                }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_is_sixty_four_hexadecimal_digits() {
        let text = "00ff".repeat(16);
        assert_eq!(pin(&text), Some(std::array::from_fn(|n| if n % 2 == 0 { 0 } else { 0xff })));
        for wrong in ["", "00", &format!("{text}00"), &text.replace('f', "g"), &"é".repeat(32)] {
            assert_eq!(pin(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn only_the_pinned_certificate_for_the_right_host_is_taken() {
        let make = |host: &str| rcgen::generate_simple_self_signed(vec![host.to_owned()]).unwrap().cert.der().clone();
        let (right, other) = (make("10.0.0.1"), make("10.0.0.1"));
        let check = |pinned: &CertificateDer<'_>, shown: &CertificateDer<'_>, others: &[CertificateDer<'_>], host: &str| {
            let provider = Arc::new(rustls::crypto::ring::default_provider());
            let verifier = RelayCertificate { check: Check::Pinned(Sha256::digest(pinned).into()), provider };
            verifier.verify_server_cert(shown, others, &ServerName::try_from(host).unwrap(), &[], UnixTime::now()).is_ok()
        };
        assert!(check(&right, &right, &[], "10.0.0.1"));
        assert!(check(&right, &right, std::slice::from_ref(&other), "10.0.0.1"));
        assert!(!check(&right, &right, &[other.clone(), other.clone()], "10.0.0.1"));
        assert!(!check(&right, &other, &[], "10.0.0.1"));
        assert!(!check(&right, &right, &[], "10.0.0.2"));
    }
}
