//! What nodes are told.

use std::time::Duration;

use pvemesh::coord::server::{Event, MAX_REMOVED, MapAnswer, MapRefusal, OFFLINE_GRACE, STREAM_TURN};
use pvemesh::wire::admin::Expire;
use pvemesh::wire::control::{DerpMap, Hostinfo, MapRequest, Service, json};

use crate::world::*;

#[test]
fn trap_10_the_first_message_of_every_stream_is_complete() {
    let mut world = World::new();
    world.join(1, "alpha");
    world.join(2, "beta");
    for _ in 0..2 {
        let session = world.stream(1);
        let map = world.take(session).unwrap();
        let own = map.node.unwrap();
        assert_eq!((own.name.as_str(), own.machine_authorized, own.cap), ("alpha.mesh.test.", true, 130));
        assert_eq!(own.routed(), own.addresses.as_slice());
        assert_eq!(map.peers.iter().map(|peer| peer.name.as_str()).collect::<Vec<_>>(), ["beta.mesh.test."]);
        assert_eq!((map.domain.as_str(), map.collect_services), ("mesh.test", Some(false)));
        let dns = map.dns_config.unwrap();
        assert!(dns.proxied && dns.domains == ["mesh.test"]);
        let rules = map.packet_filters["base"].clone().unwrap();
        assert_eq!((rules[0].src_ips[0].as_str(), rules[0].dst_ports[0].ports.last), ("*", 65535));
        assert!(map.debug.unwrap().disable_log_tail);
        assert_eq!(map.user_profiles.len(), 1);
    }
}

#[test]
fn trap_07_addresses_are_one_ipv4_and_one_ipv6_in_this_order() {
    let mut world = World::new();
    world.join(1, "alpha");
    let session = world.stream(1);
    let own = world.take(session).unwrap().node.unwrap();
    assert_eq!(own.addresses, [net("100.64.0.1/32"), net("fd7a:115c:a1e0::1/128")]);
}

#[test]
fn trap_06_no_string_needs_an_escape_whatever_a_node_says_of_itself() {
    let mut world = World::new();
    world.join(1, "viewer");
    world.join(2, "evil");
    let viewer = world.settled(1);
    world.report(2, |request| {
        request.hostinfo = Some(Hostinfo {
            os: "li\"nux\\\n\u{7}&<>é".to_owned(),
            services: vec![Service { proto: "tcp".to_owned(), port: 1, description: "a\"b\u{1b}".to_owned() }],
            ..hostinfo("ev\"il\\")
        });
    });
    let text = world.text(viewer).unwrap();
    assert!(!text.contains('\\') && text.contains("linux&<>é"), "{text}");
}

#[test]
fn traps_11_and_13_nothing_empty_or_null_is_written() {
    let mut world = World::new();
    world.join(1, "lonely");
    let session = world.stream(1);
    let text = world.text(session).unwrap();
    for absent in ["\"Peers\"", "\"PeersRemoved\"", "\"DERPMap\"", "\"DiscoKey\":\"\"", "\"Endpoints\"", "\"HomeDERP\"", "null"] {
        assert!(!text.contains(absent), "{absent} in {text}");
    }
    world.join(2, "beta");
    let delta = world.text(session).unwrap();
    assert!(!delta.contains("\"Peers\"") && delta.contains("\"PeersChanged\":[{") && !delta.contains("null"), "{delta}");
    assert!(!delta.contains("\"Node\""), "deltas leave out what rebuilds everything on the client: {delta}");
}

#[test]
fn a_relay_map_is_told_only_if_there_is_one() {
    let mut settings = settings();
    let map = r#"{"Regions":{"900":{"RegionID":900,"RegionCode":"own","Nodes":[{"Name":"900a","RegionID":900,"HostName":"relay.example.test"}]}}}"#;
    settings.derp_map = Some(json::from_slice::<DerpMap>(map.as_bytes()).unwrap());
    let mut world = World::new();
    world.server = pvemesh::coord::server::Server::new(settings, [1; 32], Default::default(), world.at).unwrap();
    world.join(1, "alpha");
    let session = world.stream(1);
    let text = world.text(session).unwrap();
    assert!(text.contains(r#""DERPMap":{"Regions":{"900":{"#) && text.contains("relay.example.test"), "{text}");
}

#[test]
fn a_join_reaches_the_others_as_one_changed_peer_with_its_users_profile() {
    let mut world = World::new();
    world.join(1, "alpha");
    let session = world.settled(1);
    world.join_with(2, "beta", |k| k.user = "bob".to_owned());
    world.join_with(3, "gamma", |k| k.user = "bob".to_owned());
    let told = world.take(session).unwrap();
    assert_eq!(told.peers_changed.iter().map(|peer| peer.name.as_str()).collect::<Vec<_>>(), ["beta.mesh.test.", "gamma.mesh.test."]);
    assert_eq!(told.user_profiles.iter().map(|user| user.display_name.as_str()).collect::<Vec<_>>(), ["bob"]);
    assert!(told.node.is_none() && told.dns_config.is_none() && told.packet_filters.is_empty());
    world.join_with(4, "delta", |k| k.user = "bob".to_owned());
    assert!(world.take(session).unwrap().user_profiles.is_empty(), "profiles are told once");
}

#[test]
fn endpoints_home_relay_and_disco_key_travel_as_patches() {
    let mut world = World::new();
    world.join(1, "alpha");
    world.join(2, "beta");
    let session = world.settled(1);
    world.report(2, |request| {
        request.endpoints = vec!["192.0.2.7:41641".parse().unwrap()];
        request.disco_key = disco(2);
        request.hostinfo = with_home(900, "beta");
    });
    let told = world.take(session).unwrap();
    assert!(told.peers_changed.is_empty());
    let [patch] = told.peers_changed_patch.as_slice() else { panic!("{told:?}") };
    assert_eq!(patch.node_id, world.info(2).id);
    assert_eq!(patch.endpoints.as_deref(), Some(&["192.0.2.7:41641".parse().unwrap()][..]));
    assert_eq!((patch.derp_region, patch.disco_key, patch.online), (900, Some(disco(2)), None));
    // No home any more has no short form.
    world.report(2, |request| request.hostinfo = with_home(0, "beta"));
    let told = world.take(session).unwrap();
    assert_eq!((told.peers_changed.len(), told.peers_changed_patch.len()), (1, 0));
    assert_eq!(told.peers_changed[0].home_derp, 0);
}

#[test]
fn trap_15_absent_and_zero_fields_leave_what_is_known() {
    let mut world = World::new();
    world.join(1, "alpha");
    world.report(1, |request| {
        request.endpoints = vec!["192.0.2.7:41641".parse().unwrap()];
        request.disco_key = disco(1);
        request.hostinfo = with_home(900, "alpha");
    });
    world.report(1, |_| {});
    world.report(1, |request| request.hostinfo = Some(hostinfo("alpha")));
    world.join(2, "beta");
    let session = world.stream(2);
    let peer = world.take(session).unwrap().peers.remove(0);
    assert_eq!((peer.disco_key, peer.home_derp, peer.endpoints.len()), (disco(1), 900, 1));
}

#[test]
fn trap_16_an_update_that_changes_nothing_is_silent_and_stores_nothing() {
    let mut world = World::new();
    world.join(1, "alpha");
    world.join(2, "beta");
    let session = world.settled(1);
    let full = |request: &mut MapRequest| {
        request.endpoints = vec!["192.0.2.7:41641".parse().unwrap()];
        request.disco_key = disco(2);
        request.hostinfo = with_home(900, "beta");
    };
    world.report(2, full);
    world.take(session).unwrap();
    world.writes.clear();
    let mut request = lite(2);
    full(&mut request);
    // Latencies are nobody else's business.
    request.hostinfo.as_mut().unwrap().net_info.as_mut().unwrap().derp_latency.insert("900-v4".to_owned(), 0.01);
    let answer = world.server.map(world.at, &machine(2), &request);
    assert!(matches!(answer, Ok(MapAnswer::Empty)));
    assert_eq!((world.drain(), world.writes.len()), (Vec::<Event>::new(), 0));
    assert!(world.take(session).is_none());
}

#[test]
fn endpoints_that_mean_nothing_elsewhere_are_dropped_and_their_number_is_bounded() {
    let mut world = World::new();
    world.join(1, "alpha");
    world.join(2, "beta");
    world.report(1, |request| {
        let bad = ["[fe80::1]:1", "0.0.0.0:1", "192.0.2.1:0", "224.0.0.1:5", "169.254.1.1:9"].map(|text| text.parse().unwrap());
        request.endpoints = bad.into_iter().chain((1..=200).map(|n| format!("192.0.2.{n}:41641").parse().unwrap())).collect();
    });
    let session = world.stream(2);
    let peer = world.take(session).unwrap().peers.remove(0);
    assert_eq!((peer.endpoints.len(), peer.endpoints[0]), (32, "192.0.2.1:41641".parse().unwrap()));
}

#[test]
fn traps_21_and_22_requests_for_unknown_nodes_or_by_other_machines_are_refused() {
    let mut world = World::new();
    world.join(1, "alpha");
    assert_eq!(world.map(2, &lite(1)).unwrap_err(), MapRefusal::OtherMachine);
    assert_eq!(world.map(2, &lite(2)).unwrap_err(), MapRefusal::Unknown);
    let old = MapRequest { version: 100, ..lite(1) };
    assert_eq!(world.map(1, &old).unwrap_err(), MapRefusal::TooOld(100));
}

#[test]
fn a_one_shot_request_gets_one_whole_map_and_opens_nothing() {
    let mut world = World::new();
    world.join(1, "alpha");
    world.join(2, "beta");
    let request = MapRequest { version: 130, node_key: node_key(1), ..MapRequest::default() };
    let MapAnswer::Once(message) = world.map(1, &request).unwrap() else { panic!("not one message") };
    let text = String::from_utf8(message.to_json().unwrap()).unwrap();
    assert!(text.contains("\"Node\":{") && text.contains("\"Peers\":[{"));
    assert!(!world.info(1).online);
}

#[test]
fn a_read_only_request_changes_nothing() {
    let mut world = World::new();
    let before = world.join(1, "alpha");
    world.report(1, |request| {
        request.read_only = true;
        request.hostinfo = Some(hostinfo("renamed"));
    });
    assert_eq!(world.info(1), before);
}

#[test]
fn online_is_told_at_once_and_offline_after_a_grace() {
    let mut world = World::new();
    world.join(1, "alpha");
    world.join(2, "beta");
    let session = world.settled(1);
    let beta = world.settled(2);
    let told = world.take(session).unwrap();
    assert_eq!(told.peers_changed_patch[0].online, Some(true));
    world.hang_up(beta);
    let left = world.at.wall;
    world.pass(OFFLINE_GRACE - Duration::from_millis(100));
    assert!(world.take(session).is_none(), "a reconnect within the grace is nobody's business");
    world.pass(Duration::from_millis(100));
    let told = world.take(session).unwrap();
    let [patch] = told.peers_changed_patch.as_slice() else { panic!("{told:?}") };
    assert_eq!((patch.online, patch.last_seen, patch.disco_key), (Some(false), Some(left), None));
}

#[test]
fn trap_30_last_seen_is_told_of_offline_nodes_only() {
    let mut world = World::new();
    for n in [1, 2, 3] {
        world.join(n, "n");
    }
    let gone = world.settled(3);
    world.hang_up(gone);
    world.pass(OFFLINE_GRACE);
    world.settled(2);
    let session = world.stream(1);
    let peers = world.take(session).unwrap().peers;
    assert_eq!(
        peers.iter().map(|peer| (peer.online, peer.last_seen.is_some())).collect::<Vec<_>>(),
        [(Some(true), false), (Some(false), true)]
    );
}

#[test]
fn a_dying_old_stream_does_not_take_the_new_one_offline() {
    let mut world = World::new();
    world.join(1, "alpha");
    world.join(2, "viewer");
    let viewer = world.settled(2);
    let old = world.settled(1);
    world.take(viewer);
    world.pass(STREAM_TURN);
    let new = world.stream(1);
    assert!(world.ended(old), "the newest stream wins");
    world.take(new).unwrap();
    world.hang_up(old);
    world.pass(Duration::from_secs(120));
    assert!(world.info(1).online);
    assert!(world.take(viewer).is_none(), "nothing happened that anyone has to know");
    // The same the other way round: the old one dies before the new one is opened.
    world.hang_up(new);
    world.pass(OFFLINE_GRACE / 2);
    let newest = world.settled(1);
    world.hang_up(new);
    world.pass(Duration::from_secs(120));
    assert!(world.info(1).online);
    world.hang_up(newest);
    world.pass(OFFLINE_GRACE);
    assert!(!world.info(1).online);
}

#[test]
fn trap_22_a_deleted_node_learns_it_by_an_expired_key_before_its_stream_ends() {
    let mut world = World::new();
    let doomed = world.join(1, "alpha");
    world.join(2, "beta");
    let (own, viewer) = (world.settled(1), world.settled(2));
    world.take(own);
    world.server.delete_node(world.at, doomed.id).unwrap();
    world.drain();
    let last = world.take(own).unwrap();
    assert!(last.node.unwrap().key_expiry.unwrap() < world.at.wall);
    assert!(world.ended(own));
    assert_eq!(world.take(viewer).unwrap().peers_removed, [doomed.id]);
    // Coming back without a join key, it is asked to log in.
    assert!(!world.register(1, &registration(1, None, "alpha")).auth_url.is_empty());
}

#[test]
fn an_expired_node_sees_itself_only_and_its_peers_are_told() {
    let mut world = World::new();
    let node = world.join(1, "alpha");
    world.join(2, "beta");
    let (own, viewer) = (world.settled(1), world.settled(2));
    world.take(own);
    world.server.expire_node(world.at, node.id, Expire::default()).unwrap();
    let told = world.take(own).unwrap();
    assert!(told.node.unwrap().expired && !world.ended(own), "the stream stays open");
    assert!(world.take(viewer).unwrap().peers_changed[0].key_expiry.unwrap() <= world.at.wall);
    world.report(2, |request| request.endpoints = vec!["192.0.2.7:41641".parse().unwrap()]);
    assert!(world.take(own).is_none());
    let again = world.stream(1);
    let map = world.take(again).unwrap();
    assert!(map.peers.is_empty() && map.node.unwrap().expired);
}

#[test]
fn a_key_that_runs_out_while_connected_is_noticed() {
    let mut world = World::new();
    world.join(1, "alpha");
    world.join_with(2, "viewer", |k| k.tags = vec!["tag:server".to_owned()]);
    let soon = world.at.wall.checked_add(Duration::from_secs(100)).unwrap();
    let request = pvemesh::wire::control::RegisterRequest { expiry: Some(soon), ..registration(1, None, "alpha") };
    world.register(1, &request);
    let (own, viewer) = (world.settled(1), world.settled(2));
    world.take(own);
    world.pass(Duration::from_secs(150));
    assert!(world.take(own).unwrap().node.unwrap().expired);
    assert!(world.take(viewer).unwrap().peers_changed[0].expired);
    // Renewed in place, the open stream gets its peers back.
    let key = world.key(|_| {});
    world.register(1, &registration(1, Some(&key), "alpha"));
    let map = world.take(own).unwrap();
    assert!(!map.node.unwrap().expired && map.peers.len() == 1);
}

#[test]
fn ephemeral_nodes_survive_a_short_absence_and_go_after_a_long_one() {
    let mut world = World::new();
    let node = world.join_with(1, "runner", |k| k.ephemeral = true);
    world.join(2, "viewer");
    let viewer = world.settled(2);
    for _ in 0..3 {
        let session = world.settled(1);
        world.pass(Duration::from_secs(3600));
        world.hang_up(session);
        world.pass(Duration::from_secs(10 * 60));
    }
    assert_eq!(world.info(1).id, node.id);
    world.take(viewer);
    world.pass(Duration::from_secs(31 * 60));
    assert_eq!(world.server.nodes().len(), 1);
    assert_eq!(world.take(viewer).unwrap().peers_removed, [node.id]);
}

#[test]
fn an_ephemeral_node_that_never_connects_goes_too_also_over_a_restart() {
    let mut world = World::new();
    world.join_with(1, "runner", |k| k.ephemeral = true);
    world.restart();
    world.pass(Duration::from_secs(31 * 60));
    assert!(world.server.nodes().is_empty());
}

#[test]
fn a_stream_that_takes_nothing_for_long_misses_no_change() {
    let mut world = World::new();
    world.join(1, "slow");
    let session = world.settled(1);
    let key = world.key(|k| k.reusable = true);
    let count = u32::try_from(MAX_REMOVED).unwrap() + 2;
    for n in 0..count {
        join_many(&mut world, &key, n);
    }
    let told = world.take(session).unwrap();
    assert_eq!((told.peers_changed.len(), told.user_profiles.len()), (count as usize, 0));
    assert!(told.peers_changed.is_sorted_by_key(|peer| peer.id));
    // Removed nodes are remembered for it within bounds; beyond them it has to start anew.
    for node in world.server.nodes().iter().filter(|node| node.name.as_str() != "slow") {
        world.server.delete_node(world.at, node.id).unwrap();
    }
    world.drain();
    assert!(world.ended(session));
    let again = world.stream(1);
    assert!(world.take(again).unwrap().peers.is_empty());
}

fn join_many(world: &mut World, key: &str, n: u32) {
    let mut seed = [3; 32];
    seed[..4].copy_from_slice(&n.to_be_bytes());
    let mut request = registration(1, Some(key), "n");
    request.node_key = pvemesh::ident::NodePublic::from_bytes(seed);
    request.hostinfo = Some(hostinfo(&format!("n{n}")));
    world.server.register(world.at, &pvemesh::ident::MachinePublic::from_bytes(seed), &request);
    // Storing is left out: the model of it is slow.
    while world.server.poll_event().is_some() {}
    world.server.take_writes();
}

#[test]
fn a_wake_up_comes_once_for_many_changes() {
    let mut world = World::new();
    world.join(1, "alpha");
    world.join(2, "beta");
    let session = world.settled(1);
    let mut wakes = 0;
    for port in 1..=50u16 {
        let mut request = lite(2);
        request.endpoints = vec![format!("192.0.2.7:{port}").parse().unwrap()];
        world.server.map(world.at, &machine(2), &request).unwrap();
        wakes += world.drain().iter().filter(|event| **event == Event::Wake(session)).count();
    }
    assert_eq!(wakes, 1);
    let told = world.take(session).unwrap();
    assert_eq!(told.peers_changed_patch[0].endpoints.as_deref(), Some(&["192.0.2.7:50".parse().unwrap()][..]));
}
