//! `pvemesh keys`: join keys of the known coordinator, from the admin's machine.

use super::connect::config_failure;
use super::{Exit, Failure, Output};
use crate::ident::{NodeName, Secret};
use crate::plan::options::KnownCoordinator;
use crate::sys::admin::{AdminClient, AdminError};
use crate::sys::config::Store;
use crate::sys::entropy;
use crate::wire::admin::{CreateKey, KeyInfo};

/// What lets a phone, a laptop or a server of yours join the mesh.
#[derive(Debug, clap::Subcommand)]
pub(super) enum Keys {
    /// Make a join key and print it; it is the only time it is shown.
    Create(Create),
    /// List the join keys.
    List,
    /// Revoke a join key.
    Revoke {
        /// Its number, as listed.
        id: i64,
    },
}

/// How the new key may be used.
#[derive(Debug, clap::Args)]
pub(super) struct Create {
    /// Whose nodes join with it; the user is made if it does not exist.
    #[arg(long, default_value = "admin")]
    user: String,
    /// May be used more than once.
    #[arg(long)]
    reusable: bool,
    /// Nodes that join with it vanish some time after they disconnect.
    #[arg(long)]
    ephemeral: bool,
    /// Minutes until it can no longer be used.
    #[arg(long, value_name = "MINUTES", default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..=525_600))]
    expires: u32,
    /// Only a node with this host name may use it.
    #[arg(long, value_name = "NAME")]
    only_for: Option<NodeName>,
}

#[derive(serde::Serialize)]
struct Made {
    id: i64,
    key: Secret,
    expires: String,
    login_server: String,
}

/// Runs the command.
pub(super) async fn run(command: Keys, output: &Output) -> Result<(), Failure> {
    let (known, admin) = open().await?;
    match command {
        Keys::Create(args) => {
            let wanted = CreateKey {
                user: args.user,
                reusable: args.reusable,
                ephemeral: args.ephemeral,
                expires_in_secs: u64::from(args.expires) * 60,
                tags: Vec::new(),
                approve_routes: Vec::new(),
                only_for: args.only_for,
                address: None,
            };
            let made = admin.create_key(&wanted).await.map_err(|e| failure("make a join key", &e))?;
            let use_it = format!("join with it: pvemesh node up --login-server {} --auth-key-file FILE", known.url);
            output.note(format!("valid until {}; {use_it}", made.expires));
            let text = made.key.expose().to_owned();
            output.result(&Made { id: made.id, key: made.key, expires: made.expires.to_string(), login_server: known.url }, text);
        }
        Keys::List => {
            let keys = admin.keys().await.map_err(|e| failure("list the join keys", &e))?;
            output.result(&keys, table(&keys));
        }
        Keys::Revoke { id } => {
            admin.revoke_key(id).await.map_err(|e| failure("revoke a join key", &e))?;
            output.result(&serde_json::json!({ "id": id, "revoked": true }), format!("join key {id} is revoked"));
        }
    }
    Ok(())
}

async fn open() -> Result<(KnownCoordinator, AdminClient), Failure> {
    let store = Store::open().map_err(config_failure)?;
    let config = store.load().map_err(config_failure)?;
    let Some(kept) = config.coordinator else {
        let next = "make one: pvemesh create-coordinator 100; on the coordinator's own machine: pvemesh coordinator keys";
        return Err(Failure::new("reach the coordinator", "no coordinator is known", next).exit(Exit::Conflict));
    };
    let known = KnownCoordinator::from(kept);
    let seed = entropy::seed().map_err(|e| Failure::new("make the admin key", e, "this system has no randomness"))?;
    let key = store.admin_key(seed).map_err(config_failure)?;
    let admin = AdminClient::connect(&known.lan_url, Some(known.server_key), &key).await;
    Ok((known, admin.map_err(|e| failure("reach the coordinator", &e))?))
}

fn failure(tried: &str, error: &AdminError) -> Failure {
    let (next, exit) = match error {
        AdminError::Malformed { .. } => ("use the pvemesh that runs the coordinator", Exit::Failed),
        AdminError::Refused { status: 401 | 403, .. } => {
            ("this machine's admin key is not the one the coordinator was made with", Exit::Denied)
        }
        AdminError::Refused { .. } => ("correct the command; --help shows what it takes", Exit::Usage),
        AdminError::Unreachable { .. } => ("is it running (pvemesh list), and is this machine on its network?", Exit::Unreachable),
    };
    Failure::new(tried, error, next).exit(exit)
}

fn table(keys: &[KeyInfo]) -> String {
    let mut text = format!("{:<5} {:<26} {:<12} {:<10} {}", "ID", "PREFIX", "USER", "STATE", "UNTIL");
    for key in keys {
        let state = match (key.revoked, key.used, key.reusable) {
            (true, ..) => "revoked",
            (_, true, false) => "used",
            (_, _, true) => "reusable",
            _ => "unused",
        };
        text.push_str(&format!("\n{:<5} {:<26} {:<12} {:<10} {}", key.id, key.prefix, key.user, state, key.expires));
    }
    text
}
