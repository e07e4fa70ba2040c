//! What holds for all policies and all meshes. Failures print the smallest case that fails.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use proptest::prelude::*;
use pvemesh::coord::policy::{Affected, Attributes, Compiled, Policy, Subject, Touched};
use pvemesh::ident::NodeId;

use crate::access::lines;
use crate::naive::{self, LANS, NaiveRule, PACKETS, accepts, allowed, document, ends};

/// Nodes 1, 2, ...
fn mesh(most: i64) -> impl Strategy<Value = Vec<Subject>> {
    (1..=most).prop_flat_map(|n| (1..=n).map(naive::node).collect::<Vec<_>>())
}

fn rules() -> impl Strategy<Value = Vec<NaiveRule>> {
    proptest::collection::vec(naive::rule(), 0..6)
}

fn compile(rules: &[NaiveRule], nodes: &[Subject]) -> Compiled {
    Compiled::new(Arc::new(Policy::parse(&document(rules)).unwrap()), nodes.iter().cloned())
}

/// The lowest number carries each prefix.
fn carrier(nodes: &[Subject]) -> impl Fn(&IpNet) -> Option<NodeId> + '_ {
    |net| nodes.iter().filter(|node| node.routes.contains(net)).map(|node| node.id).min()
}

/// Everything a compiled policy says about some nodes.
#[derive(Debug, Clone, PartialEq)]
struct Answers {
    filters: BTreeMap<NodeId, BTreeSet<String>>,
    seen: BTreeMap<(NodeId, NodeId), bool>,
    routes: BTreeMap<(NodeId, NodeId), Vec<IpNet>>,
    attributes: BTreeMap<NodeId, Arc<Attributes>>,
    isolated: Vec<NodeId>,
}

fn answers(mesh: &Compiled, nodes: &[Subject]) -> Answers {
    let ids: Vec<NodeId> = nodes.iter().map(|node| node.id).collect();
    let pairs: Vec<(NodeId, NodeId)> = ids.iter().flat_map(|a| ids.iter().map(move |b| (*a, *b))).filter(|(a, b)| a != b).collect();
    let carrier = carrier(nodes);
    Answers {
        filters: ids.iter().map(|id| (*id, lines(&mesh.filter(*id)))).collect(),
        seen: pairs.iter().map(|(a, b)| ((*a, *b), mesh.sees(*a, *b))).collect(),
        routes: pairs.iter().map(|(a, b)| ((*a, *b), mesh.routes_for(*a, *b, &carrier, |_| true))).collect(),
        attributes: ids.iter().map(|id| (*id, mesh.attributes(*id))).collect(),
        isolated: mesh.isolated(),
    }
}

fn names(touched: &Touched, id: NodeId) -> bool {
    match touched {
        Touched::Nobody => false,
        Touched::Some(ids) => ids.contains(&id),
        Touched::Everybody => true,
    }
}

/// What changed between two sets of answers without being announced.
fn unannounced(before: &Answers, after: &Answers, changed: NodeId, affected: &Affected, moved: &BTreeSet<IpNet>) -> Vec<String> {
    let mut faults = Vec::new();
    for (id, filter) in &after.filters {
        if before.filters.get(id) != Some(filter) && !names(&affected.filters, *id) {
            faults.push(format!("the filter of {id}"));
        }
    }
    let announced = |a: &NodeId, b: &NodeId| {
        let about = |own: &NodeId, other: &NodeId| *own == changed && names(&affected.peers, *other);
        about(a, b) || about(b, a) || affected.rivals.contains(b)
    };
    for ((a, b), seen) in &after.seen {
        if before.seen.get(&(*a, *b)).copied().unwrap_or(false) != *seen && !announced(a, b) {
            faults.push(format!("whether {a} sees {b}"));
        }
    }
    // Routes of nodes that are not seen are not asked for. Where the carrier is another now, the caller knows that itself.
    for ((a, b), routes) in after.routes.iter().filter(|(pair, _)| after.seen[pair] && before.seen.get(pair) == Some(&true)) {
        let old: BTreeSet<&IpNet> = before.routes.get(&(*a, *b)).into_iter().flatten().collect();
        let new: BTreeSet<&IpNet> = routes.iter().collect();
        if old.symmetric_difference(&new).any(|net| !moved.contains(*net)) && !announced(a, b) {
            faults.push(format!("which routes {a} gets of {b}"));
        }
    }
    faults
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_filter_accepts_exactly_the_packets_that_the_rules_allow(rules in rules(), nodes in mesh(5)) {
        let mesh = compile(&rules, &nodes);
        for at in &nodes {
            let filter = mesh.filter(at.id);
            let outside = ["10.1.2.5", "8.8.8.8", "100.99.0.1"].map(|text| text.parse::<IpAddr>().unwrap());
            let senders: BTreeSet<IpAddr> = nodes.iter().flat_map(|node| ends(node, false)).chain(outside).collect();
            for from in senders {
                for to in ends(at, true) {
                    for packet in PACKETS {
                        let (ours, naive) = (accepts(&filter, from, to, packet), allowed(&rules, &nodes, from, at, to, packet));
                        prop_assert_eq!(ours, naive, "{} to {} at {}, {:?}: {:?}", from, to, at.id, packet, lines(&filter));
                    }
                }
            }
        }
    }

    #[test]
    fn nodes_see_each_other_exactly_if_a_packet_between_them_may_pass(rules in rules(), nodes in mesh(5)) {
        let mesh = compile(&rules, &nodes);
        let passes = |a: &Subject, b: &Subject| {
            ends(a, false).into_iter().any(|from| {
                ends(b, true).into_iter().any(|to| PACKETS.iter().any(|packet| allowed(&rules, &nodes, from, b, to, *packet)))
            })
        };
        for a in &nodes {
            for b in nodes.iter().filter(|b| b.id != a.id) {
                let seen = mesh.sees(a.id, b.id);
                prop_assert_eq!(seen, mesh.sees(b.id, a.id));
                prop_assert_eq!(seen, passes(a, b) || passes(b, a), "{} and {}", a.id, b.id);
            }
        }
        let alone = |a: &Subject| nodes.iter().all(|b| !mesh.sees(a.id, b.id));
        let isolated: Vec<NodeId> = nodes.iter().filter(|node| alone(node)).map(|node| node.id).collect();
        prop_assert_eq!(mesh.isolated(), isolated);
    }

    #[test]
    fn viewers_of_one_class_are_shown_the_same_as_each_by_itself(rules in rules(), nodes in mesh(6)) {
        let mesh = compile(&rules, &nodes);
        let carrier = carrier(&nodes);
        for viewer in &nodes {
            let class = mesh.class(viewer.id).unwrap();
            for twin in nodes.iter().filter(|twin| mesh.class(twin.id).as_ref() == Some(&class)) {
                for peer in nodes.iter().filter(|peer| peer.id != twin.id) {
                    prop_assert_eq!(mesh.shows(&class, peer.id), mesh.sees(twin.id, peer.id), "{} and {}", twin.id, peer.id);
                    let routes = mesh.routes_shown(&class, peer.id, &carrier, |_| true);
                    prop_assert_eq!(routes, mesh.routes_for(twin.id, peer.id, &carrier, |_| true), "{} by {}", peer.id, twin.id);
                }
            }
        }
    }

    #[test]
    fn trap_23_a_viewer_is_told_each_prefix_for_one_router_at_most(rules in rules(), nodes in mesh(6)) {
        let mesh = compile(&rules, &nodes);
        let carrier = carrier(&nodes);
        for viewer in &nodes {
            let mut told = BTreeSet::new();
            for router in nodes.iter().filter(|router| router.id != viewer.id) {
                for net in mesh.routes_for(viewer.id, router.id, &carrier, |_| true) {
                    prop_assert!(mesh.sees(viewer.id, router.id), "a route of an unseen router");
                    prop_assert!(net.prefix_len() == 0 || told.insert(net), "{} twice for {}", net, viewer.id);
                }
            }
        }
    }

    #[test]
    fn changes_one_by_one_lead_to_what_compiling_anew_gives(
        rules in rules(), start in mesh(4),
        steps in proptest::collection::vec((1_i64..7).prop_flat_map(|id| proptest::option::weighted(0.8, naive::node(id)).prop_map(move |node| (NodeId(id), node))), 1..8),
    ) {
        let mut nodes: BTreeMap<NodeId, Subject> = start.into_iter().map(|node| (node.id, node)).collect();
        let list = |nodes: &BTreeMap<NodeId, Subject>| nodes.values().cloned().collect::<Vec<_>>();
        let mut mesh = compile(&rules, &list(&nodes));
        for (id, node) in steps {
            let before = answers(&mesh, &list(&nodes));
            let old = list(&nodes);
            let affected = match node {
                Some(node) => {
                    nodes.insert(id, node.clone());
                    mesh.upsert(node)
                }
                None => {
                    nodes.remove(&id);
                    mesh.remove(id)
                }
            };
            let after = answers(&mesh, &list(&nodes));
            let new = list(&nodes);
            let nets = LANS.map(|net| net.parse::<IpNet>().unwrap());
            let moved: BTreeSet<IpNet> = nets.into_iter().filter(|net| carrier(&old)(net) != carrier(&new)(net)).collect();
            prop_assert_eq!(&after, &answers(&compile(&rules, &list(&nodes)), &list(&nodes)));
            prop_assert_eq!(unannounced(&before, &after, id, &affected, &moved), Vec::<String>::new());
            prop_assert!(!names(&affected.peers, id) || affected.peers == Touched::Everybody);
        }
    }

    #[test]
    fn a_mangled_file_is_read_or_refused_in_few_words(
        rules in rules(),
        edits in proptest::collection::vec((any::<prop::sample::Index>(), 0_usize..4, proptest::sample::select(&[
            "{", "}", "[", "]", ",", ":", "\"", "//", "/*", "*/", "\\", "\u{0}", "é", "autogroup:self", "tag:", "*", "0", "-1", "1e999", "null", "\\ud800", "\n",
        ][..])), 1..6),
    ) {
        let mut text = document(&rules);
        for (at, cut, new) in edits {
            let places: Vec<usize> = text.char_indices().map(|(at, _)| at).chain([text.len()]).collect();
            let start = at.index(places.len());
            let end = (start + cut).min(places.len() - 1);
            text.replace_range(places[start]..places[end], new);
        }
        if let Err(error) = Policy::parse(&text) {
            let shown = error.to_string();
            prop_assert!(shown.len() < 2_500 && !shown.contains(['\n', '\u{0}']), "{}", shown);
            prop_assert!(error.line >= 1 && error.column >= 1);
        }
    }

    #[test]
    fn arbitrary_text_never_panics(text in "(?s).{0,200}") {
        let _ = Policy::parse(&text);
    }
}
