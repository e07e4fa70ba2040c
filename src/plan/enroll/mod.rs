//! Putting a node into a container of somebody else's, and taking it out again.
//!
//! What is there (`Seen` by a script inside, the configuration by the API, what an earlier run recorded) is compared with what is wanted; only
//! what differs becomes a step. The container's owner keeps his: his Notes, his tags, his name servers behind ours.

mod facts;
mod names;
mod notes;
mod removal;
mod steps;
#[cfg(test)]
#[allow(clippy::indexing_slicing, clippy::panic, reason = "test code")]
mod tests;
mod undo;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::create::{Plan, exit_routes};
use super::guest::Service;
use super::inside::Changed;
use super::mark::{Mark, RunId};
use super::observed::{Observed, Target};
use super::options::{Join, NodeKind, OptionError};
use super::refusal::Refusal;
use crate::ident::{NodeName, Vmid};
use crate::pve::conf::TunForm;
use crate::pve::{HostName, Request, Version};
use crate::settings::Guest;
use steps::Maker;

pub use facts::{SCRIPT, Seen, TunSeen};
pub use notes::joined as joined_notes;
pub use removal::unenroll;

/// What the roles of enrolled nodes begin with in marks: the container is not ours, so `destroy` keeps off.
pub const ENROLLED: &str = "enrolled-";
/// A join key's life.
const KEY_LIFE_SECS: u64 = 15 * 60;
const ONLINE_LIMIT: Duration = Duration::from_secs(90);
const REBOOT_LIMIT: Duration = Duration::from_secs(120);
/// Where programs go if the search path has no place for one.
const LAST_RESORT: &str = "/var/lib/pvemesh/bin";
/// The device.
const TUN: &str = "/dev/net/tun";

/// What is wanted.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// The container.
    pub vmid: Vmid,
    /// The node's name; the container's if absent.
    pub name: Option<NodeName>,
    /// What it offers.
    pub kind: NodeKind,
    /// How it joins.
    pub join: Join,
    /// The DNS suffix of the mesh, if the coordinator is ours.
    pub domain: Option<String>,
    /// Addresses under which it is reachable from outside.
    pub endpoints: Vec<SocketAddr>,
    /// It uses the networks that others offer.
    pub accept_routes: bool,
    /// It does without a TUN device.
    pub userspace: bool,
    /// The container's programs are led to names of the mesh.
    pub dns: bool,
    /// The container may be restarted.
    pub restart: bool,
    /// Our program on this machine.
    pub program: PathBuf,
    /// The machine it is for, as in `x86_64`.
    pub machine: &'static str,
}

/// What `enroll` did in a container; kept there, for the next run and for the taking out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Our program.
    pub program: String,
    /// Who keeps it running.
    pub service: Service,
    /// The key of the device that was passed through for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// Keys of the container's configuration that were changed, with what was there.
    #[serde(default)]
    pub before: BTreeMap<String, Option<String>>,
}

impl std::fmt::Display for Record {
    /// As its file holds it.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&serde_json::to_string_pretty(self).unwrap_or_default())
    }
}

/// What is there.
#[derive(Debug, Clone)]
pub struct Found {
    /// By the API.
    pub observed: Observed,
    /// By the script; absent if the container does not run.
    pub seen: Option<Seen>,
    /// What an earlier run recorded.
    pub record: Option<Record>,
    /// The node's settings, without a join key.
    pub settings: Option<Guest>,
    /// The service's file.
    pub service_file: Option<String>,
    /// The networks the coordinator lets the node carry; absent if it does not know it.
    pub approved: Option<Vec<IpNet>>,
}

/// What to do.
#[derive(Debug)]
pub enum Outcome {
    /// Everything is as wanted.
    NothingToDo {
        /// The node's name.
        name: NodeName,
        /// Where the container is.
        host: HostName,
    },
    /// These steps.
    Plan(Plan),
}

impl NodeKind {
    pub(super) fn offers(&self) -> Vec<IpNet> {
        match self {
            Self::Member => Vec::new(),
            Self::ExitNode => exit_routes(),
            Self::SubnetRouter { routes, .. } => routes.clone(),
        }
    }

    /// Its word in roles and tags.
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Member => "node",
            Self::ExitNode => "exit-node",
            Self::SubnetRouter { .. } => "subnet-router",
        }
    }
}

fn refused(why: impl Into<String>, next: impl Into<String>) -> Refusal {
    Refusal::Guest { why: why.into(), next: next.into() }
}

/// The container, if a node may be put into it.
pub(super) fn target(vmid: Vmid, observed: &Observed) -> Result<&Target, Refusal> {
    let Some(target) = &observed.target else {
        return Err(match observed.guest(vmid) {
            Some(guest) if !guest.container => refused(
                format!("{vmid} (`{}`) is a virtual machine", guest.name),
                format!("name and route without anything inside: pvemesh attach {vmid}; or install pvemesh in it: pvemesh node up"),
            ),
            _ => Refusal::NoSuchGuest(vmid),
        });
    };
    if let Some(lock) = &target.config.lock {
        return Err(Refusal::Locked { vmid, lock: lock.clone() });
    }
    Ok(target)
}

/// Plans the putting in.
///
/// # Errors
/// With the first reason why nothing should be begun.
pub fn enroll(wanted: &Wanted, found: &Found, run: RunId) -> Result<Outcome, Refusal> {
    let vmid = wanted.vmid;
    let target = target(vmid, &found.observed)?;
    let mark = Mark::of_container(vmid, &target.config);
    if let Some(mark) = mark.as_ref().filter(|mark| !mark.role.starts_with(ENROLLED)) {
        return Err(refused(
            format!("container {vmid} is a pvemesh {}", mark.role),
            "it is a node already; change it with its create command",
        ));
    }
    let Some(seen) = found.seen.as_ref().filter(|_| target.running) else {
        return Err(refused(
            format!("container {vmid} does not run, and programs are put into running ones only"),
            format!("start it: pct start {vmid}"),
        ));
    };
    check(wanted, seen)?;
    let name = name(wanted, target, mark.as_ref(), &found.observed)?;
    let service = found.record.as_ref().map(|record| record.service).or(seen.service).ok_or_else(|| {
        refused(
            format!("what starts services in container {vmid} ({}) is not known to pvemesh", seen.os),
            "push the program (pct push) and have it run `pvemesh node run --guest-config FILE`, restarted when it ends",
        )
    })?;
    let program = match &found.record {
        Some(record) => record.program.clone(),
        None => format!("{}/pvemesh", seen.writable.first().map_or(LAST_RESORT, String::as_str)),
    };
    let device = device(wanted, seen, target, found)?;
    let naming = names::naming(wanted, seen, target, found.record.as_ref());
    let maker = Maker { wanted, found, target, mark, name, service, program, device, naming, run };
    maker.outcome()
}

fn check(wanted: &Wanted, seen: &Seen) -> Result<(), Refusal> {
    let vmid = wanted.vmid;
    if seen.user != 0 {
        return Err(refused(format!("programs run in container {vmid} as user {}, not as root", seen.user), "look at its lxc.init.uid"));
    }
    if seen.machine != wanted.machine {
        let why = format!("container {vmid} is for {}, and this program for {}", seen.machine, wanted.machine);
        return Err(refused(why, "use pvemesh for that architecture (run it on that host)"));
    }
    if let Some(other) = seen.others.first() {
        let why = format!("{other} runs in container {vmid} and uses the same addresses");
        return Err(refused(why, format!("stop and remove {other} there first")));
    }
    Ok(())
}

fn name(wanted: &Wanted, target: &Target, mark: Option<&Mark>, observed: &Observed) -> Result<NodeName, Refusal> {
    let own = mark.map(|mark| mark.name.clone());
    let name = match (&wanted.name, &own) {
        (Some(name), Some(own)) if name != own => {
            let next = format!("take it out and put it in again: pvemesh unenroll {}, then this command", wanted.vmid);
            let (vmid, is) = (wanted.vmid, own.to_string());
            return Err(Refusal::CannotChange { vmid, what: "name", is, wanted: name.to_string(), next });
        }
        (Some(name), _) | (None, Some(name)) => name.clone(),
        (None, None) => {
            let hostname = target.config.hostname.clone().unwrap_or_else(|| format!("ct{}", wanted.vmid));
            NodeName::sanitised(&hostname)
        }
    };
    if own.is_none() && observed.mesh.iter().any(|(_, known)| *known == name) {
        return Err(Refusal::NameTaken { name: name.to_string(), by: "a node of the mesh".to_owned() });
    }
    Ok(name)
}

/// How the device comes in.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Device {
    /// Nothing to do.
    There,
    /// It is there, and passed through under this key so that it is after the next start: nothing in the configuration brings it.
    Kept(String),
    /// Passed through under this key, into the running container.
    HotPlugged(String),
    /// Passed through under this key, at the next start.
    AtRestart(String),
    /// It is passed through already, and seen after the next start.
    RestartAlone,
}

fn device(wanted: &Wanted, seen: &Seen, target: &Target, found: &Found) -> Result<Device, Refusal> {
    let vmid = wanted.vmid;
    if wanted.userspace {
        return Ok(Device::There);
    }
    match seen.tun {
        TunSeen::Usable => return Ok(kept(target, found)),
        TunSeen::Wrong => {
            return Err(refused(
                format!("{TUN} in container {vmid} is no device; something else was put there under its name"),
                format!("remove it: pct exec {vmid} -- rm {TUN}; then try again"),
            ));
        }
        TunSeen::Denied => {
            return Err(refused(
                format!("{TUN} is in container {vmid}, but its root may not open it"),
                "on the host, take the old lxc.mount.entry and lxc.cgroup2 lines out of its configuration and pass the device through anew: pvemesh doctor says how",
            ));
        }
        TunSeen::Absent => {}
    }
    let restart = |device: Device| {
        if wanted.restart {
            return Ok(device);
        }
        Err(refused(
            format!(
                "container {vmid} has no {TUN}, and sees one after its next start only (before Proxmox VE 9.0 nothing is plugged into a running container)"
            ),
            "let it be restarted once: add --restart; or do without the device: --tun userspace",
        ))
    };
    if TunForm::of(&target.config) == TunForm::Device {
        return restart(Device::RestartAlone);
    }
    if !found.observed.principal.is_root() {
        let parameter = "dev (/dev/net/tun)".to_owned();
        let step = format!("pass the device through to container {vmid}");
        return Err(Refusal::RootOnly { principal: found.observed.principal.clone(), parameter, step });
    }
    let version = version(target, found);
    if version < Version::DEVICES {
        return Err(Refusal::TooOld { host: target.host.clone(), version, needed: Version::DEVICES });
    }
    let key = free_key(target).ok_or_else(|| refused(format!("container {vmid} has 256 devices"), "remove one"))?;
    if version >= Version::HOT_PLUG { Ok(Device::HotPlugged(key)) } else { restart(Device::AtRestart(key)) }
}

/// One that was plugged in, or left there by a `dev[n]` that is gone, would be missing after the next start.
fn kept(target: &Target, found: &Found) -> Device {
    // What such lines bring cannot be told from here, and a container with two devices of one name does not start.
    let ways = ["lxc.mount", "lxc.hook", "lxc.include"];
    let otherwise = target.config.raw.iter().any(|(key, _)| ways.iter().any(|way| key.starts_with(way)));
    let settable = found.observed.principal.is_root() && version(target, found) >= Version::DEVICES;
    match free_key(target) {
        Some(key) if settable && !otherwise && TunForm::of(&target.config) == TunForm::Absent => Device::Kept(key),
        _ => Device::There,
    }
}

fn free_key(target: &Target) -> Option<String> {
    (0..256).map(|number| format!("dev{number}")).find(|key| !target.config.values.contains_key(key))
}

fn version(target: &Target, found: &Found) -> Version {
    found.observed.host(&target.host).and_then(|host| host.version).unwrap_or(Version::new(0, 0, 0))
}

/// A request that sets these keys, or deletes those without a value.
pub(crate) fn restored(mut request: Request, keys: &BTreeMap<String, Changed>, value: impl Fn(&Changed) -> Option<String>) -> Request {
    let mut deleted = Vec::new();
    for (key, changed) in keys {
        match value(changed) {
            Some(text) => request = request.with(key, text),
            None => deleted.push(key.as_str()),
        }
    }
    if deleted.is_empty() { request } else { request.with("delete", deleted.join(",")) }
}

/// Checks an option of the command.
///
/// # Errors
/// If routes are given for an exit node too.
pub fn kind(exit_node: bool, routes: Vec<IpNet>) -> Result<NodeKind, OptionError> {
    match (exit_node, routes.is_empty()) {
        (true, false) => Err(OptionError::new("--route", "an exit node and a subnet router are two containers; --exit-node or --route")),
        (true, true) => Ok(NodeKind::ExitNode),
        (false, true) => Ok(NodeKind::Member),
        (false, false) => Ok(NodeKind::SubnetRouter { routes, lan: false, snat: None, gateway: None }),
    }
}
