//! The resolver's two addresses: who reaches it there, and that nothing else comes of them.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use hickory_proto::rr::RecordType;

use super::names::{addresses, ask_at, ask_by_tcp, up};
use super::world::{Machine, World, possible, text, wait_for};

const V4: &str = "100.100.100.100:53";
const V6: &str = "[fd7a:115c:a1e0::53]:53";

fn answers(machine: &Machine, resolver: &str, name: &str) -> Vec<Ipv4Addr> {
    ask_at(machine, resolver, name, RecordType::A, Duration::from_secs(5)).map(|answer| addresses(&answer)).unwrap_or_default()
}

fn listening(machine: &Machine) -> String {
    let out = machine.node(&["--json", "dns", "status"]);
    assert!(out.status.success(), "{}", text(&out.stderr));
    serde_json::from_slice::<serde_json::Value>(&out.stdout).unwrap()["ResolverAddresses"].to_string()
}

/// The source that the kernel takes for packets to an address.
fn source(machine: &Machine, to: &str) -> String {
    let route = machine.sh(&format!("ip -o route get {to}"));
    route.split(" src ").nth(1).unwrap_or_default().split_whitespace().next().unwrap_or_default().to_owned()
}

#[test]
fn the_resolver_answers_on_both_addresses_to_this_machine_alone_and_neither_becomes_a_source() {
    if !possible() {
        return;
    }
    let world = World::new();
    world.coordinator.sh("ip addr add 2001:db8:2::1/64 dev cafe nodad");
    world.laptop.sh("ip addr add 2001:db8:2::2/64 dev eth0 nodad");
    world.start_exit_node();
    up(&world, &world.laptop, "laptop");
    let exit = world.exit.wait_until_running();
    let (exit4, exit6) = (exit["Self"]["TailscaleIPs"][0].as_str().unwrap(), exit["Self"]["TailscaleIPs"][1].as_str().unwrap());
    let name = "exit-1.mesh.internal.";
    let known = vec![exit4.parse::<Ipv4Addr>().unwrap()];
    for resolver in [V4, V6] {
        wait_for(resolver, || (answers(&world.laptop, resolver, name) == known).then_some(()));
        assert_eq!(addresses(&ask_by_tcp(&world.laptop, resolver, name)), known, "{resolver} by TCP");
        let ip = resolver.parse::<SocketAddr>().unwrap().ip();
        world.laptop.sh(&format!("ping -c 1 -W 2 {ip}"));
    }
    assert_eq!(listening(&world.laptop), r#"["100.100.100.100","fd7a:115c:a1e0::53"]"#);

    // A neighbour on the LAN sends its packets here, and is not heard.
    world.coordinator.sh("ip route add 100.100.100.100 via 10.9.2.2; ip route add fd7a:115c:a1e0::53 via 2001:db8:2::2");
    for resolver in [V4, V6] {
        let heard = ask_at(&world.coordinator, resolver, name, RecordType::A, Duration::from_millis(500));
        assert!(heard.is_none(), "{resolver}: {heard:?}");
    }

    // Neither is a source of anything else, with an exit node and without.
    let own = world.laptop.wait_until_running()["Self"]["TailscaleIPs"].clone();
    assert_eq!(
        (source(&world.laptop, exit4).as_str(), source(&world.laptop, exit6).as_str()),
        (own[0].as_str().unwrap(), own[1].as_str().unwrap())
    );
    assert!(world.laptop.node(&["set", "--exit-node", "exit-1"]).status.success());
    wait_for("the way through the exit node", || (source(&world.laptop, "192.0.2.1") == own[0].as_str()?).then_some(()));
    wait_for("the same for IPv6", || world.laptop.sh("ip -6 route show table 52").contains("default dev pvemesh0").then_some(()));
    let to_the_internet = source(&world.laptop, "2001:4860::1");
    assert!(!to_the_internet.is_empty() && to_the_internet != "fd7a:115c:a1e0::53", "{to_the_internet}");

    // Who makes it a source again is put right, once.
    world.laptop.sh("ip addr change fd7a:115c:a1e0::53/128 dev pvemesh0 preferred_lft forever");
    wait_for("the address is none to send from", || {
        world.laptop.sh("ip -6 -o addr show dev pvemesh0").lines().find(|line| line.contains("::53/"))?.contains("deprecated").then_some(())
    });
    let repairs = || world.laptop.status().unwrap()["Repairs"]["Count"].as_u64().unwrap_or_default();
    let count = repairs();
    std::thread::sleep(Duration::from_secs(4));
    assert_eq!(repairs(), count);
}

/// What is sealed for the exit node counts, whatever that node would make of it.
#[test]
fn what_is_sent_to_the_resolver_while_its_addresses_are_missing_goes_to_no_peer() {
    if !possible() {
        return;
    }
    let world = World::new();
    world.start_exit_node();
    up(&world, &world.laptop, "laptop");
    assert!(world.laptop.node(&["set", "--exit-node", "exit-1"]).status.success());
    wait_for("the exit node", || (world.seen_by_web()? == "203.0.113.2").then_some(()));
    let sent = || world.laptop.status().unwrap()["Peer"].as_object().unwrap().values().next().unwrap()["TxBytes"].as_u64().unwrap();
    let ping = |to: &str| format!("ping -c 1 -s 1000 -W 1 {to} >/dev/null || true");
    let before = sent();
    for (address, resolver) in [("100.100.100.100/32", V4), ("fd7a:115c:a1e0::53/128", V6)] {
        let ip = resolver.parse::<SocketAddr>().unwrap().ip().to_string();
        for _ in 0..3 {
            world.laptop.sh(&format!("ip addr del {address} dev pvemesh0; {}", ping(&ip)));
            wait_for("the address is back", || (!answers(&world.laptop, resolver, "exit-1.mesh.internal.").is_empty()).then_some(()));
        }
    }
    assert!(sent() < before + 1000, "{} bytes for the exit node", sent() - before);
    world.laptop.sh(&ping("192.0.2.80"));
    assert!(sent() > before + 1000, "what is for the internet is counted");
}

#[test]
fn a_machine_whose_ipv6_is_switched_off_starts_and_has_its_names_by_ipv4() {
    if !possible() {
        return;
    }
    let world = World::new();
    let nas = up(&world, &world.exit, "nas");
    world.laptop.sh("for c in all default lo; do echo 1 > /proc/sys/net/ipv6/conf/$c/disable_ipv6; done");
    up(&world, &world.laptop, "laptop");
    wait_for("the name", || (answers(&world.laptop, V4, "nas.mesh.internal.") == [nas]).then_some(()));
    let status = world.laptop.wait_until_running();
    assert_eq!((status["Health"].to_string(), listening(&world.laptop)), ("[]".to_owned(), r#"["100.100.100.100"]"#.to_owned()));
    world.laptop.sh("ping -c 1 -W 2 100.100.100.100");
    assert_eq!(answers(&world.laptop, V6, "nas.mesh.internal."), Vec::<Ipv4Addr>::new());
}

/// A kernel without IPv6 has no settings of it, either.
#[test]
fn a_machine_without_ipv6_starts_and_has_its_names_by_ipv4() {
    if !possible() {
        return;
    }
    let mut world = World::new();
    let nas = up(&world, &world.exit, "nas");
    world.laptop.sh("for c in all default lo; do echo 1 > /proc/sys/net/ipv6/conf/$c/disable_ipv6; done");
    world.laptop.run_node_after("mount -t tmpfs none /proc/sys/net/ipv6");
    up(&world, &world.laptop, "laptop");
    wait_for("the name", || (answers(&world.laptop, V4, "nas.mesh.internal.") == [nas]).then_some(()));
    let status = world.laptop.wait_until_running();
    assert_eq!((status["Health"].to_string(), listening(&world.laptop)), ("[]".to_owned(), r#"["100.100.100.100"]"#.to_owned()));
    assert!(!world.laptop.sh("ip -6 addr show dev pvemesh0").contains("fd7a:"));
}
