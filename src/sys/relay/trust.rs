//! Whose certificates a client of a relay believes, by what the relay map says of it.

use std::io;
use std::path::Path;
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, DigitallySignedStruct, SignatureScheme};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use crate::netcheck::Server;
use crate::sys::certificate::provider;
use crate::sys::dial::roots;
use crate::wire::derp::http::metacert_key;

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

/// TLS to a relay. `authority` is one to trust beside the usual ones. HTTP/1.1 only: the upgrade does not exist in HTTP/2.
///
/// # Errors
/// The relay map asks for something that cannot be.
pub(super) fn config(server: &Server, authority: Option<&Path>) -> io::Result<Arc<rustls::ClientConfig>> {
    let provider = provider();
    let wanted = match server.certificate.strip_prefix(PIN_PREFIX) {
        _ if server.insecure => Wanted::Anything,
        Some(digits) => {
            Wanted::Pinned(fingerprint(digits).ok_or_else(|| io::Error::other("the relay map names a certificate by no fingerprint"))?)
        }
        None => {
            let name = if server.certificate.is_empty() { &server.host } else { &server.certificate };
            let authorities = Arc::new(roots(authority)?);
            let verifier = WebPkiServerVerifier::builder_with_provider(authorities, provider.clone()).build().map_err(io::Error::other)?;
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
    if digits.len() != 64 || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_is_sixty_four_hexadecimal_digits() {
        let text = "00ff".repeat(16);
        assert_eq!(fingerprint(&text), Some(std::array::from_fn(|n| if n % 2 == 0 { 0 } else { 0xff })));
        for wrong in ["", "00", &format!("{text}00"), &text.replace('f', "g"), &text.replace("ff", "+f"), &"é".repeat(32)] {
            assert_eq!(fingerprint(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn only_the_pinned_certificate_for_the_right_host_is_taken() {
        let make = |host: &str| rcgen::generate_simple_self_signed(vec![host.to_owned()]).unwrap().cert.der().clone();
        let (right, other) = (make("10.0.0.1"), make("10.0.0.1"));
        let check = |pinned: &CertificateDer<'_>, shown: &CertificateDer<'_>, others: &[CertificateDer<'_>], host: &str| {
            let verifier = Verifier { wanted: Wanted::Pinned(Sha256::digest(pinned).into()), provider: provider() };
            verifier.verify_server_cert(shown, others, &ServerName::try_from(host).unwrap(), &[], UnixTime::now()).is_ok()
        };
        assert!(check(&right, &right, &[], "10.0.0.1"));
        assert!(!check(&right, &right, std::slice::from_ref(&other), "10.0.0.1"), "a chain has no place beside a pinned certificate");
        assert!(!check(&right, &other, &[], "10.0.0.1"));
        assert!(!check(&right, &right, &[], "10.0.0.2"));
    }
}
