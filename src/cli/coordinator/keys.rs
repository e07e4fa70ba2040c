//! `pvemesh coordinator keys`.

use std::io::Write as _;
use std::net::Ipv4Addr;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::table::{Table, joined, moment};
use super::{Place, span};
use crate::cli::{Failure, Output};
use crate::ident::NodeName;
use crate::wire::admin::{CreateKey, CreatedKey, KeyInfo};

/// Join keys: what lets nodes in without anyone's approval.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Keys {
    /// List the join keys; their secret part is kept nowhere.
    List(Place),
    /// Make a join key. It is shown once.
    Create(Box<Create>),
    /// Withdraw a join key; nodes that joined with it stay.
    Revoke {
        /// Number of the key.
        id: i64,
        #[command(flatten)]
        place: Place,
    },
}

/// A new join key.
#[derive(Debug, clap::Args)]
pub(crate) struct Create {
    /// Whose nodes join with it; the user is made if it does not exist.
    #[arg(long, default_value = "admin")]
    user: String,
    /// It works more than once.
    #[arg(long)]
    reusable: bool,
    /// Nodes that join with it vanish some time after they disconnect.
    #[arg(long)]
    ephemeral: bool,
    /// How long it works: a number with s, m, h or d.
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = span::seconds)]
    expires: u64,
    /// A tag for the nodes that join with it, such as tag:server; may be repeated. Tagged nodes' keys do not expire.
    #[arg(long = "tag", value_name = "TAG")]
    tags: Vec<String>,
    /// Nodes that join with it may be exit nodes.
    #[arg(long)]
    approve_exit_node: bool,
    /// Networks that nodes which join with it may carry.
    #[arg(long, value_name = "NET,...", value_delimiter = ',')]
    approve_routes: Vec<IpNet>,
    /// The only host name it works for.
    #[arg(long, value_name = "NAME")]
    only_for: Option<NodeName>,
    /// The IPv4 address its node gets, such as 100.64.0.50; kept free until the key can no longer be used.
    #[arg(long, value_name = "ADDRESS", conflicts_with = "reusable")]
    address: Option<Ipv4Addr>,
    /// Write the key to this file (mode 0600) instead of showing it.
    #[arg(long, value_name = "FILE")]
    output_file: Option<PathBuf>,
    #[command(flatten)]
    place: Place,
}

pub(super) fn run(command: Keys, output: &Output) -> Result<(), Failure> {
    match command {
        Keys::List(place) => {
            let keys = place.ask("list the join keys", async |admin| admin.keys().await)?;
            output.result(&keys, listed(&keys));
            Ok(())
        }
        Keys::Create(create) => make(&create, output),
        Keys::Revoke { id, place } => {
            place.ask("revoke the join key", async |admin| admin.revoke_key(id).await)?;
            output.result(&serde_json::json!({ "revoked": id }), format!("join key {id} no longer works"));
            Ok(())
        }
    }
}

fn make(create: &Create, output: &Output) -> Result<(), Failure> {
    let exit = [IpNet::V4(Ipv4Net::default()), IpNet::V6(Ipv6Net::default())];
    let exit = exit.into_iter().filter(|_| create.approve_exit_node);
    let wanted = CreateKey {
        user: create.user.clone(),
        reusable: create.reusable,
        ephemeral: create.ephemeral,
        expires_in_secs: create.expires,
        tags: create.tags.clone(),
        approve_routes: create.approve_routes.iter().copied().chain(exit).collect(),
        only_for: create.only_for.clone(),
        address: create.address,
    };
    // Opened first: a key that cannot be handed over would lie around unused.
    let file = create.output_file.as_deref().map(open).transpose()?;
    let made = create.place.ask("make a join key", async |admin| admin.create_key(&wanted).await)?;
    match file {
        Some((mut file, path)) => {
            file.write_all(format!("{}\n", made.key.expose()).as_bytes())
                .and_then(|()| file.sync_all())
                .map_err(|e| unwritten(&path, &e))?;
            let shown = serde_json::json!({ "id": made.id, "file": path, "expires": made.expires });
            output.result(&shown, format!("join key {} is in {}; it works until {}", made.id, path.display(), moment(made.expires)));
        }
        None => show(&made, output),
    }
    Ok(())
}

fn show(made: &CreatedKey, output: &Output) {
    if !output.json() {
        output.note(format_args!("This is join key {}, shown only now. It works until {}.", made.id, moment(made.expires)));
    }
    output.result(made, made.key.expose());
}

fn open(path: &Path) -> Result<(std::fs::File, PathBuf), Failure> {
    let file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path);
    let file = file.and_then(|file| file.set_permissions(std::fs::Permissions::from_mode(0o600)).map(|()| file));
    file.map(|file| (file, path.to_owned())).map_err(|e| unwritten(path, &e))
}

fn unwritten(path: &Path, error: &std::io::Error) -> Failure {
    Failure::new(format!("write the join key to {}", path.display()), error, "name a file in a directory you can write to")
}

fn listed(keys: &[KeyInfo]) -> Table {
    let mut table = Table::new(
        &["ID", "KEY", "USER", "KIND", "STATE", "TAGS", "APPROVES", "EXPIRES"],
        "no join keys: make one with `pvemesh coordinator keys create`",
    );
    for key in keys {
        let mut kind = if key.reusable { "reusable".to_owned() } else { "single-use".to_owned() };
        if key.ephemeral {
            kind.push_str(",ephemeral");
        }
        if let Some(name) = &key.only_for {
            kind.push_str(&format!(",only for {name}"));
        }
        if let Some(address) = key.address {
            kind.push_str(&format!(",gives {address}"));
        }
        let state = match (key.revoked, key.used) {
            (true, _) => "revoked",
            (false, true) => "used",
            (false, false) => "unused",
        };
        table.row([
            key.id.to_string(),
            key.prefix.clone(),
            key.user.clone(),
            kind,
            state.to_owned(),
            joined(&key.tags),
            joined(&key.approve_routes),
            moment(key.expires),
        ]);
    }
    table
}
