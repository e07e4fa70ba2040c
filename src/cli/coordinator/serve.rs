//! `pvemesh coordinator serve`.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use tokio::signal::unix::{SignalKind, signal};

use crate::cli::{Exit, Failure, Output};
use crate::ident::MachinePublic;
use crate::settings;
use crate::sys::coordinator::{Coordinator, Options, SOCKET, STATE_DIR, StartError};

const TRIED: &str = "start the coordinator";

/// What a coordinator is started with.
#[derive(Debug, clap::Args)]
pub(crate) struct Serve {
    /// Take the settings from an appliance's guest configuration (TOML).
    #[arg(long, value_name = "FILE", conflicts_with_all = ["config", "url", "listen", "base_domain", "admin_keys"])]
    guest_config: Option<PathBuf>,
    /// Take the settings from a file with url, listen, base_domain and admin_keys (TOML).
    #[arg(long, value_name = "FILE", conflicts_with_all = ["url", "listen", "base_domain", "admin_keys"])]
    config: Option<PathBuf>,
    /// The address clients are told: `http(s)://HOST[:PORT]`.
    #[arg(long)]
    url: Option<String>,
    /// Where to listen.
    #[arg(long, value_name = "ADDRESS:PORT", default_value_t = SocketAddr::from(([0, 0, 0, 0], settings::DEFAULT_COORDINATOR_PORT)))]
    listen: SocketAddr,
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
    /// A relay map (JSON) to tell clients.
    #[arg(long, value_name = "FILE")]
    derp_map: Option<PathBuf>,
    /// Certificate chain (PEM); without it the listener speaks plain HTTP, which is safe: the protocol inside is encrypted.
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// The certificate's key (PEM).
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
}

pub(super) fn run(serve: Serve, output: &Output) -> Result<(), Failure> {
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
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
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
        (None, None) => settings::Coordinator {
            url: serve.url.ok_or_else(|| {
                let next = "give --url http(s)://HOST[:PORT], --config FILE or --guest-config FILE";
                Failure::new(TRIED, "the address clients are told is missing", next).exit(Exit::Usage)
            })?,
            listen: serve.listen,
            admin_keys: serve.admin_keys,
            base_domain: serve.base_domain,
        },
    };
    Ok(Options {
        settings,
        state_dir: serve.state_dir,
        socket: serve.socket,
        tls: serve.tls_cert.zip(serve.tls_key),
        derp_map: serve.derp_map,
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
        StartError::Listen { .. } => ("choose an address of this machine and a free port with --listen", Exit::Conflict),
        StartError::Setting(_) => ("correct the setting", Exit::Usage),
    };
    Failure::new(TRIED, error, next).exit(exit)
}
