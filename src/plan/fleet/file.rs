//! `fleet.toml`: the guests of a fleet as the admin declares them, read and checked.
//!
//! ```toml
//! fleet = "home"             # guests made from this file are marked with it
//!
//! [defaults]                 # what every guest gets unless it says otherwise
//! storage = "local-lvm"
//!
//! [group.lan]                # the same for the guests of a group
//! host = "office"            # the host or cluster, where several are set up
//!
//! [[guest]]
//! id = 101
//! role = "subnet-router"
//! routes = ["192.168.1.0/24"]
//! group = "lan"              # guests of one group go to different hosts, and are restarted one at a time
//!
//! [[guest]]
//! id = "200-249"             # fifty of them
//! role = "node"
//! ```
//!
//! The keys are those of the `create-*` commands. What is not said is chosen for a new guest and left alone for one that is there.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use ipnet::IpNet;
use serde::Deserialize;

use crate::ident::Vmid;
use crate::plan::mark::FleetName;
use crate::plan::options::{GuestOptions, GuestTexts, NodeKind, OptionError, base_domain, endpoints, relay_address, routes, server_url};

/// Guests a file may declare; a Proxmox cluster has fewer.
const MAX_GUESTS: usize = 1000;

/// Why a file was refused: where and what.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {why}")]
pub struct FileError {
    /// The line, or the guest.
    pub place: String,
    /// What is wrong.
    pub why: String,
}

/// A file's content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fleet {
    /// Its name, which the guests made from it bear.
    pub name: Option<FleetName>,
    /// Its guests, in the file's order.
    pub members: Vec<Member>,
}

/// A guest as declared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// What every guest has.
    pub options: GuestOptions,
    /// What it is for.
    pub want: Want,
    /// Guests with the same word go to different hosts, and are restarted one at a time.
    pub group: Option<String>,
    /// Proxmox starts it elsewhere when its host dies.
    pub high_availability: Option<bool>,
    /// The host or cluster it is on, as it is called here; found by its number if absent.
    pub host: Option<String>,
}

/// What a declared guest is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Want {
    /// Key exchange, addresses, names.
    Coordinator {
        /// The address clients are told; absent if it is the guest's own address.
        url: Option<String>,
        /// The DNS suffix, if said.
        base_domain: Option<String>,
        /// Networks of the reverse proxies before it.
        trusted_proxies: Vec<IpNet>,
    },
    /// A relay of its own.
    Relay {
        /// The address clients are told; absent if it is the guest's own address.
        address: Option<String>,
    },
    /// A mesh node.
    Node {
        /// What it offers.
        kind: NodeKind,
        /// Addresses under which it is reachable from outside.
        endpoints: Vec<std::net::SocketAddr>,
        /// Whether it does without a TUN device, if said.
        userspace: Option<bool>,
        /// The coordinator it joins if it is not the known one, and the file with the join key.
        elsewhere: Option<(String, PathBuf)>,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    fleet: Option<String>,
    #[serde(default)]
    defaults: Entry,
    #[serde(default, rename = "group")]
    groups: BTreeMap<String, Entry>,
    #[serde(default, rename = "guest")]
    guests: Vec<Entry>,
}

#[derive(Clone, Deserialize)]
#[serde(untagged)]
enum Ids {
    One(u32),
    Range(String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum RoleWord {
    Coordinator,
    Relay,
    Node,
    ExitNode,
    SubnetRouter,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum TunWord {
    Device,
    Userspace,
}

#[derive(Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    id: Option<Ids>,
    role: Option<RoleWord>,
    name: Option<String>,
    node: Option<String>,
    storage: Option<String>,
    template_storage: Option<String>,
    bridge: Option<String>,
    memory: Option<u32>,
    cores: Option<u16>,
    ip: Option<String>,
    gw: Option<String>,
    ip6: Option<String>,
    gw6: Option<String>,
    dns: Option<Vec<String>>,
    routes: Option<Vec<String>>,
    snat_subnet_routes: Option<bool>,
    lan_gateway: Option<bool>,
    endpoints: Option<Vec<String>>,
    tun: Option<TunWord>,
    url: Option<String>,
    base_domain: Option<String>,
    trusted_proxies: Option<Vec<IpNet>>,
    address: Option<String>,
    login_server: Option<String>,
    auth_key_file: Option<PathBuf>,
    group: Option<String>,
    ha: Option<bool>,
    host: Option<String>,
}

impl Entry {
    /// The entry with what it does not say taken from `defaults`.
    fn over(self, defaults: Self) -> Self {
        Self {
            id: self.id,
            role: self.role.or(defaults.role),
            name: self.name,
            node: self.node.or(defaults.node),
            storage: self.storage.or(defaults.storage),
            template_storage: self.template_storage.or(defaults.template_storage),
            bridge: self.bridge.or(defaults.bridge),
            memory: self.memory.or(defaults.memory),
            cores: self.cores.or(defaults.cores),
            ip: self.ip.or(defaults.ip),
            gw: self.gw.or(defaults.gw),
            ip6: self.ip6.or(defaults.ip6),
            gw6: self.gw6.or(defaults.gw6),
            dns: self.dns.or(defaults.dns),
            routes: self.routes,
            snat_subnet_routes: self.snat_subnet_routes,
            lan_gateway: self.lan_gateway,
            endpoints: self.endpoints,
            tun: self.tun.or(defaults.tun),
            url: self.url,
            base_domain: self.base_domain,
            trusted_proxies: self.trusted_proxies,
            address: self.address,
            login_server: self.login_server.or(defaults.login_server),
            auth_key_file: self.auth_key_file.or(defaults.auth_key_file),
            group: self.group,
            ha: self.ha.or(defaults.ha),
            host: self.host.or(defaults.host),
        }
    }

    /// The first key said that guests of this role do not have.
    fn out_of_place(&self, role: RoleWord) -> Option<&'static str> {
        let is_node = matches!(role, RoleWord::Node | RoleWord::ExitNode | RoleWord::SubnetRouter);
        let said = [
            ("routes", self.routes.is_some(), role == RoleWord::SubnetRouter),
            ("snat_subnet_routes", self.snat_subnet_routes.is_some(), role == RoleWord::SubnetRouter),
            ("lan_gateway", self.lan_gateway.is_some(), role == RoleWord::SubnetRouter),
            ("endpoints", self.endpoints.is_some(), is_node),
            ("url", self.url.is_some(), role == RoleWord::Coordinator),
            ("base_domain", self.base_domain.is_some(), role == RoleWord::Coordinator),
            ("trusted_proxies", self.trusted_proxies.is_some(), role == RoleWord::Coordinator),
            ("address", self.address.is_some(), role == RoleWord::Relay),
        ];
        said.into_iter().find(|(_, is_said, fits)| *is_said && !fits).map(|(key, ..)| key)
    }

    fn want(&self, role: RoleWord) -> Result<Want, OptionError> {
        if let Some(key) = self.out_of_place(role) {
            return Err(OptionError::new(key, "guests of this role do not have it"));
        }
        let kind = match role {
            RoleWord::Coordinator => {
                return Ok(Want::Coordinator {
                    url: self.url.as_deref().map(|text| server_url("url", text)).transpose()?,
                    base_domain: self.base_domain.as_deref().map(|text| base_domain("base_domain", text)).transpose()?,
                    trusted_proxies: self.trusted_proxies.clone().unwrap_or_default(),
                });
            }
            RoleWord::Relay => {
                return Ok(Want::Relay { address: self.address.as_deref().map(|text| relay_address("address", text)).transpose()? });
            }
            RoleWord::Node => NodeKind::Member,
            RoleWord::ExitNode => NodeKind::ExitNode,
            RoleWord::SubnetRouter => {
                let all = self.routes.clone().unwrap_or_default();
                let (auto, named): (Vec<String>, Vec<String>) = all.into_iter().partition(|text| text == "auto");
                if auto.is_empty() && named.is_empty() {
                    return Err(OptionError::new("routes", "a subnet router needs at least one network, or \"auto\""));
                }
                NodeKind::SubnetRouter {
                    routes: routes("routes", &named)?,
                    lan: !auto.is_empty(),
                    snat: self.snat_subnet_routes,
                    gateway: self.lan_gateway,
                }
            }
        };
        let elsewhere = match (&self.login_server, &self.auth_key_file) {
            (Some(url), Some(file)) => Some((server_url("login_server", url)?, file.clone())),
            (None, None) => None,
            (Some(_), None) => return Err(OptionError::new("auth_key_file", "goes with login_server")),
            (None, Some(_)) => return Err(OptionError::new("login_server", "goes with auth_key_file")),
        };
        Ok(Want::Node {
            kind,
            endpoints: endpoints("endpoints", self.endpoints.as_deref().unwrap_or_default())?,
            userspace: self.tun.map(|tun| tun == TunWord::Userspace),
            elsewhere,
        })
    }

    fn member(&self, vmid: Vmid, fleet: Option<&FleetName>) -> Result<Member, OptionError> {
        let role = self.role.ok_or_else(|| OptionError::new("role", "is missing"))?;
        let texts = GuestTexts {
            vmid: vmid.to_string(),
            name: self.name.clone(),
            node: self.node.clone(),
            storage: self.storage.clone(),
            template_storage: self.template_storage.clone(),
            bridge: self.bridge.clone(),
            memory: self.memory,
            cores: self.cores,
            ip: self.ip.clone(),
            gw: self.gw.clone(),
            ip6: self.ip6.clone(),
            gw6: self.gw6.clone(),
            dns: self.dns.clone().unwrap_or_default(),
        };
        let word = |text: &String| (1..=32).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        if self.group.as_ref().is_some_and(|group| !word(group)) {
            return Err(OptionError::new("group", "one word of letters, digits and -, at most 32"));
        }
        let options = GuestOptions { fleet: fleet.cloned(), ..texts.check()? };
        let (group, host) = (self.group.clone(), self.host.clone());
        Ok(Member { options, want: self.want(role)?, group, high_availability: self.ha, host })
    }
}

/// Reads and checks a file's text. The members come in the file's order.
///
/// # Errors
/// With the line or the guest, at the first thing that is wrong. Nothing secret is in such a file: a join key is a file's name.
pub fn read(text: &str) -> Result<Fleet, FileError> {
    let document: Document = toml::from_str(text).map_err(|error| {
        let line = error.span().and_then(|span| text.get(..span.start)).map_or(1, |before| before.matches('\n').count() + 1);
        FileError { place: format!("line {line}"), why: error.message().trim().replace('\n', " ") }
    })?;
    let mut members = Vec::new();
    let (mut numbers, mut names) = (BTreeSet::new(), BTreeSet::new());
    let fleet = document.fleet.as_deref().map(str::parse::<FleetName>).transpose();
    let fleet = fleet.map_err(|e| FileError { place: "fleet".to_owned(), why: e.to_string() })?;
    let groups = document.groups.iter().map(|(name, entry)| (format!("group.{name}"), entry));
    for (place, entry) in std::iter::once(("defaults".to_owned(), &document.defaults)).chain(groups) {
        if entry.id.is_some() || entry.name.is_some() || entry.group.is_some() {
            return Err(FileError { place, why: "every guest has its own id, name and group".to_owned() });
        }
    }
    for declared in document.guests {
        let of_group = declared.group.as_ref().and_then(|group| document.groups.get(group)).cloned().unwrap_or_default();
        let entry = declared.over(of_group).over(document.defaults.clone());
        let ids = entry.id.as_ref();
        let ids = ids.ok_or_else(|| FileError { place: "a guest".to_owned(), why: "id: is missing".to_owned() })?;
        let (first, last) = span(ids)?;
        let place = |why: String| FileError { place: format!("guest {first}"), why };
        if first != last && (entry.name.is_some() || entry.ip.as_deref().is_some_and(|ip| ip.contains('/'))) {
            return Err(place("several guests cannot share a name or an address".to_owned()));
        }
        for number in u32::from(first)..=u32::from(last) {
            let vmid = Vmid::try_from(number).map_err(|e| place(format!("id: {e}")))?;
            let member = entry.member(vmid, fleet.as_ref()).map_err(|e| place(format!("{}: {}", key_of(e.option), e.why)))?;
            if !numbers.insert((member.host.clone(), vmid)) {
                return Err(FileError { place: format!("guest {vmid}"), why: "it is declared twice".to_owned() });
            }
            if let Some(name) = &member.options.name
                && !names.insert(name.clone())
            {
                return Err(place(format!("name: two guests are called {name}")));
            }
            members.push(member);
            if members.len() > MAX_GUESTS {
                return Err(place(format!("more than {MAX_GUESTS} guests are declared")));
            }
        }
    }
    let unused = document.groups.keys().find(|name| members.iter().all(|member| member.group.as_ref() != Some(name)));
    if let Some(name) = unused {
        return Err(FileError { place: format!("group.{name}"), why: "no guest is of this group".to_owned() });
    }
    if members.iter().filter(|member| matches!(member.want, Want::Coordinator { .. })).count() > 1 {
        return Err(FileError { place: "the file".to_owned(), why: "more than one coordinator is declared; a mesh has one".to_owned() });
    }
    Ok(Fleet { name: fleet, members })
}

/// The file's key for an option that was refused under its name on the command line.
fn key_of(option: &str) -> String {
    if option == "ID" { "id".to_owned() } else { option.trim_start_matches('-').replace('-', "_") }
}

fn span(ids: &Ids) -> Result<(Vmid, Vmid), FileError> {
    let wrong = |shown: String, why: &str| FileError { place: format!("guest {shown}"), why: format!("id: {why}") };
    let number = |number: u32| Vmid::try_from(number).map_err(|e| wrong(number.to_string(), &e.to_string()));
    match ids {
        Ids::One(one) => Ok((number(*one)?, number(*one)?)),
        Ids::Range(text) => {
            let shown: String = text.chars().take(30).flat_map(char::escape_default).collect();
            let (first, last) = text.split_once('-').unwrap_or((text, text));
            let parse = |part: &str| part.trim().parse::<u32>().map_err(|_| wrong(shown.clone(), "a number, or two as in \"200-249\""));
            let (first, last) = (number(parse(first)?)?, number(parse(last)?)?);
            if u32::from(last).checked_sub(u32::from(first)).is_none_or(|many| many as usize >= MAX_GUESTS) {
                return Err(wrong(shown, "the first number comes first, and there are at most 1000"));
            }
            Ok((first, last))
        }
    }
}

#[cfg(test)]
#[allow(clippy::indexing_slicing, reason = "test code")]
mod tests {
    use super::*;

    fn refused(text: &str) -> String {
        read(text).unwrap_err().to_string()
    }

    #[test]
    fn a_file_gives_its_guests_with_the_defaults_under_them() {
        let text = "[defaults]\nstorage = \"fast\"\nmemory = 96\n\n[[guest]]\nid = 101\nrole = \"subnet-router\"\nroutes = [\"auto\", \"10.0.0.0/8\"]\n\
                    memory = 128\ngroup = \"lan\"\nha = true\n\n[[guest]]\nid = \"200-203\"\nrole = \"node\"\ntun = \"userspace\"\n";
        let members = read(text).unwrap().members;
        assert_eq!(members.iter().map(|m| u32::from(m.options.vmid)).collect::<Vec<_>>(), [101, 200, 201, 202, 203]);
        let router = &members[0];
        assert_eq!((router.options.memory, router.options.storage.as_ref().unwrap().as_str()), (Some(128), "fast"));
        assert_eq!((router.group.as_deref(), router.high_availability), (Some("lan"), Some(true)));
        let Want::Node { kind: NodeKind::SubnetRouter { routes, lan: true, snat: None, .. }, .. } = &router.want else {
            panic!("{router:?}")
        };
        assert_eq!(routes, &["10.0.0.0/8".parse().unwrap()]);
        assert_eq!(members[1].options.memory, Some(96));
        assert!(matches!(members[1].want, Want::Node { kind: NodeKind::Member, userspace: Some(true), .. }));
    }

    #[test]
    fn a_group_has_defaults_of_its_own_and_the_fleet_a_name() {
        let text = "fleet = \"home\"\n[defaults]\nmemory = 96\nhost = \"home\"\n[group.far]\nhost = \"office\"\nmemory = 80\n\
                    [[guest]]\nid = 101\nrole = \"node\"\ngroup = \"far\"\n[[guest]]\nid = 101\nrole = \"node\"\n\
                    [[guest]]\nid = 102\nrole = \"node\"\ngroup = \"far\"\nmemory = 72\n";
        let fleet = read(text).unwrap();
        assert_eq!(fleet.name, Some("home".parse().unwrap()));
        let seen: Vec<_> = fleet.members.iter().map(|m| (m.host.as_deref().unwrap(), m.options.memory.unwrap())).collect();
        assert_eq!(seen, [("office", 80), ("home", 96), ("office", 72)]);
        assert!(fleet.members.iter().all(|member| member.options.fleet == fleet.name));
    }

    #[test]
    fn what_is_wrong_is_named_with_its_guest_and_key() {
        let guest = |rest: &str| format!("[[guest]]\nid = 101\nrole = \"node\"\n{rest}\n");
        for (text, said) in [
            (guest("memry = 64"), "line "),
            (guest("memory = 8"), "guest 101: memory: "),
            (guest("bridge = \"vmbr0,tag=5\""), "guest 101: bridge: "),
            (guest("name = \"a\\nb\""), "guest 101: name: "),
            (guest("routes = [\"10.0.0.0/8\"]"), "guest 101: routes: guests of this role do not have it"),
            (guest("group = \"a;b\""), "guest 101: group: "),
            (guest("login_server = \"https://a.example\""), "guest 101: auth_key_file: goes with login_server"),
            ("[[guest]]\nid = 7\nrole = \"node\"\n".to_owned(), "guest 7: id: "),
            ("[[guest]]\nid = \"300-200\"\nrole = \"node\"\n".to_owned(), "guest 300-200: id: "),
            ("[[guest]]\nid = \"100-99999\"\nrole = \"node\"\n".to_owned(), "guest 100-99999: id: "),
            ("[[guest]]\nid = \"200-201\"\nrole = \"node\"\nname = \"a\"\n".to_owned(), "guest 200: several guests"),
            ("[[guest]]\nid = 101\n".to_owned(), "guest 101: role: is missing"),
            ("[[guest]]\nid = 101\nrole = \"subnet-router\"\n".to_owned(), "guest 101: routes: "),
            ("[[guest]]\nid = 101\nrole = \"boss\"\n".to_owned(), "line "),
            (format!("{}{}", guest(""), guest("")), "guest 101: it is declared twice"),
            (
                "[[guest]]\nid = 100\nrole = \"coordinator\"\n[[guest]]\nid = 99999\nrole = \"coordinator\"\n".to_owned(),
                "the file: more than one coordinator",
            ),
            ("fleet = \"my home\"\n".to_owned(), "fleet: one word"),
            ("[group.lan]\nid = 7\n".to_owned(), "group.lan: every guest has its own"),
            ("[[guest\n".to_owned(), "line 1: "),
        ] {
            let error = refused(&text);
            assert!(error.starts_with(said), "{text} gave {error}");
        }
    }
}
