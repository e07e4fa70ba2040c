//! Places a node may be in: networks behind routers of every kind, each made of network namespaces and nftables rules.

use std::sync::atomic::{AtomicUsize, Ordering};

use crate::netns::Machine;

/// What is between a node and the internet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Nothing.
    Open,
    /// A NAT that lets everybody in at a port that is in use.
    FullCone,
    /// One that lets in whose address has been sent to.
    Restricted,
    /// One that lets in whose address and port have been sent to, as most routers do.
    PortRestricted,
    /// One that gives each destination another port.
    Hard,
    /// A router like most, behind the like one of a carrier.
    Carrier,
    /// No UDP gets out.
    UdpBlocked,
    /// Nothing but TCP to port 443 gets out.
    Tcp443,
    /// IPv4 behind a hard NAT, and IPv6 without any.
    Ipv6,
}

pub const ALL: [Place; 9] = [
    Place::Open,
    Place::FullCone,
    Place::Restricted,
    Place::PortRestricted,
    Place::Hard,
    Place::Carrier,
    Place::UdpBlocked,
    Place::Tcp443,
    Place::Ipv6,
];

impl Place {
    pub fn name(self) -> &'static str {
        match self {
            Self::Open => "no NAT",
            Self::FullCone => "full cone",
            Self::Restricted => "restricted",
            Self::PortRestricted => "port-restr.",
            Self::Hard => "symmetric",
            Self::Carrier => "carrier NAT",
            Self::UdpBlocked => "no UDP",
            Self::Tcp443 => "TCP 443",
            Self::Ipv6 => "IPv6",
        }
    }

    /// Whether stock nodes in these two places find a direct way to each other.
    pub fn reaches(self, other: Self) -> bool {
        let no_udp = |place| matches!(place, Self::UdpBlocked | Self::Tcp443);
        let hard = |place| matches!(place, Self::Hard | Self::Ipv6);
        let strict = |place| matches!(place, Self::PortRestricted | Self::Carrier) || hard(place);
        if no_udp(self) || no_udp(other) {
            return false;
        }
        self == Self::Ipv6 && other == Self::Ipv6 || !(hard(self) && strict(other) || hard(other) && strict(self))
    }

    /// Whether two nodes of ours guess a port, where nothing else leads directly: one NAT is hard, the other keeps its port.
    pub fn guesses(self, other: Self) -> bool {
        let hard = |place| matches!(place, Self::Hard | Self::Ipv6);
        let keeps = |place| matches!(place, Self::PortRestricted | Self::Carrier);
        hard(self) && keeps(other) || hard(other) && keeps(self)
    }
}

/// What two nodes may share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Together {
    /// One network behind one router.
    Lan,
    /// One router with two networks that do not see each other; its public address leads back inside.
    Hairpin,
    /// The same, and it does not.
    NoHairpin,
    /// Addresses: each is in a network with the same ones. Where the one has the other's address there is another node.
    SameAddresses,
}

pub const TOGETHER: [Together; 4] = [Together::Lan, Together::Hairpin, Together::NoHairpin, Together::SameAddresses];

impl Together {
    pub fn name(self) -> &'static str {
        match self {
            Self::Lan => "one LAN",
            Self::Hairpin => "hairpin",
            Self::NoHairpin => "no hairpin",
            Self::SameAddresses => "same addr.",
        }
    }

    /// How the address begins that leads from the one to the other; `None` if only a relay does.
    pub fn way(self) -> Option<&'static str> {
        match self {
            Self::Lan => Some("192.168.5."),
            Self::Hairpin | Self::SameAddresses => Some("203.0.113."),
            Self::NoHairpin => None,
        }
    }
}

/// Two machines, and what they need to stay where they are.
pub struct Pair {
    pub hosts: [Machine; 2],
    pub routers: Vec<Machine>,
    /// A third machine, in the first one's network, with the second one's address.
    pub bystander: Option<Machine>,
}

/// Runs a command in the calling thread's namespace.
fn run(line: &str) {
    let output = std::process::Command::new("sh").args(["-ec", line]).output().expect("there is a shell");
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
}

pub fn sh(machine: &Machine, line: String) {
    machine.run(move || run(&line));
}

/// A network with a bridge in the middle.
pub struct Internet {
    pub centre: Machine,
    ports: AtomicUsize,
}

/// Coordinator and relay.
pub const CENTRE: &str = "203.0.113.1";

impl Internet {
    pub fn new() -> Self {
        let centre = Machine::new();
        let addresses = format!("ip addr add {CENTRE}/24 dev br0; ip addr add 2001:db8::1/64 dev br0 nodad");
        sh(
            &centre,
            format!("ip link add br0 type bridge; {addresses}; ip link set br0 up; echo 1 > /proc/sys/net/ipv6/conf/all/forwarding"),
        );
        Self { centre, ports: AtomicUsize::new(10) }
    }

    /// Plugs a machine in: its interface `wan` gets the next addresses, 203.0.113.n and 2001:db8::n.
    pub fn plug(&self, machine: &Machine) -> usize {
        let n = self.ports.fetch_add(1, Ordering::Relaxed);
        sh(&self.centre, format!("ip link add p{n} type veth peer name wan netns {}; ip link set p{n} master br0 up", machine.tid()));
        let addresses = format!("ip addr add 203.0.113.{n}/24 dev wan; ip addr add 2001:db8::{n}/64 dev wan nodad");
        sh(machine, format!("{addresses}; ip link set wan up; ip route add default via {CENTRE}; ip -6 route add default via 2001:db8::1"));
        n
    }

    /// A router towards the internet: nothing unasked reaches it, what leaves gets its address.
    fn router(&self, masquerade: &str) -> (Machine, usize) {
        let router = Machine::new();
        let n = self.plug(&router);
        turn_into_router(&router, masquerade);
        (router, n)
    }

    /// A machine in a place, and what it needs to stay there.
    pub fn settle(&self, place: Place) -> (Machine, Vec<Machine>) {
        let host = Machine::new();
        if place == Place::Open {
            self.plug(&host);
            return (host, Vec::new());
        }
        if place == Place::Carrier {
            let (carrier, _) = self.router("masquerade");
            let router = Machine::new();
            sh(&carrier, format!("ip link add lan type veth peer name wan netns {}", router.tid()));
            sh(&carrier, "ip addr add 100.127.0.1/24 dev lan; ip link set lan up".to_owned());
            sh(&router, "ip addr add 100.127.0.2/24 dev wan; ip link set wan up; ip route add default via 100.127.0.1".to_owned());
            turn_into_router(&router, "masquerade");
            attach(&router, &host, 2, None);
            return (host, vec![router, carrier]);
        }
        let hard = matches!(place, Place::Hard | Place::Ipv6);
        let (router, n) = self.router(if hard { "masquerade fully-random" } else { "masquerade" });
        attach(&router, &host, 2, (place == Place::Ipv6).then_some(n));
        if place == Place::Ipv6 {
            sh(&self.centre, format!("ip -6 route add 2001:db8:{n}::/64 via 2001:db8::{n}"));
        }
        let to_host = "dnat to 192.168.1.2:41641";
        match place {
            Place::FullCone => sh(&router, format!("nft add rule ip lab arriving iifname wan udp dport 41641 {to_host}")),
            Place::Restricted => {
                let set = "nft 'add set ip lab seen { type ipv4_addr; flags dynamic,timeout; timeout 1m; }'";
                let note = "nft 'add rule ip lab passing oifname wan udp sport 41641 update @seen { ip daddr }'";
                sh(&router, format!("{set}; {note}; nft add rule ip lab arriving iifname wan udp dport 41641 ip saddr @seen {to_host}"));
            }
            Place::UdpBlocked => sh(&router, "nft add rule ip lab passing iifname lan meta l4proto udp drop".to_owned()),
            Place::Tcp443 => sh(&router, "nft add rule ip lab passing iifname lan tcp dport != 443 drop; nft add rule ip lab passing iifname lan meta l4proto != tcp drop".to_owned()),
            _ => {}
        }
        (host, vec![router])
    }

    /// Two machines that share more than the internet, and what they need to stay there.
    pub fn settle_together(&self, together: Together) -> Pair {
        let hosts = [Machine::new(), Machine::new()];
        let (router, n) = self.router("masquerade");
        match together {
            Together::Lan => {
                network(&router, "lan", "192.168.5", &[(&hosts[0], 2), (&hosts[1], 3)]);
                Pair { hosts, routers: vec![router], bystander: None }
            }
            Together::Hairpin | Together::NoHairpin => {
                network(&router, "lan5", "192.168.5", &[(&hosts[0], 2)]);
                network(&router, "lan6", "192.168.6", &[(&hosts[1], 2)]);
                separate(&router, n, together == Together::Hairpin);
                Pair { hosts, routers: vec![router], bystander: None }
            }
            Together::SameAddresses => {
                let bystander = Machine::new();
                network(&router, "lan", "192.168.1", &[(&hosts[0], 2), (&bystander, 3)]);
                let (other, _) = self.router("masquerade");
                network(&other, "lan", "192.168.1", &[(&hosts[1], 3)]);
                Pair { hosts, routers: vec![router, other], bystander: Some(bystander) }
            }
        }
    }
}

/// A network behind a router, which has its address 1.
fn network(router: &Machine, bridge: &str, prefix: &str, hosts: &[(&Machine, u8)]) {
    sh(router, format!("ip link add {bridge} type bridge; ip addr add {prefix}.1/24 dev {bridge}; ip link set {bridge} up"));
    for (host, last) in hosts {
        let port = format!("{bridge}-{last}");
        sh(router, format!("ip link add {port} type veth peer name eth0 netns {}; ip link set {port} master {bridge} up", host.tid()));
        sh(host, format!("ip addr add {prefix}.{last}/24 dev eth0; ip link set eth0 up; ip route add default via {prefix}.1"));
    }
}

/// Two networks of a router know each other only by the router's public address, if it leads back inside.
fn separate(router: &Machine, n: usize, hairpin: bool) {
    let mut rules = vec!["passing ct status dnat accept".to_owned(), "passing iifname lan5 oifname lan6 drop".to_owned()];
    rules.push("passing iifname lan6 oifname lan5 drop".to_owned());
    for (inside, port) in [("192.168.5.2", 50_001), ("192.168.6.2", 50_002)] {
        // In front of the masquerade: the mapping is the same for every destination, as a hairpin needs it.
        sh(router, format!("nft insert rule ip lab leaving ip saddr {inside} udp sport 41641 snat to 203.0.113.{n}:{port}"));
        if hairpin {
            rules.push(format!("arriving iifname != wan ip daddr 203.0.113.{n} udp dport {port} dnat to {inside}:41641"));
        }
    }
    for rule in rules {
        sh(router, format!("nft add rule ip lab {rule}"));
    }
}

/// All have the same addresses inside, as routers from one shelf do.
fn attach(router: &Machine, host: &Machine, last: u8, v6: Option<usize>) {
    sh(router, format!("ip link add lan type veth peer name eth0 netns {}", host.tid()));
    sh(router, "ip addr add 192.168.1.1/24 dev lan; ip link set lan up".to_owned());
    sh(host, format!("ip addr add 192.168.1.{last}/24 dev eth0; ip link set eth0 up; ip route add default via 192.168.1.1"));
    if let Some(n) = v6 {
        sh(router, format!("ip addr add 2001:db8:{n}::1/64 dev lan nodad; echo 1 > /proc/sys/net/ipv6/conf/all/forwarding"));
        sh(host, format!("ip addr add 2001:db8:{n}::2/64 dev eth0 nodad; ip -6 route add default via 2001:db8:{n}::1"));
    }
}

fn turn_into_router(router: &Machine, masquerade: &str) {
    sh(
        router,
        format!(
            "echo 1 > /proc/sys/net/ipv4/ip_forward
             nft -f - <<'END'
             table ip lab {{
                 chain unasked {{ type filter hook input priority 0; iifname wan ct state new drop; }}
                 chain passing {{ type filter hook forward priority 0; }}
                 chain arriving {{ type nat hook prerouting priority -100; }}
                 chain leaving {{ type nat hook postrouting priority 100; oifname wan {masquerade}; }}
             }}
END"
        ),
    );
}
