//! Who is here, and what follows from absence.

use std::time::Duration;

use pvemesh::coord::server::{EPHEMERAL_AFTER, Event, MapAnswer, OFFLINE_GRACE, STREAM_TURN, Server};
use pvemesh::wire::control::MapRequest;

use crate::world::*;

#[test]
fn an_absence_is_told_within_two_seconds_and_a_reconnect_within_one_never() {
    let mut world = World::new();
    world.join(1, "alpha");
    world.join(2, "viewer");
    let viewer = world.settled(2);
    let mut stream = world.settled(1);
    world.take(viewer);
    for _ in 0..5 {
        world.hang_up(stream);
        world.pass(Duration::from_secs(1));
        stream = world.settled(1);
        world.pass(Duration::from_secs(60));
        assert!(world.take(viewer).is_none());
    }
    world.hang_up(stream);
    world.pass(Duration::from_millis(1900));
    assert_eq!(world.take(viewer).unwrap().peers_changed_patch[0].online, Some(false));
    assert!(OFFLINE_GRACE < Duration::from_secs(2));
    world.stream(1);
    assert_eq!(world.take(viewer).unwrap().peers_changed_patch[0].online, Some(true), "and the return at once");
}

#[test]
fn two_machines_with_one_node_key_take_turns_of_ten_seconds_and_the_newest_wins() {
    let mut world = World::new();
    world.join(1, "original");
    world.join(2, "viewer");
    let viewer = world.settled(2);
    let original = world.settled(1);
    world.take(viewer);
    world.pass(Duration::from_secs(3));
    let clone = world.settled(1);
    assert!(!world.ended(original), "ending it at once would only bring it back at once");
    world.pass(STREAM_TURN - Duration::from_secs(3));
    assert!(world.ended(original) && !world.ended(clone));
    world.hang_up(original);
    // However fast they come back, the oldest goes first and there are never more than two.
    let third = world.settled(1);
    let fourth = world.settled(1);
    assert!(world.ended(clone) && !world.ended(third) && !world.ended(fourth));
    world.pass(Duration::from_secs(60));
    assert!(world.ended(third) && !world.ended(fourth));
    world.hang_up(third);
    world.pass(Duration::from_secs(60));
    assert!(world.take(viewer).is_none(), "nobody else is bothered by it");
}

#[test]
fn a_clone_that_goes_away_leaves_the_other_its_place_and_has_it_say_again_where_it_is() {
    let mut world = World::new();
    world.join(1, "original");
    world.join(2, "viewer");
    let viewer = world.settled(2);
    let here = |world: &mut World, at: &str, disco_n: u8| {
        let place = at.parse().unwrap();
        let request = MapRequest {
            version: 130,
            node_key: node_key(1),
            stream: true,
            disco_key: disco(disco_n),
            endpoints: vec![place],
            ..MapRequest::default()
        };
        let Ok(MapAnswer::Stream(session)) = world.map(1, &request) else { panic!("no stream") };
        world.take(session).unwrap();
        session
    };
    let original = here(&mut world, "192.0.2.1:41641", 1);
    world.take(viewer);
    let clone = here(&mut world, "192.0.2.66:41641", 66);
    assert_eq!(world.take(viewer).unwrap().peers_changed_patch[0].disco_key, Some(disco(66)));
    assert!(!world.ended(original));
    world.hang_up(clone);
    assert!(world.ended(original), "so that it comes back");
    world.hang_up(original);
    world.pass(OFFLINE_GRACE / 2);
    here(&mut world, "192.0.2.1:41641", 1);
    world.pass(Duration::from_secs(120));
    let told = world.take(viewer).unwrap();
    let patch = &told.peers_changed_patch[0];
    assert_eq!((patch.disco_key, patch.online), (Some(disco(1)), None), "its peers know where it is, and never saw it go");
    assert_eq!(patch.endpoints.as_deref(), Some(&["192.0.2.1:41641".parse().unwrap()][..]));
}

#[test]
fn how_long_ephemeral_nodes_and_node_keys_live_is_a_setting() {
    let mut world = World::new();
    let mut settings = settings();
    settings.ephemeral_after = Duration::from_secs(120);
    settings.key_life = Some(Duration::from_secs(3600));
    world.server = Server::new(settings.clone(), [1; 32], Default::default(), world.at).unwrap();
    world.join_with(1, "runner", |k| k.ephemeral = true);
    let laptop = world.join(2, "laptop");
    assert_eq!(laptop.key_expiry, Some(world.at.wall.checked_add(Duration::from_secs(3600)).unwrap()));
    let stream = world.settled(1);
    world.hang_up(stream);
    world.pass(Duration::from_secs(119));
    assert_eq!(world.server.nodes().len(), 2);
    world.pass(Duration::from_secs(3));
    assert_eq!(world.server.nodes().len(), 1);
    settings.key_life = None;
    world.server = Server::new(settings, [1; 32], Default::default(), world.at).unwrap();
    assert_eq!(world.join(3, "desktop").key_expiry, None);
}

#[test]
fn an_ephemeral_node_that_joins_again_to_stay_stays() {
    let mut world = World::new();
    let node = world.join_with(1, "runner", |k| k.ephemeral = true);
    let key = world.key(|_| {});
    world.server.expire_node(world.at, node.id, Default::default()).unwrap();
    world.register(1, &registration(2, Some(&key), "runner"));
    world.pass(EPHEMERAL_AFTER * 2);
    assert_eq!(world.info(2).id, node.id);
    // And the other way round.
    let key = world.key(|k| k.ephemeral = true);
    world.server.expire_node(world.at, node.id, Default::default()).unwrap();
    world.register(1, &registration(3, Some(&key), "runner"));
    world.pass(EPHEMERAL_AFTER * 2);
    assert!(world.server.nodes().is_empty());
}

#[test]
fn trap_16_a_stream_that_was_woken_for_nothing_is_told_nothing() {
    let mut world = World::new();
    world.join(1, "alpha");
    world.join(2, "beta");
    let session = world.settled(1);
    assert!(world.take(session).is_none());
    let waiting = registration(9, None, "stranger");
    world.register(9, &waiting);
    assert!(!world.drain().contains(&Event::Wake(session)) && world.take(session).is_none());
}
