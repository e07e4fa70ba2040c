//! What is wrong with guests, hosts and mesh, and what to do about it: facts in, findings out.
//!
//! Each finding has a word of its own, by which docs/doctor.md lists it. Facts that could not be had are absent, and then nothing is said of what
//! depends on them: a check that guesses is worse than none.

mod config;
mod inside;
mod mesh;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::net::IpAddr;

use serde::Serialize;

use super::guest::GuestFacts;
use super::mark::Mark;
use crate::ident::{NodeName, Vmid};
use crate::pve::reply::{ContainerConfig, Storage};
use crate::pve::{HostName, Version};
use crate::wire::admin::NodeInfo;

pub use config::{RawLine, raw_lines};

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Good to know.
    Note,
    /// It will be trouble, or is some already.
    Warning,
    /// It does not work.
    Fault,
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Its word in docs/doctor.md.
    pub code: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// Of what: `101 (exit-1)`, `node pve`.
    pub subject: String,
    /// What is.
    pub what: String,
    /// Why that is bad.
    pub why: String,
    /// What to do.
    pub fix: String,
}

/// A guest as everything here sees it.
#[derive(Debug, Clone, Default)]
pub struct GuestView {
    /// Its number; 0 until known.
    pub vmid: Option<Vmid>,
    /// Where it is.
    pub host: Option<HostName>,
    /// Its mark; where the mark names another guest, this one is a copy of that.
    pub mark: Option<Mark>,
    /// Running.
    pub running: bool,
    /// Its configuration.
    pub config: ContainerConfig,
    /// The raw `lxc.` lines of its file, all sections; absent if the file could not be read.
    pub raw: Option<Vec<RawLine>>,
    /// Whether Proxmox's firewall lets only the guest's own addresses out; absent if that could not be read.
    pub ipfilter: Option<AddressFilter>,
    /// What it says of itself.
    pub facts: Option<GuestFacts>,
    /// Seconds that its clock was ahead of this machine's when it said that.
    pub ahead: Option<i64>,
    /// Why it says nothing.
    pub facts_trouble: Option<String>,
    /// What the coordinator says of its node.
    pub node: Option<NodeInfo>,
    /// Hosts that lack its hookscript, if it has one.
    pub hookscript_missing: Vec<HostName>,
}

/// What in Proxmox's firewall lets only a guest's own addresses out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AddressFilter {
    /// Its option `ipfilter`, which is for every interface.
    pub everywhere: bool,
    /// Interfaces that have a set of their own, as in `net0`.
    pub interfaces: BTreeSet<String>,
    /// The firewall is off, for the guest or for the whole cluster: nothing of it is in force.
    pub off: bool,
}

/// A host as seen by the API.
#[derive(Debug, Clone)]
pub struct HostFacts {
    /// Its name.
    pub name: HostName,
    /// It answers.
    pub online: bool,
    /// Its version.
    pub version: Option<Version>,
    /// Its storages.
    pub storages: Vec<Storage>,
    /// Whether it has `/dev/net/tun`; absent if it could not be looked.
    pub tun: Option<bool>,
    /// Seconds that its clock is ahead of this machine's; absent if it does not say.
    pub ahead: Option<i64>,
}

/// Everything at once.
#[derive(Debug, Clone, Default)]
pub struct Patient {
    /// The guests.
    pub guests: Vec<GuestView>,
    /// The hosts.
    pub hosts: Vec<HostFacts>,
    /// All nodes of the coordinator; absent if it could not be asked.
    pub nodes: Option<Vec<NodeInfo>>,
    /// Why it could not.
    pub coordinator_trouble: Option<String>,
    /// This machine's clock, seconds since 1970.
    pub now: i64,
}

impl GuestView {
    pub(super) fn vmid(&self) -> String {
        self.vmid.map_or_else(|| "ID".to_owned(), |vmid| vmid.to_string())
    }

    pub(super) fn name(&self) -> Option<&NodeName> {
        self.mark.as_ref().map(|mark| &mark.name)
    }

    pub(super) fn role(&self) -> &str {
        self.mark.as_ref().map_or("", |mark| mark.role.trim_start_matches(super::enroll::ENROLLED))
    }

    pub(super) fn is_enrolled(&self) -> bool {
        self.mark.as_ref().is_some_and(|mark| mark.role.starts_with(super::enroll::ENROLLED))
    }

    pub(super) fn is_node(&self) -> bool {
        matches!(self.role(), "node" | "exit-node" | "subnet-router")
    }

    pub(super) fn carries(&self) -> bool {
        matches!(self.role(), "exit-node" | "subnet-router")
    }

    pub(super) fn userspace(&self) -> bool {
        self.facts.as_ref().and_then(|facts| facts.node.as_ref()).is_some_and(|node| node.userspace)
    }

    fn subject(&self) -> String {
        let name = self.name().map(|name| format!(" ({name})")).unwrap_or_default();
        format!("{}{name}", self.vmid())
    }

    pub(super) fn finding(
        &self,
        code: &'static str,
        severity: Severity,
        what: impl Into<String>,
        why: &str,
        fix: impl Into<String>,
    ) -> Finding {
        Finding { code, severity, subject: self.subject(), what: what.into(), why: why.to_owned(), fix: fix.into() }
    }
}

/// Everything that is wrong, the worst first.
pub fn examine(patient: &Patient) -> Vec<Finding> {
    let mut all = Vec::new();
    for guest in &patient.guests {
        all.extend(config::examine(guest));
        let host = patient.hosts.iter().find(|host| Some(&host.name) == guest.host.as_ref());
        all.extend(inside::examine(guest, host.and_then(|host| host.ahead)));
    }
    all.extend(mesh::examine(patient));
    all.extend(hosts(&patient.hosts, &patient.guests));
    all.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
    all
}

/// Certificates and key expiries are compared with the clock; handshakes only have to grow.
const CLOCK: i64 = 120;

/// A clock in words, if it is off.
fn clock(ahead: i64) -> Option<String> {
    let words = if ahead > 0 { format!("{ahead} s ahead of") } else { format!("{} s behind", -ahead) };
    (ahead.abs() > CLOCK).then(|| format!("its clock is {words} this machine's"))
}

/// Why that is bad.
const CLOCK_WHY: &str = "certificates and keys seem expired, or not valid yet";

/// Room that an uploaded image takes, twice.
const TEMPLATE_ROOM: u64 = 64 << 20;

fn hosts(hosts: &[HostFacts], guests: &[GuestView]) -> Vec<Finding> {
    let mut found = Vec::new();
    for host in hosts {
        let finding = |code, severity, what: String, why: &str, fix: String| Finding {
            code,
            severity,
            subject: format!("node {}", host.name),
            what,
            why: why.to_owned(),
            fix,
        };
        let own = guests.iter().filter(|guest| guest.host.as_ref() == Some(&host.name)).count();
        if !host.online {
            let what = format!("it does not answer; {own} guests of pvemesh are on it");
            found.push(finding(
                "host-offline",
                Severity::Fault,
                what,
                "nothing on it can be seen or changed",
                "pvecm status, on another node".to_owned(),
            ));
            continue;
        }
        if let Some(version) = host.version.filter(|version| *version < Version::DEVICES) {
            let what = format!("Proxmox VE {version} cannot pass /dev/net/tun through by dev0");
            let fix = "upgrade it, or make nodes with --tun userspace there".to_owned();
            found.push(finding("host-old", Severity::Note, what, "dev0 came with 8.1; before, only raw lines in the file do it", fix));
        }
        if host.tun == Some(false) {
            let fix = "modprobe tun; echo tun > /etc/modules-load.d/tun.conf".to_owned();
            let why = "guests with the device do not start";
            found.push(finding("host-tun", Severity::Fault, "it has no /dev/net/tun".to_owned(), why, fix));
        }
        if let Some(what) = host.ahead.and_then(clock) {
            let fix = "there: chronyc tracking; systemctl restart chrony. Or it is this machine's clock that is wrong: date".to_owned();
            found.push(finding("clock", Severity::Warning, what, CLOCK_WHY, fix));
        }
        for storage in host.storages.iter().filter(|storage| storage.usable && storage.holds("vztmpl")) {
            if let Some(free) = storage.available.filter(|free| *free < TEMPLATE_ROOM) {
                let what = format!("storage {} has {} MiB free", storage.name, free >> 20);
                let fix = format!("remove templates and ISO images that nothing needs: pvesm list {} ", storage.name).trim().to_owned();
                found.push(finding(
                    "template-storage-full",
                    Severity::Warning,
                    what,
                    "an image cannot be uploaded for the next guest",
                    fix,
                ));
            }
        }
    }
    found
}

/// An address in words for a message.
pub(super) fn joined(addresses: &[IpAddr]) -> String {
    addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
