//! The cluster's own authority and the certificates it signs for its hosts, which can be renewed or replaced while the host runs.

use std::sync::{Arc, Mutex};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use sha2::{Digest as _, Sha256};

/// A cluster's authority, as in pve-root-ca.pem.
#[derive(Debug)]
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// The certificate, PEM.
    pub pem: String,
    /// Its fingerprint.
    pub fingerprint: String,
}

/// A certificate of a host.
#[derive(Debug, Clone)]
struct Leaf {
    key: Arc<CertifiedKey>,
    pem: String,
    fingerprint: String,
}

/// What a host shows.
#[derive(Debug)]
pub struct Certificates {
    authority: Arc<Authority>,
    node: String,
    shown: Mutex<Leaf>,
}

fn fingerprint(der: &[u8]) -> String {
    Sha256::digest(der).iter().map(|b| format!("{b:02X}")).collect::<Vec<_>>().join(":")
}

fn named(common: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, common);
    params
}

impl Authority {
    /// A new one.
    ///
    /// # Errors
    /// If there is no randomness.
    pub fn new() -> std::io::Result<Self> {
        let key = KeyPair::generate().map_err(std::io::Error::other)?;
        let mut params = named("Proxmox Virtual Environment");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let made = params.self_signed(&key).map_err(std::io::Error::other)?;
        let (pem, fingerprint) = (made.pem(), fingerprint(made.der()));
        Ok(Self { issuer: Issuer::new(params, key), pem, fingerprint })
    }

    fn sign(&self, node: &str) -> std::io::Result<Leaf> {
        let key = KeyPair::generate().map_err(std::io::Error::other)?;
        let names = ["localhost".to_owned(), "127.0.0.1".to_owned(), node.to_owned()];
        let mut params = CertificateParams::new(names).map_err(std::io::Error::other)?;
        params.distinguished_name.push(DnType::CommonName, node);
        let made = params.signed_by(&key, &self.issuer).map_err(std::io::Error::other)?;
        Leaf::new(made.der().clone(), made.pem(), &key)
    }
}

impl Leaf {
    fn new(der: CertificateDer<'static>, pem: String, key: &KeyPair) -> std::io::Result<Self> {
        let fingerprint = fingerprint(&der);
        let private = PrivateKeyDer::try_from(key.serialize_der()).map_err(std::io::Error::other)?;
        let signing = rustls::crypto::ring::sign::any_supported_type(&private).map_err(std::io::Error::other)?;
        Ok(Self { key: Arc::new(CertifiedKey::new(vec![der], signing)), pem, fingerprint })
    }
}

impl Certificates {
    /// A host's, signed by its cluster's authority.
    ///
    /// # Errors
    /// If there is no randomness.
    pub fn new(authority: Arc<Authority>, node: &str) -> std::io::Result<Self> {
        let shown = Mutex::new(authority.sign(node)?);
        Ok(Self { authority, node: node.to_owned(), shown })
    }

    /// The authority, PEM.
    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    /// The fingerprint of what is shown now.
    pub fn fingerprint(&self) -> String {
        self.shown.lock().unwrap().fingerprint.clone()
    }

    /// What is shown now, PEM.
    pub fn pem(&self) -> String {
        self.shown.lock().unwrap().pem.clone()
    }

    /// Another one of the same authority, as the yearly renewal makes it.
    pub fn renew(&self) {
        *self.shown.lock().unwrap() = self.authority.sign(&self.node).unwrap();
    }

    /// One that the cluster's authority did not sign, as pveproxy-ssl.pem or somebody in between has.
    pub fn replace(&self) {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
        *self.shown.lock().unwrap() = Leaf::new(made.cert.der().clone(), made.cert.pem(), &made.signing_key).unwrap();
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.shown.lock().unwrap().key.clone())
    }
}
