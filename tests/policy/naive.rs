//! A policy a second time, written to be obviously right instead of fast: for one packet, every rule is asked in full.

use std::net::IpAddr;

use ipnet::IpNet;
use proptest::prelude::*;
use pvemesh::coord::policy::Subject;
use pvemesh::wire::control::FilterRule;

/// Logins, tags and networks of the random meshes.
pub const LOGINS: [&str; 4] = ["ann", "bob", "cid", "dee@example.com"];
pub const TAGS: [&str; 3] = ["tag:web", "tag:db", "tag:gate"];
pub const LANS: [&str; 4] = ["10.1.0.0/16", "10.1.2.0/24", "10.2.0.0/16", "fd00:1::/64"];
/// An address in each part that networks of [`LANS`] make, and one of the internet.
pub const SAMPLES: [&str; 5] = ["10.1.2.5", "10.1.9.9", "10.2.0.1", "fd00:1::5", "8.8.8.8"];
/// A port that some rules name, one that none names; protocols with and without ports.
pub const PACKETS: [(u8, u16); 5] = [(6, 22), (6, 9), (17, 443), (1, 0), (132, 22)];

/// A name in a rule.
#[derive(Debug, Clone, PartialEq)]
pub enum Name {
    Any,
    DangerAll,
    Member,
    Tagged,
    OwnNodes,
    Internet,
    User(&'static str),
    Domain,
    /// ann and bob.
    Group,
    Tag(&'static str),
    /// A LAN, or `None` for the address of node 1.
    Net(Option<&'static str>),
}

/// A rule of either section.
#[derive(Debug, Clone)]
pub struct NaiveRule {
    pub sources: Vec<Name>,
    pub targets: Vec<Name>,
    /// As a grant's `ip` writes it.
    pub service: &'static str,
    pub via: Option<&'static str>,
}

impl Name {
    fn text(&self) -> String {
        match self {
            Self::Any => "*".into(),
            Self::DangerAll => "autogroup:danger-all".into(),
            Self::Member => "autogroup:member".into(),
            Self::Tagged => "autogroup:tagged".into(),
            Self::OwnNodes => "autogroup:self".into(),
            Self::Internet => "autogroup:internet".into(),
            Self::User(login) if login.contains('@') => (*login).into(),
            Self::User(login) => format!("{login}@"),
            Self::Domain => "user:*@example.com".into(),
            Self::Group => "group:ops".into(),
            Self::Tag(tag) => (*tag).into(),
            Self::Net(net) => net.unwrap_or("one").into(),
        }
    }

    /// Whether it stands for a node by owner or tag.
    fn is(&self, node: &Subject) -> bool {
        let owner = if node.tags.is_empty() { node.login.as_str() } else { "" };
        match self {
            Self::Member => node.tags.is_empty(),
            Self::Tagged => !node.tags.is_empty(),
            Self::User(login) => owner == *login,
            Self::Domain => owner.ends_with("@example.com"),
            Self::Group => owner == "ann" || owner == "bob",
            Self::Tag(tag) => node.tags.iter().any(|own| own == tag),
            _ => false,
        }
    }

    fn net(&self) -> Option<IpNet> {
        match self {
            Self::Net(net) => Some(net.unwrap_or("100.64.0.1/32").parse().unwrap()),
            _ => None,
        }
    }
}

/// A random source.
pub fn source() -> impl Strategy<Value = Name> {
    prop_oneof![
        Just(Name::Any),
        Just(Name::DangerAll),
        Just(Name::Member),
        Just(Name::Tagged),
        Just(Name::Domain),
        Just(Name::Group),
        proptest::sample::select(&LOGINS[..]).prop_map(Name::User),
        proptest::sample::select(&TAGS[..]).prop_map(Name::Tag),
        proptest::option::of(proptest::sample::select(&LANS[..])).prop_map(Name::Net),
    ]
}

/// A random rule that the grammar allows.
pub fn rule() -> impl Strategy<Value = NaiveRule> {
    let services = proptest::sample::select(&["*", "22", "tcp:22", "udp:443", "icmp:*", "20-30", "sctp:22"][..]);
    let target = prop_oneof![4 => source(), 1 => Just(Name::Internet)].prop_filter("never a destination", |name| *name != Name::DangerAll);
    let plain = (proptest::collection::vec(source(), 0..3), proptest::collection::vec(target, 0..3))
        .prop_map(|(sources, targets)| (sources, targets, None));
    let owners = prop_oneof![Just(Name::Member), Just(Name::Group), Just(Name::Domain), Just(Name::User("ann"))];
    let own = proptest::collection::vec(owners, 1..3).prop_map(|sources| (sources, vec![Name::OwnNodes], None));
    let behind = prop_oneof![Just(Name::Internet), proptest::sample::select(&LANS[..]).prop_map(|net| Name::Net(Some(net)))];
    let via = (proptest::collection::vec(source(), 1..3), proptest::collection::vec(behind, 1..3), proptest::sample::select(&TAGS[..]))
        .prop_map(|(sources, targets, tag)| (sources, targets, Some(tag)));
    let rule = prop_oneof![4 => plain, 1 => own, 1 => via];
    (rule, services).prop_map(|((sources, targets, via), service)| NaiveRule { sources, targets, service, via })
}

/// The rules as a policy file.
pub fn document(rules: &[NaiveRule]) -> String {
    let texts = |names: &[Name]| names.iter().map(Name::text).collect::<Vec<_>>();
    let grants: Vec<serde_json::Value> = rules
        .iter()
        .map(|rule| {
            let mut grant = serde_json::json!({"src": texts(&rule.sources), "dst": texts(&rule.targets), "ip": [rule.service]});
            if let Some(tag) = rule.via {
                grant["via"] = serde_json::json!([tag]);
            }
            grant
        })
        .collect();
    serde_json::json!({
        "groups": {"group:ops": ["ann@", "bob@"]},
        "hosts": {"one": "100.64.0.1"},
        "tagOwners": TAGS.iter().map(|tag| ((*tag).to_owned(), serde_json::json!([]))).collect::<serde_json::Map<_, _>>(),
        "nodeAttrs": [
            {"target": ["group:ops", "tag:web"], "attr": ["one"]},
            {"target": ["one", "autogroup:tagged"], "attr": ["two"]},
        ],
        "grants": grants,
    })
    .to_string()
}

/// A random node; some carry routes or are exit nodes.
pub fn node(id: i64) -> impl Strategy<Value = Subject> {
    (
        proptest::sample::select(&LOGINS[..]),
        proptest::option::of(proptest::sample::subsequence(&TAGS[..], 1..3)),
        proptest::sample::subsequence(&LANS[..], 0..3),
        any::<bool>(),
        proptest::bool::weighted(0.3),
    )
        .prop_map(move |(login, tags, routes, router, exit)| Subject {
            tags: tags.unwrap_or_default().iter().map(|tag| (*tag).to_owned()).collect(),
            routes: if router { routes.iter().map(|net| net.parse().unwrap()).collect() } else { Vec::new() },
            exit,
            ..crate::mesh::node(id, login)
        })
}

/// The addresses that send through a node, or are reached through it: its own, and the samples behind it.
pub fn ends(node: &Subject, with_exit: bool) -> Vec<IpAddr> {
    let behind = |address: &IpAddr| {
        node.routes.iter().any(|net| net.contains(address)) || (with_exit && node.exit && *address == IpAddr::from([8, 8, 8, 8]))
    };
    let samples = SAMPLES.iter().map(|text| text.parse().unwrap()).filter(behind);
    [IpAddr::V4(node.v4), IpAddr::V6(node.v6)].into_iter().chain(samples).collect()
}

/// Whether a packet that has reached `at` is allowed.
pub fn allowed(rules: &[NaiveRule], nodes: &[Subject], from: IpAddr, at: &Subject, to: IpAddr, packet: (u8, u16)) -> bool {
    rules.iter().any(|rule| served(rule.service, packet) && sends(rule, nodes, from) && receives(rule, nodes, from, at, to))
}

fn holder(nodes: &[Subject], address: IpAddr) -> Option<&Subject> {
    nodes.iter().find(|node| address == node.v4 || address == node.v6)
}

fn sends(rule: &NaiveRule, nodes: &[Subject], from: IpAddr) -> bool {
    rule.sources.iter().any(|name| match name {
        Name::DangerAll => true,
        Name::Any => {
            let mesh = ["100.64.0.0/10", "fd7a:115c:a1e0::/48"].iter().any(|net| net.parse::<IpNet>().unwrap().contains(&from));
            mesh || nodes.iter().any(|node| node.routes.iter().any(|net| net.contains(&from)))
        }
        Name::Net(_) => name.net().unwrap().contains(&from),
        name => holder(nodes, from).is_some_and(|node| name.is(node)),
    })
}

fn receives(rule: &NaiveRule, nodes: &[Subject], from: IpAddr, at: &Subject, to: IpAddr) -> bool {
    let own = to == at.v4 || to == at.v6;
    let through = rule.via.is_none_or(|tag| !own && at.tags.iter().any(|own| own == tag));
    let same_owner = || holder(nodes, from).is_some_and(|node| node.tags.is_empty() && at.tags.is_empty() && node.login == at.login);
    through
        && rule.targets.iter().any(|name| match name {
            Name::Any => true,
            Name::OwnNodes => own && same_owner(),
            Name::Internet => !own && at.exit && to == IpAddr::from([8, 8, 8, 8]),
            Name::Net(_) => name.net().unwrap().contains(&to),
            name => own && name.is(at),
        })
}

fn served(service: &str, (protocol, port): (u8, u16)) -> bool {
    let (name, ports) = service.split_once(':').unwrap_or(("", service));
    let spoken = match name {
        "tcp" => protocol == 6,
        "udp" => protocol == 17,
        "icmp" => protocol == 1,
        "sctp" => protocol == 132,
        _ => [6, 17, 1, 58].contains(&protocol),
    };
    let (first, last) = match ports {
        "*" => (0, u16::MAX),
        ports => {
            let (first, last) = ports.split_once('-').unwrap_or((ports, ports));
            (first.parse().unwrap(), last.parse().unwrap())
        }
    };
    spoken && (protocol == 1 || (first <= port && port <= last))
}

/// Whether a client with this filter accepts a packet; written after what clients do.
pub fn accepts(filter: &[FilterRule], from: IpAddr, to: IpAddr, (protocol, port): (u8, u16)) -> bool {
    filter.iter().any(|rule| {
        let spoken = match rule.ip_proto.as_slice() {
            [] => [6, 17, 1, 58].contains(&protocol),
            list => list.contains(&i32::from(protocol)),
        };
        let source = rule.src_ips.iter().any(|text| within(text, from));
        let target = |dst: &pvemesh::wire::control::NetPortRange| {
            within(&dst.ip, to) && (protocol == 1 || (dst.ports.first <= port && port <= dst.ports.last))
        };
        spoken && source && rule.dst_ports.iter().any(target)
    })
}

fn within(text: &str, address: IpAddr) -> bool {
    if text == "*" {
        return true;
    }
    if let Some((first, last)) = text.split_once('-') {
        let (first, last): (IpAddr, IpAddr) = (first.parse().unwrap(), last.parse().unwrap());
        return first.is_ipv4() == address.is_ipv4() && first <= address && address <= last;
    }
    text.parse::<IpNet>().map_or_else(|_| text.parse::<IpAddr>().unwrap() == address, |net| net.contains(&address))
}
