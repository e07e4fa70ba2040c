//! Logins: interactive ones, repeated ones, and the tags a node claims with them.

use std::time::Duration;

use pvemesh::coord::server::{CommandError, Registered};
use pvemesh::wire::control::{RegisterRequest, RegisterResponse};

use crate::world::*;

fn id_of(answer: &RegisterResponse) -> String {
    assert_eq!(answer.error, "");
    answer.auth_url.rsplit('/').next().unwrap().to_owned()
}

/// An interactive login, approved for a user.
fn log_in(world: &mut World, machine_n: u8, request: &RegisterRequest, user: &str) {
    let answer = world.register(machine_n, request);
    let id = id_of(&answer);
    let held = RegisterRequest { followup: answer.auth_url, ..request.clone() };
    assert_eq!(world.ask(machine_n, &held), Registered::Hold);
    world.server.approve(world.at, &id, user).unwrap();
    world.drain();
    let done = world.register(machine_n, &held);
    assert_eq!((done.error.as_str(), done.auth_url.as_str(), done.machine_authorized), ("", "", true));
}

#[test]
fn a_forced_reauthentication_keeps_number_name_and_addresses() {
    let mut world = World::new();
    log_in(&mut world, 1, &registration(1, None, "laptop"), "alice");
    let before = world.info(1);
    world.join(2, "viewer");
    let (own, viewer) = (world.settled(1), world.settled(2));
    world.take(own);
    // `tailscale up --force-reauth`: a new key, the old one named, while the old stream is open.
    let again = RegisterRequest { old_node_key: node_key(1), ..registration(11, None, "laptop") };
    let url = world.register(1, &again);
    assert!(!world.ended(own) && world.info(1).id == before.id, "until it is approved nothing changes");
    world.server.approve(world.at, &id_of(&url), "alice").unwrap();
    let after = world.info(11);
    assert_eq!((after.id, &after.name, &after.addresses), (before.id, &before.name, &before.addresses));
    assert!(world.ended(own), "the old key's stream ends");
    let told = world.take(viewer).unwrap();
    assert_eq!(told.peers_changed_patch[0].key, Some(node_key(11)));
    assert!(told.peers_removed.is_empty());
}

#[test]
fn trap_21_the_old_key_that_clients_name_for_ever_means_nothing() {
    let mut world = World::new();
    log_in(&mut world, 1, &registration(1, None, "laptop"), "alice");
    log_in(&mut world, 1, &RegisterRequest { old_node_key: node_key(1), ..registration(11, None, "laptop") }, "alice");
    // A year later, still the same old key: a plain restart.
    let restart = RegisterRequest { old_node_key: node_key(1), ..registration(11, None, "laptop") };
    let answer = world.register(1, &restart);
    assert_eq!((answer.auth_url.as_str(), answer.node_key_expired), ("", false));
}

#[test]
fn a_login_as_another_user_makes_another_node_and_leaves_the_first() {
    let mut world = World::new();
    log_in(&mut world, 1, &registration(1, None, "laptop"), "alice");
    let first = world.info(1);
    log_in(&mut world, 1, &RegisterRequest { old_node_key: node_key(1), ..registration(11, None, "laptop") }, "bob");
    let second = world.info(11);
    assert_ne!(second.id, first.id);
    assert_eq!((second.user.as_str(), second.name.as_str()), ("bob", "laptop-1"));
    assert_eq!(world.info(1), first);
    // Back as alice, it is its first self again.
    log_in(&mut world, 1, &RegisterRequest { old_node_key: node_key(11), ..registration(12, None, "laptop") }, "alice");
    assert_eq!((world.info(12).id, world.info(12).name.as_str()), (first.id, "laptop"));
}

#[test]
fn a_logout_and_a_login_bring_the_same_node_back() {
    let mut world = World::new();
    log_in(&mut world, 1, &registration(1, None, "phone"), "alice");
    let before = world.info(1);
    let epoch = Some("1970-01-01T00:02:03Z".parse().unwrap());
    world.register(1, &RegisterRequest { expiry: epoch, ..registration(1, None, "phone") });
    // A client that forgot its key with the profile comes with a new one, and without the old.
    log_in(&mut world, 1, &registration(11, None, "phone"), "alice");
    let after = world.info(11);
    assert_eq!((after.id, &after.name, &after.addresses), (before.id, &before.name, &before.addresses));
    assert!(after.key_expiry.unwrap() > world.at.wall);
}

#[test]
fn a_clock_a_day_off_on_the_client_changes_nothing() {
    let mut world = World::new();
    let key = world.key(|_| {});
    // Whatever a client believes the time to be, it sends none but the expiry; a logout's lies in 1970 for every clock.
    world.register(1, &registration(1, Some(&key), "alpha"));
    let day = Duration::from_secs(24 * 3600);
    let expiry = world.info(1).key_expiry.unwrap();
    // Its clock runs ahead: asking for an expiry that it thinks nearer, it cannot make its key live longer.
    let ahead = expiry.checked_add(day).unwrap();
    let answer = world.register(1, &RegisterRequest { expiry: Some(ahead), ..registration(1, None, "alpha") });
    assert!(answer.error.contains("cannot be extended"), "{}", answer.error);
    assert_eq!(world.info(1).key_expiry, Some(expiry));
    // What it is told has the coordinator's time with it, so that it knows how far it is off.
    let session = world.stream(1);
    assert_eq!(world.take(session).unwrap().control_time, Some(world.at.wall));
    let epoch = Some("1970-01-01T00:02:03Z".parse().unwrap());
    assert!(world.register(1, &RegisterRequest { expiry: epoch, ..registration(1, None, "alpha") }).node_key_expired);
}

#[test]
fn a_used_up_key_does_not_bring_an_expired_node_back() {
    let mut world = World::new();
    let key = world.key(|_| {});
    world.register(1, &registration(1, Some(&key), "runner"));
    let id = world.info(1).id;
    world.server.expire_node(world.at, id, Default::default()).unwrap();
    for n in [1, 2] {
        let answer = world.register(1, &registration(n, Some(&key), "runner"));
        assert!(answer.error.contains("already been used") && !answer.node_key_expired, "{answer:?}");
    }
    assert!(world.info(1).key_expiry.unwrap() <= world.at.wall);
}

#[test]
fn tags_claimed_without_a_policy_are_refused_with_a_text_that_says_so() {
    let mut world = World::new();
    let mut claim = registration(1, None, "server");
    claim.hostinfo.as_mut().unwrap().request_tags = vec!["tag:server".to_owned()];
    let answer = world.register(1, &claim);
    assert!(answer.error.contains("tag:server") && answer.error.contains("policy") && answer.auth_url.is_empty(), "{}", answer.error);
    assert!(world.server.registrations().is_empty());
    let key = world.key(|k| k.tags = vec!["tag:server".to_owned(), "tag:web".to_owned()]);
    claim.auth = registration(1, Some(&key), "server").auth;
    assert_eq!(world.register(1, &claim).error, "", "a key's own tags may be claimed");
    assert_eq!(world.info(1).tags, ["tag:server", "tag:web"], "and all of them are given");
    let mut nonsense = registration(2, None, "x");
    nonsense.hostinfo.as_mut().unwrap().request_tags = vec!["tag:\u{1b}[31m".to_owned()];
    let text = world.register(2, &nonsense).error;
    assert!(text.contains("no tag") && !text.contains('\u{1b}'), "{text}");
}

#[test]
fn what_a_waiting_node_says_of_itself_is_kept_up_to_date() {
    let mut world = World::new();
    let first = world.register(1, &registration(1, None, "old-name"));
    let second = world.register(1, &registration(1, None, "new-name"));
    assert_eq!(first.auth_url, second.auth_url);
    let waiting = world.server.registrations();
    assert_eq!(waiting.iter().map(|one| one.hostname.as_str()).collect::<Vec<_>>(), ["new-name"]);
}

#[test]
fn a_refused_approval_leaves_the_node_waiting() {
    let mut world = World::new();
    let id = id_of(&world.register(1, &registration(1, None, "phone")));
    assert!(matches!(world.server.approve(world.at, &id, "no such\"user"), Err(CommandError::Invalid(_))));
    assert_eq!(world.server.registrations().len(), 1);
    world.server.approve(world.at, &id, "alice").unwrap();
    assert!(world.server.registrations().is_empty());
}
