//! The policy in force: who is told what.

use std::collections::BTreeSet;

use pvemesh::coord::server::{CommandError, Event, LoadError, Server, SessionId};
use pvemesh::ident::NodeId;
use pvemesh::wire::admin::{PolicyReport, SetPolicy};
use pvemesh::wire::control::{FilterRule, MapResponse};

use crate::world::*;

const LAN: &str = "192.168.1.0/24";

fn set(world: &mut World, text: &str) -> Result<PolicyReport, CommandError> {
    let wanted = SetPolicy { text: text.to_owned(), force: false, check_only: false };
    world.server.set_policy(world.at, &wanted)
}

fn joined(world: &mut World, n: u8, name: &str, user: &str) -> NodeId {
    world.join_with(n, name, |k| k.user = user.to_owned()).id
}

fn tagged(world: &mut World, n: u8, name: &str, tag: &str) -> NodeId {
    world.join_with(n, name, |k| k.tags = vec![tag.to_owned()]).id
}

fn first(world: &mut World, n: u8) -> (SessionId, MapResponse) {
    let session = world.stream(n);
    let map = world.take(session).unwrap();
    (session, map)
}

fn peers(map: &MapResponse) -> Vec<NodeId> {
    map.peers.iter().map(|peer| peer.id).collect()
}

fn base(map: &MapResponse) -> Option<Vec<FilterRule>> {
    map.packet_filters.get("base").cloned().flatten()
}

fn sources(rules: &[FilterRule]) -> BTreeSet<String> {
    rules.iter().flat_map(|rule| rule.src_ips.iter().cloned()).collect()
}

fn offer(world: &mut World, n: u8, name: &str, routes: &[&str]) {
    world.report(n, |request| {
        let mut info = hostinfo(name);
        info.routable_ips = routes.iter().map(|route| net(route)).collect();
        request.hostinfo = Some(info);
    });
}

/// Each to its own: alice's nodes and bob's nodes see only their like.
const APART: &str = r#"{"acls": [
    {"action": "accept", "src": ["alice@"], "dst": ["alice@:*"]},
    {"action": "accept", "src": ["bob@"], "dst": ["bob@:*"]},
]}"#;

#[test]
fn trap_35_a_node_that_may_not_be_seen_is_told_in_no_form() {
    let mut world = World::new();
    let alice = [joined(&mut world, 1, "a1", "alice"), joined(&mut world, 2, "a2", "alice")];
    let bob = joined(&mut world, 3, "b1", "bob");
    set(&mut world, APART).unwrap();
    let (session, map) = first(&mut world, 1);
    assert_eq!(peers(&map), [alice[1]]);
    assert_eq!(map.user_profiles.iter().map(|user| user.display_name.as_str()).collect::<Vec<_>>(), ["alice"]);
    let accepted = ["100.64.0.1-100.64.0.2".to_owned(), "fd7a:115c:a1e0::1-fd7a:115c:a1e0::2".to_owned()];
    assert_eq!(sources(&base(&map).unwrap()), accepted.into(), "alice's, and nobody else's");
    // Nothing that bob's nodes do reaches alice: coming, going, moving, being renamed, joined by others, leaving.
    let stream = world.settled(3);
    world.report(3, |request| {
        request.endpoints = vec!["192.0.2.7:41641".parse().unwrap()];
        request.disco_key = disco(3);
        request.hostinfo = with_home(900, "b1");
    });
    world.server.rename(world.at, bob, &"hidden".parse().unwrap()).unwrap();
    joined(&mut world, 4, "b2", "bob");
    world.hang_up(stream);
    world.pass(std::time::Duration::from_secs(20));
    world.server.rename_user(pvemesh::ident::UserId(2), "robert").unwrap();
    world.server.delete_node(world.at, bob).unwrap();
    world.drain();
    assert!(world.take(session).is_none());
}

#[test]
fn a_node_that_joins_is_told_to_those_who_see_it_and_changes_the_filters_of_those_it_may_reach() {
    let mut world = World::new();
    let (server, other) = (tagged(&mut world, 1, "server", "tag:server"), tagged(&mut world, 2, "other", "tag:other"));
    let policy = r#"{
        "tagOwners": {"tag:server": [], "tag:other": [], "tag:client": []},
        "acls": [
            {"action": "accept", "src": ["tag:client"], "dst": ["tag:server:443"]},
            {"action": "accept", "src": ["tag:other"], "dst": ["tag:server:22"]},
        ],
    }"#;
    set(&mut world, policy).unwrap();
    let ((on_server, map), (on_other, _)) = (first(&mut world, 1), first(&mut world, 2));
    assert_eq!((peers(&map), sources(&base(&map).unwrap()).len()), (vec![other], 2));
    let client = tagged(&mut world, 3, "client", "tag:client");
    let told = world.take(on_server).unwrap();
    assert_eq!(told.peers_changed.iter().map(|peer| peer.id).collect::<Vec<_>>(), [client]);
    let rules = base(&told).unwrap();
    assert!(sources(&rules).contains("100.64.0.3") && rules.iter().any(|rule| rule.dst_ports[0].ports.first == 443), "{rules:?}");
    assert!(world.take(on_other).is_none(), "neither sees the other");
    // A client sees the server that it may reach, and accepts nothing itself.
    let (on_client, map) = first(&mut world, 3);
    assert_eq!((peers(&map), base(&map)), (vec![server], Some(Vec::new())));
    world.take(on_server);
    // Its address changes: the server's filter follows.
    world.server.set_address(world.at, client, "100.64.0.77".parse().unwrap()).unwrap();
    assert!(sources(&base(&world.take(on_server).unwrap()).unwrap()).contains("100.64.0.77"));
    assert!(base(&world.take(on_client).unwrap()).is_none(), "its own filter is the same");
    world.server.delete_node(world.at, client).unwrap();
    let told = world.take(on_server).unwrap();
    assert_eq!((told.peers_removed.clone(), sources(&base(&told).unwrap()).len()), (vec![client], 2));
    assert!(world.take(on_other).is_none());
}

#[test]
fn trap_12_a_filter_that_accepts_nothing_is_written_and_not_left_out() {
    let mut world = World::new();
    joined(&mut world, 1, "a", "alice");
    let deny = SetPolicy { text: r#"{"acls": []}"#.to_owned(), force: true, check_only: false };
    world.server.set_policy(world.at, &deny).unwrap();
    let session = world.stream(1);
    let text = world.text(session).unwrap();
    assert!(text.contains(r#""PacketFilters":{"base":[]}"#), "{text}");
}

#[test]
fn a_changed_policy_is_told_to_exactly_those_it_concerns() {
    let mut world = World::new();
    let ids: Vec<NodeId> = (1..=4).map(|n| tagged(&mut world, n, &format!("n{n}"), &format!("tag:t{n}"))).collect();
    let policy =
        |rules: &str| format!(r#"{{"tagOwners": {{"tag:t1": [], "tag:t2": [], "tag:t3": [], "tag:t4": []}}, "grants": [{rules}]}}"#);
    const ONE_TWO: &str = r#"{"src": ["tag:t1"], "dst": ["tag:t2"], "ip": ["*"]}, {"src": ["tag:t4"], "dst": ["tag:t1"], "ip": ["22"]},"#;
    set(&mut world, &policy(ONE_TWO)).unwrap();
    let sessions: Vec<SessionId> = (1..=4).map(|n| world.settled(n)).collect();
    for session in &sessions {
        world.take(*session);
    }
    world.drain();
    // Three may now reach two; one and four are not concerned.
    set(&mut world, &policy(&format!(r#"{ONE_TWO} {{"src": ["tag:t3"], "dst": ["tag:t2"], "ip": ["80"]}},"#))).unwrap();
    let mut told: Vec<Option<MapResponse>> = sessions.iter().map(|session| world.take(*session)).collect();
    assert!(told[0].is_none() && told[3].is_none(), "{told:?}");
    let (three, two) = (told.remove(2).unwrap(), told.remove(1).unwrap());
    let changed = |map: &MapResponse| map.peers.iter().chain(&map.peers_changed).map(|peer| peer.id).collect::<Vec<_>>();
    assert_eq!((changed(&two).contains(&ids[2]), base(&two).unwrap().len()), (true, 2));
    assert_eq!((changed(&three), base(&three)), (vec![ids[1]], None), "it may reach, and accepts what it accepted before");
    assert!(two.node.is_none() && three.node.is_none() && two.dns_config.is_none() && three.dns_config.is_none());
    // And back.
    set(&mut world, &policy(ONE_TWO)).unwrap();
    let told: Vec<Option<MapResponse>> = sessions.iter().map(|session| world.take(*session)).collect();
    assert!(told[0].is_none() && told[3].is_none());
    assert_eq!(told[1].as_ref().unwrap().peers_removed, [ids[2]]);
    assert_eq!(told[2].as_ref().unwrap().peers_removed, [ids[1]], "a list of nobody cannot be told otherwise (trap 11)");
    // The same text again, in other words, says nothing to anybody.
    set(&mut world, &policy(&format!("/* once more */ {ONE_TWO}"))).unwrap();
    assert!(sessions.iter().all(|session| world.take(*session).is_none()));
}

#[test]
fn setting_and_removing_a_policy_moves_open_streams_there_and_back() {
    let mut world = World::new();
    let alice = [joined(&mut world, 1, "a1", "alice"), joined(&mut world, 2, "a2", "alice")];
    let bob = joined(&mut world, 3, "b1", "bob");
    let session = world.settled(1);
    set(&mut world, APART).unwrap();
    let told = world.take(session).unwrap();
    let left: BTreeSet<NodeId> = if told.peers.is_empty() {
        [alice[1], bob].into_iter().filter(|id| !told.peers_removed.contains(id)).collect()
    } else {
        peers(&told).into_iter().collect()
    };
    assert_eq!((left, sources(&base(&told).unwrap()).contains("*")), ([alice[1]].into(), false));
    world.server.remove_policy().unwrap();
    let told = world.take(session).unwrap();
    assert!(told.peers.iter().chain(&told.peers_changed).any(|peer| peer.id == bob));
    assert_eq!(sources(&base(&told).unwrap()), ["*".to_owned()].into());
    assert!(matches!(world.server.remove_policy(), Err(CommandError::Conflict(_))));
}

#[test]
fn a_node_that_is_tagged_moves_between_the_worlds_it_sees() {
    let mut world = World::new();
    let (one, two) = (joined(&mut world, 1, "laptop", "alice"), joined(&mut world, 2, "phone", "alice"));
    let server = tagged(&mut world, 3, "db", "tag:server");
    set(
        &mut world,
        r#"{"tagOwners": {"tag:server": ["alice@"]}, "acls": [
            {"action": "accept", "src": ["alice@"], "dst": ["alice@:*"]},
            {"action": "accept", "src": ["tag:server"], "dst": ["tag:server:*"]}]}"#,
    )
    .unwrap();
    let (laptop, phone, db) = (world.settled(1), world.settled(2), world.settled(3));
    for session in [laptop, phone, db] {
        world.take(session);
    }
    world.server.tag_node(world.at, one, &["tag:server".to_owned()]).unwrap();
    assert_eq!(world.take(phone).unwrap().peers_removed, [one]);
    assert_eq!(world.take(db).unwrap().peers_changed.iter().map(|peer| peer.id).collect::<Vec<_>>(), [one]);
    let told = world.take(laptop).unwrap();
    assert_eq!((told.peers_removed.clone(), told.peers_changed.len(), told.peers.len()), (vec![two], 1, 0), "{told:?}");
    assert_eq!((told.peers_changed[0].id, told.node.unwrap().tags), (server, vec!["tag:server".to_owned()]));
    assert!(told.packet_filters.contains_key("base"));
    world.server.tag_node(world.at, one, &[]).unwrap();
    assert_eq!(world.take(db).unwrap().peers_removed, [one]);
    assert_eq!(world.take(phone).unwrap().peers_changed[0].id, one);
    assert_eq!(world.take(laptop).unwrap().peers_removed, [server]);
}

#[test]
fn routes_are_told_to_those_who_may_use_them_and_the_router_lets_their_traffic_through() {
    let mut world = World::new();
    let router = world.join_with(1, "router", |k| (k.tags, k.approve_routes) = (vec!["tag:router".to_owned()], vec![net(LAN)])).id;
    offer(&mut world, 1, "router", &[LAN]);
    for (n, user) in [(2, "alice"), (3, "bob"), (4, "carol")] {
        joined(&mut world, n, user, user);
    }
    set(
        &mut world,
        r#"{"tagOwners": {"tag:router": []}, "hosts": {"lan": "192.168.1.0/24"}, "acls": [
            {"action": "accept", "src": ["alice@"], "dst": ["lan:80", "192.168.1.7:22"]},
            {"action": "accept", "src": ["bob@"], "dst": ["tag:router:22"]}]}"#,
    )
    .unwrap();
    let (on_router, map) = first(&mut world, 1);
    assert_eq!(map.node.clone().unwrap().primary_routes, [net(LAN)], "the router knows its own");
    // trap_24: the filter is about what is forwarded, too.
    let targets: BTreeSet<String> = base(&map).unwrap().iter().flat_map(|rule| &rule.dst_ports).map(|dst| dst.ip.clone()).collect();
    assert!(targets.contains(LAN) && targets.contains("192.168.1.7"), "{targets:?}");
    let routed = |map: &MapResponse| map.peers.iter().map(|peer| peer.routed()[2..].to_vec()).collect::<Vec<_>>();
    let (alice, map) = first(&mut world, 2);
    assert_eq!((routed(&map), map.peers[0].primary_routes.clone()), (vec![vec![net(LAN)]], vec![net(LAN)]));
    let (bob, map) = first(&mut world, 3);
    assert_eq!((peers(&map), routed(&map), map.peers[0].primary_routes.len()), (vec![router], vec![vec![]], 0));
    let (carol, map) = first(&mut world, 4);
    assert!(map.peers.is_empty());
    // The route goes: alice no longer has a reason to see the router at all.
    world.take(on_router);
    offer(&mut world, 1, "router", &[]);
    assert_eq!(world.take(alice).unwrap().peers_removed, [router]);
    assert!(world.take(carol).is_none());
    world.take(bob);
    offer(&mut world, 1, "router", &[LAN]);
    assert_eq!(world.take(alice).unwrap().peers_changed[0].routed()[2..], [net(LAN)]);
    assert!(world.take(carol).is_none());
}

#[test]
fn exit_nodes_are_offered_to_those_who_may_use_the_internet_through_them() {
    let mut world = World::new();
    let exit = world.join_with(1, "exit", |k| {
        k.tags = vec!["tag:exit".to_owned()];
        k.approve_routes = vec![net("0.0.0.0/0")];
    });
    offer(&mut world, 1, "exit", &["0.0.0.0/0", "::/0"]);
    joined(&mut world, 2, "a", "alice");
    joined(&mut world, 3, "b", "bob");
    let policy = r#"{"tagOwners": {"tag:exit": []},
        "acls": [{"action": "accept", "src": ["alice@"], "dst": ["autogroup:internet:*"]},
                 {"action": "accept", "src": ["bob@"], "dst": ["tag:exit:22"]}],
        "nodeAttrs": [{"target": ["tag:exit"], "attr": ["suggest-exit-node"]}]}"#;
    set(&mut world, policy).unwrap();
    let (_, map) = first(&mut world, 2);
    assert_eq!(map.peers[0].routed()[2..], [net("0.0.0.0/0"), net("::/0")]);
    assert!(map.peers[0].cap_map.contains_key("suggest-exit-node"));
    let (_, map) = first(&mut world, 3);
    assert_eq!((peers(&map), map.peers[0].routed().len()), (vec![exit.id], 2));
}

#[test]
fn routes_are_approved_by_the_policy_at_joining_offering_and_setting_and_never_withdrawn() {
    let mut world = World::new();
    let policy = r#"{"tagOwners": {"tag:router": []},
        "autoApprovers": {"routes": {"10.0.0.0/8": ["tag:router"]}, "exitNode": ["alice@"]}}"#;
    let before = tagged(&mut world, 1, "early", "tag:router");
    offer(&mut world, 1, "early", &["10.1.0.0/16", "192.168.1.0/24"]);
    let report = set(&mut world, policy).unwrap();
    assert_eq!(report.approves.iter().map(|a| (a.node.as_str(), a.route)).collect::<Vec<_>>(), [("early", net("10.1.0.0/16"))]);
    assert_eq!(world.info(1).approved_routes, [net("10.1.0.0/16")]);
    // Offered with the registration itself, and later.
    let key = world.key(|k| k.tags = vec!["tag:router".to_owned()]);
    let mut request = registration(2, Some(&key), "late");
    request.hostinfo.as_mut().unwrap().routable_ips = vec![net("10.2.0.0/16")];
    world.register(2, &request);
    assert_eq!(world.info(2).approved_routes, [net("10.2.0.0/16")]);
    joined(&mut world, 3, "laptop", "alice");
    offer(&mut world, 3, "laptop", &["0.0.0.0/0", "::/0", "10.3.0.0/16"]);
    assert_eq!(world.info(3).approved_routes, [net("0.0.0.0/0"), net("::/0")]);
    // What an admin takes away stays away, and no policy takes anything away.
    world.server.approve_routes(world.at, before, &[]).unwrap();
    let mut restart = registration(1, None, "early");
    restart.hostinfo.as_mut().unwrap().routable_ips = vec![net("10.1.0.0/16"), net("192.168.1.0/24")];
    world.register(1, &restart);
    offer(&mut world, 1, "early", &["10.1.0.0/16", "192.168.1.0/24"]);
    assert!(world.info(1).approved_routes.is_empty());
    set(&mut world, r#"{"autoApprovers": {}}"#).unwrap();
    assert_eq!(world.info(3).approved_routes.len(), 2);
}

#[test]
fn a_user_may_claim_the_tags_that_the_policy_lets_it_own() {
    let mut world = World::new();
    set(&mut world, r#"{"groups": {"group:ops": ["alice@"]}, "tagOwners": {"tag:web": ["group:ops"], "tag:db": ["tag:web"]}}"#).unwrap();
    let claim = |n: u8, tag: &str| {
        let mut request = registration(n, None, "server");
        request.hostinfo.as_mut().unwrap().request_tags = vec![tag.to_owned()];
        request
    };
    let url = world.register(1, &claim(1, "tag:web")).auth_url;
    let id = url.rsplit('/').next().unwrap();
    assert_eq!(world.server.registrations()[0].tags, ["tag:web"]);
    let at = world.at;
    match world.server.approve(at, id, "bob") {
        Err(CommandError::Conflict(text)) => assert!(text.contains("tagOwners do not let bob give it"), "{text}"),
        other => panic!("{other:?}"),
    }
    assert!(world.server.users().is_empty(), "a refused approval makes no user");
    let node = world.server.approve(at, id, "alice").unwrap();
    assert_eq!((node.tags, node.key_expiry), (vec!["tag:web".to_owned()], None));
    // Re-login without tags gives the node back to its user.
    world.log_in_with(1, 11, "server", |_| {});
    assert!(world.info(11).tags.is_empty() && world.info(11).key_expiry.is_some());
    // A tag the policy does not know is refused before anybody is asked.
    let answer = world.register(2, &claim(2, "tag:nobody"));
    assert!(answer.error.contains("tag:nobody") && answer.auth_url.is_empty(), "{}", answer.error);
    // A key of alice's may be used to claim what she owns; a key with tags speaks for its tags alone.
    let (untagged, web) = (world.key(|_| {}), world.key(|k| k.tags = vec!["tag:web".to_owned()]));
    let with = |key: &str, tag: &str, n: u8| {
        let mut request = claim(n, tag);
        request.auth = registration(n, Some(key), "x").auth;
        request
    };
    assert_eq!(world.register(3, &with(&untagged, "tag:db", 3)).error, "", "an owner of an owner");
    assert_eq!(world.info(3).tags, ["tag:db"]);
    assert_eq!(world.register(4, &with(&web, "tag:db", 4)).error, "");
    assert_eq!(world.info(4).tags, ["tag:db", "tag:web"]);
    let ci = world.key(|k| k.tags = vec!["tag:ci".to_owned()]);
    assert!(world.register(5, &with(&ci, "tag:web", 5)).error.contains("its tags"));
    let bobs = world.key(|k| k.user = "bob".to_owned());
    assert!(world.register(6, &with(&bobs, "tag:web", 6)).error.contains("do not let bob"));
}

#[test]
fn a_policy_that_does_not_read_says_where_and_changes_nothing() {
    let mut world = World::new();
    joined(&mut world, 1, "a", "alice");
    let session = world.settled(1);
    for (text, reason) in [
        ("{\"acls\": [\n  {\"action\": \"accept\", \"src\": [\"*\"], \"dst\": [\"tag:x:*\"]}]}", "line 2"),
        ("{\"aclz\": []}", "aclz"),
        ("{", "line 1"),
    ] {
        match set(&mut world, text) {
            Err(CommandError::Invalid(error)) => assert!(error.contains(reason), "{error}"),
            other => panic!("{other:?}"),
        }
    }
    assert!(world.server.policy().text.is_none() && world.take(session).is_none());
}

#[test]
fn a_policy_whose_tests_fail_or_that_locks_everybody_out_is_refused() {
    let mut world = World::new();
    joined(&mut world, 1, "a", "alice");
    joined(&mut world, 2, "b", "bob");
    let failing = r#"{"acls": [{"action": "accept", "src": ["alice@"], "dst": ["bob@:22"]}],
        "tests": [{"src": "bob@", "accept": ["alice@:22"]}]}"#;
    let give = |world: &mut World, text: &str, force, check_only| {
        world.server.set_policy(world.at, &SetPolicy { text: text.to_owned(), force, check_only })
    };
    for force in [false, true] {
        let refused = give(&mut world, failing, force, false);
        assert!(matches!(&refused, Err(CommandError::Conflict(text)) if text.contains("tests[0]")), "{refused:?}");
    }
    let lockout = r#"{"acls": [{"action": "accept", "src": ["nobody@"], "dst": ["carol@:*"]}]}"#;
    assert!(matches!(give(&mut world, lockout, false, false), Err(CommandError::Conflict(text)) if text.contains("locked out")));
    assert!(matches!(give(&mut world, lockout, false, true), Err(CommandError::Conflict(_))), "a check says the same");
    let report = give(&mut world, lockout, true, true).unwrap();
    assert!(!report.in_force && report.isolated.len() == 2 && world.server.policy().text.is_none());
    assert_eq!(report.unknown_users, ["carol", "nobody"]);
    assert!(give(&mut world, lockout, true, false).unwrap().in_force);
    let (_, map) = first(&mut world, 1);
    assert!(map.peers.is_empty() && map.node.is_some());
}

#[test]
fn attributes_go_to_the_nodes_they_are_for_and_a_change_is_told_to_them_alone() {
    let mut world = World::new();
    joined(&mut world, 1, "a", "alice");
    joined(&mut world, 2, "b", "bob");
    let sessions = [world.settled(1), world.settled(2)];
    world.take(sessions[0]);
    set(&mut world, r#"{"nodeAttrs": [{"target": ["alice@"], "attr": ["magicdns-aaaa"]}]}"#).unwrap();
    let own = world.take(sessions[0]).unwrap();
    let caps = own.node.unwrap().cap_map;
    assert!(caps.contains_key("magicdns-aaaa") && caps.contains_key("https://tailscale.com/cap/file-sharing"));
    assert!(own.peers.is_empty() && own.peers_changed.is_empty() && own.packet_filters.is_empty());
    assert!(world.take(sessions[1]).is_none());
    // No promise of what there is not.
    assert!(!caps.keys().any(|cap| cap.contains("ssh") || cap.contains("funnel") || cap.contains("tailnet-lock")));
}

#[test]
fn a_policy_outlives_a_restart_and_one_that_no_longer_reads_stops_the_start() {
    let mut world = World::new();
    joined(&mut world, 1, "a1", "alice");
    joined(&mut world, 2, "a2", "alice");
    joined(&mut world, 3, "b1", "bob");
    set(&mut world, APART).unwrap();
    let policy = world.server.policy();
    assert_eq!((policy.text.as_deref(), policy.set), (Some(APART), Some(world.at.wall)));
    world.restart();
    assert_eq!(world.server.policy(), policy);
    let (_, map) = first(&mut world, 1);
    assert_eq!(map.peers.len(), 1);
    world.drain();
    let mut broken = world.stored.clone();
    broken.policy.as_mut().unwrap().text = "{\"acl\": []}".to_owned();
    let error = Server::new(settings(), [1; 32], broken, world.at).map(drop).unwrap_err();
    assert!(matches!(&error, LoadError::Policy(_)) && error.to_string().contains("acl"), "open by mistake would be worse: {error}");
    world.server.remove_policy().unwrap();
    world.restart();
    assert_eq!(world.server.policy().text, None);
}

#[test]
fn a_renamed_user_is_whoever_the_policy_calls_so() {
    let mut world = World::new();
    joined(&mut world, 1, "a1", "alice");
    joined(&mut world, 2, "a2", "alice");
    joined(&mut world, 3, "b1", "bob");
    joined(&mut world, 4, "b2", "bob");
    set(&mut world, APART).unwrap();
    let (session, _) = first(&mut world, 3);
    let id = world.server.users().iter().find(|user| user.name == "bob").unwrap().id;
    world.server.rename_user(id, "robert").unwrap();
    let told = world.take(session).unwrap();
    assert_eq!((told.peers_removed.clone(), base(&told)), (vec![world.info(4).id], Some(Vec::new())), "nobody speaks of robert");
    world.server.rename_user(id, "bob").unwrap();
    assert_eq!(world.take(session).unwrap().peers_changed.len(), 1);
}

#[test]
fn without_a_policy_nothing_of_all_this_is_sent() {
    let mut world = World::new();
    joined(&mut world, 1, "a", "alice");
    let session = world.settled(1);
    world.take(session);
    joined(&mut world, 2, "b", "bob");
    let told = world.take(session).unwrap();
    assert!(told.packet_filters.is_empty() && told.node.is_none());
    assert!(!world.drain().contains(&Event::Decided));
}
