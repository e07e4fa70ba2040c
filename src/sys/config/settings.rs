//! What `config.toml` holds.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::ident::{MachinePublic, Vmid};
use crate::plan::identity::Clones;
use crate::plan::options::KnownCoordinator;
use crate::pve::Fingerprint;

/// The configuration file, `config.toml`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where `ssh` logs in to enter guests, as in `root@{node}`; absent on a Proxmox host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ssh: Option<String>,
    /// How Proxmox is reached; absent on a Proxmox host, where `pvesh` needs nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pve: Option<Pve>,
    /// Further hosts or clusters, each with a name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub host: Vec<Pve>,
    /// The coordinator of somebody else that new guests join unless told otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub join: Option<JoinElsewhere>,
    /// The coordinator new guests join.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub coordinator: Option<Coordinator>,
    /// How guests are treated when they start, and when they turn out to be copies.
    #[serde(default, skip_serializing_if = "Guests::is_usual")]
    pub guests: Guests,
}

/// How guests are treated.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Guests {
    /// A guest whose host lacks what it needs does not start; else it starts, and the task log says what is wrong.
    #[serde(default)]
    pub strict: bool,
    /// What a copy of a guest gets.
    #[serde(default)]
    pub clones: Clones,
}

impl Guests {
    fn is_usual(&self) -> bool {
        *self == Self::default()
    }
}

/// A coordinator that this machine does not administer: Headscale, Tailscale, or ours of somebody else.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JoinElsewhere {
    /// Its address.
    pub login_server: String,
    /// The file with the join key, which must be good for several uses.
    pub auth_key_file: PathBuf,
}

/// How one host, or one cluster through its hosts, is reached.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pve {
    /// What it is called in `--host` and in lists; the host in the address if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// `https://HOST[:PORT]`
    pub url: String,
    /// Addresses of other hosts of the same cluster, tried in this order when the first does not answer.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub also: Vec<String>,
    /// `user@realm`, for a login with a password.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// The file with the password.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password_file: Option<PathBuf>,
    /// The file with an API token, `user@realm!name=secret`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_file: Option<PathBuf>,
    /// The cluster's own authority, kept at the first trusted contact: every certificate it signs is believed, whatever names are in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster_ca: Option<PathBuf>,
    /// The certificate believed; with `cluster_ca`, the one seen last, for comparison only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fingerprint: Option<Fingerprint>,
    /// The authorities believed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
}

/// The known coordinator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Coordinator {
    /// Its guest, if we made it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vmid: Option<Vmid>,
    /// The named host or cluster that guest is on; guests of others may have the same number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// The address on the LAN.
    pub lan_url: String,
    /// The address other clients are told.
    pub url: String,
    /// Its key; another one is refused.
    pub server_key: MachinePublic,
}

impl From<KnownCoordinator> for Coordinator {
    fn from(known: KnownCoordinator) -> Self {
        Self { vmid: known.vmid, host: None, lan_url: known.lan_url, url: known.url, server_key: known.server_key }
    }
}

impl From<Coordinator> for KnownCoordinator {
    fn from(kept: Coordinator) -> Self {
        Self { vmid: kept.vmid, lan_url: kept.lan_url, url: kept.url, server_key: kept.server_key }
    }
}
