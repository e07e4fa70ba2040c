//! What goes through a node: a machine, a router, and a machine behind it that runs nothing of ours.
//!
//! ```text
//! near 192.0.2.1 ── 192.0.2.2 router 10.90.x.1 ── 10.90.x.2 far
//! ```
//!
//! The far machine has an address for each way to it: plain routing, a subnet router and an exit node with a TUN, and a subnet router without.

use std::path::Path;

use super::machines::{Machine, pair};
use super::measure::Running;
use super::subject::{Program, Subject, answers};
use crate::run::Done;

const PLAIN: &str = "10.90.1.2";
const SUBNET: &str = "10.90.2.2";
const USERSPACE: &str = "10.90.3.2";
/// Behind the far machine, for an exit node leads to no network of its own.
const EXIT: &str = "198.51.100.2";

/// Machines and processes, which end with it.
pub struct Stage {
    processes: Vec<Running>,
    pub near: Machine,
    _router: Machine,
    pub far: Machine,
    dir: std::path::PathBuf,
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.processes.clear();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

impl Stage {
    pub fn new(binary: &Path, dir: &Path) -> Done<Self> {
        use std::os::unix::fs::DirBuilderExt as _;
        let _ = std::fs::remove_dir_all(dir);
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(|e| format!("{}: {e}", dir.display()))?;
        let (near, router) = pair();
        let far = Machine::new();
        router.ip(&format!("link add lan type veth peer name lan netns {}", far.tid()));
        for n in 1..=3 {
            router.ip(&format!("addr add 10.90.{n}.1/24 dev lan"));
            far.ip(&format!("addr add 10.90.{n}.2/24 dev lan"));
        }
        router.ip("link set lan up");
        far.ip("link set lan up");
        far.ip(&format!("addr add {EXIT}/32 dev lo"));
        router.ip(&format!("route add {EXIT}/32 via 10.90.1.2"));
        far.ip("route add default via 10.90.1.1");
        near.ip("route add 10.90.1.0/24 via 192.0.2.2");
        router.run(|| std::fs::write("/proc/sys/net/ipv4/ip_forward", "1")).map_err(|e| format!("switch forwarding on: {e}"))?;
        let program = Program::new(binary, dir)?;
        let mut stage = Self { processes: Vec::new(), near, _router: router, far, dir: dir.to_owned() };
        let offers = "--advertise-routes 10.90.2.0/24 --advertise-exit-node";
        stage.processes = vec![
            program.coordinator(&stage.near)?,
            program.node(&stage._router, "router", "--tun pvlmesh1 --port 41643", offers)?,
            program.node(&stage._router, "userspace", "--tun userspace --port 41644", "--advertise-routes 10.90.3.0/24")?,
            program.node(&stage.near, "laptop", "--tun pvlmesh2 --port 41643", "--accept-routes --exit-node router")?,
        ];
        for target in [PLAIN, SUBNET, USERSPACE, EXIT] {
            answers(&stage.near, target)?;
        }
        Ok(stage)
    }

    /// The ways, the plain one first.
    pub fn subjects(&self) -> Vec<Subject> {
        let ways = [("plain routing", PLAIN), ("subnet router", SUBNET), ("exit node", EXIT), ("router without TUN", USERSPACE)];
        ways.map(|(name, target)| Subject::way(name, target)).into()
    }
}
