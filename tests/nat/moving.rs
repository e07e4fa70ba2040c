//! Ways that change while packets flow: what is lost, and for how long.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use super::coordinator::{Coordinator, Relay};
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
    home: tempfile::TempDir,
}

impl Scene {
    fn new(places: [Place; 2]) -> Self {
        Self::with_relays(places, &[]).0
    }

    /// With these regions' relays on machines of their own; without any, one in the coordinator.
    fn with_relays(places: [Place; 2], regions: &[usize]) -> (Self, Vec<Relay>) {
        let home = tempfile::tempdir().unwrap();
        let internet = Internet::new();
        let coordinator = Coordinator::start_with(&internet.centre, home.path(), if regions.is_empty() { "" } else { "--no-relay" });
        let relays = regions.iter().map(|region| Relay::start(&internet, home.path(), *region)).collect();
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
        (Self { coordinator, nodes, hosts, routers, internet, home }, relays)
    }

    /// The codes of the two nodes' home relays, as the other one knows them.
    fn homes(&self) -> [String; 2] {
        let [a, b] = &self.nodes;
        [b.home_of(a), a.home_of(b)]
    }

    /// What a node knows is on its disk a few seconds later.
    fn maps_are_kept(&self) {
        for node in ["alpha", "beta"] {
            let map = self.home.path().join(node).join("map.json");
            eventually("the map is kept", Duration::from_secs(20), || {
                std::fs::read_to_string(&map).is_ok_and(|text| text.contains("alpha") && text.contains("beta"))
            });
        }
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

/// Both directions work again: how long that took from now on.
fn talk_again(nodes: &[Node; 2], numbers: u64, limit: Duration) -> [Duration; 2] {
    let start = Instant::now();
    let mut took = [None; 2];
    let mut number = numbers;
    while took.iter().any(Option::is_none) && start.elapsed() < limit {
        nodes[0].ask(&nodes[1], number);
        nodes[1].ask(&nodes[0], number + 2);
        number += 4;
        std::thread::sleep(Duration::from_millis(25));
        for (n, took) in took.iter_mut().enumerate().filter(|(_, took)| took.is_none()) {
            let first = if n == 0 { numbers } else { numbers + 2 };
            *took = (first..number).step_by(4).any(|asked| nodes[n].came(asked + 1).is_some()).then(|| start.elapsed());
        }
    }
    took.map(|took| took.unwrap_or_else(|| panic!("no answer within {limit:?}: {took:?}")))
}

#[test]
fn known_nodes_reach_each_other_while_the_coordinator_is_away_though_one_has_been_restarted() {
    need_root!(_turn);
    for places in [[Place::Open, Place::Open], [Place::Open, ROUTER], [ROUTER, Place::Open], [ROUTER, ROUTER]] {
        let mut scene = Scene::new(places);
        scene.becomes("direct");
        scene.maps_are_kept();
        // The relay goes with it.
        scene.coordinator.kill();
        scene.nodes[1].kill();
        scene.nodes[1].run_again(&scene.hosts[1], scene.home.path());
        let took = talk_again(&scene.nodes, 2_000_000_001, Duration::from_secs(5));
        println!("{} and {} (restarted): answers after {took:?}", places[0].name(), places[1].name());
        if places == [ROUTER, ROUTER] {
            // Longer than an address is trusted: what was proven to the process before must not be missed.
            let (lost, pause) = scene.stream(Duration::from_secs(20), 3_000_000_001);
            println!("after that {lost} of some 2,000 unanswered, the longest pause {pause:?}; {:?}", scene.paths());
            assert!(pause < Duration::from_secs(1), "{pause:?}");
        }
    }
}

/// The embedded relay is silent rather than closed: nothing tells the nodes that it is gone.
#[test]
fn known_nodes_reach_each_other_while_the_coordinator_swallows_everything_though_one_has_been_restarted() {
    need_root!(_turn);
    let mut scene = Scene::new([ROUTER, ROUTER]);
    scene.becomes("direct");
    scene.maps_are_kept();
    sh(
        &scene.internet.centre,
        "nft 'add table inet lost; add chain inet lost in { type filter hook input priority 0; policy drop; }'".to_owned(),
    );
    scene.nodes[1].kill();
    scene.nodes[1].run_again(&scene.hosts[1], scene.home.path());
    let took = talk_again(&scene.nodes, 2_000_000_001, Duration::from_secs(5));
    println!("answers after {took:?}");
    let (lost, pause) = scene.stream(Duration::from_secs(20), 3_000_000_001);
    println!("after that {lost} of some 2,000 unanswered, the longest pause {pause:?}; {:?}", scene.paths());
    assert!(pause < Duration::from_secs(1), "{pause:?}");
    assert_eq!(scene.paths(), ["direct", "direct"]);
}

/// Packets have a way all the time; but the direct one is found only by a probe that opens, and nobody but the node itself can tell its new key.
#[test]
fn a_restarted_node_is_reached_directly_again_while_the_coordinator_is_away_and_a_relay_is_not() {
    need_root!(_turn);
    let (mut scene, _relays) = Scene::with_relays([ROUTER, ROUTER], &[901]);
    scene.becomes("direct");
    scene.maps_are_kept();
    scene.coordinator.kill();
    scene.nodes[1].kill();
    scene.nodes[1].run_again(&scene.hosts[1], scene.home.path());
    let took = talk_again(&scene.nodes, 2_000_000_001, Duration::from_secs(5));
    let start = Instant::now();
    scene.becomes("direct");
    println!("answers after {took:?}, direct {:?} later", start.elapsed());
    assert!(start.elapsed() < Duration::from_secs(8), "{:?}", start.elapsed());
}

#[test]
fn a_relay_that_dies_is_replaced_by_one_of_another_region_within_five_seconds() {
    need_root!(_turn);
    let (scene, mut relays) = Scene::with_relays([Place::UdpBlocked, Place::UdpBlocked], &[901, 902]);
    scene.becomes("relay");
    for (round, numbers) in [1, 10_000_001].into_iter().enumerate() {
        let homes = scene.homes();
        let dying = usize::from(homes[1].ends_with("902"));
        let (lost, pause) = std::thread::scope(|scope| {
            let stream = scope.spawn(|| scene.stream(Duration::from_secs(9), numbers));
            std::thread::sleep(Duration::from_secs(1));
            relays[dying].kill();
            stream.join().unwrap()
        });
        println!("homes {homes:?}, then {:?}: {lost} unanswered, the longest pause {pause:?}", scene.homes());
        assert!(pause < Duration::from_secs(5), "round {round}: {pause:?}");
        relays[dying].run();
    }
}

#[test]
fn a_tcp_connection_goes_on_by_another_region_within_five_seconds_when_its_relay_dies() {
    need_root!(_turn);
    let (scene, mut relays) = Scene::with_relays([Place::UdpBlocked, Place::UdpBlocked], &[901, 902]);
    scene.becomes("relay");
    let homes = scene.homes();
    let dying = usize::from(homes[1].ends_with("902"));
    let slowest = slowest_answer(&scene, || relays[dying].kill());
    println!("homes {homes:?}, then {:?}: the slowest answer took {slowest:?}", scene.homes());
    assert!(slowest > Duration::from_millis(20), "{slowest:?}: nobody missed the relay");
    assert!(slowest < Duration::from_secs(5), "{slowest:?}");
}

#[test]
fn a_relay_that_is_started_anew_is_missed_for_less_than_five_seconds_where_there_is_no_other() {
    need_root!(_turn);
    let (scene, mut relays) = Scene::with_relays([Place::UdpBlocked, Place::UdpBlocked], &[901]);
    scene.becomes("relay");
    let (lost, pause) = std::thread::scope(|scope| {
        let stream = scope.spawn(|| scene.stream(Duration::from_secs(9), 1));
        std::thread::sleep(Duration::from_secs(1));
        relays[0].kill();
        relays[0].run();
        stream.join().unwrap()
    });
    println!("{lost} unanswered, the longest pause {pause:?}");
    assert!(lost > 0, "nobody missed the relay");
    assert!(pause < Duration::from_secs(5), "{pause:?}");
}

#[test]
fn known_nodes_reach_each_other_by_a_relay_while_the_coordinator_is_away_though_node_and_relay_have_been_restarted() {
    need_root!(_turn);
    let (mut scene, mut relays) = Scene::with_relays([Place::UdpBlocked, ROUTER], &[901]);
    scene.becomes("relay");
    scene.maps_are_kept();
    scene.coordinator.kill();
    scene.nodes[1].kill();
    relays[0].kill();
    relays[0].run();
    scene.nodes[1].run_again(&scene.hosts[1], scene.home.path());
    let took = talk_again(&scene.nodes, 2_000_000_001, Duration::from_secs(20));
    println!("answers after {took:?}");
    assert!(took.iter().all(|took| *took < Duration::from_secs(10)), "{took:?}");
}
