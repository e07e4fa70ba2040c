//! The certificate authority of a stage: every client machine trusts it, and the coordinator and a relay have certificates of it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, IsCa, KeyPair, KeyUsagePurpose};

use crate::Done;

/// Where Debian's programs look for authorities.
pub const BUNDLE: &str = "etc/ssl/certs/ca-certificates.crt";

#[derive(Clone)]
pub struct Authority {
    pub certificate: String,
    home: PathBuf,
    issuer: Arc<CertifiedIssuer<'static, KeyPair>>,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").field("home", &self.home).finish_non_exhaustive()
    }
}

impl Authority {
    pub fn new(home: &Path) -> Done<Self> {
        let issuer = issuer()?;
        let this = Self { certificate: issuer.pem(), home: home.to_owned(), issuer: Arc::new(issuer) };
        this.certify(crate::internet::CENTRE, &this.chain(), &this.key())?;
        Ok(this)
    }

    /// Makes a certificate for an address, and its key.
    pub fn certify(&self, address: &str, chain: &Path, key: &Path) -> Done {
        let pair = KeyPair::generate().map_err(|e| e.to_string())?;
        let params = CertificateParams::new(vec![address.to_owned()]).map_err(|e| e.to_string())?;
        let certificate = params.signed_by(&pair, &*self.issuer).map_err(|e| e.to_string())?;
        let write = |path: &Path, text: String| std::fs::write(path, text).map_err(|e| format!("{}: {e}", path.display()));
        write(chain, certificate.pem())?;
        write(key, pair.serialize_pem())
    }

    /// The coordinator's certificate.
    pub fn chain(&self) -> PathBuf {
        self.home.join("coordinator.crt")
    }

    /// And its key.
    pub fn key(&self) -> PathBuf {
        self.home.join("coordinator.key")
    }
}

fn issuer() -> Done<CertifiedIssuer<'static, KeyPair>> {
    let mut params = CertificateParams::new(Vec::new()).map_err(|e| e.to_string())?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "interop authority");
    let key = KeyPair::generate().map_err(|e| e.to_string())?;
    CertifiedIssuer::self_signed(params, key).map_err(|e| e.to_string())
}
