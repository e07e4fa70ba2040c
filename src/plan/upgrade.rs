//! In which order guests get a new program, and when the next one may.
//!
//! **Coordinators first.** The protocol is made so that a newer coordinator serves older nodes (clients say which version they speak, and ours serves
//! stock ones years old), while nothing promises the opposite. It is safe, too: nodes go on with the map they have while a coordinator is away, so
//! a coordinator that does not come up costs no traffic, is rolled back, and ends the run before any node was touched. Relays next, for nodes have
//! others or go directly. Then nodes that nothing depends on, then those that carry others' traffic, one at a time, and last of all the one by which
//! this very command reaches the host: if it fails there, everything else is done.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::ident::{NodeName, Vmid};

/// A guest that may get a new program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Its number.
    pub vmid: Vmid,
    /// Its name.
    pub name: NodeName,
    /// Its role's name, without what enrolled ones begin with.
    pub role: String,
}

/// A guest's turn.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Turn {
    /// Its number.
    pub vmid: Vmid,
    /// Its name.
    pub name: NodeName,
    /// Why now.
    pub why: &'static str,
}

/// Puts guests in order. `ways_in` are the nodes by which this machine reaches Proxmox hosts, as far as it does so through the mesh.
pub fn order(candidates: &[Candidate], ways_in: &[NodeName]) -> Vec<Turn> {
    let rank = |candidate: &Candidate| match candidate.role.as_str() {
        _ if ways_in.contains(&candidate.name) => (4, "the way in from here: last"),
        "coordinator" => (0, "a newer coordinator serves older nodes, not the other way round"),
        "relay" => (1, "nodes have direct ways and other relays"),
        "node" => (2, "it carries nobody's traffic"),
        _ => (3, "it carries others' traffic: one at a time"),
    };
    let mut turns: Vec<(u8, Turn)> = candidates
        .iter()
        .map(|candidate| {
            let (rank, why) = rank(candidate);
            (rank, Turn { vmid: candidate.vmid, name: candidate.name.clone(), why })
        })
        .collect();
    turns.sort_by_key(|(rank, turn)| (*rank, turn.vmid));
    turns.into_iter().map(|(_, turn)| turn).collect()
}

/// A router as its coordinator shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Router {
    /// Its name.
    pub name: NodeName,
    /// Connected.
    pub online: bool,
    /// What it offers and may carry.
    pub routes: Vec<IpNet>,
}

/// Which networks of a router nobody else can carry while it restarts: those that no other router offers (a gap that cannot be helped), and those of
/// routers that are away just now (worth waiting for).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Gaps {
    /// No other router offers them.
    pub alone: Vec<IpNet>,
    /// Another one offers them and is away.
    pub waiting: Vec<IpNet>,
}

/// What would be without a carrier if `name` went now.
pub fn gaps(name: &NodeName, routers: &[Router]) -> Gaps {
    let mut gaps = Gaps::default();
    let Some(own) = routers.iter().find(|router| router.name == *name) else { return gaps };
    for route in &own.routes {
        let mut others = routers.iter().filter(|other| other.name != *name && other.routes.contains(route)).peekable();
        if others.peek().is_none() {
            gaps.alone.push(*route);
        } else if !others.any(|other| other.online) {
            gaps.waiting.push(*route);
        }
    }
    gaps
}

/// The node by which this machine reaches `target`: that of the longest network, as routing goes. `peers` are the networks led to each.
pub fn way_in<'a>(target: IpAddr, peers: impl IntoIterator<Item = (&'a str, &'a [IpNet])>) -> Option<&'a str> {
    let longest = |nets: &[IpNet]| nets.iter().filter(|net| net.contains(&target)).map(IpNet::prefix_len).max();
    peers.into_iter().filter_map(|(name, nets)| Some((longest(nets)?, name))).max().map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> NodeName {
        text.parse().unwrap()
    }

    fn nets(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn coordinators_go_first_and_the_way_in_last() {
        let candidate =
            |vmid: u32, role: &str| Candidate { vmid: vmid.try_into().unwrap(), name: name(&format!("n{vmid}")), role: role.to_owned() };
        let all = [
            candidate(106, "subnet-router"),
            candidate(101, "exit-node"),
            candidate(102, "node"),
            candidate(103, "subnet-router"),
            candidate(104, "relay"),
            candidate(100, "coordinator"),
        ];
        let order_of = |ways_in: &[NodeName]| order(&all, ways_in).iter().map(|turn| u32::from(turn.vmid)).collect::<Vec<_>>();
        assert_eq!(order_of(&[]), [100, 104, 102, 101, 103, 106]);
        assert_eq!(order_of(&[name("n101")]), [100, 104, 102, 103, 106, 101]);
        // Even a coordinator, if it is the way in.
        assert_eq!(order_of(&[name("n100")]).last(), Some(&100));
        // One for the API, another for ssh.
        assert_eq!(order_of(&[name("n103"), name("n101")]), [100, 104, 102, 106, 101, 103]);
    }

    #[test]
    fn a_router_goes_only_while_another_carries_its_networks() {
        let router = |text: &str, online, routes: &[&str]| Router { name: name(text), online, routes: nets(routes) };
        let pair = |online| [router("a", true, &["10.1.0.0/16", "10.2.0.0/16"]), router("b", online, &["10.1.0.0/16"])];
        assert_eq!(gaps(&name("a"), &pair(true)), Gaps { alone: nets(&["10.2.0.0/16"]), waiting: Vec::new() });
        assert_eq!(gaps(&name("a"), &pair(false)), Gaps { alone: nets(&["10.2.0.0/16"]), waiting: nets(&["10.1.0.0/16"]) });
        assert_eq!(gaps(&name("b"), &pair(false)), Gaps::default());
        assert_eq!(gaps(&name("c"), &pair(false)), Gaps::default());
    }

    #[test]
    fn the_way_in_is_the_node_of_the_longest_network() {
        let (exit, lan) = (nets(&["0.0.0.0/0", "100.64.0.1/32"]), nets(&["192.168.1.0/24"]));
        let peers = || [("exit", exit.as_slice()), ("router", lan.as_slice())];
        assert_eq!(way_in("192.168.1.5".parse().unwrap(), peers()), Some("router"));
        assert_eq!(way_in("203.0.113.1".parse().unwrap(), peers()), Some("exit"));
        assert_eq!(way_in("fd00::1".parse().unwrap(), peers()), None);
    }
}
