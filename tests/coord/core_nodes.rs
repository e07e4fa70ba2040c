//! What an admin does to nodes and users, and who is told.

use std::time::Duration;

use pvemesh::coord::server::{CommandError, TAGGED_USER};
use pvemesh::ident::UserId;
use pvemesh::wire::admin::Expire;

use crate::world::*;

fn conflict<T: std::fmt::Debug>(result: Result<T, CommandError>, reason: &str) {
    match result {
        Err(CommandError::Conflict(text)) => assert!(text.contains(reason), "{text}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_address_on_request_is_checked_and_told_and_its_ipv6_follows() {
    let mut world = World::new();
    let node = world.join(1, "alpha");
    let other = world.join(2, "beta");
    let (own, viewer) = (world.settled(1), world.settled(2));
    world.take(own);
    let at = world.at;
    let moved = world.server.set_address(at, node.id, "100.64.0.50".parse().unwrap()).unwrap();
    assert_eq!(moved.addresses.iter().map(ToString::to_string).collect::<Vec<_>>(), ["100.64.0.50", "fd7a:115c:a1e0::32"]);
    assert_eq!(world.take(own).unwrap().node.unwrap().addresses[0], net("100.64.0.50/32"));
    let told = world.take(viewer).unwrap();
    assert_eq!(told.peers_changed[0].routed(), [net("100.64.0.50/32"), net("fd7a:115c:a1e0::32/128")]);
    conflict(world.server.set_address(at, other.id, "100.64.0.50".parse().unwrap()), "is the address of alpha");
    for reserved in ["100.100.100.100", "100.115.92.1", "100.64.0.0", "192.168.1.5"] {
        let refused = world.server.set_address(at, other.id, reserved.parse().unwrap());
        assert!(matches!(refused, Err(CommandError::Invalid(text)) if text.contains("100.64.0.0/10")), "{reserved}");
    }
    // Its own address again is no conflict, and the one it gave up can be given away.
    world.server.set_address(at, node.id, "100.64.0.50".parse().unwrap()).unwrap();
    world.server.set_address(at, other.id, "100.64.0.1".parse().unwrap()).unwrap();
    world.restart();
    assert_eq!(
        (world.info(1).addresses[0].to_string(), world.info(2).addresses[0].to_string()),
        ("100.64.0.50".into(), "100.64.0.1".into())
    );
}

#[test]
fn a_join_key_can_give_its_node_an_address_and_keeps_it_free_until_then() {
    let mut world = World::new();
    let wish = |k: &mut pvemesh::wire::admin::CreateKey| k.address = Some("100.64.0.2".parse().unwrap());
    let key = world.key(wish);
    let mut again = key_wanted();
    wish(&mut again);
    conflict(world.server.create_key(world.at, &again), "reserved by join key 1");
    again.reusable = true;
    assert!(matches!(world.server.create_key(world.at, &again), Err(CommandError::Invalid(text)) if text.contains("one address")));
    world.join(1, "a");
    assert_eq!(world.join(2, "b").addresses[0].to_string(), "100.64.0.3", "the reserved one is passed over");
    conflict(world.server.set_address(world.at, world.info(1).id, "100.64.0.2".parse().unwrap()), "reserved by join key 1");
    assert_eq!(world.register(3, &registration(3, Some(&key), "c")).error, "");
    assert_eq!(world.info(3).addresses[0].to_string(), "100.64.0.2");
    // A node that exists takes the address over, and a key that can no longer be used reserves nothing.
    let key = world.key(|k| k.address = Some("100.64.0.9".parse().unwrap()));
    world.register(1, &registration(11, Some(&key), "a"));
    assert_eq!(world.info(11).addresses[0].to_string(), "100.64.0.9");
    world.key(|k| (k.address, k.expires_in_secs) = (Some("100.64.0.20".parse().unwrap()), 60));
    world.pass(Duration::from_secs(61));
    world.server.set_address(world.at, world.info(2).id, "100.64.0.20".parse().unwrap()).unwrap();
}

#[test]
fn an_address_that_was_taken_meanwhile_refuses_the_node_and_does_not_use_the_key_up() {
    let mut world = World::new();
    let key = world.key(|k| k.address = Some("100.64.0.7".parse().unwrap()));
    world.restart();
    world.drain();
    // Only a restored or edited database can bring this about; the node still has to read why.
    world.stored.keys[0].address = None;
    world.restart();
    let other = world.join(1, "squatter");
    world.server.set_address(world.at, other.id, "100.64.0.7".parse().unwrap()).unwrap();
    world.drain();
    world.stored.keys[0].address = Some("100.64.0.7".parse().unwrap());
    world.restart();
    let answer = world.register(2, &registration(2, Some(&key), "wanted"));
    assert!(answer.error.contains("100.64.0.7 is the address of squatter"), "{}", answer.error);
    assert!(!world.server.keys()[0].used && world.server.nodes().len() == 1);
}

#[test]
fn a_key_expires_when_an_admin_says_so_and_never_stays_never() {
    let mut world = World::new();
    let node = world.join(1, "alpha");
    world.join(2, "viewer");
    let (own, viewer) = (world.settled(1), world.settled(2));
    world.take(own);
    let set = |world: &mut World, in_secs, never| world.server.expire_node(world.at, node.id, Expire { in_secs, never });
    let soon = set(&mut world, Some(3600), false).unwrap().key_expiry.unwrap();
    assert_eq!(soon, world.at.wall.checked_add(Duration::from_secs(3600)).unwrap());
    let told = world.take(viewer).unwrap();
    assert!(told.peers_changed.is_empty(), "a new expiry has a short form");
    assert_eq!(told.peers_changed_patch[0].key_expiry, Some(soon));
    assert_eq!(world.take(own).unwrap().node.unwrap().key_expiry, Some(soon));
    set(&mut world, None, true).unwrap();
    assert_eq!(world.take(viewer).unwrap().peers_changed[0].key_expiry, None, "never has none");
    world.take(own);
    // A later login does not change it.
    let key = world.key(|_| {});
    world.register(1, &registration(3, Some(&key), "alpha"));
    assert_eq!((world.info(3).id, world.info(3).key_expiry), (node.id, None));
    set(&mut world, Some(60), false).unwrap();
    world.log_in_with(1, 4, "alpha", |_| {});
    assert!(world.info(4).key_expiry.unwrap() > soon, "once it is no longer never, a login counts again");
    for (in_secs, never) in [(Some(0), false), (Some(u64::MAX), false), (Some(5), true)] {
        assert!(matches!(set(&mut world, in_secs, never), Err(CommandError::Invalid(_))));
    }
}

#[test]
fn tags_given_by_an_admin_end_expiry_and_ownership_until_they_are_taken() {
    let mut world = World::new();
    let node = world.join(1, "alpha");
    world.join(2, "viewer");
    let (own, viewer) = (world.settled(1), world.settled(2));
    world.take(own);
    let at = world.at;
    let tags = ["tag:web".to_owned(), "tag:db".to_owned(), "tag:web".to_owned()];
    let tagged = world.server.tag_node(at, node.id, &tags).unwrap();
    assert_eq!((tagged.tags, tagged.key_expiry), (vec!["tag:db".to_owned(), "tag:web".to_owned()], None));
    let told = world.take(viewer).unwrap();
    assert_eq!((told.peers_changed[0].user, told.user_profiles[0].id), (TAGGED_USER, TAGGED_USER));
    assert_eq!(world.take(own).unwrap().node.unwrap().tags.len(), 2);
    // They stay through a login that brings none.
    world.log_in_with(1, 3, "alpha", |_| {});
    assert_eq!((world.info(3).tags.len(), world.info(3).key_expiry), (2, None));
    // A key with tags is an admin's word, too, and a newer one.
    world.log_in_with(1, 4, "alpha", |k| k.tags = vec!["tag:ci".to_owned()]);
    assert_eq!(world.info(4).tags, ["tag:ci"]);
    let back = world.server.tag_node(at, node.id, &[]).unwrap();
    assert!(back.tags.is_empty() && back.key_expiry.is_some() && back.user == "alice");
    assert!(matches!(world.server.tag_node(at, node.id, &["web".to_owned()]), Err(CommandError::Invalid(_))));
}

#[test]
fn a_node_moves_to_another_user_and_keeps_number_name_and_addresses() {
    let mut world = World::new();
    let before = world.join(1, "alpha");
    world.join(2, "viewer");
    let (own, viewer) = (world.settled(1), world.settled(2));
    world.take(own);
    let at = world.at;
    assert!(matches!(world.server.move_node(at, before.id, "bob"), Err(CommandError::Missing("user", _))));
    let bob = world.server.create_user(at, "bob").unwrap();
    let after = world.server.move_node(at, before.id, "bob").unwrap();
    assert_eq!((after.id, &after.name, &after.addresses, after.user.as_str()), (before.id, &before.name, &before.addresses, "bob"));
    let told = world.take(viewer).unwrap();
    assert_eq!((told.peers_changed[0].user, told.user_profiles[0].login_name.as_str()), (bob.id, "bob@mesh.test"));
    assert_eq!(world.take(own).unwrap().node.unwrap().user, bob.id);
    // A login as bob finds it; alice's next login makes another node, and then neither can be moved onto the other.
    world.log_in_with(1, 3, "alpha", |k| k.user = "bob".to_owned());
    assert_eq!(world.info(3).id, before.id);
    world.log_in_with(1, 4, "alpha", |_| {});
    let second = world.info(4);
    assert_ne!(second.id, before.id);
    conflict(world.server.move_node(at, second.id, "bob"), "already has a node of this machine, alpha");
}

#[test]
fn a_renamed_user_is_told_to_those_who_know_it_and_to_nobody_else() {
    let mut world = World::new();
    world.join(1, "alpha");
    let viewer = world.settled(1);
    let carol = world.server.create_user(world.at, "carol").unwrap();
    world.server.rename_user(carol.id, "caroline").unwrap();
    assert!(world.take(viewer).is_none(), "it has no node");
    let alice = UserId(1);
    world.server.rename_user(alice, "alice@example.com").unwrap();
    let told = world.take(viewer).unwrap();
    assert_eq!(told.user_profiles.iter().map(|user| user.login_name.as_str()).collect::<Vec<_>>(), ["alice@example.com"]);
    assert!(told.node.is_none() && told.peers_changed.is_empty());
    conflict(world.server.rename_user(alice, "caroline"), "already exists");
    assert!(matches!(world.server.rename_user(alice, "a b"), Err(CommandError::Invalid(_))));
    assert!(matches!(world.server.rename_user(UserId(99), "x"), Err(CommandError::Missing("user", _))));
    world.restart();
    assert_eq!(world.server.users().iter().map(|user| user.name.as_str()).collect::<Vec<_>>(), ["alice@example.com", "caroline"]);
    // Its keys and nodes are still its own.
    assert_eq!(world.info(1).user, "alice@example.com");
}

#[test]
fn a_changed_relay_map_is_told_to_all_and_an_absent_one_as_empty() {
    let mut world = World::new();
    world.join(1, "alpha");
    world.join(2, "beta");
    let sessions = [world.settled(1), world.settled(2)];
    world.take(sessions[0]);
    let map: pvemesh::wire::control::DerpMap = serde_json::from_str(
        r#"{"Regions":{"900":{"RegionID":900,"RegionCode":"own","RegionName":"Own","Nodes":[{"Name":"a","RegionID":900,"HostName":"r.test"}]}}}"#,
    )
    .unwrap();
    world.server.set_derp_map(Some(map.clone()));
    for session in sessions {
        let told = world.take(session).unwrap();
        assert_eq!(told.derp_map, Some(map.clone()));
        assert!(told.node.is_none() && told.dns_config.is_none() && told.peers_changed.is_empty());
    }
    world.server.set_derp_map(Some(map));
    assert!(world.take(sessions[0]).is_none(), "the same map again is no news");
    world.server.set_derp_map(None);
    assert!(world.text(sessions[0]).unwrap().contains(r#""DERPMap":{"Regions":{}}"#));
}
