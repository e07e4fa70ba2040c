//! Packet filters: what a node accepts, in the form clients are told.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, LazyLock, Mutex, OnceLock, PoisonError};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::alias::Alias;
use super::bits::Bits;
use super::compiled::Compiled;
use super::member::Member;
use super::ranges::AddressSet;
use super::rule::{Rule, Target};
use super::service::{ALL_PORTS, Service};
use crate::ident::{CGNAT_V4, CHROMEOS_V4, ULA_V6};
use crate::wire::control::{CapGrant, FilterRule, NetPortRange, PortRange};

/// The mesh's address ranges: what `*` means as a source, together with the approved routes.
pub(super) static MESH: LazyLock<Vec<(IpAddr, IpAddr)>> = LazyLock::new(|| {
    let before = u32::from(CHROMEOS_V4.network()) - 1;
    let after = u32::from(CHROMEOS_V4.broadcast()) + 1;
    vec![
        (CGNAT_V4.network().into(), Ipv4Addr::from(before).into()),
        (Ipv4Addr::from(after).into(), CGNAT_V4.broadcast().into()),
        (ULA_V6.network().into(), ULA_V6.broadcast().into()),
    ]
});

/// What is not the internet, of the ranges below: private, link-local and mesh addresses (RFC 1918, 3927, 6598).
const NOT_INTERNET: [Ipv4Net; 5] = [
    Ipv4Net::new_assert(Ipv4Addr::new(10, 0, 0, 0), 8),
    CGNAT_V4,
    Ipv4Net::new_assert(Ipv4Addr::new(169, 254, 0, 0), 16),
    Ipv4Net::new_assert(Ipv4Addr::new(172, 16, 0, 0), 12),
    Ipv4Net::new_assert(Ipv4Addr::new(192, 168, 0, 0), 16),
];
/// 2000::/3, all global unicast addresses of IPv6.
const GLOBAL_V6: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 0), 3);

/// `autogroup:internet`.
pub(super) static INTERNET: LazyLock<AddressSet> = LazyLock::new(|| {
    let mut ranges = vec![(IpAddr::V6(GLOBAL_V6.network()), IpAddr::V6(GLOBAL_V6.broadcast()))];
    let mut first = 0;
    for net in NOT_INTERNET {
        ranges.push((Ipv4Addr::from(first).into(), Ipv4Addr::from(u32::from(net.network()) - 1).into()));
        first = u32::from(net.broadcast()) + 1;
    }
    ranges.push((Ipv4Addr::from(first).into(), Ipv4Addr::BROADCAST.into()));
    AddressSet::of(ranges)
});

/// The filter that accepts everything.
pub(super) fn everything() -> Arc<[FilterRule]> {
    let rule = FilterRule {
        src_ips: vec!["*".to_owned()],
        dst_ports: vec![NetPortRange { ip: "*".to_owned(), ports: ALL_PORTS }],
        ..FilterRule::default()
    };
    Arc::from([rule])
}

/// Addresses in filter notation.
type Texts = Arc<[String]>;

/// Rules with the same sources, whose addresses are written out once.
#[derive(Debug)]
pub(super) struct SourceLists {
    lists: Vec<SourceList>,
    /// The list of each rule.
    of: Vec<usize>,
    /// Of a list, what belongs to one owner.
    own: Mutex<HashMap<(usize, Arc<str>), Texts>>,
}

#[derive(Debug)]
struct SourceList {
    sources: Vec<Alias>,
    /// One of its rules.
    rule: usize,
    texts: OnceLock<Texts>,
}

impl SourceLists {
    pub(super) fn new(rules: &[Rule]) -> Self {
        let mut known: HashMap<Vec<Alias>, usize> = HashMap::new();
        let mut lists: Vec<SourceList> = Vec::new();
        let mut of = Vec::with_capacity(rules.len());
        for (n, rule) in rules.iter().enumerate() {
            let list = *known.entry(rule.sources.clone()).or_insert_with(|| {
                lists.push(SourceList { sources: rule.sources.clone(), rule: n, texts: OnceLock::new() });
                lists.len() - 1
            });
            of.push(list);
        }
        Self { lists, of, own: Mutex::default() }
    }

    /// The sources of these rules are to be written out again.
    pub(super) fn forget(&mut self, rules: &Bits) {
        for n in rules.iter() {
            if let Some(list) = self.of.get(n).and_then(|list| self.lists.get_mut(*list)) {
                list.texts.take();
            }
        }
    }

    /// What belongs to these owners is to be written out again.
    pub(super) fn forget_own(&mut self, owners: &BTreeSet<Arc<str>>) {
        self.own.get_mut().unwrap_or_else(PoisonError::into_inner).retain(|(_, owner), _| !owners.contains(owner));
    }
}

/// Who a part of a filter is for, as the key by which parts are put together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Sources {
    /// All of a list of sources.
    All(usize),
    /// Those of its sources that belong to the node's owner.
    Own(usize),
}

/// Destinations with first and last port, by sources and protocol.
type Traffic = BTreeMap<(Sources, Option<u8>), BTreeSet<(String, u16, u16)>>;

impl Compiled {
    /// Writes out what a node accepts.
    pub(super) fn build_filter(&self, member: &Member) -> Arc<[FilterRule]> {
        let mut traffic = Traffic::new();
        let mut caps: Vec<(Sources, CapGrant)> = Vec::new();
        let numbered = |n: usize| self.policy.rules.get(n).zip(self.source_lists.of.get(n).copied());
        for (rule, list) in member.target.iter().filter_map(numbered) {
            self.add_targets(member, rule, Sources::All(list), &mut traffic, &mut caps);
        }
        if member.owner.is_some() {
            for (rule, list) in self.own_nodes.iter().filter_map(numbered) {
                add_own(member, rule, Sources::Own(list), &mut traffic, &mut caps);
            }
        }
        let mut rules = Vec::new();
        for ((sources, protocol), destinations) in traffic {
            let src_ips = self.source_texts(member, sources);
            if !src_ips.is_empty() {
                let entry = |(ip, first, last)| NetPortRange { ip, ports: PortRange { first, last } };
                let dst_ports = destinations.into_iter().map(entry).collect();
                let ip_proto = protocol.map(i32::from).into_iter().collect();
                rules.push(FilterRule { src_ips: src_ips.to_vec(), dst_ports, ip_proto, cap_grant: Vec::new() });
            }
        }
        for (sources, grant) in caps {
            let src_ips = self.source_texts(member, sources);
            if !src_ips.is_empty() {
                rules.push(FilterRule { src_ips: src_ips.to_vec(), cap_grant: vec![grant], ..FilterRule::default() });
            }
        }
        rules.into()
    }

    fn add_targets(&self, member: &Member, rule: &Rule, sources: Sources, traffic: &mut Traffic, caps: &mut Vec<(Sources, CapGrant)>) {
        let mut granted = Vec::new();
        for target in rule.targets.iter().filter(|target| target.alias != Alias::OwnNodes) {
            let (texts, nets) = self.reached(member, rule, &target.alias);
            for text in texts {
                add_services(sources, &text, target, traffic);
            }
            granted.extend(nets);
        }
        add_caps(rule, sources, granted, caps);
    }

    /// What of a destination is on or behind this node: in filter notation, and as networks for capabilities.
    fn reached(&self, member: &Member, rule: &Rule, alias: &Alias) -> (Vec<String>, Vec<IpNet>) {
        let subject = &member.subject;
        // Of two networks that overlap one contains the other.
        let behind = |net: &IpNet| member.routes.iter().any(|route| net.contains(&route.net) || route.net.contains(net));
        if !rule.via.is_empty() {
            // With `via` only what lies behind the node counts, and capabilities have nothing to stand on.
            return match alias {
                Alias::Net(net) if behind(net) => (vec![text(net)], Vec::new()),
                Alias::Internet if subject.exit => (INTERNET.texts(), Vec::new()),
                _ => (Vec::new(), Vec::new()),
            };
        }
        match alias {
            Alias::Any => (vec!["*".to_owned()], own_nets(member)),
            Alias::Internet if subject.exit => (INTERNET.texts(), Vec::new()),
            Alias::Net(net) => {
                let mut nets: Vec<IpNet> =
                    [IpAddr::V4(subject.v4), IpAddr::V6(subject.v6)].into_iter().filter(|own| net.contains(own)).map(IpNet::from).collect();
                let on_or_behind = !nets.is_empty() || behind(net);
                if behind(net) {
                    nets.push(*net);
                }
                (if on_or_behind { vec![text(net)] } else { Vec::new() }, nets)
            }
            alias if self.policy.names.is(alias, member.owner.as_deref(), &subject.tags) => (own_texts(member).to_vec(), own_nets(member)),
            _ => (Vec::new(), Vec::new()),
        }
    }

    fn source_texts(&self, member: &Member, sources: Sources) -> Texts {
        match sources {
            Sources::All(n) => match self.source_lists.lists.get(n) {
                Some(list) => list.texts.get_or_init(|| self.list_texts(list)).clone(),
                None => Arc::from([]),
            },
            Sources::Own(n) => self.own_source_texts(member, n),
        }
    }

    fn list_texts(&self, list: &SourceList) -> Texts {
        if list.sources.contains(&Alias::DangerAll) {
            return Arc::from(["*".to_owned()]);
        }
        let mut ranges: Vec<(IpAddr, IpAddr)> = Vec::new();
        let nets = list.sources.iter().filter_map(|alias| if let Alias::Net(net) = alias { Some(net) } else { None });
        ranges.extend(nets.map(|net| (net.network(), net.broadcast())));
        if list.sources.contains(&Alias::Any) {
            ranges.extend(MESH.iter());
            ranges.extend(self.routers.keys().map(|net| (net.network(), net.broadcast())));
        }
        let members = self.members.values().filter(|member| member.named_source.contains(list.rule));
        ranges.extend(members.flat_map(own_ranges));
        AddressSet::of(ranges).texts().into()
    }

    fn own_source_texts(&self, member: &Member, list: usize) -> Texts {
        let (Some(owner), Some(rule)) = (&member.owner, self.source_lists.lists.get(list).map(|list| list.rule)) else {
            return Arc::from([]);
        };
        let mut own = self.source_lists.own.lock().unwrap_or_else(PoisonError::into_inner);
        let written = own.entry((list, owner.clone())).or_insert_with(|| {
            let owned = self.owned.get(owner).into_iter().flatten().filter_map(|id| self.members.get(id));
            AddressSet::of(owned.filter(|member| member.own_source.contains(rule)).flat_map(own_ranges)).texts().into()
        });
        written.clone()
    }
}

fn add_own(member: &Member, rule: &Rule, sources: Sources, traffic: &mut Traffic, caps: &mut Vec<(Sources, CapGrant)>) {
    for target in rule.targets.iter().filter(|target| target.alias == Alias::OwnNodes) {
        for text in own_texts(member) {
            add_services(sources, &text, target, traffic);
        }
    }
    add_caps(rule, sources, own_nets(member), caps);
}

fn add_services(sources: Sources, ip: &str, target: &Target, traffic: &mut Traffic) {
    for Service { protocol, ports } in target.services.iter() {
        traffic.entry((sources, *protocol)).or_default().insert((ip.to_owned(), ports.first, ports.last));
    }
}

fn add_caps(rule: &Rule, sources: Sources, mut nets: Vec<IpNet>, caps: &mut Vec<(Sources, CapGrant)>) {
    nets.sort();
    nets.dedup();
    if let Some(given) = rule.caps.as_ref().filter(|_| !nets.is_empty()) {
        let dsts = nets.iter().map(ToString::to_string).collect();
        caps.push((sources, CapGrant { dsts, caps: Vec::new(), cap_map: given.as_ref().clone() }));
    }
}

fn own_texts(member: &Member) -> [String; 2] {
    [member.subject.v4.to_string(), member.subject.v6.to_string()]
}

fn own_nets(member: &Member) -> Vec<IpNet> {
    vec![IpNet::from(IpAddr::V4(member.subject.v4)), IpNet::from(IpAddr::V6(member.subject.v6))]
}

fn own_ranges(member: &Member) -> [(IpAddr, IpAddr); 2] {
    [IpAddr::V4(member.subject.v4), IpAddr::V6(member.subject.v6)].map(|address| (address, address))
}

/// A network in filter notation: single addresses without a length.
fn text(net: &IpNet) -> String {
    if net.prefix_len() == net.max_prefix_len() { net.addr().to_string() } else { net.to_string() }
}
