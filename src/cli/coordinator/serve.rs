//! `pvemesh coordinator serve`.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use tokio::signal::unix::{SignalKind, signal};

use super::span::{self, Lifetime};
use crate::cli::{Exit, Failure, Output};
use crate::ident::MachinePublic;
use crate::settings;
use crate::sys::coordinator::{Coordinator, Lifetimes, Options, SOCKET, STATE_DIR, StartError};
use crate::sys::relay::StartError as RelayError;

const TRIED: &str = "start the coordinator";
/// Where an ACME authority and phones look for it.
const HTTPS_PORT: u16 = 443;

/// The options about the listeners, all of which a settings file holds instead.
const FRONT: [&str; 11] = [
    "tls_cert",
    "tls_key",
    "acme",
    "acme_email",
    "acme_directory",
    "acme_ca",
    "listen_http",
    "trusted_proxies",
    "no_relay",
    "relay_listen",
    "stun_listen",
];

/// What a coordinator is started with.
#[derive(Debug, clap::Args)]
pub(crate) struct Serve {
    /// Take the settings from an appliance's guest configuration (TOML).
    #[arg(long, value_name = "FILE", conflicts_with_all = ["config", "url", "listen", "base_domain", "admin_keys"], conflicts_with_all = FRONT)]
    guest_config: Option<PathBuf>,
    /// Take the settings from a file with url, listen, base_domain, admin_keys and a table front (TOML).
    #[arg(long, value_name = "FILE", conflicts_with_all = ["url", "listen", "base_domain", "admin_keys"], conflicts_with_all = FRONT)]
    config: Option<PathBuf>,
    /// The address clients are told: `http(s)://HOST[:PORT]`.
    #[arg(long)]
    url: Option<String>,
    /// Where to listen [default: port 443 of all addresses with --acme, else port 8080].
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Option<SocketAddr>,
    /// The DNS suffix of node names.
    #[arg(long, value_name = "DOMAIN", default_value = "mesh.internal")]
    base_domain: String,
    /// A machine key (mkey:...) whose owner may administer the coordinator from elsewhere; may be repeated.
    #[arg(long = "admin-key", value_name = "KEY")]
    admin_keys: Vec<MachinePublic>,
    /// Directory of the database and the server's key.
    #[arg(long, value_name = "DIR", default_value = STATE_DIR)]
    state_dir: PathBuf,
    /// The admin socket.
    #[arg(long, value_name = "FILE", default_value = SOCKET)]
    socket: PathBuf,
    /// A relay map (JSON) to tell clients; read again on SIGHUP.
    #[arg(long, value_name = "FILE")]
    derp_map: Option<PathBuf>,
    /// How long a node key lives after a login: a number with s, m, h or d, or never. Tagged nodes' keys do not expire.
    #[arg(long, value_name = "TIME", default_value = "180d", value_parser = span::lifetime)]
    key_expiry: Lifetime,
    /// How long an ephemeral node is kept after it went offline.
    #[arg(long, value_name = "TIME", default_value = "30m", value_parser = span::seconds)]
    ephemeral_after: u64,
    /// Certificate chain (PEM), read again when it changes or on SIGHUP; without one the listener speaks plain HTTP, which is fine on a LAN
    /// or behind a reverse proxy: the protocol inside is encrypted.
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// The certificate's key (PEM).
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// Get a certificate for this domain by ACME; port 443 of the domain must lead here. Using it accepts the authority's terms.
    #[arg(long, value_name = "DOMAIN", conflicts_with = "tls_cert")]
    acme: Option<String>,
    /// Where the ACME authority may write to.
    #[arg(long, value_name = "ADDRESS", requires = "acme")]
    acme_email: Option<String>,
    /// The ACME authority's directory [default: Let's Encrypt].
    #[arg(long, value_name = "URL", requires = "acme")]
    acme_directory: Option<String>,
    /// The certificate (PEM) that a private ACME authority's own server is known by.
    #[arg(long, value_name = "FILE", requires = "acme")]
    acme_ca: Option<PathBuf>,
    /// Beside TLS, listen for control connections without it, normally on port 80: stock clients try that port first.
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen_http: Option<SocketAddr>,
    /// Run no relay in the coordinator. Nodes that have no direct way to each other need one, stock clients one to start at all.
    #[arg(long, conflicts_with_all = ["relay_listen", "stun_listen"])]
    no_relay: bool,
    /// Where the relay listens (TCP), with a certificate that the relay map names; with --acme or --tls-cert it is on the coordinator's own
    /// listener and needs no port.
    #[arg(long, value_name = "ADDRESS:PORT", conflicts_with_all = ["tls_cert", "acme"])]
    relay_listen: Option<SocketAddr>,
    /// Where the relay tells nodes under which address it sees them (UDP, STUN).
    #[arg(long, value_name = "ADDRESS:PORT")]
    stun_listen: Option<SocketAddr>,
    /// A reverse proxy's network: from it, X-Forwarded-For tells whose request it is. May be repeated.
    #[arg(long = "trusted-proxy", value_name = "CIDR")]
    trusted_proxies: Vec<IpNet>,
}

pub(super) fn run(serve: Serve, output: &Output) -> Result<(), Failure> {
    crate::sys::chores::trial::become_it();
    crate::cli::log::start(output);
    let options = options(serve)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|e| Failure::new(TRIED, e, "free some memory or file descriptors and try again"))?;
    let result = runtime.block_on(async {
        let coordinator = Coordinator::start(options).await.map_err(|e| start_failure(&e))?;
        let signals = |e| Failure::new(TRIED, e, "this is a defect of the system: signals cannot be received");
        let (mut term, mut int) = (signal(SignalKind::terminate()).map_err(signals)?, signal(SignalKind::interrupt()).map_err(signals)?);
        let mut hangup = signal(SignalKind::hangup()).map_err(signals)?;
        loop {
            tokio::select! {
                _ = term.recv() => break,
                _ = int.recv() => break,
                _ = hangup.recv() => {
                    coordinator.reread_certificate();
                    if let Err(error) = coordinator.reread_derp_map() {
                        tracing::error!(%error, "clients keep the relay map they have");
                    }
                }
            }
        }
        coordinator.stop().await;
        Ok(())
    });
    runtime.shutdown_background();
    result
}

fn options(serve: Serve) -> Result<Options, Failure> {
    let settings = match (&serve.guest_config, &serve.config) {
        (Some(path), _) => read(path, settings::Guest::from_toml)?.coordinator.ok_or_else(|| {
            let happened = format!("{} makes this guest no coordinator", path.display());
            Failure::new(TRIED, happened, "make one with `pvemesh create-coordinator`").exit(Exit::Usage)
        })?,
        (None, Some(path)) => read(path, |text| toml::from_str::<settings::Coordinator>(text).map_err(|e| e.message().to_owned()))?,
        (None, None) => from_arguments(&serve)?,
    };
    let lifetimes = Lifetimes { key: serve.key_expiry.0, ephemeral: Duration::from_secs(serve.ephemeral_after) };
    Ok(Options { settings, state_dir: serve.state_dir, socket: serve.socket, derp_map: serve.derp_map, lifetimes })
}

fn from_arguments(serve: &Serve) -> Result<settings::Coordinator, Failure> {
    let acme = serve.acme.clone().map(|domain| settings::Acme {
        domain,
        email: serve.acme_email.clone(),
        directory: serve.acme_directory.clone(),
        ca: serve.acme_ca.clone(),
    });
    let url = match (&serve.url, &acme) {
        (Some(url), _) => url.clone(),
        (None, Some(acme)) => format!("https://{}", acme.domain),
        (None, None) => {
            let next = "give --url http(s)://HOST[:PORT], --config FILE or --guest-config FILE";
            return Err(Failure::new(TRIED, "the address clients are told is missing", next).exit(Exit::Usage));
        }
    };
    let port = if acme.is_some() { HTTPS_PORT } else { settings::DEFAULT_COORDINATOR_PORT };
    let embedded = settings::EmbeddedRelay::default();
    let certificate = serve.tls_cert.clone().zip(serve.tls_key.clone());
    Ok(settings::Coordinator {
        url,
        listen: serve.listen.unwrap_or_else(|| SocketAddr::from(([0, 0, 0, 0], port))),
        admin_keys: serve.admin_keys.clone(),
        base_domain: serve.base_domain.clone(),
        front: settings::Front {
            certificate: certificate.map(|(chain, key)| settings::CertificateFiles { chain, key }),
            acme,
            listen_http: serve.listen_http,
            trusted_proxies: serve.trusted_proxies.clone(),
        },
        relay: settings::EmbeddedRelay {
            enabled: !serve.no_relay,
            listen: serve.relay_listen.unwrap_or(embedded.listen),
            stun: serve.stun_listen.unwrap_or(embedded.stun),
            ..embedded
        },
    })
}

fn read<T, E: std::fmt::Display>(path: &Path, parse: impl FnOnce(&str) -> Result<T, E>) -> Result<T, Failure> {
    let tried = format!("read {}", path.display());
    let text = std::fs::read_to_string(path).map_err(|e| Failure::new(&tried, e, "name a file that exists").exit(Exit::Usage))?;
    parse(&text).map_err(|e| Failure::new(&tried, e, "correct the file").exit(Exit::Usage))
}

fn start_failure(error: &StartError) -> Failure {
    let (next, exit) = match error {
        StartError::Load(_) | StartError::Store(_) => ("follow the message; nothing was changed", Exit::Failed),
        StartError::Path { .. } => ("check that the file or directory exists and that you may use it; root normally can", Exit::Failed),
        StartError::Relay(RelayError::Listen { .. }) => {
            ("choose other addresses with --relay-listen and --stun-listen, or do without a relay: --no-relay", Exit::Conflict)
        }
        StartError::Relay(_) => ("check that the directory of the state may be used; root normally can", Exit::Failed),
        StartError::Listen { .. } => ("choose an address of this machine and a free port with --listen", Exit::Conflict),
        StartError::Setting(_) => ("correct the setting", Exit::Usage),
    };
    Failure::new(TRIED, error, next).exit(exit)
}
