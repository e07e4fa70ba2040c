//! Which flows a policy lets through between real nodes, as a table: protocols, directions, fragments, to a node and to what is behind it.

use std::collections::HashSet;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::lan::join;
use super::world::{Machine, World, possible, wait_for};

const GRE: u8 = 47;
const ESP: u8 = 50;
const LAN: &str = "10.9.7.0/24,fd00:7::/64";
/// The device's addresses that the policy names, and those it does not.
const NAMED: [&str; 2] = ["10.9.7.9", "fd00:7::9"];
const UNNAMED: [&str; 2] = ["10.9.7.8", "fd00:7::8"];
/// How long an answer is waited for that is not to come.
const SHORT: Duration = Duration::from_millis(400);
/// More than one packet of the mesh holds.
const LONG: usize = 3000;

/// What is sent. Sizes are of the contents, in bytes.
#[derive(Debug, Clone, Copy)]
enum Flow {
    Tcp(u16),
    Udp(u16, usize),
    Ping(usize),
    /// Of a protocol without ports.
    Raw(u8, usize),
}

/// A machine that answers whatever reaches it.
struct Host {
    machine: Machine,
    /// What has come of protocols without ports: nobody answers those.
    heard: Arc<Mutex<HashSet<[u8; 8]>>>,
}

impl std::ops::Deref for Host {
    type Target = Machine;

    fn deref(&self) -> &Machine {
        &self.machine
    }
}

impl Host {
    /// With these addresses: what answers by UDP does so from the one that was asked.
    fn new(machine: Machine, addresses: &[&str]) -> Self {
        let heard = Arc::<Mutex<HashSet<[u8; 8]>>>::default();
        for port in [22, 23] {
            let listener = machine.inside(move || TcpListener::bind(("::", port)).unwrap()).join().unwrap();
            std::thread::spawn(move || listener.incoming().flatten().for_each(|mut stream| drop(stream.write_all(b"here"))));
        }
        for (ip, port) in addresses.iter().flat_map(|ip| [(*ip, 5353), (*ip, 5354)]) {
            let at = SocketAddr::new(ip.parse().unwrap(), port);
            let socket = machine.inside(move || UdpSocket::bind(at).unwrap()).join().unwrap();
            std::thread::spawn(move || {
                let mut buffer = [0; 2 * LONG];
                while let Ok((length, from)) = socket.recv_from(&mut buffer) {
                    let _ = socket.send_to(length.to_string().as_bytes(), from);
                }
            });
        }
        for (protocol, domain) in [GRE, ESP].into_iter().flat_map(|protocol| [(protocol, Domain::IPV4), (protocol, Domain::IPV6)]) {
            let open = move || Socket::new(domain, Type::RAW, Some(Protocol::from(i32::from(protocol)))).unwrap();
            let (socket, heard) = (machine.inside(open).join().unwrap(), heard.clone());
            std::thread::spawn(move || {
                let mut buffer = [0; 2 * LONG];
                while let Ok(length) = (&socket).read(&mut buffer) {
                    // The IPv4 header comes with it, the IPv6 one does not; the token is at the end.
                    heard.lock().unwrap().extend(buffer[..length].last_chunk::<8>());
                }
            });
        }
        Self { machine, heard }
    }

    /// Whether a flow to an address of another machine gets there, and its answer back if the protocol has answers.
    fn reaches(&self, flow: Flow, to: &str, other: &Self) -> bool {
        let to: IpAddr = to.parse().unwrap();
        match flow {
            Flow::Tcp(port) => {
                let job = self.inside(move || {
                    let mut stream = TcpStream::connect_timeout(&(to, port).into(), SHORT).ok()?;
                    stream.set_read_timeout(Some(SHORT)).unwrap();
                    let mut said = [0; 4];
                    stream.read_exact(&mut said).ok().filter(|()| said == *b"here")
                });
                job.join().unwrap().is_some()
            }
            Flow::Udp(port, size) => {
                let job = self.inside(move || {
                    let socket = UdpSocket::bind(if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }).unwrap();
                    socket.set_read_timeout(Some(SHORT)).unwrap();
                    socket.send_to(&vec![7; size], (to, port)).ok()?;
                    let mut said = [0; 16];
                    let length = socket.recv(&mut said).ok()?;
                    (said[..length] == *size.to_string().as_bytes()).then_some(())
                });
                job.join().unwrap().is_some()
            }
            Flow::Ping(size) => {
                let line = format!("-c 1 -W {} -s {size} {to}", SHORT.as_secs_f64());
                self.command("ping").args(line.split(' ')).output().unwrap().status.success()
            }
            Flow::Raw(protocol, size) => {
                static COUNT: AtomicU64 = AtomicU64::new(0);
                let token = COUNT.fetch_add(1, Ordering::Relaxed).to_be_bytes();
                let job = self.inside(move || {
                    let domain = if to.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
                    let socket = Socket::new(domain, Type::RAW, Some(Protocol::from(i32::from(protocol)))).unwrap();
                    let bytes = [vec![0; size - 8], token.to_vec()].concat();
                    let _ = socket.send_to(&bytes, &SockAddr::from(SocketAddr::new(to, 0)));
                });
                job.join().unwrap();
                let end = Instant::now() + SHORT;
                while Instant::now() < end && !other.heard.lock().unwrap().contains(&token) {
                    std::thread::sleep(Duration::from_millis(10));
                }
                other.heard.lock().unwrap().contains(&token)
            }
        }
    }
}

/// Laptop, router and device, and a policy that opens from the first to the other two: TCP 22, UDP 5353 and GRE.
struct Table {
    _world: World,
    laptop: Host,
    router: Host,
    device: Host,
    own: [String; 2],
    routers: [String; 2],
}

fn addresses(status: &Value) -> [String; 2] {
    [0, 1].map(|n| status["Self"]["TailscaleIPs"][n].as_str().unwrap().to_owned())
}

impl Table {
    fn new() -> Self {
        let mut world = World::new();
        let (laptop, router) =
            (std::mem::replace(&mut world.laptop, Machine::new("unused")), std::mem::replace(&mut world.exit, Machine::new("unused")));
        let device = Machine::new("d");
        router.cable("lan7", "10.9.7.1/24", &device, "eth0", "10.9.7.9/24");
        router.sh("ip addr add fd00:7::1/64 dev lan7 nodad");
        device.sh("ip addr add 10.9.7.8/24 dev eth0; for n in 9 8; do ip addr add fd00:7::$n/64 dev eth0 nodad; done");
        // The device sees who the laptop is, so that it can try to reach it.
        device.sh("ip route add 100.64.0.0/10 via 10.9.7.1; ip -6 route add fd7a:115c:a1e0::/48 via fd00:7::1");
        let offer = ["--advertise-routes", LAN, "--snat-subnet-routes=false"];
        let routers = addresses(&join(&world, &router, "router", &["--approve-routes", LAN], &offer));
        let own = addresses(&join(&world, &laptop, "laptop", &[], &["--accept-routes"]));
        let file = world.coordinator.path("policy.json");
        let to = |ports: &str| {
            let all = routers.iter().map(String::as_str).chain(NAMED);
            all.map(|ip| if ip.contains(':') { format!("[{ip}]:{ports}") } else { format!("{ip}:{ports}") }).collect::<Vec<_>>()
        };
        let rule = |protocol: &str, ports: &str| json!({ "action": "accept", "src": own, "proto": protocol, "dst": to(ports) });
        let policy = json!({ "acls": [rule("tcp", "22"), rule("udp", "5353"), rule("gre", "*")] });
        std::fs::write(&file, policy.to_string()).unwrap();
        world.admin(&["policy", "set", file.to_str().unwrap()]);
        let host = |machine, addresses: &[String; 2]| Host::new(machine, &addresses.each_ref().map(String::as_str));
        let device = Host::new(device, &[NAMED, UNNAMED].concat());
        Self { laptop: host(laptop, &own), router: host(router, &routers), device, _world: world, own, routers }
    }

    fn allowed(&self, flows: &[Flow], targets: &[(&Host, &str)]) {
        for (host, to) in targets {
            for flow in flows {
                wait_for(&format!("{flow:?} to {to}"), || self.laptop.reaches(*flow, to, host).then_some(()));
            }
        }
    }
}

/// None of them gets there. All are waited for at once.
fn refused(from: &Host, flows: &[Flow], targets: &[(&Host, &str)]) {
    std::thread::scope(|scope| {
        for (host, to) in targets {
            for flow in flows {
                scope.spawn(move || assert!(!from.reaches(*flow, to, host), "{flow:?} to {to}"));
            }
        }
    });
}

#[test]
fn a_policy_opens_what_it_names_in_one_direction_and_nothing_else_to_a_node_and_to_what_is_behind_it() {
    if !possible() {
        return;
    }
    let table = Table::new();
    let (router, device) = (&table.router, &table.device);
    let named: Vec<(&Host, &str)> =
        table.routers.iter().map(|ip| (router, ip.as_str())).chain(NAMED.iter().map(|ip| (device, *ip))).collect();
    let unnamed: Vec<(&Host, &str)> = UNNAMED.iter().map(|ip| (device, *ip)).collect();
    let back: Vec<(&Host, &str)> = table.own.iter().map(|ip| (&table.laptop, ip.as_str())).collect();

    // An echo request needs any rule between the two; fragments follow their first one. Each has its answer, which no rule names.
    let open = [
        Flow::Tcp(22),
        Flow::Udp(5353, 10),
        Flow::Udp(5353, LONG),
        Flow::Ping(56),
        Flow::Ping(LONG),
        Flow::Raw(GRE, 100),
        Flow::Raw(GRE, LONG),
    ];
    let closed = [Flow::Tcp(23), Flow::Udp(5354, 10), Flow::Udp(5354, LONG), Flow::Raw(ESP, 100), Flow::Raw(ESP, LONG)];
    table.allowed(&open, &named);
    refused(&table.laptop, &closed, &named);
    refused(&table.laptop, &open, &unnamed);
    for from in [router, device] {
        refused(from, &open, &back);
        refused(from, &closed, &back);
    }
    // That was the policy, and nothing else that was in the way.
    table.allowed(&open, &named);
}
