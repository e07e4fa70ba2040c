//! Which router carries a prefix: at most one per prefix at any time, because WireGuard gives a prefix to one peer only.
//!
//! Exit routes (both `/0`) are not elected: a client chooses its exit node itself.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::ident::NodeId;

/// Most routes one node may advertise; more are ignored.
pub(super) const MAX_ROUTES: usize = 256;

/// Whether a prefix is one of the two that make an exit node.
pub fn is_exit(net: &IpNet) -> bool {
    net.prefix_len() == 0
}

/// Routes as advertised: host bits cleared (clients drop entries that have some), no duplicates, no more than [`MAX_ROUTES`].
pub(super) fn advertised(routes: &[IpNet]) -> BTreeSet<IpNet> {
    routes.iter().map(IpNet::trunc).take(MAX_ROUTES).collect()
}

/// Routes as approved: like advertised ones, and one half of the exit pair is completed by the other.
pub fn approval(routes: impl IntoIterator<Item = IpNet>) -> BTreeSet<IpNet> {
    let mut set: BTreeSet<IpNet> = routes.into_iter().map(|net| net.trunc()).collect();
    if set.iter().any(is_exit) {
        set.insert(IpNet::V4(Ipv4Net::default()));
        set.insert(IpNet::V6(Ipv6Net::default()));
    }
    set
}

/// Who carries each prefix.
#[derive(Debug, Default)]
pub(super) struct Primaries {
    carriers: BTreeMap<IpNet, NodeId>,
    /// Carriers of a prefix that another router would take over at once.
    replaceable: BTreeSet<NodeId>,
}

impl Primaries {
    /// Elects again. `candidates` are routers with their effective routes, by ascending number, and whether each is online.
    ///
    /// A carrier stays while it is online; else the lowest number online takes over; with nobody online a carrier stays as long as it is
    /// a candidate; a prefix without any has no carrier. Returns the nodes whose share changed.
    pub(super) fn elect(&mut self, candidates: impl IntoIterator<Item = (NodeId, IpNet, bool)>) -> BTreeSet<NodeId> {
        // The best so far of each prefix, with its claim: the greatest wins, and of equal ones the first.
        let mut elected: BTreeMap<IpNet, (NodeId, (bool, bool))> = BTreeMap::new();
        let mut online_routers: BTreeMap<IpNet, BTreeSet<NodeId>> = BTreeMap::new();
        for (node, net, online) in candidates {
            let current = self.carriers.get(&net) == Some(&node);
            if is_exit(&net) || !(online || current) {
                continue;
            }
            if online {
                online_routers.entry(net).or_default().insert(node);
            }
            let best = elected.entry(net).or_insert((node, (online, current)));
            if (online, current) > best.1 {
                *best = (node, (online, current));
            }
        }
        let elected: BTreeMap<IpNet, NodeId> = elected.into_iter().map(|(net, (node, _))| (net, node)).collect();
        let has_another =
            |net: &IpNet, node: NodeId| online_routers.get(net).is_some_and(|routers| routers.iter().any(|router| *router != node));
        self.replaceable = elected.iter().filter(|(net, node)| has_another(net, **node)).map(|(_, node)| *node).collect();
        let before = std::mem::replace(&mut self.carriers, elected);
        let lost = before.iter().filter(|(net, node)| self.carriers.get(*net) != Some(node)).map(|(_, node)| *node);
        let won = self.carriers.iter().filter(|(net, node)| before.get(*net) != Some(node)).map(|(_, node)| *node);
        lost.chain(won).collect()
    }

    /// The carriers of a prefix that another router would take over at once.
    pub(super) fn replaceable(&self) -> &BTreeSet<NodeId> {
        &self.replaceable
    }

    /// Who carries a prefix.
    pub(super) fn carrier(&self, net: &IpNet) -> Option<NodeId> {
        self.carriers.get(net).copied()
    }

    /// The prefixes a node carries.
    pub(super) fn of(&self, node: NodeId) -> impl Iterator<Item = IpNet> + '_ {
        self.carriers.iter().filter(move |(_, carrier)| **carrier == node).map(|(net, _)| *net)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    #[test]
    fn the_lowest_number_is_elected_and_the_carrier_of_now_stays() {
        let lan = net("192.168.1.0/24");
        let mut primaries = Primaries::default();
        let here = |numbers: &[i64]| numbers.iter().map(|n| (NodeId(*n), lan, true)).collect::<Vec<_>>();
        assert_eq!(primaries.elect(here(&[3])), [NodeId(3)].into());
        assert!(primaries.elect(here(&[2, 3])).is_empty());
        assert!(primaries.elect(here(&[2, 3, 5])).is_empty());
        assert_eq!(primaries.elect(here(&[2, 5])), [NodeId(2), NodeId(3)].into());
        assert_eq!(primaries.of(NodeId(2)).collect::<Vec<_>>(), [lan]);
        assert_eq!(primaries.elect([]), [NodeId(2)].into());
    }

    #[test]
    fn an_absent_carrier_gives_way_to_one_that_is_here_and_to_nobody_else() {
        let lan = net("192.168.1.0/24");
        let mut primaries = Primaries::default();
        primaries.elect([(NodeId(2), lan, true)]);
        assert!(primaries.elect([(NodeId(1), lan, false), (NodeId(2), lan, false)]).is_empty());
        assert_eq!(primaries.elect([(NodeId(2), lan, false), (NodeId(3), lan, true)]), [NodeId(2), NodeId(3)].into());
        assert!(primaries.elect([(NodeId(2), lan, false), (NodeId(3), lan, false)]).is_empty());
    }

    #[test]
    fn a_carrier_is_replaceable_while_another_router_of_its_prefix_is_online() {
        let (lan, other) = (net("192.168.1.0/24"), net("10.0.0.0/8"));
        let mut primaries = Primaries::default();
        primaries.elect([(NodeId(1), lan, true), (NodeId(2), lan, true), (NodeId(3), other, true)]);
        assert_eq!(*primaries.replaceable(), [NodeId(1)].into());
        primaries.elect([(NodeId(1), lan, true), (NodeId(2), lan, false), (NodeId(3), other, true)]);
        assert!(primaries.replaceable().is_empty());
    }

    #[test]
    fn prefixes_of_different_length_are_independent_and_exit_routes_are_not_elected() {
        let mut primaries = Primaries::default();
        let changed = primaries.elect([
            (NodeId(1), net("10.0.0.0/8"), true),
            (NodeId(2), net("10.1.0.0/16"), true),
            (NodeId(2), net("0.0.0.0/0"), true),
        ]);
        assert_eq!(changed, [NodeId(1), NodeId(2)].into());
        assert_eq!(primaries.of(NodeId(2)).collect::<Vec<_>>(), [net("10.1.0.0/16")]);
    }

    #[test]
    fn approving_one_exit_route_means_both() {
        assert_eq!(approval([net("::/0")]), [net("0.0.0.0/0"), net("::/0")].into());
        assert_eq!(advertised(&[net("::/0")]), [net("::/0")].into());
    }

    #[test]
    fn trap_24_host_bits_of_a_route_are_cleared() {
        assert_eq!(advertised(&[net("10.1.2.3/16")]), [net("10.1.0.0/16")].into());
        assert_eq!(approval([net("10.1.2.3/16")]), [net("10.1.0.0/16")].into());
    }
}
