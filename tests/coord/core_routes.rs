//! Routes: offered, approved, carried.

use std::time::Duration;

use pvemesh::coord::server::{Event, HANDOVER_GRACE, MapAnswer, OFFLINE_GRACE, ROUTE_GRACE, SessionId};
use pvemesh::wire::admin::Expire;
use pvemesh::wire::control::{MapRequest, MapResponse};

use crate::world::*;

const LAN: &str = "192.168.1.0/24";

fn offer(world: &mut World, n: u8, name: &str, routes: &[&str]) {
    world.report(n, |request| {
        let mut info = hostinfo(name);
        info.routable_ips = routes.iter().map(|route| net(route)).collect();
        request.hostinfo = Some(info);
    });
}

/// What a viewer may route to each peer beyond its own addresses, as told by changed peers.
fn routed(told: &MapResponse) -> Vec<(i64, Vec<String>)> {
    let routes = |node: &pvemesh::wire::control::Node| {
        let own = &node.addresses;
        node.routed().iter().filter(|net| !own.contains(net)).map(ToString::to_string).collect()
    };
    told.peers.iter().chain(&told.peers_changed).map(|peer| (peer.id.0, routes(peer))).collect()
}

fn told(world: &mut World, session: SessionId) -> Vec<(i64, Vec<String>)> {
    world.take(session).map(|told| routed(&told)).unwrap_or_default()
}

#[test]
fn a_route_is_told_when_it_is_both_offered_and_approved_and_its_router_is_online() {
    let mut world = World::new();
    let router = world.join(1, "router");
    world.join(2, "viewer");
    let viewer = world.settled(2);
    offer(&mut world, 1, "router", &[LAN]);
    assert_eq!(told(&mut world, viewer), [(router.id.0, vec![])], "offered only");
    world.server.approve_routes(world.at, router.id, &[net(LAN)]).unwrap();
    assert_eq!(told(&mut world, viewer), [(router.id.0, vec![])], "offline");
    let own = world.stream(1);
    let map = world.take(own).unwrap().node.unwrap();
    assert_eq!(map.primary_routes, [net(LAN)], "the router is told its own routes");
    assert_eq!(told(&mut world, viewer), [(router.id.0, vec![LAN.to_owned()])]);
    offer(&mut world, 1, "router", &[]);
    assert_eq!(told(&mut world, viewer), [(router.id.0, vec![])]);
    offer(&mut world, 1, "router", &[LAN]);
    assert_eq!(told(&mut world, viewer), [(router.id.0, vec![LAN.to_owned()])], "an approval survives a pause of the offer");
}

#[test]
fn a_join_key_approves_beforehand_and_one_exit_route_means_both() {
    let mut world = World::new();
    let exit = world.join_with(1, "exit-1", |k| k.approve_routes = vec![net("0.0.0.0/0")]);
    assert_eq!(exit.approved_routes, [net("0.0.0.0/0"), net("::/0")]);
    world.join(2, "viewer");
    let viewer = world.settled(2);
    offer(&mut world, 1, "exit-1", &["0.0.0.0/0", "::/0"]);
    let change = world.take(viewer).unwrap();
    assert_eq!(routed(&change), [(exit.id.0, vec!["0.0.0.0/0".to_owned(), "::/0".to_owned()])]);
    assert!(change.peers_changed[0].primary_routes.is_empty(), "exit routes are not primary routes");
    // Routes that come with the registration itself count, too.
    let key = world.key(|k| k.approve_routes = vec![net(LAN)]);
    let mut request = registration(3, Some(&key), "router");
    request.hostinfo.as_mut().unwrap().routable_ips = vec![net(LAN), net("10.0.0.0/8")];
    world.register(3, &request);
    let router = world.info(3);
    assert_eq!((router.approved_routes, router.advertised_routes), (vec![net(LAN)], vec![net("10.0.0.0/8"), net(LAN)]));
}

#[test]
fn trap_23_a_prefix_has_one_carrier_and_a_handover_is_one_message() {
    let mut world = World::new();
    let mut ids = Vec::new();
    for n in [1, 2] {
        let node = world.join_with(n, &format!("r{n}"), |k| k.approve_routes = vec![net(LAN)]);
        offer(&mut world, n, &format!("r{n}"), &[LAN]);
        ids.push(node.id.0);
    }
    world.join(3, "viewer");
    let viewer = world.settled(3);
    let second = world.settled(2);
    assert_eq!(told(&mut world, viewer), [(ids[1], vec![LAN.to_owned()])], "whoever is there carries it");
    let first = world.settled(1);
    world.take(viewer);
    let again = world.stream(3);
    assert_eq!(told(&mut world, again), [(ids[0], vec![]), (ids[1], vec![LAN.to_owned()])], "the carrier of now stays");
    world.hang_up(second);
    world.pass(OFFLINE_GRACE + Duration::from_secs(1));
    assert_eq!(told(&mut world, again), [(ids[0], vec![LAN.to_owned()]), (ids[1], vec![])], "both sides in one message");
    world.hang_up(first);
    world.pass(ROUTE_GRACE - Duration::from_secs(1));
    let told_meanwhile = world.take(again).unwrap();
    assert!(told_meanwhile.peers_changed.is_empty(), "with nobody to take over, the carrier keeps the prefix for a while");
    assert_eq!(told_meanwhile.peers_changed_patch[0].online, Some(false));
    world.pass(Duration::from_secs(1));
    assert_eq!(told(&mut world, again), [(ids[0], vec![])], "nobody is there");
}

#[test]
fn another_router_takes_over_before_peers_hear_of_the_absence_and_keeps_what_it_has() {
    let mut world = World::new();
    let mut ids = Vec::new();
    for n in [1, 2] {
        let node = world.join_with(n, &format!("r{n}"), |k| k.approve_routes = vec![net(LAN)]);
        offer(&mut world, n, &format!("r{n}"), &[LAN]);
        ids.push(node.id.0);
    }
    world.join(3, "viewer");
    let viewer = world.settled(3);
    let first = world.settled(1);
    assert!(!world.server.is_watched(first), "there is no other yet");
    let request = MapRequest { version: 130, node_key: node_key(2), stream: true, disco_key: disco(2), ..MapRequest::default() };
    let Ok(MapAnswer::Stream(opened)) = world.server.map(world.at, &machine(2), &request) else { panic!("no stream") };
    let woken: Vec<Event> = std::iter::from_fn(|| world.server.poll_event()).collect();
    assert!(woken.contains(&Event::Wake(first)), "its stream has to know that it is watched now: {woken:?}");
    world.drain();
    assert!(world.server.is_watched(first) && !world.server.is_watched(opened), "only who carries something is watched");
    world.take(opened);
    world.take(viewer);

    world.hang_up(first);
    world.pass(HANDOVER_GRACE / 2);
    let back = world.settled(1);
    world.pass(HANDOVER_GRACE);
    assert_eq!(told(&mut world, viewer), [], "a stream that is opened again at once changes nothing");

    world.hang_up(back);
    world.pass(HANDOVER_GRACE);
    let change = world.take(viewer).unwrap();
    assert_eq!(routed(&change), [(ids[0], vec![]), (ids[1], vec![LAN.to_owned()])], "both sides in one message");
    assert_eq!(change.peers_changed[0].online, Some(true), "of the absence itself nobody hears yet");
    let back = world.settled(1);
    world.pass(ROUTE_GRACE + OFFLINE_GRACE);
    assert_eq!(told(&mut world, viewer), [], "it does not get back what another carries");
    assert!(world.server.is_watched(opened) && !world.server.is_watched(back));
}

#[test]
fn deleting_or_expiring_a_carrier_hands_its_routes_over() {
    let mut world = World::new();
    let mut ids = Vec::new();
    for n in [1, 2, 3] {
        let node = world.join_with(n, &format!("r{n}"), |k| k.approve_routes = vec![net(LAN)]);
        offer(&mut world, n, &format!("r{n}"), &[LAN]);
        world.settled(n);
        ids.push(node.id);
    }
    world.join(9, "viewer");
    let viewer = world.settled(9);
    world.server.delete_node(world.at, ids[0]).unwrap();
    let change = world.take(viewer).unwrap();
    assert_eq!((change.peers_removed.clone(), routed(&change)), (vec![ids[0]], vec![(ids[1].0, vec![LAN.to_owned()])]));
    world.server.expire_node(world.at, ids[1], Expire::default()).unwrap();
    assert_eq!(told(&mut world, viewer), [(ids[1].0, vec![]), (ids[2].0, vec![LAN.to_owned()])]);
}

#[test]
fn trap_24_offered_routes_are_masked_and_bounded() {
    let mut world = World::new();
    let node = world.join(1, "router");
    let many: Vec<String> = (0..400).map(|n| format!("10.{}.{}.7/24", n / 200, n % 200)).collect();
    offer(&mut world, 1, "router", &many.iter().map(String::as_str).collect::<Vec<_>>());
    let node = world.server.nodes().into_iter().find(|n| n.id == node.id).unwrap();
    assert_eq!(node.advertised_routes.len(), 256);
    assert!(node.advertised_routes.iter().all(|route| route.trunc() == *route));
}

#[test]
fn a_restart_keeps_routes_flowing_while_routers_reconnect() {
    let mut world = World::new();
    let router = world.join_with(1, "router", |k| k.approve_routes = vec![net(LAN)]);
    offer(&mut world, 1, "router", &[LAN]);
    world.join(2, "viewer");
    world.settled(1);
    world.restart();
    let viewer = world.stream(2);
    let map = world.take(viewer).unwrap();
    assert_eq!((routed(&map), map.peers[0].online), (vec![(router.id.0, vec![LAN.to_owned()])], Some(true)));
}
