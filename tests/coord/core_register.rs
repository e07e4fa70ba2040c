//! Who is let in, and as whom.

use std::time::Duration;

use pvemesh::coord::server::{Event, KEY_LIFE, OFFLINE_GRACE, REPEAT_WITHIN, Registered, TAGGED_USER};
use pvemesh::ident::UserId;
use pvemesh::time::Wall;
use pvemesh::wire::admin::{CreateKey, Expire};

use crate::world::*;

fn past() -> Option<Wall> {
    Some("1970-01-01T00:02:03Z".parse().unwrap())
}

#[test]
fn a_single_use_key_lets_one_node_in_and_no_second() {
    let mut world = World::new();
    let key = world.key(|_| {});
    let answer = world.register(1, &registration(1, Some(&key), "alpha"));
    assert!(answer.error.is_empty() && answer.machine_authorized && !answer.node_key_expired);
    assert_eq!((answer.login.login_name.as_str(), answer.user.display_name.as_str()), ("alice@mesh.test", "alice"));
    let second = world.register(2, &registration(2, Some(&key), "beta"));
    assert!(second.error.contains("already been used"), "{}", second.error);
    assert_eq!(world.server.nodes().len(), 1);
    let listed = &world.server.keys()[0];
    assert!(listed.used && !key.ends_with(&listed.prefix) && key.starts_with(&listed.prefix));
}

/// `tailscale up --force-reauth` sends its key twice: with the old node key, and with the new one.
#[test]
fn the_machine_that_used_a_key_up_may_repeat_it_for_a_minute_and_no_other_may() {
    let mut world = World::new();
    let key = world.key(|_| {});
    assert_eq!(world.register(1, &registration(1, Some(&key), "alpha")).error, "");
    world.pass(Duration::from_secs(5));
    assert_eq!(world.register(1, &registration(11, Some(&key), "alpha")).error, "");
    assert_eq!(world.server.nodes().len(), 1);
    assert!(world.register(2, &registration(2, Some(&key), "beta")).error.contains("already been used"));
    // The minute is that of the first use: repeating does not prolong it.
    world.pass(REPEAT_WITHIN - Duration::from_secs(4));
    assert!(world.register(1, &registration(12, Some(&key), "alpha")).error.contains("already been used"));
    // A node that was deleted does not come back by the key it came with.
    let second = world.key(|_| {});
    assert_eq!(world.register(3, &registration(3, Some(&second), "gamma")).error, "");
    let gamma = world.info(3).id;
    world.server.delete_node(world.at, gamma).unwrap();
    assert!(world.register(3, &registration(13, Some(&second), "gamma")).error.contains("already been used"));
}

#[test]
fn keys_that_do_not_work_say_why() {
    let mut world = World::new();
    let expired = world.key(|k| k.expires_in_secs = 60);
    world.pass(Duration::from_secs(61));
    let revoked = world.key(|_| {});
    let id = world.server.keys().last().unwrap().id;
    world.server.revoke_key(id).unwrap();
    let only = world.key(|k| k.only_for = Some("exit-1".parse().unwrap()));
    let mut altered = only.clone();
    let last = altered.pop().unwrap();
    altered.push(if last == '0' { '1' } else { '0' });
    let unknown = format!("pvmkey-auth-0123456789ab-{}", "0".repeat(64));
    for (key, reason) in [
        (expired.as_str(), "expired at 2026-08-01T12:01:00Z"),
        (&revoked, "was revoked"),
        (&only, "works only for a node named exit-1, not alpha"),
        (&altered, "not known here"),
        (&unknown, "not known here"),
        ("tskey-auth-x", "not known here"),
    ] {
        let answer = world.register(1, &registration(1, Some(key), "alpha"));
        assert!(answer.error.contains(reason), "{reason}: {}", answer.error);
        // Nothing secret comes back in an error.
        assert!(key.len() < 64 || !answer.error.contains(&key[key.len() - 64..]), "{}", answer.error);
    }
    assert!(world.server.nodes().is_empty());
    // A refused attempt does not use the key up.
    assert_eq!(world.register(1, &registration(1, Some(&only), "exit-1")).error, "");
}

#[test]
fn trap_20_a_restart_with_a_consumed_or_deleted_key_succeeds() {
    let mut world = World::new();
    let key = world.key(|_| {});
    let before = {
        world.register(1, &registration(1, Some(&key), "alpha"));
        world.info(1)
    };
    let id = world.server.keys()[0].id;
    world.server.revoke_key(id).unwrap();
    for auth in [Some(key.as_str()), Some("nonsense"), None] {
        let answer = world.register(1, &registration(1, auth, "alpha"));
        assert_eq!((answer.error.as_str(), answer.auth_url.as_str()), ("", ""), "{auth:?}");
    }
    assert_eq!(world.info(1), before);
}

#[test]
fn trap_21_a_node_key_of_another_machine_is_refused_and_the_old_key_is_ignored() {
    let mut world = World::new();
    let node = world.join(1, "alpha");
    let key = world.key(|k| k.reusable = true);
    let stolen = world.register(2, &registration(1, Some(&key), "thief"));
    assert!(stolen.error.contains("another machine"), "{}", stolen.error);
    // Naming someone's key as one's own former one takes nothing over.
    let mut claim = registration(3, Some(&key), "other");
    claim.old_node_key = node.key;
    assert_eq!(world.register(2, &claim).error, "");
    assert_eq!(world.info(1), node);
    assert_ne!(world.info(3).id, node.id);
}

#[test]
fn a_new_node_key_of_a_known_machine_replaces_the_old_one_in_place() {
    let mut world = World::new();
    let before = world.join(1, "alpha");
    let session = world.settled(1);
    world.join(9, "viewer");
    let viewer = world.settled(9);
    let key = world.key(|_| {});
    let mut rotation = registration(2, Some(&key), "alpha");
    rotation.old_node_key = node_key(1);
    assert_eq!(world.register(1, &rotation).error, "");
    let after = world.info(2);
    assert_eq!((after.id, &after.name, &after.addresses), (before.id, &before.name, &before.addresses));
    assert!(world.ended(session), "the stream of the old key has to end");
    let told = world.take(viewer).unwrap();
    let [patch] = told.peers_changed_patch.as_slice() else { panic!("{told:?}") };
    assert_eq!((patch.node_id, patch.key), (before.id, Some(node_key(2))));
    assert!(world.map(1, &lite(1)).is_err(), "the old key is no longer one of a node");
}

#[test]
fn the_same_machine_under_another_owner_is_another_node() {
    let mut world = World::new();
    let first = world.join(1, "alpha");
    let key = world.key(|k| k.user = "bob".to_owned());
    assert_eq!(world.register(1, &registration(2, Some(&key), "alpha")).error, "");
    let second = world.info(2);
    assert_ne!(second.id, first.id);
    assert_eq!((second.user.as_str(), second.name.as_str()), ("bob", "alpha-1"));
    assert_eq!(world.info(1), first);
}

#[test]
fn trap_19_a_past_expiry_is_a_logout_even_with_a_valid_key_beside_it() {
    let mut world = World::new();
    world.join(1, "alpha");
    let key = world.key(|_| {});
    let logout = pvemesh::wire::control::RegisterRequest { expiry: past(), ..registration(1, Some(&key), "alpha") };
    let answer = world.register(1, &logout);
    assert!(answer.error.is_empty() && answer.node_key_expired);
    assert!(world.info(1).key_expiry.unwrap() <= world.at.wall);
    assert!(!world.server.keys().iter().any(|k| !k.used && k.id == 1) && !world.server.keys()[1].used, "the key is not used up");
}

#[test]
fn trap_19_an_expired_key_is_told_so_and_a_fresh_one_never() {
    let mut world = World::new();
    let before = world.join(1, "alpha");
    world.server.expire_node(world.at, before.id, Expire::default()).unwrap();
    assert!(world.register(1, &registration(1, None, "alpha")).node_key_expired);
    let fresh = world.register(1, &registration(2, None, "alpha"));
    assert!(!fresh.node_key_expired && fresh.error.is_empty());
    assert!(fresh.auth_url.starts_with("https://coord.example.test/register/"), "{}", fresh.auth_url);
    // With a valid key it comes back as itself.
    let key = world.key(|_| {});
    assert_eq!(world.register(1, &registration(2, Some(&key), "alpha")).error, "");
    assert_eq!((world.info(2).id, world.info(2).addresses), (before.id, before.addresses));
}

#[test]
fn an_ephemeral_node_is_deleted_by_its_logout() {
    let mut world = World::new();
    world.join_with(1, "runner", |k| k.ephemeral = true);
    let logout = pvemesh::wire::control::RegisterRequest { expiry: past(), ..registration(1, None, "runner") };
    assert_eq!(world.register(1, &logout).error, "");
    assert!(world.server.nodes().is_empty());
}

#[test]
fn a_node_may_shorten_its_keys_life_and_not_extend_it() {
    let mut world = World::new();
    let node = world.join(1, "alpha");
    assert_eq!(node.key_expiry, Some(world.at.wall.checked_add(KEY_LIFE).unwrap()));
    let sooner = world.at.wall.checked_add(Duration::from_secs(3600)).unwrap();
    let with = |expiry| pvemesh::wire::control::RegisterRequest { expiry: Some(expiry), ..registration(1, None, "alpha") };
    assert_eq!(world.register(1, &with(sooner)).error, "");
    assert_eq!(world.info(1).key_expiry, Some(sooner));
    let later = sooner.checked_add(Duration::from_secs(1)).unwrap();
    assert!(world.register(1, &with(later)).error.contains("cannot be extended"));
    assert_eq!(world.info(1).key_expiry, Some(sooner));
}

#[test]
fn tagged_nodes_do_not_expire_and_show_no_owner() {
    let mut world = World::new();
    let tagged = |k: &mut CreateKey| k.tags = vec!["tag:exit".to_owned()];
    let node = world.join_with(1, "exit-1", tagged);
    assert_eq!((node.key_expiry, node.tags), (None, vec!["tag:exit".to_owned()]));
    world.pass(KEY_LIFE + Duration::from_secs(1));
    let session = world.stream(1);
    let map = world.take(session).unwrap();
    assert_eq!(map.node.as_ref().unwrap().user, TAGGED_USER);
    assert_eq!(map.user_profiles.iter().map(|profile| profile.id).collect::<Vec<_>>(), [TAGGED_USER]);
    // Claimed tags that the key does not give are refused.
    let key = world.key(tagged);
    let mut claim = registration(2, Some(&key), "beta");
    claim.hostinfo.as_mut().unwrap().request_tags = vec!["tag:admin".to_owned()];
    assert!(world.register(2, &claim).error.contains("the tag tag:admin is not this node's to claim"));
}

#[test]
fn trap_18_a_followup_is_held_until_approval_and_bound_to_its_keys() {
    let mut world = World::new();
    let request = registration(1, None, "phone");
    let url = world.register(1, &request).auth_url;
    assert_eq!(world.register(1, &request).auth_url, url, "the same node does not wait twice");
    let followup = pvemesh::wire::control::RegisterRequest { followup: url.clone(), ..request };
    assert_eq!(world.ask(1, &followup), Registered::Hold);
    // Another machine, or another key, with the same address gets one of its own and never a success.
    let other = world.register(2, &followup);
    assert!(other.auth_url.starts_with("https://") && other.auth_url != url);
    let id = url.rsplit('/').next().unwrap();
    let waiting = world.server.registrations();
    assert!(waiting.iter().any(|one| one.id == id && one.hostname == "phone" && one.machine_key == machine(1)));
    let node = world.server.approve(world.at, id, "carol").unwrap();
    assert!(world.drain().contains(&Event::Decided));
    let answer = world.register(1, &followup);
    assert_eq!((answer.error.as_str(), answer.auth_url.as_str()), ("", ""));
    assert_eq!(answer.login.login_name, "carol@mesh.test");
    assert_eq!((node.key, node.user.as_str()), (node_key(1), "carol"));
    assert!(world.server.approve(world.at, id, "carol").is_err(), "an approval works once");
}

#[test]
fn trap_18_a_lapsed_or_unknown_followup_gets_a_new_address() {
    let mut world = World::new();
    let request = registration(1, None, "phone");
    let url = world.register(1, &request).auth_url;
    let followup = pvemesh::wire::control::RegisterRequest { followup: url.clone(), ..request };
    world.pass(Duration::from_secs(15 * 60 + 1));
    assert!(world.drain().contains(&Event::Decided), "whoever holds the request has to ask again");
    let fresh = world.register(1, &followup).auth_url;
    assert!(fresh.starts_with("https://") && fresh != url);
}

#[test]
fn those_that_wait_are_bounded() {
    let mut world = World::new();
    for n in 0..1100u32 {
        let mut request = registration(1, None, "flood");
        let mut seed = [7; 32];
        seed[..4].copy_from_slice(&n.to_be_bytes());
        request.node_key = pvemesh::ident::NodePublic::from_bytes(seed);
        request.hostinfo.as_mut().unwrap().os = "x".repeat(100_000);
        world.register(1, &request);
    }
    let waiting = world.server.registrations();
    assert!(waiting.len() <= 1024 && waiting.iter().all(|one| one.os.len() <= 200), "{}", waiting.len());
}

#[test]
fn too_old_clients_and_empty_keys_are_refused_with_a_text() {
    let mut world = World::new();
    let mut old = registration(1, None, "alpha");
    old.version = 109;
    assert!(world.register(1, &old).error.contains("1.80"));
    let mut empty = registration(1, None, "alpha");
    empty.node_key = pvemesh::ident::NodePublic::ZERO;
    assert!(world.register(1, &empty).error.contains("no node key"));
    let mut newer = registration(1, None, "alpha");
    newer.version = 9999;
    assert_eq!(world.register(1, &newer).error, "", "newer clients are not refused");
}

#[test]
fn names_are_unique_and_stable() {
    let mut world = World::new();
    assert_eq!(world.join(1, "exit").name.as_str(), "exit");
    assert_eq!(world.join(2, "Exit.lan").name.as_str(), "exit-1");
    assert_eq!(world.join(3, "exit").name.as_str(), "exit-2");
    let first = world.info(1).id;
    world.server.delete_node(world.at, first).unwrap();
    // Node 2 keeps its name although `exit` is free now.
    world.register(2, &registration(2, None, "Exit.lan"));
    assert_eq!(world.info(2).name.as_str(), "exit-1");
    assert_eq!(world.join(4, "exit").name.as_str(), "exit");
    // The host name changes: the name follows; unless an admin has chosen it.
    world.report(3, |request| request.hostinfo = Some(hostinfo("relay")));
    assert_eq!(world.info(3).name.as_str(), "relay");
    let id = world.info(3).id;
    world.server.rename(world.at, id, &"chosen".parse().unwrap()).unwrap();
    world.report(3, |request| request.hostinfo = Some(hostinfo("else")));
    assert_eq!(world.info(3).name.as_str(), "chosen");
}

#[test]
fn addresses_are_a_pair_never_shared_and_not_reused_at_once() {
    let mut world = World::new();
    let first = world.join(1, "a");
    assert_eq!(first.addresses.iter().map(ToString::to_string).collect::<Vec<_>>(), ["100.64.0.1", "fd7a:115c:a1e0::1"]);
    world.server.delete_node(world.at, first.id).unwrap();
    let second = world.join(2, "b");
    assert_eq!(second.addresses[0].to_string(), "100.64.0.2");
    assert!(second.id > first.id);
    world.restart();
    assert_eq!(world.join(3, "c").addresses[0].to_string(), "100.64.0.3");
}

#[test]
fn trap_23_numbers_are_not_reused_even_after_a_restart() {
    let mut world = World::new();
    world.join(1, "a");
    let last = world.join(2, "b");
    world.server.delete_node(world.at, last.id).unwrap();
    world.restart();
    assert!(world.join(3, "c").id > last.id);
}

#[test]
fn a_restart_keeps_numbers_names_addresses_keys_and_approvals() {
    let mut world = World::new();
    world.join_with(1, "exit", |k| k.approve_routes = vec![net("0.0.0.0/0")]);
    world.report(1, |request| {
        let mut info = hostinfo("exit");
        info.routable_ips = vec![net("0.0.0.0/0"), net("::/0")];
        request.hostinfo = Some(info);
    });
    let unused = world.key(|_| {});
    let (nodes, keys) = (world.server.nodes(), world.server.keys());
    world.restart();
    assert_eq!((world.server.nodes(), world.server.keys()), (nodes, keys));
    assert_eq!(world.register(1, &registration(1, None, "exit")).error, "");
    assert_eq!(world.register(2, &registration(2, Some(&unused), "beta")).error, "");
}

#[test]
fn after_a_restart_connected_nodes_count_as_online_until_they_had_time_to_come_back() {
    let mut world = World::new();
    for n in [1, 2, 3] {
        world.join(n, "n");
    }
    world.settled(1);
    world.settled(2);
    world.restart();
    let online = |world: &World| [1, 2, 3].map(|n| world.info(n).online);
    assert_eq!(online(&world), [true, true, false]);
    world.stream(1);
    world.pass(OFFLINE_GRACE + Duration::from_secs(1));
    assert_eq!(online(&world), [true, true, false]);
    world.pass(Duration::from_secs(60));
    assert_eq!(online(&world), [true, false, false]);
}

#[test]
fn no_secret_is_stored_or_shown() {
    let mut world = World::new();
    let key = world.key(|_| {});
    let secret = key.rsplit('-').next().unwrap();
    let texts = [format!("{:?}", world.server), format!("{:?}", world.writes), serde_json::to_string(&world.stored.keys).unwrap()];
    for text in texts {
        assert!(!text.contains(secret) && !text.contains(&secret[..16]), "{text}");
    }
    assert_eq!(world.server.users()[0].id, UserId(1));
}
