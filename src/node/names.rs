//! Names without a name server: what the map says that a name means, and what the coordinator wants of the resolver.
//!
//! [`names`] is what the resolver on 100.100.100.100 is made of; [`resolve`] answers one question from it, and where it would ask others, names
//! them.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::{ExitNode, Prefs, peer_api};
use crate::coord::client::NetMap;
use crate::ident::{reverse_name, reversed};
use crate::names::{Found, Host, Records, Table, Upstream, Want};
use crate::wire::control::{DnsRecord, Node, Resolver};

/// A node with it answers for every name below its own, too.
const SUBDOMAINS: &str = "dns-subdomain-resolve";
/// This node is told IPv6 addresses of nodes that have IPv4 ones, too.
const BOTH_FAMILIES: &str = "magicdns-aaaa";

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum RecordType {
    /// An IPv4 address.
    A,
    /// An IPv6 address.
    Aaaa,
    /// The name of an address.
    Ptr,
}

/// How an answer came about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// The map has it.
    Found,
    /// The map has the name, but nothing of this kind.
    NoData,
    /// The name would be in the map if it existed.
    NoSuchName,
    /// The map does not say; the resolvers of the answer would be asked.
    Elsewhere,
}

/// What the map says to a question.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct NameAnswer {
    /// The name in question, complete, with its final dot.
    pub name: String,
    /// What was asked for.
    #[serde(rename = "Type")]
    pub kind: RecordType,
    /// How it ended.
    pub outcome: Outcome,
    /// The addresses, or the names with their final dot.
    pub records: Vec<String>,
    /// Who would be asked, with [`Outcome::Elsewhere`]; empty means the machine's own resolvers.
    pub resolvers: Vec<String>,
    /// What else is worth knowing; empty if nothing.
    pub note: String,
}

/// How the coordinator wants names to be resolved.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct DnsStatus {
    /// The nodes' names are to be resolved, by 100.100.100.100.
    #[serde(rename = "MagicDNSEnabled")]
    pub enabled: bool,
    /// What the nodes' names end in.
    #[serde(rename = "MagicDNSSuffix")]
    pub suffix: String,
    /// This node's own name, with its final dot.
    pub self_name: String,
    /// The preference whether to follow the coordinator.
    #[serde(rename = "AcceptDNS")]
    pub accepted: bool,
    /// Resolvers for everything, in place of the machine's.
    pub resolvers: Vec<String>,
    /// Resolvers for everything where the system cannot ask different ones for different names.
    pub fallback_resolvers: Vec<String>,
    /// Resolvers by suffix; none means that the map answers.
    pub routes: BTreeMap<String, Vec<String>>,
    /// What is appended to short names.
    pub search_domains: Vec<String>,
    /// Names of the coordinator's beside the nodes'.
    pub extra_records: Vec<DnsRecord>,
    /// Names this node may get certificates for.
    pub cert_domains: Vec<String>,
    /// Where this machine's programs reach the resolver; none, if it does not run. Without IPv6 on the machine there is one address.
    #[serde(rename = "ResolverAddresses", default)]
    pub listening: Vec<IpAddr>,
    /// By whom programs are led there, if they are: `/etc/resolv.conf`, `systemd-resolved`, `resolvconf` or `openresolv`.
    #[serde(rename = "LedBy", default)]
    pub led_by: Option<String>,
}

/// What the coordinator has delivered; where the resolver listens, and by whom programs are led there.
pub fn dns_status(map: &NetMap, prefs: &Prefs, listening: Vec<IpAddr>, led_by: Option<String>) -> DnsStatus {
    let dns = &map.dns;
    DnsStatus {
        enabled: dns.proxied,
        suffix: map.suffix().to_owned(),
        self_name: map.node.name.clone(),
        accepted: prefs.accept_dns,
        resolvers: addresses(&dns.resolvers),
        fallback_resolvers: addresses(&dns.fallback_resolvers),
        routes: dns.routes.iter().map(|(suffix, resolvers)| (suffix.clone(), addresses(resolvers))).collect(),
        search_domains: dns.domains.clone(),
        extra_records: dns.extra_records.clone(),
        cert_domains: dns.cert_domains.clone(),
        listening,
        led_by,
    }
}

fn addresses(resolvers: &[Resolver]) -> Vec<String> {
    resolvers.iter().map(|resolver| resolver.addr.clone()).collect()
}

/// Everything that the map says of names. With an exit node, what is not the mesh's is asked of that: name servers near this machine would
/// see what it looks up, and give the answers that are right here, not there. Those that the coordinator marks are asked all the same.
pub fn names(map: &NetMap, exit: ExitNode) -> Records {
    let dns = &map.dns;
    let exit = match exit {
        ExitNode::Chosen(id) => map.peers.get(&id).and_then(|peer| peer_api::dns_url(&map.node, peer)),
        _ => None,
    };
    let asked = |resolver: &&Resolver| exit.is_none() || resolver.use_with_exit_node;
    let read = |resolvers: &[Resolver]| -> Vec<Upstream> {
        resolvers.iter().filter(asked).filter_map(|resolver| Upstream::read(&resolver.addr)).collect()
    };
    // A suffix without servers is answered here; one that has lost them all belongs to the exit node.
    let routed = |(suffix, resolvers): (&String, &Vec<Resolver>)| {
        let servers = read(resolvers);
        (resolvers.is_empty() || !servers.is_empty()).then(|| (suffix.clone(), servers))
    };
    let mut resolvers = read(&dns.resolvers);
    if resolvers.is_empty() {
        resolvers.extend(exit.iter().cloned().map(Upstream::Url));
    }
    let nodes = std::iter::once(&map.node).chain(map.peers.values());
    let host = |node: &Node| Host {
        name: node.name.clone(),
        addresses: node.addresses.iter().map(ipnet::IpNet::addr).collect(),
        subdomains: node.cap_map.contains_key(SUBDOMAINS),
    };
    Records {
        suffix: if dns.proxied { map.suffix().to_owned() } else { String::new() },
        hosts: nodes.map(host).collect(),
        extra: dns.extra_records.iter().filter_map(|record| Some((record.name.clone(), record.value.parse().ok()?))).collect(),
        routes: dns.routes.iter().filter_map(routed).collect(),
        resolvers,
        last_resort: read(&dns.fallback_resolvers),
        both_families: map.node.cap_map.contains_key(BOTH_FAMILIES) || !map.node.addresses.iter().any(|net| net.addr().is_ipv4()),
    }
}

/// Answers from the map. A name of one label is completed by the network's suffix, a plain address stands for its reverse name.
pub fn resolve(map: &NetMap, exit: ExitNode, question: &str, kind: RecordType) -> NameAnswer {
    let question = question.trim();
    let (name, kind) = match question.parse::<IpAddr>() {
        Ok(address) => (reverse_name(address), RecordType::Ptr),
        Err(_) if reversed(question).is_some() => (format!("{}.", question.trim_end_matches('.')), RecordType::Ptr),
        Err(_) => (format!("{}.", complete(map, question)), kind),
    };
    let want = match kind {
        RecordType::A => Want::A,
        RecordType::Aaaa => Want::Aaaa,
        RecordType::Ptr => Want::Ptr,
    };
    let table = Table::new(names(map, exit));
    let mut answer =
        NameAnswer { name: name.clone(), kind, outcome: Outcome::Found, records: Vec::new(), resolvers: Vec::new(), note: String::new() };
    match table.look_up(&name, want) {
        Found::Addresses(addresses) => answer.records = addresses.iter().map(ToString::to_string).collect(),
        Found::Name(name) => answer.records = vec![format!("{name}.")],
        Found::NoData | Found::NotImplemented => answer.outcome = Outcome::NoData,
        Found::Hidden => {
            answer.outcome = Outcome::NoData;
            "nodes with both kinds of addresses are resolved to IPv4 only, unless the coordinator gives `magicdns-aaaa`"
                .clone_into(&mut answer.note);
        }
        Found::NoSuchName => answer.outcome = Outcome::NoSuchName,
        Found::Elsewhere(servers) => {
            answer.outcome = Outcome::Elsewhere;
            answer.resolvers = servers.iter().map(ToString::to_string).collect();
        }
    }
    answer
}

/// A name in lower case without its final dot, short ones completed.
fn complete(map: &NetMap, question: &str) -> String {
    let lower = question.to_ascii_lowercase();
    if let Some(absolute) = lower.strip_suffix('.') {
        return absolute.to_owned();
    }
    let suffix = map.suffix();
    if lower.contains('.') || suffix.is_empty() { lower } else { format!("{lower}.{}", suffix.to_ascii_lowercase()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::coord::client::MapSession;
    use crate::wire::control::json::from_slice;

    fn map() -> NetMap {
        let json = r#"{"Node":{"ID":1,"Name":"laptop.mesh.test.","Addresses":["100.64.0.1/32","fd7a:115c:a1e0::1/128"]},
            "Peers":[
              {"ID":2,"Name":"NAS.mesh.test.","Addresses":["100.64.0.2/32","fd7a:115c:a1e0::2/128"]},
              {"ID":3,"Name":"six.mesh.test.","Addresses":["fd7a:115c:a1e0::3/128"]},
              {"ID":4,"Name":"web.mesh.test.","Addresses":["100.64.0.4/32"],"CapMap":{"dns-subdomain-resolve":null}},
              {"ID":5,"Name":"shared.other.test.","Addresses":["100.64.0.5/32"]}],
            "DNSConfig":{"Proxied":true,"Domains":["mesh.test"],"Resolvers":[{"Addr":"9.9.9.9"}],
              "Routes":{"corp.test":[{"Addr":"10.0.0.53"}],"lab.corp.test":[],"10.in-addr.arpa":[{"Addr":"10.0.0.53"}]},
              "ExtraRecords":[{"Name":"grafana.mesh.test","Value":"100.64.0.2"},{"Name":"grafana.mesh.test","Type":"AAAA","Value":"fd00::2"}]}}"#;
        let mut session = MapSession::default();
        session.apply(from_slice(json.as_bytes()).unwrap(), crate::time::Wall::UNIX_EPOCH).unwrap();
        session.netmap().unwrap().clone()
    }

    fn ask(name: &str, kind: RecordType) -> (Outcome, Vec<String>) {
        let answer = resolve(&map(), ExitNode::Unwanted, name, kind);
        (answer.outcome, answer.records)
    }

    fn found(records: &[&str]) -> (Outcome, Vec<String>) {
        (Outcome::Found, records.iter().map(|r| (*r).to_owned()).collect())
    }

    #[test]
    fn nodes_are_found_by_short_and_full_names_in_any_case() {
        for name in ["nas", "NAS", "nas.mesh.test", "Nas.Mesh.Test.", " nas "] {
            assert_eq!(ask(name, RecordType::A), found(&["100.64.0.2"]), "{name}");
        }
        assert_eq!(ask("laptop", RecordType::A), found(&["100.64.0.1"]), "this node, too");
        assert_eq!(ask("shared.other.test", RecordType::A), found(&["100.64.0.5"]));
        assert_eq!(ask("shared", RecordType::A).0, Outcome::NoSuchName, "its name ends otherwise");
        assert_eq!(ask("nas.", RecordType::A).0, Outcome::Elsewhere, "a final dot means complete");
    }

    #[test]
    fn ipv6_addresses_are_told_where_there_is_nothing_else_or_the_coordinator_says_so() {
        assert_eq!(ask("six", RecordType::Aaaa), found(&["fd7a:115c:a1e0::3"]));
        assert_eq!(ask("six", RecordType::A), (Outcome::NoData, vec![]));
        assert_eq!(ask("nas", RecordType::Aaaa), (Outcome::NoData, vec![]));
        assert!(resolve(&map(), ExitNode::Unwanted, "nas", RecordType::Aaaa).note.contains("magicdns-aaaa"));
        let mut both = map();
        both.node.cap_map.insert("magicdns-aaaa".to_owned(), vec![]);
        assert_eq!(resolve(&both, ExitNode::Unwanted, "nas", RecordType::Aaaa).records, ["fd7a:115c:a1e0::2"]);
        let mut six_only = map();
        six_only.node.addresses.remove(0);
        assert_eq!(resolve(&six_only, ExitNode::Unwanted, "nas", RecordType::Aaaa).records, ["fd7a:115c:a1e0::2"]);
    }

    #[test]
    fn addresses_are_found_in_both_directions() {
        for question in ["100.64.0.2", "2.0.64.100.in-addr.arpa", "2.0.64.100.IN-ADDR.ARPA.", "fd7a:115c:a1e0::2"] {
            assert_eq!(ask(question, RecordType::A), found(&["nas.mesh.test."]), "{question}");
        }
        let name = resolve(&map(), ExitNode::Unwanted, "fd7a:115c:a1e0::2", RecordType::Ptr).name;
        assert!(name.starts_with("2.0.0.0.") && name.ends_with(".0.e.1.a.c.5.1.1.a.7.d.f.ip6.arpa."), "{name}");
        assert_eq!(ask(&name, RecordType::Ptr), found(&["nas.mesh.test."]));
        assert_eq!(ask("100.64.0.99", RecordType::Ptr).0, Outcome::NoSuchName);
        let elsewhere = resolve(&map(), ExitNode::Unwanted, "10.1.2.3", RecordType::Ptr);
        assert_eq!((elsewhere.outcome, elsewhere.resolvers), (Outcome::Elsewhere, vec!["10.0.0.53".to_owned()]));
    }

    #[test]
    fn what_the_map_does_not_know_is_somebodys_business() {
        let resolvers = |name: &str| {
            let answer = resolve(&map(), ExitNode::Unwanted, name, RecordType::A);
            (answer.outcome, answer.resolvers.join(","))
        };
        assert_eq!(resolvers("nobody"), (Outcome::NoSuchName, String::new()));
        assert_eq!(resolvers("host.corp.test"), (Outcome::Elsewhere, "10.0.0.53".to_owned()));
        assert_eq!(resolvers("host.lab.corp.test"), (Outcome::NoSuchName, String::new()), "the longer suffix counts");
        assert_eq!(resolvers("notcorp.test"), (Outcome::Elsewhere, "9.9.9.9".to_owned()), "a suffix is whole labels");
        for wrong in ["a..b", &"x".repeat(64), &"x.".repeat(200)] {
            assert_eq!(resolvers(wrong).0, Outcome::NoSuchName, "{wrong}");
        }
        let mut off = map();
        off.dns = crate::wire::control::DnsConfig::default();
        assert_eq!(resolve(&off, ExitNode::Unwanted, "nobody", RecordType::A).outcome, Outcome::Elsewhere);
    }

    #[test]
    fn with_an_exit_node_that_answers_names_it_is_asked_but_for_servers_that_are_marked() {
        let mut map = map();
        let exit = ExitNode::Chosen(crate::ident::NodeId(2));
        let asked = |map: &NetMap, name: &str| resolve(map, exit, name, RecordType::A).resolvers.join(",");
        assert_eq!(asked(&map, "example.com"), "9.9.9.9", "this one does not");
        let url = "http://100.64.0.2:58436/dns-query";
        if let Some(peer) = map.peers.get_mut(&crate::ident::NodeId(2)) {
            let services = peer_api::services(&["100.64.0.2:58436".parse().unwrap()]);
            peer.hostinfo = Some(crate::wire::control::Hostinfo { services, ..Default::default() });
        }
        assert_eq!((asked(&map, "example.com"), asked(&map, "host.corp.test")), (url.to_owned(), url.to_owned()));
        assert_eq!(resolve(&map, exit, "host.lab.corp.test", RecordType::A).outcome, Outcome::NoSuchName);
        assert_eq!(resolve(&map, exit, "nas", RecordType::A).outcome, Outcome::Found);
        for resolvers in map.dns.routes.values_mut().chain([&mut map.dns.resolvers]) {
            resolvers.iter_mut().for_each(|resolver| resolver.use_with_exit_node = true);
        }
        assert_eq!((asked(&map, "example.com"), asked(&map, "host.corp.test")), ("9.9.9.9".to_owned(), "10.0.0.53".to_owned()));
    }

    #[test]
    fn records_of_the_coordinators_and_names_below_a_node_are_answered() {
        assert_eq!(ask("grafana", RecordType::A), found(&["100.64.0.2"]));
        assert_eq!(ask("blog.web.mesh.test", RecordType::A), found(&["100.64.0.4"]));
        assert_eq!(ask("blog.nas.mesh.test", RecordType::A).0, Outcome::NoSuchName);
    }
}
