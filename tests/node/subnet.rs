//! A subnet router: machines that run nothing of ours, seen from the mesh, in every protocol; and two such networks joined.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use super::world::{Machine, World, possible, text, wait_for};

pub(crate) const DEVICE: &str = "10.9.7.9";
pub(crate) const DEVICE_V6: &str = "fd00:7::9";
pub(crate) const LAN: &str = "10.9.7.0/24,fd00:7::/64";
pub(crate) const PORT: u16 = 7000;
/// Of bytes that go through: enough for segments of every size.
pub(crate) const BULK: usize = 300_000;

/// A network with a device behind the node `router`, which is its gateway.
pub(crate) fn network(router: &Machine, n: u8) -> Machine {
    let device = Machine::new(&format!("d{n}"));
    router.cable(&format!("lan{n}"), &format!("10.9.{n}.1/24"), &device, "eth0", &format!("10.9.{n}.9/24"));
    router.sh(&format!("ip addr add fd00:{n}::1/64 dev lan{n} nodad"));
    device.sh(&format!("ip link set lo up; ip addr add fd00:{n}::9/64 dev eth0 nodad"));
    device
}

pub(crate) fn serve(device: &Machine) {
    let (ready, started) = std::sync::mpsc::channel();
    let told = ready.clone();
    device.inside(move || {
        let listener = TcpListener::bind(("::", PORT)).unwrap();
        told.send(()).unwrap();
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            // Whoever it is, then what comes until the end, back.
            std::thread::spawn(move || {
                let from = stream.peer_addr().map(|a| a.ip().to_canonical().to_string()).unwrap_or_default();
                let _ = stream.write_all(format!("{from:40}").as_bytes());
                let _ = std::io::copy(&mut stream.try_clone().unwrap(), &mut stream);
            });
        }
    });
    device.inside(move || {
        let socket = UdpSocket::bind(("::", PORT)).unwrap();
        ready.send(()).unwrap();
        let mut buffer = [0; 2048];
        while let Ok((_, from)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(from.ip().to_canonical().to_string().as_bytes(), from);
        }
    });
    started.recv().unwrap();
    started.recv().unwrap();
}

/// Whom the device sees, by TCP; everything sent has come back whole.
pub(crate) fn by_tcp(from: &Machine, to: &str) -> Option<IpAddr> {
    let to = SocketAddr::new(to.parse().unwrap(), PORT);
    let job = from.inside(move || {
        let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(3)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(10))).ok()?;
        let mut seen = [0; 40];
        stream.read_exact(&mut seen).ok()?;
        let sent: Vec<u8> = (0..BULK).map(|n| u8::try_from(n % 251).unwrap()).collect();
        let mut writer = stream.try_clone().ok()?;
        let bytes = sent.clone();
        let writing = std::thread::spawn(move || writer.write_all(&bytes).is_ok() && writer.shutdown(std::net::Shutdown::Write).is_ok());
        let mut back = Vec::new();
        stream.read_to_end(&mut back).ok()?;
        (writing.join().ok()? && back == sent).then(|| text(&seen).trim().parse().unwrap())
    });
    job.join().unwrap()
}

pub(crate) fn by_udp(from: &Machine, to: &str) -> Option<IpAddr> {
    let to = SocketAddr::new(to.parse().unwrap(), PORT);
    let job = from.inside(move || {
        let socket = UdpSocket::bind(if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }).ok()?;
        socket.set_read_timeout(Some(Duration::from_secs(3))).ok()?;
        socket.send_to(&[7; 1200], to).ok()?;
        let mut buffer = [0; 64];
        let length = socket.recv(&mut buffer).ok()?;
        text(&buffer[..length]).parse().ok()
    });
    job.join().unwrap()
}

/// In IPv4 in fragments; the sender of an IPv6 packet is told first what fits.
pub(crate) fn by_icmp(from: &Machine, to: &str) -> bool {
    let size = if to.contains(':') { "1200" } else { "1400" };
    from.command("ping").args(["-c", "1", "-W", "3", "-s", size, to]).output().unwrap().status.success()
}

pub(crate) fn join(world: &World, machine: &Machine, name: &str, key: &[&str], options: &[&str]) -> serde_json::Value {
    let key = world.key(key);
    let up = ["--login-server", "http://10.9.1.1:8080", "--auth-key-file", &key, "--hostname", name];
    let out = machine.up(&[&up, options].concat());
    assert!(out.status.success(), "{}", text(&out.stderr));
    machine.wait_until_running()
}

pub(crate) fn addresses(status: &serde_json::Value) -> [IpAddr; 2] {
    [0, 1].map(|n| status["Self"]["TailscaleIPs"][n].as_str().unwrap().parse().unwrap())
}

#[test]
fn a_network_is_reached_by_tcp_udp_and_icmp_in_both_families_as_the_router_or_as_oneself() {
    if !possible() {
        return;
    }
    let world = World::new();
    let device = network(&world.exit, 7);
    serve(&device);
    join(&world, &world.exit, "router", &["--approve-routes", LAN], &["--advertise-routes", LAN]);
    let own = addresses(&join(&world, &world.laptop, "laptop", &[], &["--accept-routes"]));
    let router: [IpAddr; 2] = ["10.9.7.1".parse().unwrap(), "fd00:7::1".parse().unwrap()];
    let seen = |to| (by_tcp(&world.laptop, to), by_udp(&world.laptop, to), by_icmp(&world.laptop, to));
    wait_for("the way to the device", || by_udp(&world.laptop, DEVICE));
    for (to, router) in [DEVICE, DEVICE_V6].into_iter().zip(router) {
        assert_eq!(seen(to), (Some(router), Some(router), true), "{to}");
    }
    // Without translation the device sees who it is, and must know the way back.
    assert!(world.exit.node(&["set", "--snat-subnet-routes=false"]).status.success());
    wait_for("the end of the translation", || (!world.exit.sh("nft list ruleset").contains("masquerade")).then_some(()));
    assert_eq!(by_udp(&world.laptop, DEVICE), None);
    device.sh("ip route add 100.64.0.0/10 via 10.9.7.1; ip -6 route add fd7a:115c:a1e0::/48 via fd00:7::1");
    for (to, own) in [DEVICE, DEVICE_V6].into_iter().zip(own) {
        assert_eq!(seen(to), (Some(own), Some(own), true), "{to}");
    }
}

#[test]
fn two_networks_of_full_size_packets_are_joined_although_no_message_says_what_fits() {
    if !possible() {
        return;
    }
    let world = World::new();
    let (device, tv) = (network(&world.exit, 7), network(&world.laptop, 8));
    serve(&device);
    let other = "10.9.8.0/24,fd00:8::/64";
    for (machine, name, lan) in [(&world.exit, "router", LAN), (&world.laptop, "house", other)] {
        join(
            &world,
            machine,
            name,
            &["--approve-routes", lan],
            &["--advertise-routes", lan, "--accept-routes", "--snat-subnet-routes=false"],
        );
    }
    // Both devices' gateway is the node beside them, and neither hears of packets that are too big.
    for (machine, n) in [(&device, 7), (&tv, 8)] {
        machine.sh(&format!("ip route add default via 10.9.{n}.1; ip -6 route add default via fd00:{n}::1"));
        machine.sh("nft add table inet deaf; nft 'add chain inet deaf in { type filter hook input priority 0; }'");
        machine.sh(
            "nft add rule inet deaf in icmp type destination-unreachable drop; nft add rule inet deaf in icmpv6 type packet-too-big drop",
        );
    }
    wait_for("the way to the device", || by_udp(&tv, DEVICE));
    for (to, from) in [(DEVICE, "10.9.8.9"), (DEVICE_V6, "fd00:8::9")] {
        let start = Instant::now();
        assert_eq!(by_tcp(&tv, to), from.parse().ok(), "{to}");
        println!("{BULK} bytes there and back by {to} after {:?}", start.elapsed());
    }
    // What leaves is not for the internet, and nobody has taken the device's route away from it.
    assert!(world.exit.sh("nft list ruleset").contains("maxseg size set rt mtu"));
}
