//! `pvemesh relay serve`.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use tokio::signal::unix::{SignalKind, signal};

use super::{Exit, Failure, Output};
use crate::relay::region;
use crate::relay::server::Rate;
use crate::settings::{self, Acme, CertificateFiles, DEFAULT_RELAY_REGION, DEFAULT_STUN_PORT};
use crate::sys::config::read_secret;
use crate::sys::relay::{Admission, Asked, Mesh, Options, Relay as Running, STATE_DIR, StartError, Tls, listed};
use crate::wire::control::{DerpMap, DerpRegion, json};

/// Whom the coordinator allowed, in the state directory.
const ALLOWED: &str = "allowed";
const TRIED: &str = "start the relay";
const HTTPS_PORT: u16 = 443;
const HTTP_PORT: u16 = 80;

/// The relay (DERP): nodes that have no direct way to each other reach each other through it.
#[derive(Debug, clap::Subcommand)]
pub(super) enum Relay {
    /// Run a relay with a STUN server in the foreground until SIGTERM or Ctrl-C. Prints its relay map (JSON), for `coordinator serve --derp-map`.
    Serve(Box<Serve>),
}

/// What a relay is started with. A file has the same names with underscores.
#[derive(Debug, Default, clap::Args, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Serve {
    /// Take the settings from a file (TOML) with the names of these options, written with underscores; options win.
    #[arg(long, value_name = "FILE")]
    #[serde(skip)]
    config: Option<PathBuf>,
    /// Take the settings from an appliance's guest configuration (TOML).
    #[arg(long, value_name = "FILE", conflicts_with_all = ["config", "hostname", "listen", "stun_listen", "whom"])]
    #[serde(skip)]
    guest_config: Option<PathBuf>,
    /// The name or address under which clients reach it.
    #[arg(long, value_name = "HOST")]
    hostname: Option<String>,
    /// Where clients connect (TCP) [default: port 443 of all addresses].
    #[arg(short = 'a', long, value_name = "ADDRESS:PORT")]
    listen: Option<SocketAddr>,
    /// Where STUN is answered (UDP) [default: port 3478 of all addresses].
    #[arg(long, value_name = "ADDRESS:PORT")]
    stun_listen: Option<SocketAddr>,
    /// Answer no STUN.
    #[arg(long, conflicts_with = "stun_listen")]
    no_stun: bool,
    /// Beside TLS, listen without it, normally on port 80: clients use it to find out whether a portal stands in the way.
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen_http: Option<SocketAddr>,
    /// Certificate chain (PEM), read again when it changes or on SIGHUP. Without one, and without --acme, the relay makes its own, which the
    /// relay map names by its fingerprint.
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// The certificate's key (PEM).
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// Get a certificate for the host name by ACME; port 443 of it must lead here. Using it accepts the authority's terms.
    #[arg(long, conflicts_with_all = ["tls_cert", "no_tls"])]
    acme: bool,
    /// Where the ACME authority may write to.
    #[arg(long, value_name = "ADDRESS")]
    acme_email: Option<String>,
    /// The ACME authority's directory [default: Let's Encrypt].
    #[arg(long, value_name = "URL")]
    acme_directory: Option<String>,
    /// The certificate (PEM) that a private ACME authority's own server is known by.
    #[arg(long, value_name = "FILE")]
    acme_ca: Option<PathBuf>,
    /// No TLS: for tests, or behind something that has it. Stock clients need TLS.
    #[arg(long, conflicts_with = "tls_cert")]
    no_tls: bool,
    /// Serve the nodes that the coordinator at this address knows: `http(s)://HOST[:PORT]/verify`. While it does not answer, whom it allowed before.
    #[arg(long, alias = "verify-client-url", value_name = "URL", group = "whom")]
    verify_url: Option<String>,
    /// Trust this authority (PEM), too, when the coordinator is asked by https.
    #[arg(long, value_name = "FILE", requires = "verify_url")]
    verify_ca: Option<PathBuf>,
    /// Serve the nodes in this file, a node key a line. It is read for each connection.
    #[arg(long, value_name = "FILE", group = "whom")]
    allow_list: Option<PathBuf>,
    /// Serve whoever comes: anybody on the internet can then use it.
    #[arg(long, group = "whom")]
    open: bool,
    /// Mesh with the other relays of the region: a relay map (JSON) with all of them, this one included or not. Clients of one reach those
    /// of another then.
    #[arg(long, value_name = "FILE", requires = "mesh_psk_file")]
    mesh_with: Option<PathBuf>,
    /// The key that the relays of the region share: 64 hex digits in a file that only its owner may read.
    #[arg(long, value_name = "FILE", requires = "mesh_with")]
    mesh_psk_file: Option<PathBuf>,
    /// Bytes each client may send a second; it is slowed down, nothing is dropped. In the file of --config it is read again on SIGHUP.
    #[arg(long, value_name = "BYTES")]
    rate: Option<u64>,
    /// Bytes each client may send at once [default: a second's worth].
    #[arg(long, value_name = "BYTES", requires = "rate")]
    rate_burst: Option<u64>,
    /// The region's number in the relay map that is printed [default: 900].
    #[arg(long, value_name = "NUMBER")]
    region: Option<i32>,
    /// Directory of the relay's key and certificates [default: /var/lib/pvemesh/relay].
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
}

/// Runs a command.
pub(super) fn run(command: Relay, output: &Output) -> Result<(), Failure> {
    let Relay::Serve(serve) = command;
    crate::sys::chores::trial::become_it();
    super::log::start(output);
    let rates = Rates { file: serve.config.clone(), rate: serve.rate, burst: serve.rate_burst };
    let serve = serve.complete()?;
    let options = serve.options()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|e| Failure::new(TRIED, e, "free some memory or file descriptors and try again"))?;
    let result = runtime.block_on(async {
        let relay = Running::start(options).await.map_err(|e| start_failure(&e))?;
        serve.announce(&relay, output);
        let signals = |e| Failure::new(TRIED, e, "this is a defect of the system: signals cannot be received");
        let (mut term, mut int) = (signal(SignalKind::terminate()).map_err(signals)?, signal(SignalKind::interrupt()).map_err(signals)?);
        let mut hangup = signal(SignalKind::hangup()).map_err(signals)?;
        loop {
            tokio::select! {
                _ = term.recv() => break,
                _ = int.recv() => break,
                _ = hangup.recv() => {
                    relay.reread_certificate();
                    match rates.reread() {
                        Ok(rate) => relay.set_rate(rate),
                        Err(failure) => tracing::error!(error = failure.happened, "clients may send what they could before"),
                    }
                }
            }
        }
        let counted = relay.counters();
        tracing::info!(packets = counted.packets, bytes = counted.bytes, dropped = counted.drops.iter().sum::<u64>(), "relay stops");
        relay.stop().await;
        Ok(())
    });
    runtime.shutdown_background();
    result
}

/// Where it is said what clients may send, to be read again.
struct Rates {
    file: Option<PathBuf>,
    rate: Option<u64>,
    burst: Option<u64>,
}

impl Rates {
    /// As the file says it now, where the command line does not.
    fn reread(&self) -> Result<Option<Rate>, Failure> {
        let file = self.file.as_deref().map(settings_file).transpose()?.unwrap_or_default();
        Ok(rate(self.rate.or(file.rate), self.burst.or(file.rate_burst)))
    }
}

fn rate(bytes_per_second: Option<u64>, burst: Option<u64>) -> Option<Rate> {
    bytes_per_second.map(|rate| Rate { bytes_per_second: rate, burst: burst.unwrap_or(rate) })
}

fn settings_file(path: &Path) -> Result<Serve, Failure> {
    read(path, |text| toml::from_str(text).map_err(|e: toml::de::Error| e.message().to_owned()))
}

fn usage(happened: impl std::fmt::Display, next: &str) -> Failure {
    Failure::new(TRIED, happened, next).exit(Exit::Usage)
}

impl Serve {
    /// The options, with those of the file where the command line has none.
    fn complete(self) -> Result<Self, Failure> {
        if let Some(path) = &self.guest_config {
            let relay = read(path, settings::Guest::from_toml)?
                .relay
                .ok_or_else(|| usage(format!("{} makes this guest no relay", path.display()), "make one with `pvemesh create-relay`"))?;
            let (listen, stun_listen) = (Some(relay.listen), Some(relay.stun));
            return Ok(Self { hostname: Some(relay.hostname), listen, stun_listen, verify_url: Some(relay.verify_url), ..self });
        }
        let Some(path) = &self.config else { return Ok(self) };
        let file = settings_file(path)?;
        let whom = self.verify_url.is_some() || self.allow_list.is_some() || self.open;
        let tls = self.tls_cert.is_some() || self.acme || self.no_tls;
        Ok(Self {
            config: None,
            guest_config: None,
            hostname: self.hostname.or(file.hostname),
            listen: self.listen.or(file.listen),
            stun_listen: self.stun_listen.or(file.stun_listen),
            no_stun: self.no_stun || file.no_stun,
            listen_http: self.listen_http.or(file.listen_http),
            tls_cert: if tls { self.tls_cert } else { file.tls_cert },
            tls_key: if tls { self.tls_key } else { file.tls_key },
            acme: if tls { self.acme } else { file.acme },
            no_tls: if tls { self.no_tls } else { file.no_tls },
            acme_email: self.acme_email.or(file.acme_email),
            acme_directory: self.acme_directory.or(file.acme_directory),
            acme_ca: self.acme_ca.or(file.acme_ca),
            verify_url: if whom { self.verify_url } else { file.verify_url },
            verify_ca: self.verify_ca.or(file.verify_ca),
            allow_list: if whom { self.allow_list } else { file.allow_list },
            open: if whom { self.open } else { file.open },
            mesh_with: self.mesh_with.or(file.mesh_with),
            mesh_psk_file: self.mesh_psk_file.or(file.mesh_psk_file),
            rate: self.rate.or(file.rate),
            rate_burst: self.rate_burst.or(file.rate_burst),
            region: self.region.or(file.region),
            state_dir: self.state_dir.or(file.state_dir),
        })
    }

    fn host(&self) -> Result<&str, Failure> {
        let host = self.hostname.as_deref().map(|host| host.trim_matches(['[', ']'])).filter(|host| !host.is_empty());
        host.ok_or_else(|| usage("the name under which clients reach it is missing", "give --hostname NAME or --hostname ADDRESS"))
    }

    fn options(&self) -> Result<Options, Failure> {
        let host = self.host()?;
        let all = |port| SocketAddr::from((std::net::Ipv6Addr::UNSPECIFIED, port));
        Ok(Options {
            listen: Some(self.listen.unwrap_or_else(|| all(HTTPS_PORT))),
            tls: self.tls(host)?,
            listen_http: self.listen_http,
            stun: (!self.no_stun).then(|| self.stun_listen.unwrap_or_else(|| all(DEFAULT_STUN_PORT))),
            state_dir: self.state_dir(),
            admission: self.admission()?,
            mesh: self.mesh()?,
            rate: rate(self.rate, self.rate_burst),
        })
    }

    fn state_dir(&self) -> PathBuf {
        self.state_dir.clone().unwrap_or_else(|| STATE_DIR.into())
    }

    fn tls(&self, host: &str) -> Result<Tls, Failure> {
        match (&self.tls_cert, &self.tls_key) {
            (Some(chain), Some(key)) => return Ok(Tls::Files(CertificateFiles { chain: chain.clone(), key: key.clone() })),
            (None, None) => {}
            _ => return Err(usage("a certificate needs its key, and a key its certificate", "give --tls-cert and --tls-key")),
        }
        if self.no_tls {
            return Ok(Tls::None);
        }
        if !self.acme {
            return Ok(Tls::SelfSigned(host.to_owned()));
        }
        if host.parse::<std::net::IpAddr>().is_ok() {
            return Err(usage(
                format!("ACME gives certificates for names, not for the address {host}"),
                "name the relay, or leave out --acme",
            ));
        }
        Ok(Tls::Acme(Acme {
            domain: host.to_owned(),
            email: self.acme_email.clone(),
            directory: self.acme_directory.clone(),
            ca: self.acme_ca.clone(),
        }))
    }

    fn admission(&self) -> Result<Admission, Failure> {
        match (&self.verify_url, &self.allow_list, self.open) {
            (Some(url), None, false) => {
                let asked = Asked::new(url, self.verify_ca.as_deref());
                let asked =
                    asked.map_err(|e| usage(e, "give --verify-url http(s)://HOST[:PORT]/verify, and --verify-ca for an own authority"))?;
                Ok(Admission::Ask(asked.keeping(self.state_dir().join(ALLOWED))))
            }
            (None, Some(path), false) => {
                listed(path).map_err(|e| usage(format!("{}: {e}", path.display()), "name a file with a node key (nodekey:...) a line"))?;
                Ok(Admission::List(path.clone()))
            }
            (None, None, true) => Ok(Admission::Anyone),
            _ => Err(usage(
                "whom to serve is not said, or said twice",
                "give one of --verify-url http://COORDINATOR/verify, --allow-list FILE, --open",
            )),
        }
    }

    fn mesh(&self) -> Result<Option<Mesh>, Failure> {
        let (map, key) = match (&self.mesh_with, &self.mesh_psk_file) {
            (Some(map), Some(key)) => (map, key),
            (None, None) => return Ok(None),
            _ => return Err(usage("a mesh needs its relays and its key", "give --mesh-with and --mesh-psk-file")),
        };
        let text = read_secret(key).map_err(|e| usage(e, "make one: openssl rand -hex 32 > FILE; chmod 600 FILE"))?;
        let key = text.expose().trim().parse().map_err(|_| usage("the mesh key is not 64 hex digits", "make one: openssl rand -hex 32"))?;
        let number = self.region.unwrap_or(DEFAULT_RELAY_REGION);
        let map: DerpMap = read(map, |text| json::from_slice(text.as_bytes()))?;
        let region = map.regions.unwrap_or_default().remove(&number).flatten();
        let region =
            region.ok_or_else(|| usage(format!("the map of --mesh-with has no region {number}"), "name the region with --region"))?;
        Ok(Some(Mesh { key, relays: region.nodes.into_iter().filter(|node| !node.stun_only).collect() }))
    }

    /// Prints the relay map with this relay in it.
    fn announce(&self, relay: &Running, output: &Output) {
        let port = relay.address().map_or(0, |address| address.port());
        let number = self.region.unwrap_or(DEFAULT_RELAY_REGION);
        let stun = relay.stun_address().map(|address| address.port());
        let host = self.host().unwrap_or_default();
        let mut region: DerpRegion = region::with_one_relay(number, host, port, stun, relay.pin());
        // Clients look for portals there, and only there.
        let can_port80 = relay.http_address().is_some_and(|address| address.port() == HTTP_PORT);
        region.nodes.iter_mut().for_each(|node| node.can_port80 = can_port80);
        let map = DerpMap { regions: Some([(number, Some(region))].into()), ..DerpMap::default() };
        let text = serde_json::to_string_pretty(&map).unwrap_or_default();
        output.result(&map, text);
    }
}

fn read<T, E: std::fmt::Display>(path: &Path, parse: impl FnOnce(&str) -> Result<T, E>) -> Result<T, Failure> {
    let tried = format!("read {}", path.display());
    let text = std::fs::read_to_string(path).map_err(|e| Failure::new(&tried, e, "name a file that exists").exit(Exit::Usage))?;
    parse(&text).map_err(|e| Failure::new(&tried, e, "correct the file").exit(Exit::Usage))
}

fn start_failure(error: &StartError) -> Failure {
    let (next, exit) = match error {
        StartError::Path { .. } => ("check that the file or directory exists and that you may use it; root normally can", Exit::Failed),
        StartError::Listen { .. } => {
            ("choose an address of this machine and a free port with --listen, --stun-listen or --listen-http", Exit::Conflict)
        }
        StartError::Randomness(_) => ("try again once the system is up", Exit::Failed),
    };
    Failure::new(TRIED, error, next).exit(exit)
}
