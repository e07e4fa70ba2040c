//! The rules, made ready for looking up: however many there are, a packet costs a few hash lookups and a binary search.
//!
//! Each rule becomes a map from destination prefixes to protocols and ports. A source prefix leads to the rules that name it; where that
//! is more than a few, they are merged into one map, which all sources named by the same rules share.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use ipnet::IpNet;

use super::FilterConfig;
use super::networks::networks;
use super::packet::{ICMP, ICMPV6, Packet, TCP, UDP};
use crate::ident::PrefixMap;
use crate::wire::control::FilterRule;

/// What a rule without protocols means.
const USUAL: [u8; 4] = [TCP, UDP, ICMP, ICMPV6];
/// So many rules for one source are looked at one by one.
const FEW: usize = 4;
/// How much merging may take, in entries of a destination in a rule. What goes beyond (no policy that anyone would write) is looked at rule by
/// rule.
const MERGE_BUDGET: usize = 1 << 20;

/// Ports, sorted and apart.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Ports(Vec<(u16, u16)>);

impl Ports {
    fn add(&mut self, first: u16, last: u16) {
        if first <= last {
            self.0.push((first, last));
        }
    }

    fn settle(&mut self) {
        self.0.sort_unstable();
        self.0.dedup_by(|next, kept| {
            let touches = u32::from(next.0) <= u32::from(kept.1) + 1;
            if touches {
                kept.1 = kept.1.max(next.1);
            }
            touches
        });
    }

    fn contains(&self, port: u16) -> bool {
        let after = self.0.partition_point(|(first, _)| *first <= port);
        after.checked_sub(1).and_then(|at| self.0.get(at)).is_some_and(|(_, last)| port <= *last)
    }

    fn is_all(&self) -> bool {
        self.0 == [(0, u16::MAX)]
    }
}

/// Protocols and their ports at one destination.
#[derive(Debug, Clone, Default)]
struct Services(BTreeMap<u8, Ports>);

/// What may be reached.
#[derive(Debug, Clone, Default)]
struct Destinations(PrefixMap<Services>);

impl Destinations {
    fn add(&mut self, rule: &Rule) {
        for (net, first, last) in &rule.destinations {
            self.0.update(*net, |services| {
                for protocol in &rule.protocols {
                    services.0.entry(*protocol).or_default().add(*first, *last);
                }
            });
        }
    }

    fn settle(&mut self) {
        self.0.for_each(|services| services.0.values_mut().for_each(Ports::settle));
    }

    fn ports(&self, destination: IpAddr, protocol: u8) -> impl Iterator<Item = &Ports> {
        self.0.covering(destination).filter_map(move |services| services.0.get(&protocol))
    }
}

/// A rule that reads.
#[derive(Debug)]
struct Rule {
    sources: Vec<IpNet>,
    destinations: Vec<(IpNet, u16, u16)>,
    protocols: Vec<u8>,
}

impl Rule {
    fn read(rule: &FilterRule, config: &FilterConfig, unread: &mut usize) -> Self {
        let mut sources = Vec::new();
        for text in &rule.src_ips {
            if let Some(capability) = text.strip_prefix("cap:") {
                sources.extend(config.capable.get(capability).into_iter().flatten().map(|address| IpNet::from(*address)));
            } else {
                networks(text).map_or_else(|| *unread += 1, |nets| sources.extend(nets));
            }
        }
        let mut destinations = Vec::new();
        for to in &rule.dst_ports {
            let add = |nets: Vec<IpNet>| destinations.extend(nets.into_iter().map(|net| (net, to.ports.first, to.ports.last)));
            networks(&to.ip).map_or_else(|| *unread += 1, add);
        }
        let protocols = if rule.ip_proto.is_empty() {
            USUAL.to_vec()
        } else {
            rule.ip_proto.iter().filter_map(|number| u8::try_from(*number).ok()).collect()
        };
        Self { sources, destinations, protocols }
    }

    fn allows_everything(&self) -> bool {
        let all = |nets: &mut dyn Iterator<Item = IpNet>| {
            let whole: Vec<IpNet> = nets.filter(|net| net.prefix_len() == 0).collect();
            whole.iter().any(|net| net.addr().is_ipv4()) && whole.iter().any(|net| net.addr().is_ipv6())
        };
        all(&mut self.sources.iter().copied())
            && all(&mut self.destinations.iter().filter(|(_, first, last)| (*first, *last) == (0, u16::MAX)).map(|(net, ..)| *net))
            && self.protocols.contains(&UDP)
    }
}

/// All rules.
#[derive(Debug, Default)]
pub(super) struct Rules {
    /// For each source prefix: which maps, by their place in `maps`.
    sources: PrefixMap<Vec<u32>>,
    maps: Vec<Destinations>,
    allow_everything: bool,
    unread: usize,
}

impl Rules {
    pub(super) fn new(config: &FilterConfig) -> Self {
        let mut unread = 0;
        let rules: Vec<Rule> =
            config.rules.iter().filter(|rule| !rule.dst_ports.is_empty()).map(|rule| Rule::read(rule, config, &mut unread)).collect();
        let mut named: BTreeMap<IpNet, Vec<u32>> = BTreeMap::new();
        for (number, rule) in (0..).zip(&rules) {
            for source in &rule.sources {
                let list = named.entry(*source).or_default();
                if list.last() != Some(&number) {
                    list.push(number);
                }
            }
        }
        let mut maps: Vec<Destinations> = Vec::with_capacity(rules.len());
        for rule in &rules {
            let mut map = Destinations::default();
            map.add(rule);
            map.settle();
            maps.push(map);
        }
        let allow_everything = rules.iter().any(Rule::allows_everything);
        let mut merged = Merged { rules: &rules, maps, known: HashMap::new(), budget: MERGE_BUDGET };
        let mut sources = PrefixMap::default();
        for (net, list) in named {
            sources.insert(net, merged.merge(list));
        }
        Self { sources, maps: merged.maps, allow_everything, unread }
    }

    pub(super) fn unread(&self) -> usize {
        self.unread
    }

    /// Whether any node may send anything (of the usual protocols) anywhere.
    pub(super) fn allow_everything(&self) -> bool {
        self.allow_everything
    }

    fn maps(&self, packet: &Packet) -> impl Iterator<Item = &Destinations> {
        self.sources.covering(packet.source).flatten().filter_map(|number| self.maps.get(*number as usize))
    }

    /// Whether a rule allows the packet's source to reach this port of its destination.
    pub(super) fn allow(&self, packet: &Packet, protocol: u8, port: u16) -> bool {
        self.maps(packet).any(|map| map.ports(packet.destination, protocol).any(|ports| ports.contains(port)))
    }

    /// Whether a rule allows anything between the packet's source and destination.
    pub(super) fn allow_any(&self, packet: &Packet) -> bool {
        self.maps(packet).any(|map| map.0.find(packet.destination).is_some())
    }

    /// Whether a rule names the protocol, with all ports.
    pub(super) fn allow_all_ports(&self, packet: &Packet, protocol: u8) -> bool {
        self.maps(packet).any(|map| map.ports(packet.destination, protocol).any(Ports::is_all))
    }
}

/// The making of merged maps.
struct Merged<'a> {
    rules: &'a [Rule],
    maps: Vec<Destinations>,
    known: HashMap<Vec<u32>, u32>,
    budget: usize,
}

impl Merged<'_> {
    /// The maps that stand for these rules.
    fn merge(&mut self, list: Vec<u32>) -> Vec<u32> {
        if list.len() <= FEW {
            return list;
        }
        let rules = || list.iter().filter_map(|number| self.rules.get(*number as usize));
        let cost: usize = rules().map(|rule| rule.destinations.len() * rule.protocols.len()).sum();
        let merged = match self.known.entry(list.clone()) {
            Entry::Occupied(known) => *known.get(),
            Entry::Vacant(place) => {
                let (Some(left), Ok(number)) = (self.budget.checked_sub(cost), u32::try_from(self.maps.len())) else { return list };
                self.budget = left;
                let mut map = Destinations::default();
                rules().for_each(|rule| map.add(rule));
                map.settle();
                self.maps.push(map);
                *place.insert(number)
            }
        };
        vec![merged]
    }
}
