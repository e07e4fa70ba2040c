//! LAN-first: what a machine reaches by itself it goes on reaching by itself, whatever other nodes offer.

use serde_json::Value;

use super::world::{Machine, World, possible, text, wait_for};

/// A LAN with the laptop, the machine of the other node, and a device that runs nothing of ours.
pub(crate) const LAPTOP: &str = "10.9.6.2";
const ROUTER: &str = "10.9.6.1";
pub(crate) const DEVICE: &str = "10.9.6.9:80";
/// Another of the device's addresses, in the upper half of the LAN.
const UPPER: &str = "10.9.6.200:80";

/// One network of laptop, router and device; the device is the switch, too.
pub(crate) struct Lan {
    device: Machine,
}

impl Lan {
    pub(crate) fn new(world: &World, addresses: [&str; 3], servers: &[&str]) -> Self {
        let device = Machine::new("d");
        let [own, laptop, router] = addresses;
        device.sh("ip link add br0 type bridge && ip link set br0 up");
        for (machine, port, address) in [(&world.laptop, "port1", laptop), (&world.exit, "port2", router)] {
            device.cable(port, "169.254.0.1/32", machine, "lan0", address);
            device.sh(&format!("ip addr flush dev {port}; ip link set {port} master br0"));
        }
        device.sh(&format!("ip addr add {own} dev br0"));
        for server in servers {
            let address = server.rsplit_once(':').unwrap().0;
            device.sh(&format!("ip addr add {address}/32 dev lo 2>/dev/null || true"));
            device.tell_callers(server);
        }
        // Everything for the device that comes from the laptop's cable, whatever its source.
        device.sh("nft 'add table bridge watch; add chain bridge watch in { type filter hook prerouting priority -300; };
                  add rule bridge watch in iifname port1 ip protocol tcp counter'");
        Self { device }
    }

    pub(crate) fn plain(world: &World) -> Self {
        Self::new(world, ["10.9.6.9/24", "10.9.6.2/24", "10.9.6.1/24"], &[DEVICE, UPPER])
    }

    /// How many TCP packets have come straight from the laptop.
    pub(crate) fn direct(&self) -> u64 {
        packets(&self.device, "bridge watch")
    }
}

/// The counter of a table that has one.
fn packets(machine: &Machine, table: &str) -> u64 {
    let rules = machine.sh(&format!("nft list table {table}"));
    rules.split("packets ").nth(1).and_then(|rest| rest.split(' ').next()).unwrap().parse().unwrap()
}

pub(crate) fn join(world: &World, machine: &Machine, name: &str, key: &[&str], options: &[&str]) -> Value {
    let key = world.key(key);
    let up = ["--login-server", "http://10.9.1.1:8080", "--auth-key-file", &key, "--hostname", name];
    let out = machine.up(&[&up, options].concat());
    assert!(out.status.success(), "{name}: {}", text(&out.stderr));
    machine.wait_until_running()
}

/// The other node offers these networks, and the laptop takes what it takes. They are approved: nobody but the laptop itself is to refuse.
pub(crate) fn offered(world: &World, networks: &str, options: &[&str]) {
    let exit = ["--approve-exit-node", "--approve-routes", networks];
    join(world, &world.exit, "exit-1", &exit, &["--advertise-exit-node", "--advertise-routes", networks]);
    join(world, &world.laptop, "laptop", &[], &[&["--accept-routes"], options].concat());
}

pub(crate) fn table(machine: &Machine) -> String {
    machine.sh("ip route show table 52; ip -6 route show table 52")
}

/// Waits until the laptop has taken this route, so what it has not taken by then it has refused.
pub(crate) fn taken(world: &World, route: &str) -> String {
    wait_for(&format!("the route {route}"), || Some(table(&world.laptop)).filter(|table| table.contains(&format!("{route} dev pvemesh0"))))
}

#[test]
fn on_the_very_lan_that_another_node_offers_its_devices_are_reached_directly() {
    if !possible() {
        return;
    }
    let world = World::new();
    let lan = Lan::plain(&world);
    world.exit.sh("ip addr add 10.9.7.1/32 dev lo");
    world.exit.tell_callers("10.9.7.1:80");
    // The LAN, its half, a device of its own, more than the LAN; and one network that is elsewhere.
    offered(&world, "10.9.6.0/24,10.9.6.128/25,10.9.6.9/32,10.9.0.0/20,10.9.7.0/24", &[]);
    let table = taken(&world, "10.9.7.0/24");
    println!("{table}");
    assert!(!table.contains("10.9.6.") && !table.contains("10.9.0.0/20"), "{table}");
    for server in [DEVICE, UPPER] {
        let before = lan.direct();
        assert_eq!(world.laptop.seen_by(server).as_deref(), Some(LAPTOP), "{server}");
        println!("{server} sees {LAPTOP}; {} packets on the cable", lan.direct() - before);
        assert!(lan.direct() > before);
    }
    let health = world.laptop.status().unwrap()["Health"].to_string();
    assert!(health.contains("10.9.6.128/25") && health.contains("it overlaps the local network 10.9.6.0/24"), "{health}");
}

#[test]
fn what_the_machines_own_routing_leads_to_stays_there_at_once_although_the_route_was_taken_before() {
    if !possible() {
        return;
    }
    let world = World::new();
    let lan = Lan::new(&world, ["10.9.6.9/24", "10.9.6.2/24", "10.9.6.1/24"], &["10.9.7.9:80", "10.9.8.9:80"]);
    world.exit.sh("ip route add 10.9.7.0/24 via 10.9.6.9; ip route add 10.9.8.0/24 via 10.9.6.9");
    offered(&world, "10.9.7.0/24,10.9.8.0/24,10.9.8.9/32", &[]);
    taken(&world, "10.9.7.0/24");
    taken(&world, "10.9.8.9");
    let seen = |server| world.laptop.seen_by(server);
    wait_for("the way through the tunnel", || (seen("10.9.7.9:80")? == ROUTER).then_some(()));
    assert_eq!(seen("10.9.8.9:80").as_deref(), Some(ROUTER));
    // Its owner writes a route, narrower or wider than the mesh's; the laptop is put into a network that it has reached through the mesh.
    // Neither waits for the node to notice.
    world.laptop.sh("ip route add 10.9.8.0/24 via 10.9.6.9");
    assert_eq!(seen("10.9.8.9:80").as_deref(), Some(LAPTOP));
    lan.device.sh("ip addr add 10.9.7.1/24 dev br0");
    world.laptop.sh("ip addr add 10.9.7.2/24 dev lan0");
    assert_eq!(seen("10.9.7.9:80").as_deref(), Some("10.9.7.2"));
    // When it leaves again, the mesh takes over.
    world.laptop.sh("ip addr del 10.9.7.2/24 dev lan0; ip route del 10.9.8.0/24");
    assert_eq!(seen("10.9.8.9:80").as_deref(), Some(ROUTER));
    wait_for("the mesh's way", || (seen("10.9.7.9:80")? == ROUTER).then_some(()));
}

/// The laptop's connections to the coordinator's machine, own end first.
fn connections(world: &World) -> Vec<String> {
    let lines = world.laptop.sh("ss -Htn state established dst 10.9.1.1");
    let ends = lines.lines().map(|line| line.split_whitespace().skip(2).collect::<Vec<_>>().join(" "));
    ends.collect()
}

#[test]
fn routes_over_gateway_coordinator_relay_and_peer_capture_none_of_the_nodes_own_packets() {
    if !possible() {
        return;
    }
    let world = World::new();
    // The other machine knows the way to what it offers, so a captured packet would get there.
    world.coordinator.tell_callers("10.9.2.1:80");
    world.coordinator.tell_callers("10.9.1.1:80");
    offered(&world, "10.9.2.0/25,10.9.2.1/32,10.9.1.0/24,10.9.1.1/32,10.9.1.2/32", &[]);
    let table = taken(&world, "10.9.1.0/24");
    println!("{table}");
    assert!(!table.contains("10.9.2."), "{table}");
    assert_eq!(world.laptop.seen_by("10.9.2.1:80").as_deref(), Some("10.9.2.2"), "the gateway");
    // What is elsewhere is the mesh's, for everybody but the node itself.
    wait_for("the way to the coordinator's machine", || (world.laptop.seen_by("10.9.1.1:80")? == "10.9.1.2").then_some(()));

    // Connections from before the route keep their address; so they are ended, and new ones made.
    let both = |ends: &[String]| [":8080", ":8443"].iter().all(|port| ends.iter().any(|end| end.ends_with(port)));
    let before = wait_for("coordinator and relay", || Some(connections(&world)).filter(|ends| both(ends)));
    world.laptop.sh("ss -K -t dst 10.9.1.1");
    let after = wait_for("other connections", || {
        Some(connections(&world)).filter(|ends| both(ends) && !ends.iter().any(|end| before.contains(end)))
    });
    world.laptop.wait_until_running();
    println!("before {before:?}, after {after:?}");
    assert!(after.iter().all(|end| end.starts_with("10.9.2.2:")), "{after:?}");

    // The tunnel's packets to the peer, whose address the route covers, too.
    let ping = world.laptop.node(&["--json", "ping", "-c", "1", "exit-1"]);
    let report: Value = serde_json::from_slice(&ping.stdout).unwrap();
    println!("{report}");
    assert_eq!((report["received"].as_u64(), report["via"].as_str()), (Some(1), Some("10.9.1.2:41641")), "{report}");
}

#[test]
fn an_exit_node_leaves_the_lan_alone_unless_told_to_take_it_too() {
    if !possible() {
        return;
    }
    let world = World::new();
    let lan = Lan::new(&world, ["10.9.6.9/24", "10.9.6.2/24", "10.9.6.1/24"], &[DEVICE, UPPER, "10.9.8.9:80"]);
    // A network behind the device is part of what is local, although the laptop has no address in it.
    world.laptop.sh("ip route add 10.9.8.0/24 via 10.9.6.9");
    world.coordinator.tell_callers("10.9.2.1:80");
    offered(&world, "10.9.7.0/24", &["--exit-node", "exit-1"]);
    let web = || world.seen_by_web();
    wait_for("the exit node", || (web()? == "203.0.113.2").then_some(()));
    for (server, seen) in [(DEVICE, LAPTOP), ("10.9.8.9:80", LAPTOP), ("10.9.2.1:80", "10.9.2.2")] {
        assert_eq!(world.laptop.seen_by(server).as_deref(), Some(seen), "{server}");
    }
    assert!(table(&world.laptop).contains("throw 10.9.6.0/24"));

    // Without: nothing on the LAN is reached past the tunnel, nor through it, for an exit node does not lead to its own networks.
    assert!(world.laptop.node(&["set", "--exit-node-allow-lan-access=false"]).status.success());
    wait_for("the end of the LAN", || world.laptop.sh("ip route get 10.9.6.9").contains("dev pvemesh0").then_some(()));
    let before = lan.direct();
    for server in [DEVICE, UPPER, "10.9.8.9:80", "10.9.2.1:80"] {
        assert_eq!(world.laptop.seen_by(server), None, "{server}");
    }
    println!("{} packets past the tunnel to the device", lan.direct() - before);
    assert_eq!(lan.direct(), before);
    // The gateway carries the node's own packets all the while.
    assert_eq!(web().as_deref(), Some("203.0.113.2"));
    world.laptop.wait_until_running();

    assert!(world.laptop.node(&["set", "--exit-node-allow-lan-access"]).status.success());
    wait_for("the LAN", || (world.laptop.seen_by(DEVICE)? == LAPTOP).then_some(()));
}
