//! Two sites with the same IPv4 network behind two subnet routers, and a laptop whose own network is that one too.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use super::world::{Machine, World, possible, text, wait_for};

/// The device's address at either site.
const DEVICE: &str = "192.168.1.9";
const LAN: &str = "192.168.1.0/24";
const PORT: u16 = 7000;
/// A port where nobody listens.
const CLOSED: u16 = 7009;
/// Of bytes that go each way.
const BULK: usize = 3_000_000;
/// Of bytes that a greeting has.
const GREETING: usize = 64;

/// Two routers, each with a device that says which one it is.
struct Sites {
    world: World,
    second: Machine,
    devices: [Machine; 2],
    /// Beside the laptop, with the devices' address.
    _neighbour: Machine,
}

fn prefix(machine: &Machine, site: usize, network: &str) -> String {
    let out = machine.node(&["via", &site.to_string(), network]);
    assert!(out.status.success(), "{}", text(&out.stderr));
    text(&out.stdout).trim().to_owned()
}

/// The device at a site.
fn at(site: u16) -> Ipv6Addr {
    Ipv6Addr::new(0xfd7a, 0x115c, 0xa1e0, 0x0b1a, 0, site, 0xc0a8, 0x0109)
}

impl Sites {
    fn new() -> Self {
        let (world, second) = (World::new(), Machine::new("y"));
        world.coordinator.cable("office", "10.9.3.1/24", &second, "eth0", "10.9.3.2/24");
        second.sh("ip route add default via 10.9.3.1");
        let (devices, neighbour) = ([Machine::new("d1"), Machine::new("d2")], Machine::new("n"));
        world.laptop.cable("lan0", "192.168.1.7/24", &neighbour, "eth0", &format!("{DEVICE}/24"));
        let sites = Self { world, second, devices, _neighbour: neighbour };
        for (site, (router, device)) in [(1, (&sites.world.exit, &sites.devices[0])), (2, (&sites.second, &sites.devices[1]))] {
            router.cable("lan0", "192.168.1.1/24", device, "eth0", &format!("{DEVICE}/24"));
            serve(device, DEVICE, site);
            let routes = format!("{},{}", prefix(router, site, LAN), prefix(router, site, "127.0.0.0/8"));
            join(&sites.world, router, &format!("router-{site}"), &["--approve-routes", &routes], &["--advertise-routes", &routes]);
        }
        join(&sites.world, &sites.world.laptop, "laptop", &[], &["--accept-routes"]);
        for site in [1, 2] {
            wait_for("the way to the device", || sites.ask(site, 100));
        }
        sites
    }

    /// Who answers a datagram of so many bytes at a site, if it comes back whole.
    fn ask(&self, site: u16, length: usize) -> Option<(String, IpAddr)> {
        let asking = self.world.laptop.inside(move || {
            let socket = UdpSocket::bind("[::]:0").ok()?;
            socket.set_read_timeout(Some(Duration::from_secs(1))).ok()?;
            let sent: Vec<u8> = (0..length).map(|n| u8::try_from(n % 251).unwrap()).collect();
            socket.send_to(&sent, (at(site), PORT)).ok()?;
            let mut buffer = [0; 8192];
            let (received, from) = socket.recv_from(&mut buffer).ok()?;
            assert_eq!(from.ip(), IpAddr::V6(at(site)));
            let (greeting, rest) = buffer[..received].split_at_checked(GREETING)?;
            (rest == sent).then(|| read(greeting))
        });
        asking.join().unwrap()
    }

    /// The same by TCP, with a lot of data each way at the same time.
    fn exchange(&self, site: u16) -> Option<(String, IpAddr)> {
        let exchanging = self.world.laptop.inside(move || {
            let mut stream = TcpStream::connect_timeout(&(at(site), PORT).into(), Duration::from_secs(3)).ok()?;
            stream.set_read_timeout(Some(Duration::from_secs(20))).ok()?;
            let mut greeting = [0; GREETING];
            stream.read_exact(&mut greeting).ok()?;
            let sent: Vec<u8> = (0..BULK).map(|n| u8::try_from(n % 251).unwrap()).collect();
            let (mut writer, bytes) = (stream.try_clone().ok()?, sent.clone());
            let writing = std::thread::spawn(move || writer.write_all(&bytes).is_ok() && writer.shutdown(Shutdown::Write).is_ok());
            let mut back = Vec::new();
            stream.read_to_end(&mut back).ok()?;
            (writing.join().ok()? && back == sent).then(|| read(&greeting))
        });
        exchanging.join().unwrap()
    }

    fn ping(&self, options: &[&str]) -> String {
        text(&self.world.laptop.command("ping").args(["-c", "1", "-W", "3"]).args(options).output().unwrap().stdout)
    }
}

/// Which site, and by what address it knows the caller.
fn greeting(site: usize, from: SocketAddr) -> Vec<u8> {
    format!("{:GREETING$}", format!("site-{site} {}", from.ip())).into_bytes()
}

fn read(greeting: &[u8]) -> (String, IpAddr) {
    let greeting = text(greeting);
    let (site, from) = greeting.trim().split_once(' ').unwrap();
    (site.to_owned(), from.parse().unwrap())
}

/// Greets and gives back what comes, by TCP and UDP.
fn serve(machine: &Machine, address: &str, site: usize) {
    let address = SocketAddr::new(address.parse().unwrap(), PORT);
    let (ready, started) = std::sync::mpsc::channel();
    let told = ready.clone();
    machine.inside(move || {
        let listener = TcpListener::bind(address).unwrap();
        told.send(()).unwrap();
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            std::thread::spawn(move || {
                let from = stream.peer_addr().unwrap();
                let _ = stream.write_all(&greeting(site, from));
                let _ = std::io::copy(&mut stream.try_clone().unwrap(), &mut stream);
            });
        }
    });
    machine.inside(move || {
        let socket = UdpSocket::bind(address).unwrap();
        ready.send(()).unwrap();
        let mut buffer = [0; 8192];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(&[&greeting(site, from)[..], &buffer[..length]].concat(), from);
        }
    });
    started.recv().unwrap();
    started.recv().unwrap();
}

fn join(world: &World, machine: &Machine, name: &str, key: &[&str], options: &[&str]) {
    let key = world.key(key);
    let up = ["--login-server", "http://10.9.1.1:8080", "--auth-key-file", &key, "--hostname", name];
    let out = machine.up(&[&up, options].concat());
    assert!(out.status.success(), "{}", text(&out.stderr));
    machine.wait_until_running();
}

#[test]
fn the_same_address_at_two_sites_is_two_devices() {
    if !possible() {
        return;
    }
    let sites = Sites::new();
    let router: IpAddr = "192.168.1.1".parse().unwrap();
    for site in [1, 2] {
        let seen = (format!("site-{site}"), router);
        let begun = std::time::Instant::now();
        assert_eq!(sites.exchange(site), Some(seen.clone()));
        println!("{BULK} bytes there and back in {:?}", begun.elapsed());
        // Answers that fit, that would fit if they stayed IPv4, that do not fit anyway, and questions in fragments from the start. The
        // first of those that are too long is lost: the device is told what fits.
        for length in [0, 1168, 1184, 1220, 4000] {
            let answered = wait_for("an answer", || sites.ask(site, length));
            assert_eq!(answered, seen, "{length} bytes");
        }
        let device = at(site).to_string();
        assert!(sites.ping(&["-s", "1200", &device]).contains(" 0% packet loss"));
        // The names that stock nodes know, too.
        let name = format!("192-168-1-9-via-{site}");
        let found = sites.world.laptop.node(&["dns", "query", &name, "aaaa"]);
        assert_eq!(text(&found.stdout).trim(), device);
    }
    // Errors: of a router on the way, of the device.
    let far = sites.ping(&["-t", "1", &at(1).to_string()]);
    assert!(far.contains("Time exceeded"), "{far}");
    let refused = sites.world.laptop.inside(|| {
        let socket = UdpSocket::bind("[::]:0").unwrap();
        socket.connect((at(2), CLOSED)).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
        socket.send(b"?").unwrap();
        socket.recv(&mut [0; 8]).unwrap_err().kind()
    });
    assert_eq!(refused.join().unwrap(), std::io::ErrorKind::ConnectionRefused);
    let nobody = sites.world.laptop.inside(|| TcpStream::connect_timeout(&(at(1), CLOSED).into(), Duration::from_secs(3)).map(drop));
    assert_eq!(nobody.join().unwrap().unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
    // A connection is told what fits in its first packets: it does not depend on messages that many networks lose.
    sites.devices[1].sh("nft add table inet deaf; nft 'add chain inet deaf in { type filter hook input priority 0; }'; \
         nft add rule inet deaf in icmp type destination-unreachable drop; ip route flush cache");
    assert_eq!(sites.exchange(2), Some(("site-2".to_owned(), router)));
}

#[test]
fn without_masquerade_a_device_sees_the_peers_own_ipv4_address_and_plain_ipv4_goes_on_beside() {
    if !possible() {
        return;
    }
    let sites = Sites::new();
    let (router, laptop) = (&sites.world.exit, &sites.world.laptop);
    // A second network there, which is carried both ways.
    router.sh("ip addr add 10.9.7.1/24 dev lan0");
    sites.devices[0].sh("ip addr add 10.9.7.9/24 dev eth0 && ip route add 100.64.0.0/10 via 192.168.1.1");
    serve(&sites.devices[0], "10.9.7.9", 1);
    let routes = ["10.9.7.0/24".to_owned(), prefix(router, 1, "10.9.7.0/24"), prefix(router, 1, LAN)];
    assert!(router.node(&["set", "--snat-subnet-routes=false", "--advertise-routes", &routes.join(",")]).status.success());
    sites.world.admin(&["routes", "approve", "router-1", &routes[0], &routes[1]]);
    wait_for("the end of masquerade", || (!router.sh("nft list ruleset").contains("masquerade")).then_some(()));
    let status = laptop.status().unwrap();
    let own: IpAddr = status["Self"]["TailscaleIPs"][0].as_str().unwrap().parse().unwrap();
    let seen = Some(("site-1".to_owned(), own));
    wait_for("an answer", || sites.ask(1, 100));
    assert_eq!(sites.exchange(1), seen);
    // Even where all ports are the same, the family that was spoken last is answered.
    let asking = laptop.inside(|| {
        let plain = UdpSocket::bind("0.0.0.0:7777").unwrap();
        let turned = socket2::Socket::new(socket2::Domain::IPV6, socket2::Type::DGRAM, None).unwrap();
        turned.set_only_v6(true).unwrap();
        turned.bind(&"[::]:7777".parse::<SocketAddr>().unwrap().into()).unwrap();
        let turned = UdpSocket::from(turned);
        let ask = |socket: &UdpSocket, to: &str| {
            let to: SocketAddr = to.parse().unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
            socket.send_to(b"?", to).ok()?;
            let mut buffer = [0; 256];
            let (_, from) = socket.recv_from(&mut buffer).ok()?;
            (from == to).then(|| read(&buffer[..GREETING]).1)
        };
        let mut answers = Vec::new();
        for _ in 0..3 {
            answers.push(wait_for("plain IPv4", || ask(&plain, "10.9.7.9:7000")));
            answers.push(wait_for("IPv4 by IPv6", || ask(&turned, "[fd7a:115c:a1e0:b1a:0:1:10.9.7.9]:7000")));
        }
        answers
    });
    assert_eq!(asking.join().unwrap(), [own; 6]);
}

#[test]
fn nobody_reaches_a_router_from_inside_through_its_site() {
    if !possible() {
        return;
    }
    let sites = Sites::new();
    let router = &sites.world.exit;
    serve(router, "127.0.0.1", 1);
    // What the kernel would refuse by itself, it is told to take.
    router.sh("for i in all pvemesh0; do echo 1 > /proc/sys/net/ipv4/conf/$i/route_localnet; done");
    let status = router.status().unwrap();
    let own = status["Self"]["TailscaleIPs"][0].as_str().unwrap();
    serve(router, own, 1);
    let reach = |v4: &str| {
        let to: Ipv6Addr = format!("fd7a:115c:a1e0:b1a:0:1:{v4}").parse().unwrap();
        let reaching = sites.world.laptop.inside(move || TcpStream::connect_timeout(&(to, PORT).into(), Duration::from_secs(1)).is_ok());
        reaching.join().unwrap()
    };
    assert!(!reach("127.0.0.1") && !reach("127.1.2.3"));
    // All of the site's addresses: the mesh is not among them.
    let all = prefix(router, 1, "0.0.0.0/0");
    assert!(router.node(&["set", "--advertise-routes", &all]).status.success());
    sites.world.admin(&["routes", "approve", "router-1", &all]);
    wait_for("the wider route", || sites.world.laptop.sh("ip -6 route show table 52").contains("/96").then_some(()));
    wait_for("the device", || reach(DEVICE).then_some(()));
    assert!(!reach(own) && !reach("100.100.100.100") && !reach("127.0.0.1"));
}

#[test]
fn a_policy_names_a_site_by_its_prefix() {
    if !possible() {
        return;
    }
    let sites = Sites::new();
    let [first, second] = [1, 2].map(|site| prefix(&sites.second, site, LAN));
    let policy = sites.world.coordinator.path("policy.hujson");
    let text = format!(r#"{{"acls":[{{"action":"accept","src":["*"],"dst":["[{first}]:22","[{second}]:{PORT}"]}}]}}"#);
    std::fs::write(&policy, text).unwrap();
    sites.world.admin(&["policy", "set", policy.to_str().unwrap()]);
    wait_for("the end of the way to the first site", || sites.ask(1, 100).is_none().then_some(()));
    let connects = |site, port| {
        let connecting = sites.world.laptop.inside(move || TcpStream::connect_timeout(&(at(site), port).into(), Duration::from_secs(1)));
        connecting.join().unwrap().map(drop).map_err(|error| error.kind())
    };
    assert_eq!(connects(1, PORT), Err(std::io::ErrorKind::TimedOut));
    assert_eq!(connects(1, 22), Err(std::io::ErrorKind::ConnectionRefused), "let through, and nobody is there");
    assert_eq!(connects(2, CLOSED), Err(std::io::ErrorKind::TimedOut));
    assert_eq!(connects(2, PORT), Ok(()));
}
