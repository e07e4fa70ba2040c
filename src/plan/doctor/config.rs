//! What is wrong with a container's configuration.

use super::{AddressFilter, Finding, GuestView, Severity};
use crate::pve::Properties;

const TUN: &str = "/dev/net/tun";

/// A raw `lxc.` line of a container's file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawLine {
    /// The section: none for the container as it is, else a snapshot's name or `pve:pending`.
    pub section: Option<String>,
    /// The key, as in `lxc.mount.entry`.
    pub key: String,
    /// The value.
    pub value: String,
}

/// The raw lines of a container's file (`/etc/pve/nodes/HOST/lxc/ID.conf`).
pub fn raw_lines(text: &str) -> Vec<RawLine> {
    let mut section = None;
    let mut lines = Vec::new();
    for line in text.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            section = Some(name.to_owned());
        } else if line.starts_with("lxc.")
            && let Some((key, value)) = line.split_once([':', '='])
        {
            lines.push(RawLine { section: section.clone(), key: key.trim().to_owned(), value: value.trim().to_owned() });
        }
    }
    lines
}

impl RawLine {
    fn is_tun(&self) -> bool {
        self.key == "lxc.mount.entry" && self.value.contains("dev/net/tun")
    }
}

pub(super) fn examine(guest: &GuestView) -> Vec<Finding> {
    let mut found = Vec::new();
    if guest.is_node() {
        tun(guest, &mut found);
        firewall(guest, &mut found);
    }
    settings(guest, &mut found);
    found
}

fn tun(guest: &GuestView, found: &mut Vec<Finding>) {
    let id = guest.vmid();
    let device = guest.config.values.iter().find(|(key, value)| {
        key.strip_prefix("dev").is_some_and(|n| n.parse::<u16>().is_ok()) && Properties::parse(value, "path").value("path") == Some(TUN)
    });
    let raw = |current: bool| guest.raw.iter().flatten().find(|line| line.is_tun() && line.section.is_none() == current);
    match (device, raw(true)) {
        (Some((key, _)), Some(_)) => {
            let what = format!("{TUN} is passed through twice, by {key} and by an old lxc.mount.entry line");
            let fix = format!("take the lxc.mount.entry line of {TUN} out of /etc/pve/lxc/{id}.conf (before its first `[`), then start it");
            found.push(guest.finding(
                "tun-twice",
                Severity::Fault,
                what,
                "Proxmox makes the device node twice, and the container does not start (status 17)",
                fix,
            ));
        }
        (None, Some(_)) => {
            let fix = format!(
                "take the lxc.mount.entry and lxc.cgroup2.devices.allow lines out of /etc/pve/lxc/{id}.conf, then: pct set {id} --dev0 {TUN}"
            );
            let why = "it works, but a restore by anybody but root drops such lines, and the panel does not show them";
            found.push(guest.finding("tun-old-form", Severity::Note, format!("{TUN} comes by a raw lxc.mount.entry line"), why, fix));
        }
        (None, None) => {
            if let Some(line) = raw(false) {
                let section = line.section.clone().unwrap_or_default();
                let what = format!("the raw lines for {TUN} stand in the section [{section}] of its file, not in the container's own");
                let fix = format!("pct set {id} --dev0 {TUN}; the lines below [{section}] of /etc/pve/lxc/{id}.conf do nothing and may go");
                found.push(guest.finding(
                    "tun-in-snapshot",
                    Severity::Fault,
                    what,
                    "whoever appended them to the file wrote into a snapshot, so the container has no TUN",
                    fix,
                ));
            }
        }
        (Some((key, value)), None) => {
            let properties = Properties::parse(value, "path");
            let mode = properties.value("mode").and_then(|mode| u32::from_str_radix(mode, 8).ok()).unwrap_or(0o660);
            let user = properties.value("uid").unwrap_or("0");
            if mode & 0o600 != 0o600 || user != "0" && mode & 0o006 != 0o006 {
                let fix = format!("pct set {id} --{key} {TUN} (Proxmox's own mode 0660 of root will do), then restart the container");
                let what = format!("{key} gives the device mode {mode:04o} and owner {user}");
                found.push(guest.finding(
                    "tun-mode",
                    Severity::Fault,
                    what,
                    "the node runs as root of the container and cannot open it",
                    fix,
                ));
            }
        }
    }
}

fn firewall(guest: &GuestView, found: &mut Vec<Finding>) {
    let id = guest.vmid();
    for (key, value) in guest.config.values.iter().filter(|(key, _)| key.strip_prefix("net").is_some_and(|n| n.parse::<u8>().is_ok())) {
        let properties = Properties::parse(value, "name");
        if properties.value("firewall") != Some("1") {
            continue;
        }
        let filter = guest.ipfilter.as_ref().filter(|filter| filter.everywhere || filter.interfaces.contains(key));
        if let Some(filter) = filter.filter(|_| guest.carries()) {
            found.push(ipfilter(guest, filter, key));
        } else if guest.carries() {
            let fix = format!("take firewall=1 off {key}, unless you mean it: pct set {id} --{key} ...,firewall=0");
            let why = "once the cluster's firewall is on, ways that differ there and back are broken (conntrack INVALID), and UDP 41641 has to be let in";
            found.push(guest.finding("firewall-on", Severity::Note, format!("Proxmox's firewall stands before {key}"), why, fix));
        }
    }
}

fn ipfilter(guest: &GuestView, filter: &AddressFilter, key: &str) -> Finding {
    let host = guest.host.as_ref().map_or("NODE", crate::pve::HostName::as_str);
    let place = format!("/nodes/{host}/lxc/{}/firewall", guest.vmid());
    let option = filter.everywhere.then(|| format!("pvesh set {place}/options --ipfilter 0"));
    let set = filter.interfaces.contains(key).then(|| format!("pvesh delete {place}/ipset/ipfilter-{key} --force 1"));
    let (named, calls): (Vec<String>, Vec<String>) = option
        .map(|call| ("ipfilter".to_owned(), call))
        .into_iter()
        .chain(set.map(|call| (format!("the set ipfilter-{key}"), call)))
        .unzip();
    let (severity, yet) = if filter.off { (Severity::Note, ", once the firewall is on") } else { (Severity::Fault, "") };
    guest.finding(
        "firewall-ipfilter",
        severity,
        format!("the firewall on {key} lets only its own addresses out ({}){yet}", named.join(" and ")),
        "packets that it forwards for others have their addresses, and are thrown away",
        format!("{}; or take firewall=1 off {key}", calls.join("; ")),
    )
}

fn settings(guest: &GuestView, found: &mut Vec<Finding>) {
    let id = guest.vmid();
    let value = |key: &str| guest.config.values.get(key).map(String::as_str);
    if let Some(mark) = guest.mark.as_ref().filter(|mark| guest.vmid.is_some_and(|vmid| vmid != mark.vmid)) {
        let what = format!("its notes are those of container {}", mark.vmid);
        let fix = format!("make one with its create command instead (pct destroy {id}); or give it keys and notes of its own");
        found.push(guest.finding(
            "copied",
            Severity::Warning,
            what,
            "it is a clone or a restored copy, and pvemesh manages the original only",
            fix,
        ));
    }
    if let Some(lock) = &guest.config.lock {
        let fix = format!("wait for the operation that holds it; if none does any more: pct unlock {id}");
        found.push(guest.finding(
            "locked",
            Severity::Warning,
            format!("it is locked ({lock})"),
            "it can be neither changed nor started",
            fix,
        ));
    }
    if guest.mark.as_ref().is_some_and(|mark| !mark.ready) {
        let fix = format!("run its create command again, or remove it: pvemesh destroy {id}");
        found.push(guest.finding("unfinished", Severity::Fault, "its making did not come to its end", "a run was ended midway", fix));
    }
    if !guest.running {
        let fix = format!("pct start {id}");
        found.push(guest.finding("stopped", Severity::Fault, "it does not run", "its node is not in the mesh", fix));
    }
    if guest.mark.is_some() && !guest.is_enrolled() {
        if value("unprivileged") != Some("1") {
            let fix = "make it again: pvemesh destroy, then create; it cannot be changed afterwards".to_owned();
            found.push(guest.finding(
                "privileged",
                Severity::Warning,
                "it is privileged",
                "root in it is root on the host, which the node does not need",
                fix,
            ));
        }
        if value("onboot") != Some("1") {
            let fix = format!("pct set {id} --onboot 1");
            found.push(guest.finding(
                "not-on-boot",
                Severity::Warning,
                "it is not started with the host",
                "after a power cut the way in is gone",
                fix,
            ));
        }
    }
    if !guest.hookscript_missing.is_empty() {
        let hosts: Vec<&str> = guest.hookscript_missing.iter().map(crate::pve::HostName::as_str).collect();
        let script = value("hookscript").unwrap_or_default();
        let what = format!("its hookscript {script} is not on {}", hosts.join(", "));
        let why = "moved or failed over there, it does not start (pre-start: does not exist)";
        let fix = "copy the script there, to the same storage and name, or put it on a shared storage; or: pct set ID --delete hookscript"
            .replace("ID", &id);
        found.push(guest.finding("hookscript-missing", Severity::Warning, what, why, fix));
    }
}
