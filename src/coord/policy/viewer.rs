//! What a node is shown of the others: which of them, and which of their routes.

use std::sync::Arc;

use ipnet::IpNet;

use super::bits::Bits;
use super::compiled::Compiled;
use super::member::{Member, RouteBits};
use crate::ident::NodeId;

/// What of a node decides which nodes, and which of their routes, it is shown. Nodes of one class are shown the same, each without itself.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Class {
    source: Bits,
    own_source: Bits,
    target: Bits,
    /// Only where rules about one's own nodes make it count.
    owner: Option<Arc<str>>,
}

/// The same, borrowed from a class or a node.
#[derive(Debug, Clone, Copy)]
pub(super) struct Eye<'a> {
    pub source: &'a Bits,
    pub own_source: &'a Bits,
    pub target: &'a Bits,
    pub owner: Option<&'a Arc<str>>,
}

impl Class {
    pub(super) fn eye(&self) -> Eye<'_> {
        Eye { source: &self.source, own_source: &self.own_source, target: &self.target, owner: self.owner.as_ref() }
    }
}

impl Member {
    pub(super) fn eye(&self) -> Eye<'_> {
        Eye { source: &self.source, own_source: &self.own_source, target: &self.target, owner: self.owner.as_ref() }
    }
}

impl Compiled {
    /// Whether two nodes may be in contact, in either direction.
    pub(super) fn meet(&self, a: Eye<'_>, b: &Member) -> bool {
        if a.source.meets(&b.target) || b.source.meets(a.target) {
            return true;
        }
        let own = a.owner.is_some() && a.owner == b.owner.as_ref();
        own && (a.own_source.meets(&self.own_nodes) || b.own_source.meets(&self.own_nodes))
    }

    /// Whether `peer` is shown to `viewer`. Symmetric; a node does not see itself; unknown nodes are not seen.
    pub fn sees(&self, viewer: NodeId, peer: NodeId) -> bool {
        if viewer == peer {
            return false;
        }
        match (self.members.get(&viewer), self.members.get(&peer)) {
            (Some(a), Some(b)) => self.policy.open || self.meet(a.eye(), b),
            _ => false,
        }
    }

    /// The class of viewers that a node belongs to; `None` if it is not known.
    pub fn class(&self, id: NodeId) -> Option<Class> {
        let member = self.members.get(&id)?;
        if self.policy.open {
            let none = || Bits::new(0);
            return Some(Class { source: none(), own_source: none(), target: none(), owner: None });
        }
        let owner = member.owner.clone().filter(|_| !self.own_nodes.is_empty());
        let (source, own_source, target) = (member.source.clone(), member.own_source.clone(), member.target.clone());
        Some(Class { source, own_source, target, owner })
    }

    /// Whether a node is shown to a class of viewers; a viewer leaves itself out.
    pub fn shows(&self, class: &Class, peer: NodeId) -> bool {
        self.members.get(&peer).is_some_and(|peer| self.policy.open || self.meet(class.eye(), peer))
    }

    /// Which routes of `router` are told to `viewer`, beside the router's own addresses: subnet routes, and the exit pair.
    ///
    /// A prefix is told for one router at most: the one that `carrier` names, or, where rules with `via` choose for this viewer, that one if
    /// it is among the chosen and else the chosen one with the lowest number that is `online`. Routes of a node that the viewer does not see
    /// are not told; the caller need not ask for them.
    pub fn routes_for(
        &self,
        viewer: NodeId,
        router: NodeId,
        carrier: impl Fn(&IpNet) -> Option<NodeId>,
        online: impl Fn(NodeId) -> bool,
    ) -> Vec<IpNet> {
        self.members.get(&viewer).map(|from| self.routes_seen(from.eye(), router, carrier, online)).unwrap_or_default()
    }

    /// The same for a class of viewers.
    pub fn routes_shown(
        &self,
        class: &Class,
        router: NodeId,
        carrier: impl Fn(&IpNet) -> Option<NodeId>,
        online: impl Fn(NodeId) -> bool,
    ) -> Vec<IpNet> {
        self.routes_seen(class.eye(), router, carrier, online)
    }

    fn routes_seen(
        &self,
        from: Eye<'_>,
        router: NodeId,
        carrier: impl Fn(&IpNet) -> Option<NodeId>,
        online: impl Fn(NodeId) -> bool,
    ) -> Vec<IpNet> {
        let Some(to) = self.members.get(&router) else { return Vec::new() };
        let carried = |route: &RouteBits| {
            let carrier = carrier(&route.net);
            if self.policy.open || self.plainly(from, route) {
                return carrier == Some(router);
            }
            let chosen = |id: &NodeId| self.members.get(id).is_some_and(|member| self.steers(from, member, &route.net));
            if !chosen(&router) {
                return false;
            }
            let routers = || self.routers.get(&route.net).into_iter().flatten().copied().filter(|id| online(*id) && chosen(id));
            let first = carrier.filter(|id| routers().any(|other| other == *id)).or_else(|| routers().next());
            first == Some(router)
        };
        let mut nets: Vec<IpNet> = to.routes.iter().filter(|route| carried(route)).map(|route| route.net).collect();
        if to.subject.exit && (self.policy.open || from.own_source.meets(&to.exit)) {
            nets.extend([IpNet::V4(ipnet::Ipv4Net::default()), IpNet::V6(ipnet::Ipv6Net::default())]);
        }
        nets
    }

    /// Whether rules choose among several routers of a prefix (`via`).
    pub fn steers_routes(&self) -> bool {
        !self.via.is_empty()
    }

    /// Whether a rule without `via` links a viewer and a route, in either direction.
    fn plainly(&self, viewer: Eye<'_>, route: &RouteBits) -> bool {
        viewer.source.meets_without(&route.targets, &self.via) || viewer.target.meets(&route.sources)
    }

    /// Whether a rule with `via` leads a viewer through a router to a prefix.
    fn steers(&self, viewer: Eye<'_>, router: &Member, net: &IpNet) -> bool {
        let route = router.routes.iter().find(|route| route.net == *net);
        route.is_some_and(|route| viewer.source.meets(&route.targets))
    }
}
