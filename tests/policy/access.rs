//! What a policy gives: filters, visibility, routes.

use std::collections::BTreeSet;

use pvemesh::coord::policy::{Affected, Compiled, Touched};
use pvemesh::ident::NodeId;
use pvemesh::wire::control::FilterRule;

use crate::mesh::{compiled, id, node, routing, tagged};

const WEB: &str = r#"{
    // Everybody may look at the web servers; only ops may log in to them.
    "groups": {"group:ops": ["ann@"]},
    "tagOwners": {"tag:web": ["group:ops"]},
    "acls": [
        {"action": "accept", "src": ["autogroup:member"], "dst": ["tag:web:80,443"]},
        {"action": "accept", "src": ["group:ops"], "dst": ["tag:web:22"], "proto": "tcp"},
    ],
}"#;

/// A filter as `sources -> destination:first-last/protocols`.
pub fn lines(rules: &[FilterRule]) -> BTreeSet<String> {
    let mut lines = BTreeSet::new();
    for rule in rules {
        for dst in &rule.dst_ports {
            let ports = format!("{}-{}", dst.ports.first, dst.ports.last);
            lines.insert(format!("{} -> {}:{ports}{:?}", rule.src_ips.join(","), dst.ip, rule.ip_proto));
        }
    }
    lines
}

#[test]
fn a_filter_holds_only_what_concerns_the_node() {
    let mesh = compiled(WEB, &[node(1, "ann"), node(2, "bob"), tagged(3, &["tag:web"])]);
    let members = "100.64.0.1-100.64.0.2,fd7a:115c:a1e0::1-fd7a:115c:a1e0::2";
    let mut expected = BTreeSet::new();
    for ip in ["100.64.0.3", "fd7a:115c:a1e0::3"] {
        expected.insert(format!("{members} -> {ip}:80-80[]"));
        expected.insert(format!("{members} -> {ip}:443-443[]"));
        expected.insert(format!("100.64.0.1,fd7a:115c:a1e0::1 -> {ip}:22-22[6]"));
    }
    assert_eq!(lines(&mesh.filter(id(3))), expected);
    assert!(mesh.filter(id(1)).is_empty(), "nobody may reach a member");
}

#[test]
fn trap_35_peers_without_a_rule_between_them_do_not_see_each_other() {
    let mesh = compiled(WEB, &[node(1, "ann"), node(2, "bob"), tagged(3, &["tag:web"]), tagged(4, &["tag:web"])]);
    for (a, b, sees) in [(1, 3, true), (2, 4, true), (1, 2, false), (3, 4, false), (1, 1, false), (1, 9, false)] {
        assert_eq!(mesh.sees(id(a), id(b)), sees, "{a} {b}");
        assert_eq!(mesh.sees(id(b), id(a)), sees, "{b} {a}");
    }
}

#[test]
fn trap_12_denying_everything_is_an_empty_list() {
    let mesh = compiled(r#"{"acls": []}"#, &[node(1, "ann"), node(2, "ann")]);
    assert!(!mesh.is_open() && mesh.filter(id(1)).is_empty() && !mesh.sees(id(1), id(2)));
    assert!(mesh.locks_out());
    let open = compiled("{}", &[node(1, "ann"), node(2, "bob")]);
    assert!(open.is_open() && open.sees(id(1), id(2)) && !open.locks_out());
    assert_eq!(lines(&open.filter(id(1))), [r"* -> *:0-65535[]".to_owned()].into());
}

#[test]
fn a_joining_node_touches_the_filters_it_stands_in() {
    let mut mesh = compiled(WEB, &[node(1, "ann"), tagged(3, &["tag:web"])]);
    let before = mesh.filter(id(3));
    let joined = mesh.upsert(node(2, "bob"));
    assert_eq!(joined.filters, Touched::Some([id(2), id(3)].into()));
    assert_eq!(joined.peers, Touched::Some([id(3)].into()));
    assert_ne!(mesh.filter(id(3)), before);
    assert_eq!(mesh.upsert(node(2, "bob")), Affected::default());
    let left = mesh.remove(id(2));
    assert_eq!((left.filters, left.peers), (Touched::Some([id(3)].into()), Touched::Some([id(3)].into())));
    assert_eq!(mesh.filter(id(3)), before);
    assert_eq!(mesh.remove(id(2)), Affected::default());
}

#[test]
fn a_route_is_told_to_those_who_may_use_it_and_by_one_router_only() {
    let policy = r#"{"tagOwners": {"tag:r": []}, "acls": [{"action": "accept", "src": ["ann@"], "dst": ["10.1.2.0/24:443"]}]}"#;
    let router = |n| routing(tagged(n, &["tag:r"]), &["10.1.0.0/16", "10.9.0.0/16"]);
    let mesh = compiled(policy, &[node(1, "ann"), node(2, "bob"), router(3), router(4)]);
    let told = |viewer, router| mesh.routes_for(id(viewer), id(router), |_| Some(id(4)), |_| true);
    assert_eq!(told(1, 4), ["10.1.0.0/16".parse().unwrap()]);
    assert!(told(1, 3).is_empty() && told(2, 4).is_empty());
    assert!(mesh.sees(id(1), id(3)) && !mesh.sees(id(2), id(4)));
    let filter = "100.64.0.1,fd7a:115c:a1e0::1 -> 10.1.2.0/24:443-443[]".to_owned();
    assert_eq!(lines(&mesh.filter(id(3))), [filter].into());
}

#[test]
fn rules_with_via_choose_the_router_for_a_viewer() {
    let policy = r#"{"tagOwners": {"tag:east": [], "tag:r": []}, "grants": [
        {"src": ["ann@"], "dst": ["10.1.0.0/16"], "ip": ["*"], "via": ["tag:east"]},
        {"src": ["bob@"], "dst": ["10.1.0.0/16"], "ip": ["*"]},
    ]}"#;
    let router = |n, tag| routing(tagged(n, &[tag]), &["10.1.0.0/16"]);
    let mut mesh = compiled(policy, &[node(1, "ann"), node(2, "bob"), router(3, "tag:r"), router(4, "tag:east"), router(5, "tag:east")]);
    let told = |mesh: &Compiled, viewer, online: &dyn Fn(NodeId) -> bool| {
        let routers = [3, 4, 5].into_iter().filter(|n| !mesh.routes_for(id(viewer), id(*n), |_| Some(id(3)), online).is_empty());
        routers.collect::<Vec<_>>()
    };
    assert_eq!(told(&mesh, 2, &|_| true), [3], "the chosen router for all");
    assert_eq!(told(&mesh, 1, &|_| true), [4], "the first with the tag");
    assert_eq!(told(&mesh, 1, &|router| router != id(4)), [5], "another with the tag while the first is away");
    assert!(mesh.sees(id(1), id(5)) && !mesh.sees(id(1), id(3)), "and the others are not shown");
    assert!(mesh.filter(id(3)).iter().all(|rule| !rule.src_ips.contains(&"100.64.0.1".to_owned())));
    let left = mesh.remove(id(4));
    assert_eq!(left.rivals, [id(3), id(5)].into(), "their routes are to be told anew");
    assert_eq!(told(&mesh, 1, &|_| true), [5]);
}
