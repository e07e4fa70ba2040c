//! What admins ask for.

use std::time::Duration;

use pvemesh::coord::server::{CommandError, LoadError, Server};
use pvemesh::ident::{NodeId, UserId};
use pvemesh::wire::admin::Expire;

use crate::world::*;

#[test]
fn a_user_with_nodes_is_not_deleted_and_one_without_takes_its_keys_along() {
    let mut world = World::new();
    let node = world.join(1, "alpha");
    assert!(matches!(world.server.delete_user(UserId(1)), Err(CommandError::Conflict(text)) if text.contains("1 nodes")));
    world.server.delete_node(world.at, node.id).unwrap();
    world.server.delete_user(UserId(1)).unwrap();
    world.drain();
    assert!(world.server.keys().is_empty() && world.stored.keys.is_empty() && world.stored.users.is_empty());
    assert!(matches!(world.server.delete_user(UserId(1)), Err(CommandError::Missing(..))));
}

#[test]
fn names_and_tags_that_could_do_harm_are_refused() {
    let mut world = World::new();
    for name in ["", "a b", "a\"b", "a\nb", &"x".repeat(65)] {
        assert!(matches!(world.server.create_user(world.at, name), Err(CommandError::Invalid(_))), "{name:?}");
    }
    world.server.create_user(world.at, "alice@example.com").unwrap();
    assert!(matches!(world.server.create_user(world.at, "alice@example.com"), Err(CommandError::Conflict(_))));
    for tag in ["exit", "tag:", "tag:A", "tag:1a", "tag:a b", "tag:a\""] {
        let wanted = pvemesh::wire::admin::CreateKey { tags: vec![tag.to_owned()], ..key_wanted() };
        assert!(matches!(world.server.create_key(world.at, &wanted), Err(CommandError::Invalid(_))), "{tag:?}");
    }
    for expires_in_secs in [0, u64::MAX] {
        let wanted = pvemesh::wire::admin::CreateKey { expires_in_secs, ..key_wanted() };
        assert!(matches!(world.server.create_key(world.at, &wanted), Err(CommandError::Invalid(_))));
    }
}

#[test]
fn a_rename_is_told_to_the_node_and_its_peers_and_taken_names_are_refused() {
    let mut world = World::new();
    let node = world.join(1, "alpha");
    world.join(2, "beta");
    let (own, viewer) = (world.settled(1), world.settled(2));
    world.take(own);
    assert!(matches!(world.server.rename(world.at, node.id, &"beta".parse().unwrap()), Err(CommandError::Conflict(_))));
    world.server.rename(world.at, node.id, &"gate".parse().unwrap()).unwrap();
    assert_eq!(world.take(own).unwrap().node.unwrap().name, "gate.mesh.test.");
    assert_eq!(world.take(viewer).unwrap().peers_changed[0].name, "gate.mesh.test.");
}

#[test]
fn commands_on_what_does_not_exist_say_so() {
    let mut world = World::new();
    let (at, id) = (world.at, NodeId(7));
    let errors = [
        world.server.delete_node(at, id).unwrap_err(),
        world.server.approve_routes(at, id, &[]).unwrap_err(),
        world.server.expire_node(at, id, Expire::default()).unwrap_err(),
        world.server.rename(at, id, &"x".parse().unwrap()).unwrap_err(),
    ];
    for error in errors {
        assert_eq!(error.to_string(), "there is no node 7: see `pvemesh coordinator nodes list`");
    }
    assert!(world.server.revoke_key(1).is_err());
    assert!(world.server.approve(at, "pvmesh-authreq-0", "alice").is_err());
}

#[test]
fn join_keys_long_dead_are_forgotten() {
    let mut world = World::new();
    world.key(|_| {});
    world.pass(Duration::from_secs(29 * 24 * 3600));
    world.key(|_| {});
    assert_eq!(world.server.keys().len(), 2);
    world.pass(Duration::from_secs(3 * 24 * 3600));
    world.key(|_| {});
    assert_eq!(world.server.keys().iter().map(|key| key.id).collect::<Vec<_>>(), [2, 3]);
}

#[test]
fn stored_state_that_contradicts_itself_is_refused() {
    let mut world = World::new();
    world.join(1, "alpha");
    world.join(2, "beta");
    world.drain();
    let load = |snapshot| Server::new(settings(), [1; 32], snapshot, world.at).map(drop).unwrap_err();
    let mut same_name = world.stored.clone();
    same_name.nodes[1].name = same_name.nodes[0].name.clone();
    assert_eq!(load(same_name), LoadError::Duplicate(NodeId(1), NodeId(2), "name"));
    let mut no_user = world.stored.clone();
    no_user.users.clear();
    assert_eq!(load(no_user), LoadError::NoUser(NodeId(1), UserId(1)));
}

#[test]
fn the_summary_counts_nodes_and_those_connected() {
    let mut world = World::new();
    world.join(1, "alpha");
    world.join(2, "beta");
    world.settled(1);
    let info = world.server.info("1.2.3", machine(9));
    assert_eq!((info.nodes, info.online, info.url.as_str(), info.server_key), (2, 1, "https://coord.example.test", machine(9)));
}
