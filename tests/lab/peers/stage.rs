//! Where an implementation is measured.
//!
//! ```text
//! near 192.0.2.1 ── 192.0.2.2 router 10.90.n.1 ── 10.90.n.2 far
//! ```
//!
//! The tunnel goes from near to router; far runs nothing but the other end of the measurements.

use crate::bench::machines::{Machine, pair};
use crate::bench::measure::Server;
use crate::run::Done;

/// The far machine by the kernel's routing alone.
pub const PLAIN: &str = "10.90.1.2";
/// The far machine behind a subnet router.
pub const SUBNET: &str = "10.90.2.2";
/// The far machine behind an exit node, which leads to no network of its own.
pub const EXIT: &str = "198.51.100.2";

/// The coordinator's address on the near machine: a private one, for stock nodes go on by HTTPS where it is not.
pub const COORDINATOR: &str = "10.90.9.1";

/// Three machines, with a server of the measuring program on the last two.
pub struct Stage {
    /// Ends first: it runs in the machines.
    _servers: [Server; 2],
    pub near: Machine,
    pub router: Machine,
    _far: Machine,
}

impl Stage {
    pub fn new() -> Done<Self> {
        let (near, router) = pair();
        let far = Machine::new();
        router.ip(&format!("link add lan type veth peer name lan netns {}", far.tid()));
        for n in 1..=2 {
            router.ip(&format!("addr add 10.90.{n}.1/24 dev lan"));
            far.ip(&format!("addr add 10.90.{n}.2/24 dev lan"));
        }
        router.ip("link set lan up");
        far.ip("link set lan up");
        far.ip(&format!("addr add {EXIT}/32 dev lo"));
        far.ip("route add default via 10.90.1.1");
        router.ip(&format!("route add {EXIT}/32 via 10.90.1.2"));
        near.ip("route add 10.90.1.0/24 via 192.0.2.2");
        near.ip(&format!("addr add {COORDINATOR}/24 dev data-a"));
        router.ip("addr add 10.90.9.2/24 dev data-b");
        router.run(|| std::fs::write("/proc/sys/net/ipv4/ip_forward", "1")).map_err(|e| format!("switch forwarding on: {e}"))?;
        let servers = [Server::start(&router)?, Server::start(&far)?];
        Ok(Self { _servers: servers, near, router, _far: far })
    }

    /// The same with no UDP between near and router: what they say to each other goes through a relay.
    pub fn without_udp() -> Done<Self> {
        let stage = Self::new()?;
        let rules = "add table inet lab; add chain inet lab in { type filter hook input priority 0; }; add rule inet lab in iifname data-b meta l4proto udp drop";
        stage.router.run(move || crate::run::output(std::process::Command::new("nft").arg(rules), "nft"))?;
        Ok(stage)
    }
}
