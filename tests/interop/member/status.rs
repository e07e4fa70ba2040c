//! The part of `status --json` that both clients have, by the same names.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::Deserialize;

use crate::Done;

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Status {
    #[serde(rename = "BackendState")]
    pub state: String,
    #[serde(rename = "AuthURL")]
    pub auth_url: String,
    #[serde(rename = "MagicDNSSuffix")]
    pub suffix: String,
    /// Stock clients say it here.
    pub current_tailnet: Option<Tailnet>,
    #[serde(rename = "Self")]
    pub own: Option<Peer>,
    #[serde(deserialize_with = "or_default")]
    pub peer: BTreeMap<String, Peer>,
    #[serde(deserialize_with = "or_default")]
    pub health: Vec<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Tailnet {
    #[serde(rename = "MagicDNSSuffix")]
    pub suffix: String,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Peer {
    #[serde(rename = "ID")]
    pub stable_id: String,
    pub public_key: String,
    #[serde(rename = "DNSName")]
    pub dns_name: String,
    #[serde(rename = "TailscaleIPs", deserialize_with = "or_default")]
    pub addresses: Vec<IpAddr>,
    #[serde(rename = "AllowedIPs", deserialize_with = "or_default")]
    pub allowed: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    pub tags: Vec<String>,
    pub cur_addr: String,
    pub relay: String,
    pub online: bool,
    pub exit_node: bool,
    pub exit_node_option: bool,
    pub key_expiry: Option<String>,
}

impl Peer {
    /// The first label of its name.
    pub fn name(&self) -> &str {
        self.dns_name.split('.').next().unwrap_or_default()
    }

    pub fn v4(&self) -> Done<IpAddr> {
        self.addresses.iter().copied().find(IpAddr::is_ipv4).ok_or_else(|| format!("{} has no IPv4 address", self.name()))
    }

    pub fn v6(&self) -> Done<IpAddr> {
        self.addresses.iter().copied().find(IpAddr::is_ipv6).ok_or_else(|| format!("{} has no IPv6 address", self.name()))
    }
}

impl Status {
    pub fn parse(json: &[u8]) -> Done<Self> {
        serde_json::from_slice(json).map_err(|e| format!("the status cannot be read: {e}"))
    }

    pub fn own(&self) -> Done<&Peer> {
        self.own.as_ref().ok_or_else(|| "the status shows no own node".to_owned())
    }

    pub fn find(&self, name: &str) -> Option<&Peer> {
        self.peer.values().find(|peer| peer.name() == name)
    }

    pub fn peer(&self, name: &str) -> Done<&Peer> {
        let names: Vec<&str> = self.peer.values().map(Peer::name).collect();
        self.find(name).ok_or_else(|| format!("there is no peer {name}, but {names:?}"))
    }
}

/// Go writes `null` for empty lists.
fn or_default<'de, D: serde::Deserializer<'de>, T: Default + Deserialize<'de>>(deserializer: D) -> Result<T, D::Error> {
    Option::<T>::deserialize(deserializer).map(Option::unwrap_or_default)
}
