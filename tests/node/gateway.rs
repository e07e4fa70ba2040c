//! A machine that runs nothing of ours, a TV, and whose default gateway is a node: it reaches the mesh, and the internet through an exit node.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use serde_json::json;

use super::auto::{Exits, SEEN};
use super::lan::join;
use super::world::{Machine, WEB, possible, text, wait_for};

/// The TV's network, and the TV.
const LAN: &str = "10.9.8.0/24,fd00:8::/64";
const TV: [&str; 2] = ["10.9.8.9", "fd00:8::9"];

/// The laptop's machine is the house's gateway here, in front of a TV; two exit nodes carry the internet, which the gateway's own router leads
/// to as well.
struct House {
    exits: Exits,
    tv: Machine,
    /// The mesh addresses of the gateway, and of a node of somebody else's, who tells his callers their address.
    gateway: [IpAddr; 2],
    nas: [IpAddr; 2],
}

impl House {
    /// The gateway offers its network or not; the others use such networks or not.
    fn new(offer: &[&str], others: &[&str]) -> Self {
        let exits = Exits::new();
        let world = &exits.world;
        let tv = Machine::new("tv");
        world.laptop.cable("lan8", "10.9.8.1/24", &tv, "eth0", "10.9.8.9/24");
        world.laptop.sh("ip addr add fd00:8::1/64 dev lan8 nodad");
        tv.sh("ip addr add fd00:8::9/64 dev eth0 nodad; ip route add default via 10.9.8.1; ip -6 route add default via fd00:8::1");
        let addresses = |status: &serde_json::Value| [0, 1].map(|n| status["Self"]["TailscaleIPs"][n].as_str().unwrap().parse().unwrap());
        let gateway = addresses(&join(world, &world.laptop, "gateway", &["--approve-routes", LAN], offer));
        let nas = addresses(&join(world, &world.coordinator, "nas", &[], others));
        if !others.is_empty() {
            assert!(world.exit.node(&[&["set"], others].concat()).status.success());
        }
        for ip in nas {
            world.coordinator.tell_callers(&SocketAddr::new(ip, 80).to_string());
        }
        let socket = world.coordinator.inside(move || UdpSocket::bind((nas[0], 53)).unwrap()).join().unwrap();
        std::thread::spawn(move || {
            let mut buffer = [0; 64];
            while let Ok((_, from)) = socket.recv_from(&mut buffer) {
                let _ = socket.send_to(from.ip().to_string().as_bytes(), from);
            }
        });
        Self { exits, tv, gateway, nas }
    }

    fn set(&self, change: &[&str]) {
        let out = self.exits.world.laptop.node(&[&["set"], change].concat());
        assert!(out.status.success(), "{}", text(&out.stderr));
    }

    /// As whom the node is reached by TCP, at its first or second address.
    fn tcp(&self, n: usize) -> Option<IpAddr> {
        self.tv.seen_by(&SocketAddr::new(self.nas[n], 80).to_string()).and_then(|seen| seen.parse().ok())
    }

    fn udp(&self) -> Option<IpAddr> {
        let to = self.nas[0];
        let job = self.tv.inside(move || {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
            socket.send_to(b"?", (to, 53)).ok()?;
            let mut said = [0; 64];
            let length = socket.recv(&mut said).ok()?;
            text(&said[..length]).parse().ok()
        });
        job.join().unwrap()
    }

    fn pings(&self, to: IpAddr) -> bool {
        self.tv.command("ping").args(["-c", "1", "-W", "2", &to.to_string()]).output().unwrap().status.success()
    }

    /// As whom the TV is seen on the internet.
    fn internet(&self) -> Option<String> {
        self.tv.seen_by(WEB)
    }
}

#[test]
fn a_tv_behind_a_gateway_uses_mesh_and_exit_node_in_the_gateways_name_and_with_its_rights() {
    if !possible() {
        return;
    }
    let mut house = House::new(&[], &[]);
    let laptop = &house.exits.world.laptop;
    let before = laptop.traces();
    assert_eq!((house.tcp(0), house.udp(), house.internet()), (None, None, None), "a node is no gateway unless told to be");

    house.set(&["--lan-gateway"]);
    wait_for("the way into the mesh", || house.tcp(0));
    assert_eq!([house.tcp(0), house.tcp(1), house.udp()], [Some(house.gateway[0]), Some(house.gateway[1]), Some(house.gateway[0])]);
    assert!(house.pings(house.nas[0]) && house.pings(house.nas[1]));
    // The gateway's own programs are who they were.
    assert_eq!(laptop.seen_by(&format!("{}:80", house.nas[0])), Some(house.gateway[0].to_string()));
    // Another address at the interface, the resolver's, does not become the TV's by coming first.
    laptop.sh(&format!("ip addr del {}/32 dev pvemesh0", house.gateway[0]));
    wait_for("the address to be back", || laptop.sh("ip addr show dev pvemesh0").contains(&house.gateway[0].to_string()).then_some(()));
    wait_for("the TV's name to be the gateway's", || (house.tcp(0) == Some(house.gateway[0])).then_some(()));

    // The internet comes to the TV through the exit node, and past it nothing goes, whatever happens to that.
    assert_ne!(house.internet().as_deref(), Some(SEEN[0]));
    house.set(&["--exit-node", "exit-1"]);
    wait_for("the exit node", || (house.internet().as_deref() == Some(SEEN[0])).then_some(()));
    assert_eq!(house.tcp(0), Some(house.gateway[0]), "and the mesh is still there");
    let leaked = house.exits.leaked();
    let exit = house.exits.exit(0);
    exit.children.iter_mut().for_each(|child| drop(child.kill()));
    assert_eq!(house.internet(), None, "traffic waits for its exit node");
    assert_eq!(house.exits.leaked(), leaked);
    house.set(&["--exit-node", "exit-2"]);
    wait_for("the other exit node", || (house.internet().as_deref() == Some(SEEN[1])).then_some(()));
    assert_eq!(house.exits.leaked(), leaked);

    // What the policy says of the gateway holds for the TV.
    let world = &house.exits.world;
    let policy = world.coordinator.path("policy.json");
    let udp_only = json!({ "acls": [{ "action": "accept", "src": ["*"], "proto": "udp", "dst": ["*:53"] }] });
    std::fs::write(&policy, udp_only.to_string()).unwrap();
    world.admin(&["policy", "set", policy.to_str().unwrap()]);
    wait_for("the policy", || house.tcp(0).is_none().then_some(()));
    assert_eq!(house.udp(), Some(house.gateway[0]));
    // And the other way round nobody gets at it.
    assert!(!world.coordinator.command("ping").args(["-c", "1", "-W", "1", TV[0]]).output().unwrap().status.success());

    house.set(&["--lan-gateway=false", "--exit-node="]);
    wait_for("the end of it", || house.udp().is_none().then_some(()));
    let ours = |traces: &str| {
        traces.lines().filter(|line| line.contains("pvemesh") || line.trim().len() == 1).map(str::to_owned).collect::<Vec<_>>()
    };
    wait_for("nothing to be left of it", || (ours(&house.exits.world.laptop.traces()) == ours(&before)).then_some(()));
}

#[test]
fn a_tv_is_itself_where_the_others_know_its_network() {
    if !possible() {
        return;
    }
    let house = House::new(&["--advertise-routes", LAN], &["--accept-routes"]);
    wait_for("the way into the mesh", || house.tcp(0));
    assert_eq!([house.tcp(0), house.tcp(1), house.udp()], [TV[0].parse().ok(), TV[1].parse().ok(), TV[0].parse().ok()]);
    house.set(&["--exit-node", "exit-1"]);
    wait_for("the exit node", || (house.internet().as_deref() == Some(SEEN[0])).then_some(()));
}
