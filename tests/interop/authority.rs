//! The certificate authority of a stage: every client machine trusts it, and the coordinator has a certificate of it.

use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, IsCa, KeyPair, KeyUsagePurpose};

use crate::Done;

/// Where Debian's programs look for authorities.
pub const BUNDLE: &str = "etc/ssl/certs/ca-certificates.crt";

#[derive(Debug, Clone)]
pub struct Authority {
    pub certificate: String,
    home: PathBuf,
}

impl Authority {
    pub fn new(home: &Path) -> Done<Self> {
        let issuer = issuer()?;
        let key = KeyPair::generate().map_err(|e| e.to_string())?;
        let params = CertificateParams::new(vec![crate::internet::CENTRE.to_owned()]).map_err(|e| e.to_string())?;
        let certificate = params.signed_by(&key, &issuer).map_err(|e| e.to_string())?;
        let this = Self { certificate: issuer.pem(), home: home.to_owned() };
        let write = |path: PathBuf, text: String| std::fs::write(&path, text).map_err(|e| format!("{}: {e}", path.display()));
        write(this.chain(), certificate.pem())?;
        write(this.key(), key.serialize_pem())?;
        Ok(this)
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
