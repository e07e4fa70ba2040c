//! Routers that open a port when asked: miniupnpd, by each of its protocols.

use std::net::Ipv4Addr;
use std::process::Command;
use std::time::Duration;

use super::coordinator::{Coordinator, Process, call, ours, spawn};
use super::game::{Game, LIMIT, play_all, report};
use super::netns::{Machine, eventually, lacking};
use super::node::Node;
use super::place::{Internet, Place, sh};
use super::turn;

/// What the router is kept from hearing, so that one protocol is left.
const ONLY: [(&str, &str); 3] = [
    ("NAT-PMP", ""),
    ("PCP", "nft add rule ip lab asked udp dport 5351 @th,64,8 0 drop"),
    ("UPnP", "nft add rule ip lab asked udp dport 5351 drop"),
];

/// miniupnpd takes 203.0.113.0/24 for what it is, an example, and opens no port there: the router gets another address.
fn public_address(internet: &Internet, router: &Machine) -> Ipv4Addr {
    let own = router.run(|| {
        let output = Command::new("ip").args(["-4", "-o", "addr", "show", "wan"]).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    });
    let own: Ipv4Addr = own.split_whitespace().find_map(|word| word.split_once('/')).unwrap().0.parse().unwrap();
    let public = Ipv4Addr::new(11, 0, 0, own.octets()[3]);
    sh(router, format!("ip addr add {public}/32 dev wan"));
    sh(&internet.centre, format!("echo 1 > /proc/sys/net/ipv4/ip_forward; ip route add {public}/32 via {own}"));
    public
}

fn offer(router: &Machine, home: &std::path::Path, public: Ipv4Addr, refuse: &str) -> Process {
    let at = |name: &str| home.join(name);
    sh(
        router,
        format!(
            "nft -f - <<'END'
             table inet filter {{
                 chain miniupnpd {{ }}
                 chain forward {{ type filter hook forward priority 0; jump miniupnpd; }}
                 chain prerouting_miniupnpd {{ }}
                 chain prerouting {{ type nat hook prerouting priority -100; jump prerouting_miniupnpd; }}
                 chain postrouting_miniupnpd {{ }}
                 chain postrouting {{ type nat hook postrouting priority 99; jump postrouting_miniupnpd; }}
             }}
             table ip lab {{
                 chain asked {{ type filter hook input priority 0; }}
             }}
END
             {refuse}"
        ),
    );
    let settings = format!(
        "ext_ifname=wan\next_ip={public}\nlistening_ip=lan\nenable_natpmp=yes\nenable_upnp=yes\nsecure_mode=yes\nlease_file={}\n\
         uuid=00000000-0000-0000-0000-000000000001\nallow 1024-65535 192.168.1.0/24 1024-65535\ndeny 0-65535 0.0.0.0/0 0-65535\n",
        at("leases").display()
    );
    std::fs::write(at("router.conf"), settings).unwrap();
    let mut command = Command::new("miniupnpd");
    command.arg("-d").arg("-f").arg(at("router.conf")).arg("-P").arg(at("router.pid"));
    let process = spawn(router, command, std::fs::File::create(at("router.log")).unwrap());
    let log = at("router.log");
    eventually("the router listens", Duration::from_secs(10), || {
        std::fs::read_to_string(&log).is_ok_and(|text| text.contains("HTTP listening"))
    });
    process
}

/// Ports that the router passes on.
fn opened(router: &Machine) -> usize {
    let rules = router.run(|| {
        let output = Command::new("nft").args(["list", "chain", "inet", "filter", "prerouting_miniupnpd"]).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    });
    rules.matches("dnat").count()
}

#[test]
fn a_port_that_the_router_opens_lets_the_hardest_nats_reach_each_other_and_is_given_back() {
    if let Some(reason) = lacking() {
        println!("skipped: {reason}");
        return;
    }
    if Command::new("miniupnpd").arg("--version").output().is_err() {
        println!("skipped: needs miniupnpd");
        return;
    }
    let _turn = turn();
    for (protocol, refuse) in ONLY {
        let home = tempfile::tempdir().unwrap();
        let internet = Internet::new();
        let coordinator = Coordinator::start(&internet.centre, home.path());
        let (first, routers) = internet.settle(Place::Hard);
        let (second, _behind) = internet.settle(Place::Hard);
        let public = public_address(&internet, &routers[0]);
        let _router = offer(&routers[0], home.path(), public, refuse);
        let nodes = [Node::start(&first, "alpha", home.path(), &coordinator), Node::start(&second, "beta", home.path(), &coordinator)];
        for node in &nodes {
            eventually("both know each other and their relays", Duration::from_secs(30), || node.is_settled(1));
        }
        let netcheck = || call(&first, ours(&format!("node --socket {} netcheck", home.path().join("alpha.sock").display())));
        eventually("a port is mapped", Duration::from_secs(10), || netcheck().contains(&format!("by {protocol}")));
        println!("{}", netcheck().lines().find(|line| line.starts_with("port mapping")).unwrap());
        assert_eq!(opened(&routers[0]), 1);

        let places = ["symm. + port", "symmetric"];
        let outcomes = play_all(vec![Game { nodes: [&nodes[1], &nodes[0]], places, possible: true, limit: LIMIT }]);
        report(&outcomes);
        assert!(outcomes[0].direct.is_some(), "no direct way by {protocol}");
        assert!(outcomes[0].address.starts_with(&format!("{public}:")), "{}", outcomes[0].address);

        call(&first, ours(&format!("node --socket {} down", home.path().join("alpha.sock").display())));
        assert_eq!(opened(&routers[0]), 0, "{protocol}: the port stays open");
    }
}
