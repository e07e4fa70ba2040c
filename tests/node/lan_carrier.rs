//! Local networks inside 100.64.0.0/10, as carriers hand them out, beside a mesh of the same range; and offers that would take them away.

use std::net::Ipv4Addr;

use hickory_proto::rr::RecordType;

use super::lan::{self, Lan, join, offered, table, taken};
use super::names::{addresses, ask};
use super::world::{Machine, World, possible, wait_for};

/// The laptop's network at the carrier: its gateway and another customer.
const GATEWAY: &str = "100.72.5.1:80";
const NEIGHBOUR: &str = "100.72.5.9:80";
const LAPTOP: &str = "100.72.5.2";

/// The laptop hangs on a carrier that gives addresses of the mesh's range and translates; there is no other way out.
fn carrier(world: &World) -> Machine {
    let carrier = Machine::new("g");
    carrier.cable("net", "10.9.9.2/24", &world.coordinator, "cgn", "10.9.9.1/24");
    carrier.cable("customers", "100.72.5.1/24", &world.laptop, "eth1", "100.72.5.2/24");
    carrier.sh("ip addr add 100.72.5.9/32 dev lo; ip route add default via 10.9.9.1; echo 1 > /proc/sys/net/ipv4/ip_forward");
    carrier.sh("nft 'add table ip nat; add chain ip nat out { type nat hook postrouting priority 100; }; add rule ip nat out oifname net masquerade'");
    world.exit.sh("ip route add 10.9.9.0/24 via 10.9.1.1");
    world.laptop.sh("ip link set eth0 down; ip route replace default via 100.72.5.1");
    for server in [GATEWAY, NEIGHBOUR] {
        carrier.tell_callers(server);
    }
    carrier
}

fn pinged(from: &Machine, to: &str) -> bool {
    from.node(&["ping", "--icmp", "-c", "1", to]).status.success()
}

#[test]
fn a_carriers_network_in_the_meshs_own_range_goes_on_working_with_and_without_an_exit_node() {
    if !possible() {
        return;
    }
    let world = World::new();
    let _carrier = carrier(&world);
    // Approved, and harmful: the network, its gateway, and what surrounds them.
    offered(&world, "100.72.5.0/24,100.72.5.1/32,100.72.0.0/16,10.9.7.0/24", &[]);
    taken(&world, "10.9.7.0/24");
    for exit in ["", "exit-1"] {
        assert!(world.laptop.node(&["set", "--exit-node", exit]).status.success());
        if !exit.is_empty() {
            wait_for("the exit node", || (world.seen_by_web()? == "203.0.113.2").then_some(()));
        }
        println!("exit node {exit:?}:\n{}", table(&world.laptop));
        for server in [GATEWAY, NEIGHBOUR] {
            assert_eq!(world.laptop.seen_by(server).as_deref(), Some(LAPTOP), "{server}, exit node {exit:?}");
        }
        assert!(pinged(&world.laptop, "exit-1") && pinged(&world.exit, "laptop"), "the mesh, exit node {exit:?}");
    }
    let table = table(&world.laptop);
    assert!(!table.lines().any(|line| line.contains("100.72.") && line.contains("pvemesh0")), "{table}");
    // A network whose interface is switched off is nobody's: thrown back, its packets would pass the tunnel by the other interface.
    assert!(table.contains("throw 100.72.5.0/24") && !table.contains("10.9.2."), "{table}");
}

#[test]
fn mesh_addresses_are_reached_although_the_modem_gives_their_whole_block() {
    if !possible() {
        return;
    }
    let world = World::new();
    let lan = Lan::new(&world, ["100.99.0.1/10", "100.99.0.2/10", "10.9.6.1/24"], &["100.99.0.1:80"]);
    offered(&world, "10.9.7.0/24", &["--exit-node", "exit-1"]);
    wait_for("the exit node", || (world.seen_by_web()? == "203.0.113.2").then_some(()));
    assert_eq!(world.laptop.seen_by("100.99.0.1:80").as_deref(), Some("100.99.0.2"), "the modem");
    assert!(lan.direct() > 0);
    // Without a rule of their own the modem would be asked for mesh addresses.
    assert!(pinged(&world.laptop, "exit-1"), "{}", world.laptop.sh("ip route get 100.64.0.1"));
    assert!(pinged(&world.exit, "laptop"));
}

#[test]
fn offers_of_half_the_internet_of_the_meshs_range_and_of_its_resolver_change_nothing_that_is_local() {
    if !possible() {
        return;
    }
    let world = World::new();
    let home = Lan::plain(&world);
    // Among them the address that the next node but one will get: this one is there first, so it asks first.
    let third = "100.64.0.3";
    let bad = format!("0.0.0.0/1,128.0.0.0/1,100.64.0.0/10,100.100.100.100/32,100.100.100.0/24,{third}/32,10.9.7.0/24");
    offered(&world, &bad, &[]);
    assert_eq!(join(&world, &world.coordinator, "third", &[], &[])["Self"]["TailscaleIPs"][0], third);
    println!("{}", taken(&world, "10.9.7.0/24"));
    println!("{}", world.laptop.status().unwrap()["Health"]);
    assert_eq!(world.laptop.seen_by(lan::DEVICE).as_deref(), Some(lan::LAPTOP));
    assert!(home.direct() > 0);
    let suffix = world.laptop.status().unwrap()["MagicDNSSuffix"].as_str().unwrap().to_owned();
    let answer = ask(&world.laptop, &format!("third.{suffix}."), RecordType::A).expect("the resolver answers");
    assert_eq!(addresses(&answer), [third.parse::<Ipv4Addr>().unwrap()]);
    assert!(world.laptop.sh("ip route get 100.100.100.100").contains("dev lo"));
    wait_for("the third node at its address", || pinged(&world.laptop, "third").then_some(()));
    world.laptop.wait_until_running();
}
