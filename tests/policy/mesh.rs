//! Nodes for the tests of this program.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use pvemesh::coord::policy::{Compiled, Policy, Subject};
use pvemesh::ident::NodeId;

/// A node without tags and routes; its number is also its address's.
pub fn node(id: i64, login: &str) -> Subject {
    let n = u32::try_from(id).unwrap();
    Subject {
        id: NodeId(id),
        login: login.to_owned(),
        tags: Vec::new(),
        v4: Ipv4Addr::from(u32::from(Ipv4Addr::new(100, 64, 0, 0)) + n),
        v6: Ipv6Addr::from(0xfd7a_115c_a1e0_u128 << 80 | u128::from(n)),
        routes: Vec::new(),
        exit: false,
    }
}

/// A node with tags.
pub fn tagged(id: i64, tags: &[&str]) -> Subject {
    Subject { tags: tags.iter().map(|tag| (*tag).to_owned()).collect(), ..node(id, "admin") }
}

/// The same node with routes.
pub fn routing(subject: Subject, routes: &[&str]) -> Subject {
    Subject { routes: routes.iter().map(|net| net.parse().unwrap()).collect(), ..subject }
}

/// A policy applied to nodes.
pub fn compiled(policy: &str, subjects: &[Subject]) -> Compiled {
    let policy = Policy::parse(policy).unwrap_or_else(|error| panic!("{error}\n{policy}"));
    Compiled::new(Arc::new(policy), subjects.iter().cloned())
}

/// A node's number.
pub fn id(n: i64) -> NodeId {
    NodeId(n)
}
