//! Other programs take away what the mesh needs: it is back in time, counted, and never more than it was.

use std::time::{Duration, Instant};

use super::world::{Machine, World, possible, wait_for};

/// Back within this time, traffic included.
const LIMIT: Duration = Duration::from_secs(2);
/// A busy test machine may be late without anything being wrong; what is measured is printed.
const SLACK: Duration = Duration::from_secs(2);

/// What the node has set on its machine; the traces of others are not looked at.
fn set(machine: &Machine) -> String {
    machine.sh(
        "for f in -4 -6; do ip $f rule | grep 'proto 52'; ip $f route show table 52; ip $f addr show dev pvemesh0 scope global | grep inet | sort; done; \
         ip -o link show pvemesh0 | grep -o 'mtu [0-9]*\\|,UP\\|LOWER_UP'; nft list ruleset; \
         cat /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv6/conf/all/forwarding",
    )
}

fn repairs(machine: &Machine) -> (u64, String) {
    let status = machine.status().expect("the node answers");
    (status["Repairs"]["Count"].as_u64().unwrap_or_default(), status["Repairs"]["What"].as_str().unwrap_or_default().to_owned())
}

/// Does the harm and waits until everything is as it was.
fn repaired(machine: &Machine, harm: &str, named: &str) {
    let (before, (count, _)) = (set(machine), repairs(machine));
    machine.sh(harm);
    let start = Instant::now();
    let mut now = set(machine);
    while now != before && start.elapsed() < LIMIT + SLACK {
        std::thread::sleep(Duration::from_millis(20));
        now = set_or_nothing(machine);
    }
    let took = start.elapsed();
    assert_eq!(now, before, "after `{harm}`");
    let (after, what) = wait_for("the count of repairs", || Some(repairs(machine)).filter(|(after, _)| *after > count));
    println!("{harm}: back after {took:?}: {what}");
    assert!(after <= count + 4, "{after} repairs for one harm, {count} before");
    assert!(what.contains(named) || after > count + 1, "`{what}` for `{harm}`");
}

/// The interface itself may be away for a moment.
fn set_or_nothing(machine: &Machine) -> String {
    let there = machine.command("ip").args(["link", "show", "pvemesh0"]).output().is_ok_and(|out| out.status.success());
    if there { set(machine) } else { String::new() }
}

#[test]
fn what_another_program_takes_away_from_an_exit_node_is_back_at_once() {
    if !possible() {
        return;
    }
    let world = World::new();
    world.start_exit_node();
    world.exit.wait_until_running();
    let exit = &world.exit;
    // Nothing happens by itself.
    assert_eq!(repairs(exit).0, 0);
    // What is flushed besides ours, the harm puts back: it is not the node's to restore.
    let main = "ip rule add pref 32766 lookup main; ip rule add pref 32767 lookup default";
    for (harm, named) in [
        (format!("ip rule flush; {main}"), "6 policy rules"),
        ("ip -6 rule flush; ip -6 rule add pref 32766 lookup main".to_owned(), "6 policy rules"),
        ("ip rule del pref 5270".to_owned(), "1 policy rule"),
        ("ip route flush table 52; ip -6 route flush table 52".to_owned(), "route"),
        ("ip route replace unreachable 100.100.100.100/32 table 52 proto 52".to_owned(), "route"),
        ("ip addr flush dev pvemesh0 scope global".to_owned(), "address"),
        ("ip link set pvemesh0 down".to_owned(), "the state of the interface"),
        ("ip link set pvemesh0 mtu 1400".to_owned(), "the state of the interface"),
        ("echo 0 > /proc/sys/net/ipv4/ip_forward".to_owned(), "1 kernel setting"),
        ("echo 0 > /proc/sys/net/ipv6/conf/all/forwarding".to_owned(), "1 kernel setting"),
        ("ip link del pvemesh0".to_owned(), "the interface pvemesh0"),
    ] {
        repaired(exit, &harm, named);
    }
    // The table is owned by the node's socket, so there is nothing to repair.
    // A late one may still be counted for the interface.
    wait_for("nothing is repaired any more", || {
        let count = repairs(exit).0;
        std::thread::sleep(LIMIT);
        (repairs(exit).0 == count).then_some(())
    });
    let (before, (count, _)) = (set(exit), repairs(exit));
    exit.sh("nft flush ruleset; ! nft delete table inet pvemesh 2>/dev/null");
    assert_eq!(set(exit), before);
    std::thread::sleep(LIMIT);
    assert_eq!((set(exit), repairs(exit).0), (before, count));
}

#[test]
fn a_laptop_whose_rules_are_flushed_leaks_nothing_for_longer_than_it_takes_to_put_them_back() {
    if !possible() {
        return;
    }
    let world = World::new();
    world.start_exit_node();
    let key = world.key(&[]);
    let up = ["--login-server", "http://10.9.1.1:8080", "--auth-key-file", &key, "--hostname", "laptop", "--exit-node", "exit-1"];
    assert!(world.laptop.up(&up).status.success());
    assert_eq!(world.seen_by_web().as_deref(), Some("203.0.113.2"));
    let before = world.laptop.traces();
    for _ in 0..3 {
        repaired(&world.laptop, "for n in 5210 5230 5250 5255 5260 5270; do ip rule del pref $n; done", "policy rule");
        assert_eq!(world.seen_by_web().as_deref(), Some("203.0.113.2"));
    }
    // The tunnel itself is taken away and comes back with traffic through it.
    repaired(&world.laptop, "ip link del pvemesh0", "the interface pvemesh0");
    wait_for("traffic through the tunnel made anew", || (world.seen_by_web().as_deref() == Some("203.0.113.2")).then_some(()));
    assert_eq!(world.laptop.traces(), before);
}
