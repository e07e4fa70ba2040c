//! Ways that change while packets flow: what is lost, and for how long.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use super::coordinator::Coordinator;
use super::netns::{Machine, eventually, lacking};
use super::node::Node;
use super::place::{Internet, Place, sh};
use super::turn;

/// Two nodes in two places, and what they need.
struct Scene {
    coordinator: Coordinator,
    nodes: [Node; 2],
    hosts: [Machine; 2],
    routers: Vec<Machine>,
    internet: Internet,
    _home: tempfile::TempDir,
}

impl Scene {
    fn new(places: [Place; 2]) -> Self {
        let home = tempfile::tempdir().unwrap();
        let internet = Internet::new();
        let coordinator = Coordinator::start(&internet.centre, home.path());
        let mut routers = Vec::new();
        let hosts = places.map(|place| {
            let (host, behind) = internet.settle(place);
            routers.extend(behind);
            host
        });
        let mut names = ["alpha", "beta"].into_iter();
        let nodes = hosts.each_ref().map(|host| Node::start(host, names.next().unwrap(), home.path(), &coordinator));
        for node in &nodes {
            eventually("both know each other and their relays", Duration::from_secs(30), || node.is_settled(1));
        }
        Self { coordinator, nodes, hosts, routers, internet, _home: home }
    }

    fn paths(&self) -> [String; 2] {
        let [a, b] = &self.nodes;
        [a.path(b).0, b.path(a).0]
    }

    fn becomes(&self, path: &str) {
        let [a, b] = &self.nodes;
        let mut number = 1_000_000_001;
        eventually(&format!("both paths are {path}"), Duration::from_secs(10), || {
            a.ask(b, number);
            number += 2;
            self.paths() == [path, path]
        });
    }

    /// UDP passes the routers no more, or again; without a word to anybody.
    fn cut(&self, cut: bool) {
        for router in &self.routers {
            sh(
                router,
                if cut { "nft insert rule ip lab passing meta l4proto udp drop" } else { "nft flush chain ip lab passing" }.to_owned(),
            );
        }
    }

    /// Numbered questions, one each 10 ms, until the time is up; those not answered, and the longest time without an answer.
    fn stream(&self, duration: Duration, numbers: u64) -> (usize, Duration) {
        let [a, b] = &self.nodes;
        let start = Instant::now();
        let mut asked = Vec::new();
        while start.elapsed() < duration {
            let number = numbers + 2 * asked.len() as u64;
            a.ask(b, number);
            asked.push(number);
            std::thread::sleep(Duration::from_millis(10));
        }
        std::thread::sleep(Duration::from_millis(300));
        let mut came: Vec<Instant> = asked.iter().filter_map(|number| a.came(number + 1)).collect();
        let lost = asked.len() - came.len();
        came.extend([start, start + duration]);
        came.sort();
        (lost, came.windows(2).map(|two| two[1].duration_since(two[0])).max().unwrap_or_default())
    }
}

macro_rules! need_root {
    ($turn:ident) => {
        if let Some(reason) = lacking() {
            println!("skipped: {reason}");
            return;
        }
        let $turn = turn();
    };
}

const ROUTER: Place = Place::PortRestricted;

#[test]
fn nothing_is_lost_on_the_way_from_the_relay_to_a_direct_path() {
    need_root!(_turn);
    let scene = Scene::new([ROUTER, ROUTER]);
    scene.cut(true);
    scene.becomes("relay");
    let lost = std::thread::scope(|scope| {
        let stream = scope.spawn(|| scene.stream(Duration::from_secs(9), 1));
        std::thread::sleep(Duration::from_millis(500));
        scene.cut(false);
        stream.join().unwrap()
    });
    println!("lost, longest pause: {lost:?}");
    assert_eq!(scene.paths(), ["direct", "direct"]);
    assert_eq!(lost.0, 0);
}

/// The longest time an answer takes on one TCP connection while something happens.
fn slowest_answer(scene: &Scene, happens: impl FnOnce() + Send) -> Duration {
    let address = SocketAddr::new(scene.nodes[1].address, 7001);
    let listener = scene.hosts[1].run(move || TcpListener::bind(address).unwrap());
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_nodelay(true).unwrap();
        let mut byte = [0];
        while stream.read_exact(&mut byte).is_ok() && stream.write_all(&byte).is_ok() {}
    });
    let mut stream = scene.hosts[0].run(move || TcpStream::connect_timeout(&address, Duration::from_secs(10)).unwrap());
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(1500));
            happens();
        });
        let (start, mut slowest) = (Instant::now(), Duration::ZERO);
        while start.elapsed() < Duration::from_secs(5) {
            let asked = Instant::now();
            stream.write_all(b"x").unwrap();
            stream.read_exact(&mut [0]).unwrap();
            slowest = slowest.max(asked.elapsed());
            std::thread::sleep(Duration::from_millis(10));
        }
        slowest
    })
}

#[test]
fn a_direct_path_that_dies_silently_holds_tcp_up_for_less_than_a_second() {
    need_root!(_turn);
    let scene = Scene::new([ROUTER, ROUTER]);
    scene.becomes("direct");
    let slowest = slowest_answer(&scene, || scene.cut(true));
    println!("the slowest answer took {slowest:?}");
    assert!(slowest < Duration::from_secs(1), "{slowest:?}");
    scene.becomes("relay");
    scene.cut(false);
    scene.becomes("direct");
}

#[test]
fn a_node_whose_address_changes_is_back_within_a_second() {
    need_root!(_turn);
    let scene = Scene::new([ROUTER, ROUTER]);
    scene.becomes("direct");
    let slowest = slowest_answer(&scene, || {
        let new = "ip addr add 192.168.1.77/24 dev eth0; ip addr del 192.168.1.2/24 dev eth0";
        let again = "ip addr show dev eth0 | grep -q 192.168.1.77 || ip addr add 192.168.1.77/24 dev eth0; ip route replace default via 192.168.1.1";
        sh(&scene.hosts[1], format!("{new}; {again}"));
    });
    println!("the slowest answer took {slowest:?}");
    assert!(slowest < Duration::from_millis(1700), "{slowest:?}");
    scene.becomes("direct");
}

#[test]
fn a_relay_that_is_killed_is_used_again_within_five_seconds_of_its_return() {
    need_root!(_turn);
    let mut scene = Scene::new([Place::UdpBlocked, ROUTER]);
    scene.becomes("relay");
    scene.coordinator.kill();
    std::thread::sleep(Duration::from_secs(2));
    scene.coordinator.start_again(&scene.internet.centre);
    let [a, b] = &scene.nodes;
    let (back, mut number) = (Instant::now(), 1);
    eventually("an answer through the relay", Duration::from_secs(5), || {
        a.ask(b, number);
        number += 2;
        a.came(number - 1).is_some() || (1..number).step_by(2).any(|n| a.came(n + 1).is_some())
    });
    println!("answers again after {:?}", back.elapsed());
}
