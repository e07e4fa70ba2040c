//! What a container with a node needs of its host before it starts, and what to do about what is missing.

use std::fmt;

use crate::pve::{GuestFile, Properties};

/// The device.
const TUN: &str = "/dev/net/tun";
/// Kernel modules that a container uses and cannot load: the tunnel, and the firewall tables for what is forwarded. Kernels that have them
/// built in need no loading.
pub const MODULES: [&str; 4] = ["tun", "nf_tables", "nft_chain_nat", "nft_masq"];

/// The host's `/dev/net/tun`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tun {
    /// A character device, as it should be.
    Device,
    /// Nothing.
    Missing,
    /// Something else.
    Other,
}

/// A kernel module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Module {
    /// Loaded, or built in.
    There,
    /// Neither.
    Absent,
}

/// What the host has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostFacts {
    /// The device.
    pub tun: Tun,
    /// The modules of [`MODULES`].
    pub modules: Vec<(&'static str, Module)>,
}

/// Something that can be put right without asking.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heal {
    /// Load a kernel module.
    LoadModule(&'static str),
    /// Make the device node: character device 10:200, mode 0666.
    MakeTun,
}

impl fmt::Display for Heal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::LoadModule(name) => write!(f, "modprobe {name}"),
            Self::MakeTun => write!(f, "mknod -m 0666 {TUN} c 10 200"),
        }
    }
}

/// Something wrong, and its cure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// What.
    pub what: String,
    /// What to do.
    pub fix: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; fix: {}", self.what, self.fix)
    }
}

/// Whether a configuration passes the device through as `dev[n]`, and whether by raw lines of the old kind.
fn forms(file: &GuestFile) -> (bool, bool) {
    let is_device = |key: &str| key.strip_prefix("dev").is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()));
    let device = file.values.iter().any(|(key, value)| is_device(key) && Properties::parse(value, "path").value("path") == Some(TUN));
    let mounts = |value: &str| value.split_ascii_whitespace().nth(1).is_some_and(|target| target.trim_start_matches('/') == "dev/net/tun");
    let raw = file.raw.iter().any(|(key, value)| key == "lxc.mount.entry" && mounts(value));
    (device, raw)
}

/// Compares what a container asks for with what its host has: what can be healed, and what is wrong. After healing, what is still
/// missing is a fault.
pub fn check(file: &GuestFile, vmid: impl fmt::Display, host: &HostFacts) -> (Vec<Heal>, Vec<Fault>) {
    let (device, raw) = forms(file);
    let (mut heal, mut faults) = (Vec::new(), Vec::new());
    for (name, module) in &host.modules {
        // A node without a TUN needs none of them.
        if *module == Module::Absent && (device || raw) {
            heal.push(Heal::LoadModule(name));
            let fix = format!("modprobe {name}; after a kernel update, reboot the host into the kernel whose modules are installed");
            faults.push(Fault { what: format!("the host's kernel has no module {name}"), fix });
        }
    }
    if device || raw {
        match host.tun {
            Tun::Device => {}
            Tun::Missing => {
                heal.push(Heal::MakeTun);
                let fix = format!("modprobe tun, then mkdir -p /dev/net and {}", Heal::MakeTun);
                faults.push(Fault { what: format!("{TUN} is missing on this host"), fix });
            }
            Tun::Other => faults.push(Fault {
                what: format!("{TUN} on this host is no character device"),
                fix: format!("rm {TUN}, then {}", Heal::MakeTun),
            }),
        }
    }
    if device && raw {
        faults.push(Fault {
            what: format!("{TUN} is passed through twice, by dev[n] and by lxc.mount.entry, and such a container does not start"),
            fix: format!("remove the lines lxc.mount.entry and lxc.cgroup2.devices.allow for it from /etc/pve/lxc/{vmid}.conf"),
        });
    }
    (heal, faults)
}

#[cfg(test)]
#[allow(clippy::indexing_slicing, reason = "test code")]
mod tests {
    use super::*;

    const OLD: &str = "lxc.cgroup2.devices.allow: c 10:200 rwm\nlxc.mount.entry: /dev/net/tun dev/net/tun none bind,create=file\n";

    fn host(tun: Tun, absent: &[&str]) -> HostFacts {
        let state = |name: &&'static str| if absent.contains(name) { Module::Absent } else { Module::There };
        HostFacts { tun, modules: MODULES.iter().map(|name| (*name, state(name))).collect() }
    }

    fn checked(config: &str, host: &HostFacts) -> (Vec<Heal>, Vec<String>) {
        let (heal, faults) = check(&GuestFile::parse(config), 101, host);
        (heal, faults.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn a_host_that_has_everything_is_left_alone() {
        for config in ["dev0: /dev/net/tun\n", "dev3: path=/dev/net/tun,mode=0666\n", OLD, "hostname: x\n"] {
            assert_eq!(checked(config, &host(Tun::Device, &[])), (vec![], vec![]), "{config}");
        }
    }

    #[test]
    fn what_is_missing_is_healed_and_said_with_its_cure() {
        let (heal, faults) = checked("dev0: /dev/net/tun\n", &host(Tun::Missing, &["tun", "nft_masq"]));
        assert_eq!(heal, [Heal::LoadModule("tun"), Heal::LoadModule("nft_masq"), Heal::MakeTun]);
        assert!(faults[2].contains("/dev/net/tun is missing") && faults[2].contains("c 10 200"), "{faults:?}");
        let (heal, faults) = checked(OLD, &host(Tun::Other, &[]));
        assert!(heal.is_empty() && faults[0].contains("no character device"), "{faults:?}");
    }

    #[test]
    fn a_node_without_a_tun_asks_for_nothing() {
        assert_eq!(checked("hostname: x\ndev0: /dev/dri/card0\n", &host(Tun::Missing, &MODULES)), (vec![], vec![]));
    }

    #[test]
    fn both_forms_at_once_are_named_and_not_touched() {
        let (heal, faults) = checked(&format!("dev0: /dev/net/tun\n{OLD}"), &host(Tun::Device, &[]));
        assert!(heal.is_empty());
        assert!(faults[0].contains("twice") && faults[0].contains("/etc/pve/lxc/101.conf"), "{faults:?}");
        let snapshot = format!("dev0: /dev/net/tun\n[snap]\n{OLD}");
        assert_eq!(checked(&snapshot, &host(Tun::Device, &[])), (vec![], vec![]), "a snapshot's lines do not count");
    }
}
