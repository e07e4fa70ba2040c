//! Absences known beforehand: drained routers, and guests that are known to have stopped.

use std::time::Duration;

use pvemesh::coord::server::{MAX_DRAIN, SessionId};
use pvemesh::ident::NodeId;
use pvemesh::wire::admin::{Drain, NodeInfo};

use crate::world::*;

const LAN: &str = "192.168.1.0/24";

fn offer(world: &mut World, n: u8, name: &str, routes: &[&str]) {
    world.report(n, |request| {
        let mut info = hostinfo(name);
        info.routable_ips = routes.iter().map(|route| net(route)).collect();
        request.hostinfo = Some(info);
    });
}

/// Two routers of one LAN, both online; the first carries it.
fn pair() -> (World, [(NodeId, SessionId); 2]) {
    let mut world = World::new();
    let mut made = Vec::new();
    for n in [1, 2] {
        let node = world.join_with(n, &format!("r{n}"), |k| k.approve_routes = vec![net(LAN)]);
        offer(&mut world, n, &format!("r{n}"), &[LAN]);
        let session = world.settled(n);
        made.push((node.id, session));
    }
    assert_eq!(carried(&world), [Some(LAN), None]);
    (world, [made[0], made[1]])
}

fn carried(world: &World) -> [Option<&'static str>; 2] {
    [1, 2].map(|n| (world.info(n).carried_routes == [net(LAN)]).then_some(LAN))
}

fn drain(world: &mut World, id: NodeId, wanted: Drain) -> NodeInfo {
    let listed = world.server.drain(world.at, id, wanted).unwrap();
    world.drain();
    listed
}

const FOR_A_MINUTE: Drain = Drain { for_secs: 60, gone: false };
const GONE: Drain = Drain { for_secs: 0, gone: true };

#[test]
fn a_router_that_leaves_hands_over_at_once_and_stays_connected() {
    let (mut world, [first, _]) = pair();
    let listed = drain(&mut world, first.0, FOR_A_MINUTE);
    assert!(listed.online && listed.carried_routes.is_empty());
    assert_eq!(carried(&world), [None, Some(LAN)]);
    assert!(!world.ended(first.1), "it still carries what is on its way");
}

#[test]
fn what_nobody_else_can_carry_stays_with_the_router_that_leaves() {
    let (mut world, [first, second]) = pair();
    world.server.delete_node(world.at, second.0).unwrap();
    assert_eq!(drain(&mut world, first.0, FOR_A_MINUTE).carried_routes, [net(LAN)]);
}

#[test]
fn a_drain_ends_by_its_time_by_a_word_and_by_the_node_s_return() {
    for end in ["time", "word", "return"] {
        let (mut world, [first, second]) = pair();
        drain(&mut world, first.0, FOR_A_MINUTE);
        match end {
            "time" => world.pass(Duration::from_secs(61)),
            "word" => drop(drain(&mut world, first.0, Drain::default())),
            _ => drop(world.settled(1)),
        }
        assert_eq!(carried(&world), [None, Some(LAN)], "{end}: whoever carries it keeps it");
        drain(&mut world, second.0, FOR_A_MINUTE);
        assert_eq!(carried(&world), [Some(LAN), None], "{end}: it may win again");
    }
}

#[test]
fn one_that_leaves_wins_nothing_from_one_that_leaves() {
    let (mut world, [first, second]) = pair();
    drain(&mut world, first.0, FOR_A_MINUTE);
    drain(&mut world, second.0, FOR_A_MINUTE);
    assert_eq!(carried(&world), [None, Some(LAN)], "the last one keeps it to its end");
    world.hang_up(second.1);
    world.pass(Duration::from_secs(20));
    assert_eq!(carried(&world), [None, None]);
}

#[test]
fn a_node_that_is_gone_is_offline_at_once_and_its_late_stream_changes_nothing() {
    let (mut world, [first, second]) = pair();
    world.join(3, "viewer");
    let viewer = world.settled(3);
    let listed = drain(&mut world, first.0, GONE);
    assert!(!listed.online && listed.last_seen.is_some());
    assert_eq!(carried(&world), [None, Some(LAN)]);
    let told = world.take(viewer).unwrap();
    let online: Vec<_> = told.peers_changed.iter().map(|peer| (peer.id, peer.online)).collect();
    assert!(online.contains(&(first.0, Some(false))), "{online:?}");
    assert!(world.ended(first.1));
    world.hang_up(first.1);
    world.pass(Duration::from_secs(60));
    assert!(world.take(viewer).is_none(), "nothing more is told of it");
    // Nobody is left to take over: then nobody carries it, since it is known that the router is gone.
    drain(&mut world, second.0, GONE);
    assert_eq!(carried(&world), [None, None]);
}

#[test]
fn a_node_that_was_taken_for_gone_is_back_with_its_next_stream() {
    let (mut world, [first, second]) = pair();
    world.server.delete_node(world.at, second.0).unwrap();
    drain(&mut world, first.0, GONE);
    world.settled(1);
    let back = world.info(1);
    assert!(back.online);
    assert_eq!(back.carried_routes, [net(LAN)]);
}

#[test]
fn unknown_nodes_and_endless_drains_are_refused() {
    let (mut world, [first, _]) = pair();
    let refused = |world: &mut World, id, wanted| world.server.drain(world.at, id, wanted).unwrap_err().to_string();
    assert!(refused(&mut world, NodeId(99), GONE).contains("no node 99"));
    let endless = Drain { for_secs: MAX_DRAIN.as_secs() + 1, gone: false };
    assert!(refused(&mut world, first.0, endless).contains("at most 3600 seconds"));
}

#[test]
fn a_single_machine_may_be_approved_alone_within_an_offered_network() {
    let mut world = World::new();
    let router = world.join(1, "router");
    offer(&mut world, 1, "router", &[LAN, "0.0.0.0/0"]);
    world.settled(1);
    let approve = |world: &mut World, routes: &[&str]| {
        let routes: Vec<_> = routes.iter().map(|route| net(route)).collect();
        world.server.approve_routes(world.at, router.id, &routes).unwrap().carried_routes
    };
    assert_eq!(approve(&mut world, &["192.168.1.50/32"]), [net("192.168.1.50/32")]);
    assert_eq!(approve(&mut world, &["192.168.1.0/25"]), [], "a part of a network is not what was offered");
    assert_eq!(approve(&mut world, &["10.0.0.1/32"]), [], "the internet is not a network of machines behind it");
    assert_eq!(approve(&mut world, &["192.168.1.50/32", LAN]), [net(LAN), net("192.168.1.50/32")]);
}
