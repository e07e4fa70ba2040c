//! A node's life in its network, seen from the command line: keys that end, logins, removal, names.

use std::time::Duration;

use serde_json::Value;

use super::world::{Machine, World, possible, text, wait_for};

const UP: [&str; 4] = ["--login-server", "http://10.9.1.1:8080", "--hostname", "laptop"];

/// A world whose laptop is in.
fn joined() -> World {
    let world = World::new();
    let key = world.key(&[]);
    let out = world.laptop.up(&[&UP[..], &["--auth-key-file", &key]].concat());
    assert!(out.status.success(), "{}", text(&out.stderr));
    world
}

fn state(machine: &Machine) -> String {
    machine.status().map(|status| status["BackendState"].as_str().unwrap().to_owned()).unwrap_or_default()
}

/// What stays of a node when its key changes.
fn lasting(status: &Value) -> [&Value; 4] {
    [&status["TailscaleIPs"], &status["Self"]["DNSName"], &status["Self"]["ID"], &status["Self"]["UserID"]]
}

fn key_of(status: &Value) -> &Value {
    &status["Self"]["PublicKey"]
}

fn health(machine: &Machine) -> String {
    machine.status().unwrap()["Health"].to_string()
}

/// Lets the node in that waits under this page.
fn let_in(world: &World, page: &str) {
    world.admin(&["nodes", "register", page.rsplit_once('/').unwrap().1, "--user", "admin"]);
}

#[test]
fn trap_22_an_expired_node_says_so_and_is_let_in_again_as_itself() {
    if !possible() {
        return;
    }
    let world = joined();
    let before = world.laptop.wait_until_running();
    world.admin(&["nodes", "expire", "laptop"]);
    wait_for("the end of the key", || (state(&world.laptop) == "NeedsLogin").then_some(()));
    assert!(health(&world.laptop).contains("key has expired"), "{}", health(&world.laptop));
    let shown = text(&world.laptop.node(&["status"]).stdout);
    assert!(shown.contains("log in again"), "{shown}");

    // Nobody lets it in: the page is shown once, for people and for programs.
    let out = world.laptop.up(&["--timeout", "1s"]);
    assert_eq!(out.status.code(), Some(3), "{}", text(&out.stderr));
    let page = world.laptop.status().unwrap()["AuthURL"].as_str().unwrap().to_owned();
    assert_eq!(text(&out.stderr).matches("to let this node in").count(), 1, "{}", text(&out.stderr));
    assert!(text(&out.stderr).contains(&page) && page.starts_with("http://10.9.1.1:8080/register/"), "{page}");
    let out = world.laptop.node(&["--json", "up", "--timeout", "1s"]);
    let lines: Vec<Value> = text(&out.stderr).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((lines[0]["event"].as_str(), lines[0]["AuthURL"].as_str()), (Some("login"), Some(page.as_str())), "{lines:?}");
    assert_eq!(lines[1]["error"]["exit"], 3);

    let_in(&world, &page);
    let after = world.laptop.wait_until_running();
    assert_eq!(lasting(&after), lasting(&before));
    assert_ne!(key_of(&after), key_of(&before));
}

#[test]
fn a_forced_login_gives_a_new_key_and_keeps_the_rest() {
    if !possible() {
        return;
    }
    let world = joined();
    world.start_exit_node();
    let before = world.laptop.wait_until_running();
    let key = world.key(&[]);
    let out = world.laptop.up(&["--force-reauth", "--auth-key-file", &key]);
    assert!(out.status.success(), "{}", text(&out.stderr));
    let after = world.laptop.wait_until_running();
    assert_eq!(lasting(&after), lasting(&before));
    assert_ne!(key_of(&after), key_of(&before));
    assert!(world.laptop.node(&["ping", "--icmp", "-c", "1", "exit-1"]).status.success(), "traffic goes with the new key");
    // A wrong key is told, and the node can go back to what it was.
    std::fs::write(world.laptop.path("wrong"), "hskey-auth-000000000000-x").unwrap();
    let out = world.laptop.up(&["--force-reauth", "--auth-key-file", world.laptop.path("wrong").to_str().unwrap()]);
    assert_eq!(out.status.code(), Some(3), "{}", text(&out.stderr));
    let out = world.laptop.up(&[]);
    assert!(out.status.success(), "{}", text(&out.stderr));
    assert_eq!(key_of(&world.laptop.wait_until_running()), key_of(&after));
}

#[test]
fn a_join_key_at_hand_renews_the_node_by_itself() {
    if !possible() {
        return;
    }
    let world = joined();
    let before = world.laptop.wait_until_running();
    let key = world.key(&[]);
    let out = world.laptop.up(&["--auth-key-file", &key]);
    assert!(out.status.success(), "{}", text(&out.stderr));
    assert_eq!(key_of(&world.laptop.wait_until_running()), key_of(&before), "not yet");
    // It is kept over a restart.
    assert!(world.laptop.node(&["down"]).status.success());
    wait_for("the node's end", || world.laptop.status().is_none().then_some(()));
    assert!(world.laptop.up(&[]).status.success());
    assert_eq!(key_of(&world.laptop.wait_until_running()), key_of(&before), "not yet");
    // Half an hour before its end.
    world.admin(&["nodes", "expire", "laptop", "--expiry", "30m"]);
    let after = wait_for("another key", || {
        world.laptop.status().filter(|status| status["BackendState"] == "Running" && key_of(status) != key_of(&before))
    });
    assert_eq!(lasting(&after), lasting(&before));
    assert!(!std::fs::read_to_string(world.laptop.path("state").join("state.json")).unwrap().contains("hskey-auth"), "it has served");
}

#[test]
fn the_end_of_a_key_is_told_before() {
    if !possible() {
        return;
    }
    let world = joined();
    world.laptop.wait_until_running();
    world.admin(&["nodes", "expire", "laptop", "--expiry", "3d"]);
    wait_for("the warning", || health(&world.laptop).contains("expires in").then_some(()));
    assert_eq!(state(&world.laptop), "Running");
    world.admin(&["nodes", "expire", "laptop", "--expiry", "never"]);
    wait_for("the end of the warning", || (!health(&world.laptop).contains("expires in")).then_some(()));
}

#[test]
fn trap_22_a_node_removed_at_the_coordinator_says_so() {
    if !possible() {
        return;
    }
    let world = joined();
    world.laptop.wait_until_running();
    world.admin(&["nodes", "delete", "laptop"]);
    let status =
        wait_for("the news", || world.laptop.status().filter(|status| status["AuthURL"].as_str().is_some_and(|url| !url.is_empty())));
    assert_eq!(status["BackendState"], "NeedsLogin");
    assert!(health(&world.laptop).contains("removed there"), "{}", health(&world.laptop));
    let_in(&world, status["AuthURL"].as_str().unwrap());
    world.laptop.wait_until_running();
    assert!(!health(&world.laptop).contains("removed there"));

    // The second time there is a join key, and no page is needed.
    world.admin(&["nodes", "delete", "laptop"]);
    wait_for("the news", || (state(&world.laptop) == "NeedsLogin").then_some(()));
    let key = world.key(&[]);
    let out = world.laptop.up(&["--auth-key-file", &key]);
    assert!(out.status.success(), "{}", text(&out.stderr));
}

#[test]
fn a_node_logs_in_again_with_the_same_state_and_not_after_logging_out() {
    if !possible() {
        return;
    }
    let world = joined();
    let before = world.laptop.wait_until_running();
    assert!(world.laptop.node(&["down"]).status.success());
    wait_for("the node's end", || world.laptop.status().is_none().then_some(()));
    assert!(world.laptop.up(&[]).status.success(), "no key is needed");
    let again = world.laptop.wait_until_running();
    assert_eq!((lasting(&again), key_of(&again)), (lasting(&before), key_of(&before)));

    assert!(world.laptop.node(&["logout"]).status.success());
    assert_eq!(state(&world.laptop), "NoState");
    let nodes = world.admin(&["nodes", "list"]);
    assert!(nodes["nodes"][0]["key_expiry"].is_string(), "its key was ended there: {nodes}");
    let out = world.laptop.up(&[&UP[..2], &["--timeout", "1s"]].concat());
    assert_eq!(out.status.code(), Some(3), "it has to be let in: {}", text(&out.stderr));
}

#[test]
fn preferences_reach_the_coordinator_and_names_are_answered_from_the_map() {
    if !possible() {
        return;
    }
    let world = joined();
    world.start_exit_node();
    let set = world.laptop.node(&[
        "--json",
        "set",
        "--hostname",
        "notebook",
        "--advertise-routes",
        "10.9.2.0/24",
        "--accept-dns=false",
        "--shields-up",
    ]);
    let prefs: Value = serde_json::from_slice(&set.stdout).unwrap();
    assert_eq!((&prefs["hostname"], &prefs["accept_dns"], &prefs["shields_up"]), (&"notebook".into(), &false.into(), &true.into()));
    let own = wait_for("the new name", || {
        world.laptop.status().filter(|s| s["Self"]["DNSName"].as_str().is_some_and(|n| n.starts_with("notebook.")))
    });
    let suffix = own["MagicDNSSuffix"].as_str().unwrap().to_owned();

    let dns: Value = serde_json::from_slice(&world.laptop.node(&["--json", "dns", "status"]).stdout).unwrap();
    assert_eq!(
        (&dns["MagicDNSSuffix"], &dns["MagicDNSEnabled"], &dns["AcceptDNS"]),
        (&suffix.as_str().into(), &true.into(), &false.into())
    );
    assert!(text(&world.laptop.node(&["dns", "status"]).stdout).contains("not accepted"));

    let query = |arguments: &[&str]| {
        let out = world.laptop.node(&[&["dns", "query"], arguments].concat());
        (out.status.code(), text(&out.stdout).trim().to_owned(), text(&out.stderr))
    };
    let address = text(&world.laptop.node(&["ip", "-4", "exit-1"]).stdout).trim().to_owned();
    let (code, found, note) = query(&["exit-1"]);
    assert_eq!((code, &found), (Some(0), &address));
    assert!(note.contains("no name server was asked"), "{note}");
    assert_eq!(query(&[&format!("exit-1.{suffix}.")]).1, address);
    assert_eq!(query(&[&address]).1, format!("exit-1.{suffix}."));
    assert_eq!(query(&["notebook"]).0, Some(0));
    let (code, _, why) = query(&["nobody"]);
    assert!(code == Some(5) && why.contains("there is no nobody"), "{why}");
    assert!(query(&["example.org"]).2.contains("this machine's own resolvers"));

    let whois: Value = serde_json::from_slice(&world.laptop.node(&["--json", "whois", &format!("{address}:80")]).stdout).unwrap();
    assert!(whois["Node"]["DNSName"].as_str().unwrap().starts_with("exit-1."));
    assert!(whois["UserProfile"]["LoginName"].as_str().unwrap().starts_with("admin"));
    assert_eq!(world.laptop.node(&["whois", "192.0.2.1"]).status.code(), Some(5));
    assert_eq!(world.laptop.node(&["set", "--advertise-tags", "server"]).status.code(), Some(2));
}

#[test]
fn with_shields_up_nobody_opens_a_connection_and_own_ones_work() {
    if !possible() {
        return;
    }
    let world = joined();
    world.start_exit_node();
    let before = world.laptop.traces();
    let (laptop, exit) = (["ping", "--icmp", "-c", "1", "--timeout", "1s", "laptop"], ["ping", "--icmp", "-c", "1", "exit-1"]);
    wait_for("a way to the laptop", || world.exit.node(&laptop).status.success().then_some(()));
    assert!(world.laptop.node(&["set", "--shields-up"]).status.success());
    assert!(!world.exit.node(&laptop).status.success());
    assert!(world.laptop.node(&exit).status.success(), "answers come in");
    assert!(world.laptop.node(&["set", "--shields-up=false"]).status.success());
    assert!(world.exit.node(&laptop).status.success());
    assert_eq!(world.laptop.traces(), before, "nothing of it is left");
}

#[test]
fn a_lost_address_opens_the_connection_anew_within_seconds() {
    if !possible() {
        return;
    }
    let world = joined();
    world.laptop.wait_until_running();
    let log = || std::fs::read_to_string(world.laptop.path("state").join("node.log")).unwrap_or_default();
    // Another address in the same network; the old connection cannot go on.
    world.laptop.sh("ip addr add 10.9.2.77/24 dev eth0; ip addr del 10.9.2.2/24 dev eth0; ip addr show dev eth0 | grep -q 10.9.2.77 || ip addr add 10.9.2.77/24 dev eth0; ip route replace default via 10.9.2.1");
    let begun = std::time::Instant::now();
    let connected = || world.laptop.sh("ss -Htn state established").contains("10.9.2.77:");
    wait_for("a connection from the new address", || connected().then_some(()));
    // Looked at every 5 s; without that, the connection would be pinged to death in 45 s.
    assert!(begun.elapsed() < Duration::from_secs(9), "{:?}: {}", begun.elapsed(), log());
    world.laptop.wait_until_running();
}
