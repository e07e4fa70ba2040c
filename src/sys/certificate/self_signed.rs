//! Certificates that we make ourselves: one that clients know by its fingerprint, and the one by which a relay tells its key.

use std::io;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use rcgen::{CertificateParams, DistinguishedName, DnType, IsCa, KeyPair};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::{Served, certified};
use crate::ident::RelayPublic;
use crate::sys::{clock, files};
use crate::time::Wall;
use crate::wire::derp::VERSION;

/// How long one of ours is valid. Nobody renews it: clients know it by its fingerprint, and a new one would strand them.
const YEARS: i16 = 30;
/// How long the certificate with the relay's key is valid, both ways from now.
const KEY_LIFE: Duration = Duration::from_secs(30 * 24 * 3600);
/// How often that one is made anew.
pub(in crate::sys) const KEY_RENEWAL: Duration = Duration::from_secs(24 * 3600);

/// A certificate known by its fingerprint.
#[derive(Debug)]
pub(in crate::sys) struct SelfSigned {
    /// What is served.
    pub(in crate::sys) served: Arc<Served>,
    /// SHA-256 of the certificate, as a relay map names it: `sha256-raw:` and hex.
    pub(in crate::sys) pin: String,
}

/// The certificate of a host in a file, with its key; made if there is none for this host, so that the fingerprint stays.
///
/// # Errors
/// The file cannot be read or written, or holds something else.
pub(in crate::sys) fn open(path: &Path, host: &str) -> io::Result<SelfSigned> {
    let pem = match std::fs::read(path) {
        Ok(pem) => pem,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let pem = make(host)?;
            files::write_whole(path, &pem)?;
            pem
        }
        Err(error) => return Err(error),
    };
    let key = PrivateKeyDer::from_pem_slice(&pem).map_err(io::Error::other)?;
    let certificate = CertificateDer::from_pem_slice(&pem).map_err(io::Error::other)?;
    let pin = super::pin(&certificate);
    let served = Arc::new(Served::default());
    served.replace(certified(vec![certificate], key)?);
    Ok(SelfSigned { served, pin })
}

/// A day of a year in the calendar that certificates have.
fn day(at: Wall) -> (i32, u8, u8) {
    let date = at.to_zoned(jiff::tz::TimeZone::UTC).date();
    (i32::from(date.year()), date.month().unsigned_abs(), date.day().unsigned_abs())
}

fn make(host: &str) -> io::Result<Vec<u8>> {
    let key = KeyPair::generate().map_err(io::Error::other)?;
    let mut params = CertificateParams::new(vec![host.to_owned()]).map_err(io::Error::other)?;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, host);
    params.is_ca = IsCa::ExplicitNoCa;
    let (year, _, _) = day(clock::wall());
    // A machine whose clock is behind accepts it as well.
    params.not_before = rcgen::date_time_ymd(year - 10, 1, 1);
    params.not_after = rcgen::date_time_ymd(year + i32::from(YEARS), 1, 1);
    let certificate = params.self_signed(&key).map_err(io::Error::other)?;
    Ok(format!("{}{}", key.serialize_pem(), certificate.pem()).into_bytes())
}

/// The certificate that tells a relay's key: name, serial number (the protocol's version) and form are what clients look for. Its own key is
/// thrown away.
fn key_certificate(key: &RelayPublic) -> io::Result<CertificateDer<'static>> {
    let signer = KeyPair::generate_for(&rcgen::PKCS_ED25519).map_err(io::Error::other)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, key.to_string());
    params.serial_number = Some(u64::from(VERSION).into());
    params.is_ca = IsCa::ExplicitNoCa;
    let now = clock::wall();
    let (from, until) = (day(now - KEY_LIFE), day(now + KEY_LIFE));
    params.not_before = rcgen::date_time_ymd(from.0, from.1, from.2);
    params.not_after = rcgen::date_time_ymd(until.0, until.1, until.2);
    params.self_signed(&signer).map(|certificate| certificate.der().clone()).map_err(io::Error::other)
}

/// Serves another source's certificate with the one that tells the relay's key behind it. Only for TLS 1.3, where it comes encrypted.
#[derive(Debug)]
pub(in crate::sys) struct WithKey {
    inner: Arc<dyn ResolvesServerCert>,
    key: RelayPublic,
    certificate: RwLock<CertificateDer<'static>>,
}

impl WithKey {
    pub(in crate::sys) fn new(inner: Arc<dyn ResolvesServerCert>, key: RelayPublic) -> io::Result<Arc<Self>> {
        let certificate = RwLock::new(key_certificate(&key)?);
        Ok(Arc::new(Self { inner, key, certificate }))
    }

    /// Makes it anew from time to time, for ever.
    pub(in crate::sys) async fn keep_fresh(self: Arc<Self>) {
        loop {
            tokio::time::sleep(KEY_RENEWAL).await;
            match key_certificate(&self.key) {
                Ok(certificate) => *self.certificate.write().unwrap_or_else(PoisonError::into_inner) = certificate,
                Err(error) => tracing::warn!(%error, "the certificate with the relay's key was not renewed"),
            }
        }
    }
}

impl ResolvesServerCert for WithKey {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let challenge = rustls_acme::is_tls_alpn_challenge(&hello);
        let inner = self.inner.resolve(hello)?;
        if challenge {
            return Some(inner);
        }
        let mut chain = inner.cert.clone();
        chain.push(self.certificate.read().unwrap_or_else(PoisonError::into_inner).clone());
        Some(Arc::new(CertifiedKey::new(chain, inner.key.clone())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::derp::http::metacert_key;

    #[test]
    fn the_certificate_of_a_host_is_made_once_and_keeps_its_fingerprint() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("relay.pem");
        let first = open(&path, "192.0.2.1").unwrap();
        assert_eq!(open(&path, "192.0.2.1").unwrap().pin, first.pin);
        assert!(first.pin.starts_with("sha256-raw:") && first.pin.len() == 75);
        std::fs::write(&path, "nothing").unwrap();
        assert!(open(&path, "192.0.2.1").is_err());
    }

    #[test]
    fn a_relays_key_is_in_its_certificate_as_clients_look_for_it() {
        let key = RelayPublic::from_bytes([0x5c; 32]);
        let certificate = key_certificate(&key).unwrap();
        assert_eq!(metacert_key(&certificate), Some(key));
        let serial = [0x02, 0x01, 0x02];
        assert!(certificate.windows(3).any(|window| window == serial), "the serial number is the version");
    }
}
