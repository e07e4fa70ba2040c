//! What is wrong within a guest, by what it says of itself.

use super::{CLOCK, CLOCK_WHY, Finding, GuestView, Severity, clock, joined};
use crate::names::system::ResolvConf;
use crate::plan::guest::{GuestFacts, NodeFacts};

/// WireGuard over IPv6 takes 80 bytes, and the mesh promises 1280.
const MTU: u32 = 1360;
/// What state and logs take at the least.
const ROOM: u64 = 8 << 20;
/// So many repairs are no accident.
const REPAIRS: u64 = 5;

/// `host_ahead` is how far its host's clock is ahead of this machine's, if that is known.
pub(super) fn examine(guest: &GuestView, host_ahead: Option<i64>) -> Vec<Finding> {
    let mut found = Vec::new();
    if let Some(trouble) = guest.facts_trouble.as_ref().filter(|_| guest.running) {
        let fix = "run doctor as root on the Proxmox host, or let it go there: --ssh root@HOST";
        found.push(guest.finding(
            "not-entered",
            Severity::Note,
            format!("it could not be looked at from inside: {trouble}"),
            "what is wrong there is not seen",
            fix,
        ));
    }
    let Some(facts) = &guest.facts else { return found };
    if guest.is_node() {
        tun(guest, facts, &mut found);
        routing(guest, facts, &mut found);
        names(guest, facts, &mut found);
        match &facts.node {
            Some(node) => member(guest, node, &mut found),
            None => {
                let fix = format!("pvemesh logs {}", guest.vmid());
                found.push(guest.finding(
                    "node-down",
                    Severity::Fault,
                    format!("its node does not answer: {}", facts.node_trouble),
                    "it is not in the mesh",
                    fix,
                ));
            }
        }
    }
    system(guest, facts, host_ahead, &mut found);
    found
}

fn tun(guest: &GuestView, facts: &GuestFacts, found: &mut Vec<Finding>) {
    let (id, tun) = (guest.vmid(), &facts.tun);
    if guest.userspace() {
        return;
    }
    if !tun.exists {
        let fix = format!(
            "pct set {id} --dev0 /dev/net/tun (root on the host; before Proxmox VE 9.0 restart it then); on the host: modprobe tun"
        );
        found.push(guest.finding("tun-missing", Severity::Fault, "it has no /dev/net/tun", "the node has no interface of the mesh", fix));
    } else if !tun.is_device {
        let fix = format!("pct exec {id} -- rm /dev/net/tun, then restart the container");
        found.push(guest.finding(
            "tun-no-device",
            Severity::Fault,
            "/dev/net/tun is no TUN device",
            "something else was put there under its name",
            fix,
        ));
    } else if let Some(trouble) = &tun.trouble {
        let fix = format!(
            "pass it through by dev0 instead of raw lines: pct set {id} --dev0 /dev/net/tun; with raw lines in an unprivileged container: chown 100000:100000 /dev/net/tun on the host"
        );
        let what = format!("/dev/net/tun (mode {:04o}, owner {}:{}) cannot be opened: {trouble}", tun.mode, tun.user, tun.group);
        found.push(guest.finding(
            "tun-denied",
            Severity::Fault,
            what,
            "the node runs as root of the container, which must have the right to it",
            fix,
        ));
    }
}

fn routing(guest: &GuestView, facts: &GuestFacts, found: &mut Vec<Finding>) {
    let id = guest.vmid();
    if guest.userspace() {
        return;
    }
    if guest.carries() && !facts.forwarding.v4 {
        let fix = format!(
            "restart its node, which turns it on: pvemesh upgrade {id}, or pct reboot {id}; and look who turns it off (sysctl.d in the container)"
        );
        found.push(guest.finding("forwarding-off", Severity::Fault, "net.ipv4.ip_forward is 0", "it carries nothing for others", fix));
    }
    if facts.forwarding.v6 && facts.forwarding.accept_ra == Some(1) {
        let fix = format!("pct exec {id} -- sysctl -w net.ipv6.conf.eth0.accept_ra=2; the node does so when it starts");
        found.push(guest.finding(
            "accept-ra",
            Severity::Warning,
            "IPv6 is forwarded and accept_ra is 1",
            "Linux then ignores router advertisements: its IPv6 default route expires",
            fix,
        ));
    }
    if let Some(trouble) = &facts.nft_trouble {
        let severity = if guest.carries() { Severity::Fault } else { Severity::Warning };
        let fix = "on the host: modprobe nf_tables nft_masq; after a kernel upgrade restart the host into the new kernel (uname -r against /lib/modules)";
        found.push(guest.finding(
            "no-nftables",
            severity,
            format!("the packet filter cannot be used: {trouble}"),
            "what it carries does not leave under its own address, and shields do not hold",
            fix,
        ));
    }
    if let Some(mtu) = facts.mtu.filter(|mtu| *mtu < MTU) {
        let fix = format!(
            "raise the MTU of the bridge to 1500, or that of net0 (mtu= of pct set {id} --net0); below {MTU} packets of the mesh are cut in pieces"
        );
        found.push(guest.finding(
            "mtu-small",
            Severity::Warning,
            format!("the largest packet on its LAN is {mtu} bytes"),
            "the mesh's packets of 1280 bytes do not fit in one",
            fix,
        ));
    }
}

fn names(guest: &GuestView, facts: &GuestFacts, found: &mut Vec<Finding>) {
    let id = guest.vmid();
    let conf = ResolvConf::parse(&facts.resolv_conf);
    if conf.servers.is_empty() && !conf.leads_here {
        let fix = if guest.is_enrolled() {
            format!("pct set {id} --nameserver ADDRESS, then restart it")
        } else {
            "give it one: --dns when it is made, or by DHCP".to_owned()
        };
        found.push(guest.finding(
            "dns-none",
            Severity::Fault,
            "/etc/resolv.conf names no server",
            "a coordinator that is known by name is not found",
            fix,
        ));
    }
    let written_by_proxmox = guest.is_enrolled() && guest.config.values.get("ostype").is_some_and(|kind| kind != "unmanaged");
    let ours = facts.node.as_ref().is_some_and(|node| node.accepts_dns);
    if written_by_proxmox && ours && !facts.resolv_conf.contains("127.0.0.53") {
        let fix = format!(
            "pvemesh enroll {id} again: it sets Proxmox's own keys (nameserver, searchdomain); or touch /etc/.pve-ignore.resolv.conf in it"
        );
        found.push(guest.finding(
            "dns-two-writers",
            Severity::Warning,
            "both the node and Proxmox write /etc/resolv.conf",
            "at each start Proxmox replaces what the node has written",
            fix,
        ));
    }
}

fn member(guest: &GuestView, node: &NodeFacts, found: &mut Vec<Finding>) {
    let id = guest.vmid();
    match node.state.as_str() {
        "Running" | "Starting" => {}
        "NeedsLogin" => {
            let said = if node.refusal.is_empty() { String::new() } else { format!(": {}", node.refusal) };
            let fix = format!("pvemesh rekey {id}");
            found.push(guest.finding(
                "key-refused",
                Severity::Fault,
                format!("the coordinator does not let it in{said}"),
                "its key has expired, or its entry was removed",
                fix,
            ));
        }
        "NeedsMachineAuth" => {
            let fix = "approve it at the coordinator".to_owned();
            found.push(guest.finding(
                "not-approved",
                Severity::Fault,
                "it waits for an admin's approval",
                "it is not in the mesh until then",
                fix,
            ));
        }
        other => {
            let fix = format!("pct exec {id} -- pvemesh node up (in an appliance: /sbin/init node up)");
            found.push(guest.finding(
                "node-off",
                Severity::Fault,
                format!("its node is switched off ({other})"),
                "it is not in the mesh",
                fix,
            ));
        }
    }
    if node.state == "Running" && !node.coordinator_online {
        let fix = format!("is the coordinator up, and reached from the container? it is looked for at {}", node.login_server);
        found.push(guest.finding(
            "coordinator-unreached",
            Severity::Fault,
            "its node does not reach the coordinator",
            "it goes on with what it knows, and hears of nothing new",
            fix,
        ));
    }
    if node.repairs >= REPAIRS {
        let fix = "find who flushes rules and routes there (systemd-networkd with ManageForeignRoutingPolicyRules=yes, a firewall script)";
        found.push(guest.finding(
            "rules-removed",
            Severity::Warning,
            format!("rules, routes or settings of the node were taken away {} times, and put back", node.repairs),
            "another program changes them",
            fix,
        ));
    }
    for line in &node.health {
        found.push(guest.finding("node-says", Severity::Warning, line.clone(), "the node itself says so", format!("pvemesh logs {id}")));
    }
    if guest.carries() && !node.carries {
        let fix = if guest.is_enrolled() {
            format!("pvemesh enroll {id} with --exit-node or --route")
        } else {
            format!("pct exec {id} -- /sbin/init node set --advertise-exit-node")
        };
        found.push(guest.finding(
            "offers-nothing",
            Severity::Warning,
            format!("it is a {} and offers nothing", guest.role()),
            "its preferences were changed inside",
            fix,
        ));
    }
}

fn system(guest: &GuestView, facts: &GuestFacts, host_ahead: Option<i64>, found: &mut Vec<Finding>) {
    let id = guest.vmid();
    // A container has its host's clock, of which it is said once.
    let own = |ahead: &i64| host_ahead.is_none_or(|host| (ahead - host).abs() > CLOCK);
    if let Some(what) = guest.ahead.filter(own).and_then(clock) {
        let fix = "a container has its host's clock: on the host, chronyc tracking; systemctl restart chrony. Or it is this machine's that is wrong";
        found.push(guest.finding("clock", Severity::Warning, what, CLOCK_WHY, fix));
    }
    for other in &facts.others {
        let fix = format!("stop and remove {other} there");
        found.push(guest.finding(
            "other-mesh",
            Severity::Warning,
            format!("{other} runs in it too"),
            "both use 100.64.0.0/10 and take each other's packets",
            fix,
        ));
    }
    if let Some(free) = facts.free_bytes.filter(|free| *free < ROOM) {
        let fix = format!("pct resize {id} rootfs +256M");
        found.push(guest.finding(
            "disk-full",
            Severity::Warning,
            format!("{} KiB are free where its state is", free >> 10),
            "keys and settings cannot be stored",
            fix,
        ));
    }
    if facts.program.trial {
        let fix = format!("wait a minute: it ends by itself; then pvemesh upgrade {id}");
        found.push(guest.finding(
            "on-trial",
            Severity::Note,
            "a new program is on trial",
            "an upgrade is under way, or was ended midway",
            fix,
        ));
    } else if !facts.program.running.is_empty() && facts.program.running != facts.program.installed {
        let fix = format!("restart its service, or the container: pct reboot {id}");
        found.push(guest.finding(
            "old-program-runs",
            Severity::Note,
            "another program runs than is installed",
            "the file was changed without a restart",
            fix,
        ));
    }
}

/// Used by the mesh's checks: the addresses that a guest claims.
pub(super) fn claims(guest: &GuestView) -> Option<String> {
    let node = guest.facts.as_ref()?.node.as_ref()?;
    (!node.addresses.is_empty()).then(|| joined(&node.addresses))
}
