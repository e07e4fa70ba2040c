//! A certificate from an ACME authority, by the crate rustls-acme: it orders, answers the challenge in the TLS handshake (TLS-ALPN-01),
//! and renews. Here: where account and certificate are kept, what goes on when an order fails or hangs, and what is served meanwhile.

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::StreamExt as _;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_acme::{AccountCache, AcmeConfig, CertCache, EventError, EventOk, OrderError, ResolvesServerCertAcme, is_tls_alpn_challenge};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use sha2::{Digest as _, Sha256};

use super::{Served, certified, provider};
use crate::settings;
use crate::sys::files;

/// The authority asked unless another is named.
const LETS_ENCRYPT: &str = "https://acme-v02.api.letsencrypt.org/directory";
/// The certificates a Debian system trusts, if there are any.
const SYSTEM_BUNDLE: &str = "/etc/ssl/certs/ca-certificates.crt";
/// How long an order may take while there is no certificate.
const ORDER_TIME: Duration = Duration::from_secs(5 * 60);
/// How long nothing may happen while there is one. Then it starts over: an order for renewal may hang.
const QUIET_TIME: Duration = Duration::from_secs(24 * 3600);
/// The first pause after a failure, and the longest. Authorities count failures (Let's Encrypt: five an hour for a name).
const FIRST_PAUSE: Duration = Duration::from_secs(60);
const LONGEST_PAUSE: Duration = Duration::from_secs(3600);
/// Longest text of an authority that is logged.
const MAX_TEXT: usize = 400;

/// The orders of one coordinator.
#[derive(Debug)]
pub(in crate::sys) struct Acme {
    settings: settings::Acme,
    client: Arc<rustls::ClientConfig>,
    cache: Arc<Cache>,
    certificates: Arc<Certificates>,
}

/// What is served: the certificate, or the answer to a challenge.
#[derive(Debug, Default)]
struct Certificates {
    served: Arc<Served>,
    challenges: RwLock<Option<Arc<ResolvesServerCertAcme>>>,
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        if is_tls_alpn_challenge(&hello) {
            self.challenges.read().unwrap_or_else(PoisonError::into_inner).clone()?.resolve(hello)
        } else {
            self.served.current()
        }
    }
}

impl Acme {
    /// Prepares the directory; nothing is asked of anyone yet.
    ///
    /// # Errors
    /// The file that cannot be used, and why.
    pub(in crate::sys) fn open(settings: &settings::Acme, directory: PathBuf) -> Result<Self, (PathBuf, io::Error)> {
        files::make_state_dir(&directory).map_err(|e| (directory.clone(), e))?;
        let client = client(settings)?;
        let certificates = Arc::new(Certificates::default());
        let cache = Arc::new(Cache { directory, served: certificates.served.clone() });
        Ok(Self { settings: settings.clone(), client, cache, certificates })
    }

    /// What is served: the certificate once there is one, and the answers to challenges.
    pub(in crate::sys) fn certificates(&self) -> Arc<dyn ResolvesServerCert> {
        self.certificates.clone()
    }

    /// Orders and renews, for ever.
    pub(in crate::sys) async fn keep_fresh(self) {
        let mut pause = FIRST_PAUSE;
        loop {
            match self.run().await {
                Ok(()) => pause = FIRST_PAUSE,
                Err(error) => {
                    let error: String = error.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MAX_TEXT).collect();
                    tracing::warn!(domain = self.settings.domain, error, again = ?pause, "no certificate by ACME: the authority must reach this listener on port 443 of the domain");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
        }
    }

    /// One life of the crate's state. Ends well when it only has to start over.
    async fn run(&self) -> Result<(), String> {
        let config = AcmeConfig::new_with_client_config([&self.settings.domain], self.client.clone())
            .directory(self.settings.directory.as_deref().unwrap_or(LETS_ENCRYPT))
            .contact(self.settings.email.iter().map(|email| format!("mailto:{email}")))
            .cache(SharedCache(self.cache.clone()));
        let mut state = config.state();
        *self.certificates.challenges.write().unwrap_or_else(PoisonError::into_inner) = Some(state.resolver());
        let mut deployed = false;
        loop {
            let limit = if deployed { QUIET_TIME } else { ORDER_TIME };
            match tokio::time::timeout(limit, state.next()).await {
                Err(_) if deployed => return Ok(()),
                Err(_) => return Err(format!("no answer within {ORDER_TIME:?}")),
                Ok(None) => return Err("the orders ended".to_owned()),
                Ok(Some(Err(error))) => return Err(reason(&error)),
                Ok(Some(Ok(EventOk::DeployedCachedCert))) => deployed = true,
                Ok(Some(Ok(EventOk::DeployedNewCert))) => {
                    deployed = true;
                    tracing::info!(domain = self.settings.domain, "a new certificate by ACME");
                }
                Ok(Some(Ok(_))) => {}
            }
        }
    }
}

/// What the authority has against the domain, if that is what it was; else what the crate says.
fn reason(error: &EventError<io::Error, io::Error>) -> String {
    let problem = match error {
        EventError::Order(OrderError::BadAuth(auth)) => {
            auth.challenges.iter().find_map(|challenge| challenge.error.as_ref()?.detail.clone())
        }
        _ => None,
    };
    problem.unwrap_or_else(|| error.to_string())
}

/// How the authority is spoken to: Mozilla's and the system's authorities, and the private one if there is one.
fn client(settings: &settings::Acme) -> Result<Arc<rustls::ClientConfig>, (PathBuf, io::Error)> {
    let mut roots = rustls::RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
    if let Ok(certificates) = CertificateDer::pem_file_iter(SYSTEM_BUNDLE) {
        roots.add_parsable_certificates(certificates.filter_map(Result::ok));
    }
    if let Some(file) = &settings.ca {
        let failed = |e: &dyn std::fmt::Display| (file.clone(), io::Error::other(e.to_string()));
        for certificate in CertificateDer::pem_file_iter(file).map_err(|e| failed(&e))? {
            roots.add(certificate.map_err(|e| failed(&e))?).map_err(|e| failed(&e))?;
        }
    }
    let builder = rustls::ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
    let builder = builder.map_err(|e| (PathBuf::from("the TLS settings"), io::Error::other(e)))?;
    Ok(Arc::new(builder.with_root_certificates(roots).with_no_client_auth()))
}

/// Account and certificate on disk, for their owner only; whatever certificate passes is served from then on.
#[derive(Debug)]
struct Cache {
    directory: PathBuf,
    served: Arc<Served>,
}

/// The crate takes its cache for itself; ours lives longer.
struct SharedCache(Arc<Cache>);

impl Cache {
    /// A file for each thing asked of each authority.
    fn file(&self, what: &str, parts: &[String], authority: &str) -> PathBuf {
        let mut hash = Sha256::new();
        for part in parts.iter().map(String::as_str).chain([authority]) {
            hash.update(part);
            hash.update([0]);
        }
        let digest: String = hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        self.directory.join(format!("{what}-{digest}"))
    }

    /// The key, then the chain, in PEM.
    fn serve(&self, pem: &[u8]) -> io::Result<()> {
        let key = PrivateKeyDer::from_pem_slice(pem).map_err(io::Error::other)?;
        let chain = CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>().map_err(io::Error::other)?;
        self.served.replace(certified(chain, key)?);
        Ok(())
    }
}

fn read(path: &std::path::Path) -> io::Result<Option<Vec<u8>>> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

#[async_trait]
impl CertCache for SharedCache {
    type EC = io::Error;

    async fn load_cert(&self, domains: &[String], directory_url: &str) -> io::Result<Option<Vec<u8>>> {
        let file = self.0.file("certificate", domains, directory_url);
        let Some(pem) = read(&file)? else { return Ok(None) };
        match self.0.serve(&pem) {
            Ok(()) => Ok(Some(pem)),
            // A damaged one is no reason to be without: a new one is ordered.
            Err(error) => {
                tracing::warn!(file = %file.display(), %error, "the kept certificate does not read: ordering a new one");
                Ok(None)
            }
        }
    }

    async fn store_cert(&self, domains: &[String], directory_url: &str, cert: &[u8]) -> io::Result<()> {
        self.0.serve(cert)?;
        files::write_whole(&self.0.file("certificate", domains, directory_url), cert)
    }
}

#[async_trait]
impl AccountCache for SharedCache {
    type EA = io::Error;

    async fn load_account(&self, contact: &[String], directory_url: &str) -> io::Result<Option<Vec<u8>>> {
        read(&self.0.file("account", contact, directory_url))
    }

    async fn store_account(&self, contact: &[String], directory_url: &str, account: &[u8]) -> io::Result<()> {
        files::write_whole(&self.0.file("account", contact, directory_url), account)
    }
}
