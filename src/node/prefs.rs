//! What the user wants of this node. Kept in its state file.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use crate::ident::NodeName;
use crate::settings;

/// A node's preferences.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Prefs {
    /// The coordinator, `http(s)://host[:port]`; empty if none was named yet.
    pub login_server: String,
    /// Take part in the mesh.
    pub want_running: bool,
    /// The name to be known by; absent means what the machine calls itself.
    pub hostname: Option<NodeName>,
    /// Use the networks that other nodes offer.
    pub accept_routes: bool,
    /// Send internet traffic through this node: a name, an address or a stable id; `auto` leaves the choice to the node. Empty means none.
    pub exit_node: String,
    /// With an exit node, keep reaching the local networks directly.
    pub exit_node_allow_lan_access: bool,
    /// Offer to carry internet traffic.
    pub advertise_exit_node: bool,
    /// Networks this node offers to carry.
    pub advertise_routes: Vec<IpNet>,
    /// What enters a carried network has this node's own address there. What leaves an exit node has it always.
    pub snat_subnet_routes: bool,
    /// Let machines on this machine's networks use the mesh through it, in its name.
    pub lan_gateway: bool,
    /// Tags this node claims; the coordinator decides which it gets.
    pub advertise_tags: Vec<Tag>,
    /// Let other nodes open no connections to this machine or what is behind it.
    pub shields_up: bool,
    /// Resolve names as the coordinator says.
    pub accept_dns: bool,
    /// Ask the home router for a port.
    pub port_mapping: bool,
    /// Guess ports together with a peer where nothing else leads directly to it.
    pub port_guessing: bool,
    /// Addresses under which this node is reachable from outside.
    pub endpoints: Vec<SocketAddr>,
    /// A file with a certificate authority to trust for the coordinator.
    pub ca_file: Option<PathBuf>,
}

/// A node's tag, `tag:` and a word of letters, digits and hyphens that begins with a letter.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Tag(String);

/// A text that is no tag.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a tag is `tag:` and letters, digits and hyphens, a letter first, not `{0}`")]
pub struct TagError(String);

impl FromStr for Tag {
    type Err = TagError;

    fn from_str(text: &str) -> Result<Self, TagError> {
        let word = text.strip_prefix("tag:").unwrap_or_default();
        let valid = word.starts_with(|c: char| c.is_ascii_alphabetic())
            && word.len() <= 63
            && word.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        if valid { Ok(Self(text.to_owned())) } else { Err(TagError(text.escape_default().take(80).collect())) }
    }
}

impl TryFrom<String> for Tag {
    type Error = TagError;

    fn try_from(text: String) -> Result<Self, TagError> {
        text.parse()
    }
}

impl From<Tag> for String {
    fn from(tag: Tag) -> Self {
        tag.0
    }
}

impl Default for Prefs {
    fn default() -> Self {
        Self {
            login_server: String::new(),
            want_running: false,
            hostname: None,
            accept_routes: false,
            exit_node: String::new(),
            // Unlike the stock client: never cut anyone off from the machine they sit at or manage.
            exit_node_allow_lan_access: true,
            advertise_exit_node: false,
            advertise_routes: Vec::new(),
            snat_subnet_routes: true,
            lan_gateway: false,
            advertise_tags: Vec::new(),
            shields_up: false,
            accept_dns: true,
            port_mapping: true,
            port_guessing: true,
            endpoints: Vec::new(),
            ca_file: None,
        }
    }
}

impl Prefs {
    /// What a guest's configuration asks for, in place of what these preferences say of the same things.
    pub fn adopt(&mut self, guest: &settings::Node, hostname: &NodeName) {
        self.login_server.clone_from(&guest.login_server);
        self.want_running = true;
        self.hostname = Some(hostname.clone());
        self.accept_routes = guest.accept_routes;
        self.accept_dns = guest.accept_dns;
        self.advertise_exit_node = guest.advertise_exit_node;
        self.advertise_routes.clone_from(&guest.advertise_routes);
        self.snat_subnet_routes = guest.snat_subnet_routes;
        self.lan_gateway = guest.lan_gateway;
        self.endpoints.clone_from(&guest.endpoints);
    }

    /// The networks this node offers, the two of an exit node included: masked, sorted, each once.
    pub fn offered(&self) -> Vec<IpNet> {
        let mut offered: Vec<IpNet> = self.advertise_routes.iter().map(IpNet::trunc).collect();
        if self.advertise_exit_node {
            offered.extend([IpNet::V4(Ipv4Net::default()), IpNet::V6(Ipv6Net::default())]);
        }
        offered.sort();
        offered.dedup();
        offered
    }
}

/// A change of preferences; what is absent stays.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[expect(missing_docs, reason = "the fields are those of Prefs")]
pub struct PrefsChange {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub login_server: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub want_running: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hostname: Option<NodeName>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accept_routes: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit_node: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit_node_allow_lan_access: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advertise_exit_node: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advertise_routes: Option<Vec<IpNet>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snat_subnet_routes: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lan_gateway: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advertise_tags: Option<Vec<Tag>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shields_up: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accept_dns: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port_mapping: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port_guessing: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoints: Option<Vec<SocketAddr>>,
    /// An empty path means none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
}

impl PrefsChange {
    /// Makes the change.
    pub fn apply(self, prefs: &mut Prefs) {
        fn set<T>(target: &mut T, value: Option<T>) {
            if let Some(value) = value {
                *target = value;
            }
        }
        set(&mut prefs.login_server, self.login_server);
        set(&mut prefs.want_running, self.want_running);
        set(&mut prefs.hostname, self.hostname.map(Some));
        set(&mut prefs.accept_routes, self.accept_routes);
        set(&mut prefs.exit_node, self.exit_node);
        set(&mut prefs.exit_node_allow_lan_access, self.exit_node_allow_lan_access);
        set(&mut prefs.advertise_exit_node, self.advertise_exit_node);
        set(&mut prefs.advertise_routes, self.advertise_routes);
        set(&mut prefs.snat_subnet_routes, self.snat_subnet_routes);
        set(&mut prefs.lan_gateway, self.lan_gateway);
        set(&mut prefs.advertise_tags, self.advertise_tags);
        set(&mut prefs.shields_up, self.shields_up);
        set(&mut prefs.accept_dns, self.accept_dns);
        set(&mut prefs.port_mapping, self.port_mapping);
        set(&mut prefs.port_guessing, self.port_guessing);
        set(&mut prefs.endpoints, self.endpoints);
        set(&mut prefs.ca_file, self.ca_file.map(|path| Some(path).filter(|path| !path.as_os_str().is_empty())));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exit_node_offers_both_families_once() {
        let mut prefs = Prefs { advertise_exit_node: true, ..Default::default() };
        prefs.advertise_routes = ["10.1.2.3/16", "0.0.0.0/0", "10.1.0.0/16"].map(|r| r.parse().unwrap()).to_vec();
        let offered: Vec<String> = prefs.offered().iter().map(ToString::to_string).collect();
        assert_eq!(offered, ["0.0.0.0/0", "10.1.0.0/16", "::/0"]);
    }

    #[test]
    fn tags_are_checked_before_anybody_is_asked() {
        for good in ["tag:a", "tag:exit-node", "tag:A1"] {
            assert_eq!(String::from(good.parse::<Tag>().unwrap()), good);
        }
        for wrong in ["", "a", "tag:", "tag:1a", "tag:-a", "tag:a b", "tag:a,tag:b", &format!("tag:{}", "x".repeat(64))] {
            assert!(wrong.parse::<Tag>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_change_leaves_the_rest_alone() {
        let mut prefs = Prefs { accept_routes: true, ..Default::default() };
        let change: PrefsChange = serde_json::from_str(r#"{"exit_node":"home"}"#).unwrap();
        change.apply(&mut prefs);
        assert_eq!(prefs, Prefs { accept_routes: true, exit_node: "home".to_owned(), ..Default::default() });
        assert!(serde_json::from_str::<PrefsChange>(r#"{"exitnode":"home"}"#).is_err());
    }
}
