//! Recorded results of the hosted service: a policy and a network in, what each node was told out.
//!
//! They are part of Headscale's source (BSD-3-Clause) and are read where Go's module cache has them. Nothing is downloaded, nothing of them
//! is kept here.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use ipnet::IpNet;
use pvemesh::coord::policy::Subject;
use pvemesh::ident::NodeId;
use pvemesh::wire::control::FilterRule;
use serde::{Deserialize, Deserializer};

/// The version of Headscale whose results these are.
const MODULE: &str = "github.com/juanfont/headscale@v0.29.3";

/// A recorded case.
#[derive(Debug, Deserialize)]
pub struct Capture {
    pub test_id: String,
    pub input: Input,
    #[serde(default)]
    pub topology: Topology,
    #[serde(default, deserialize_with = "or_default")]
    pub captures: BTreeMap<String, Told>,
}

#[derive(Debug, Deserialize)]
pub struct Input {
    full_policy: serde_json::Value,
    pub api_response_code: u16,
}

#[derive(Debug, Default, Deserialize)]
pub struct Topology {
    #[serde(default)]
    users: Vec<User>,
    #[serde(default)]
    pub nodes: BTreeMap<String, Node>,
}

#[derive(Debug, Deserialize)]
struct User {
    name: String,
    email: String,
}

/// A node of the recorded network.
#[derive(Debug, Deserialize)]
pub struct Node {
    #[serde(default)]
    tags: Vec<String>,
    user: Option<String>,
    ipv4: String,
    ipv6: String,
    #[serde(default, deserialize_with = "or_default")]
    pub routable_ips: Vec<String>,
    #[serde(default, deserialize_with = "or_default")]
    pub approved_routes: Vec<String>,
}

/// What a node was told.
#[derive(Debug, Deserialize)]
pub struct Told {
    #[serde(default, deserialize_with = "rules")]
    pub packet_filter_rules: Vec<FilterRule>,
    pub netmap: Option<NetMap>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct NetMap {
    pub self_node: Peer,
    #[serde(default, deserialize_with = "or_default")]
    pub peers: Vec<Peer>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Peer {
    name: String,
    #[serde(default, deserialize_with = "or_default")]
    pub addresses: Vec<String>,
    #[serde(rename = "AllowedIPs", default, deserialize_with = "or_default")]
    pub allowed_ips: Vec<String>,
    #[serde(default, deserialize_with = "or_default")]
    pub primary_routes: Vec<String>,
    #[serde(default, deserialize_with = "or_default")]
    pub cap_map: BTreeMap<String, serde_json::Value>,
}

fn or_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(from: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

/// Arguments of capabilities may be null, which means none.
fn rules<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<FilterRule>, D::Error> {
    let mut value: serde_json::Value = or_default(from)?;
    for grant in value.as_array_mut().into_iter().flatten().filter_map(|rule| rule.get_mut("CapGrant")?.as_array_mut()).flatten() {
        for arguments in grant.get_mut("CapMap").and_then(|map| map.as_object_mut()).into_iter().flat_map(|map| map.values_mut()) {
            if arguments.is_null() {
                *arguments = serde_json::json!([]);
            }
        }
    }
    if value.is_null() {
        return Ok(Vec::new());
    }
    serde_json::from_value(value).map_err(serde::de::Error::custom)
}

impl Peer {
    /// The first label of its name.
    pub fn host(&self) -> &str {
        self.name.split('.').next().unwrap_or_default()
    }
}

impl Capture {
    /// The policy as text.
    pub fn policy(&self) -> String {
        match &self.input.full_policy {
            serde_json::Value::String(text) => text.clone(),
            value => value.to_string(),
        }
    }

    /// Routes of a node that others were told of although the topology, written down before, has them as not approved.
    pub fn approved_late(&self, name: &str) -> BTreeSet<IpNet> {
        let Some(node) = self.topology.nodes.get(name) else { return BTreeSet::new() };
        let peers = self.captures.values().filter_map(|told| told.netmap.as_ref()).flat_map(|map| &map.peers);
        let told: BTreeSet<&String> = peers.filter(|peer| peer.host() == name).flat_map(|peer| &peer.allowed_ips).collect();
        let late = node.routable_ips.iter().filter(|net| told.contains(net) && !node.approved_routes.contains(net));
        late.map(|net| net.parse().unwrap()).collect()
    }

    /// The network's nodes by name, with numbers in the order of their names.
    pub fn subjects(&self) -> BTreeMap<&str, Subject> {
        let email = |name: &str| self.topology.users.iter().find(|user| user.name == name).map(|user| user.email.clone());
        let subject = |(n, (name, node)): (usize, (&'_ String, &Node))| {
            let approved = node.approved_routes.iter().map(|net| net.parse().unwrap());
            let routes: BTreeSet<IpNet> = approved.chain(self.approved_late(name)).collect();
            Subject {
                id: NodeId(i64::try_from(n).unwrap() + 1),
                login: node.user.as_deref().and_then(email).unwrap_or_default(),
                tags: node.tags.clone(),
                v4: node.ipv4.parse().unwrap_or_else(|_| panic!("{name}: {}", node.ipv4)),
                v6: node.ipv6.parse().unwrap(),
                exit: routes.iter().any(|net| net.prefix_len() == 0),
                routes: routes.into_iter().filter(|net| net.prefix_len() > 0).collect(),
            }
        };
        let names = self.topology.nodes.keys().map(String::as_str);
        names.zip(self.topology.nodes.iter().enumerate().map(subject)).collect()
    }
}

/// Where the results are; why not, if they are not there.
pub fn directory() -> Result<PathBuf, String> {
    let output = Command::new("go").args(["env", "GOMODCACHE"]).output().map_err(|error| format!("`go` cannot be run: {error}"))?;
    let cache = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    let dir = Path::new(&cache).join(MODULE).join("hscontrol/policy/v2/testdata");
    if !cache.is_empty() && dir.is_dir() {
        Ok(dir)
    } else {
        Err(format!("{MODULE} is not in Go's module cache (`go mod download {MODULE}`)"))
    }
}

/// The cases of one kind.
pub fn cases(dir: &Path, kind: &str) -> impl Iterator<Item = Capture> {
    let folder = dir.join(format!("{kind}_results"));
    let mut files: Vec<PathBuf> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty(), "no cases in {}", folder.display());
    files.into_iter().map(|file| {
        let text = std::fs::read_to_string(&file).unwrap();
        let json: String = text.lines().filter(|line| !line.starts_with("//")).collect::<Vec<_>>().join("\n");
        serde_json::from_str(&json).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
    })
}
