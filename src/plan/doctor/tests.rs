//! Each finding is provoked by the one fact that it is about, and by nothing else.

use super::*;
use crate::plan::guest::{Forwarding, NodeFacts, ProgramFacts, TunFacts};
use crate::plan::mark::{Identity, RunId};

const NOW: i64 = 1_800_000_000;

/// An exit node that has nothing wrong with it.
fn well() -> GuestView {
    let vmid = "101".parse().unwrap();
    let mark = Mark {
        vmid,
        role: "exit-node".to_owned(),
        name: "exit-1".parse().unwrap(),
        run: RunId::new(1),
        ready: true,
        identity: Identity::default(),
        fleet: None,
    };
    let values = [
        ("dev0", "/dev/net/tun"),
        ("net0", "name=eth0,bridge=vmbr0,firewall=0"),
        ("onboot", "1"),
        ("unprivileged", "1"),
        ("ostype", "unmanaged"),
    ];
    let config =
        ContainerConfig { values: values.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect(), ..ContainerConfig::default() };
    let node = NodeFacts {
        state: "Running".to_owned(),
        key: "nodekey:1".to_owned(),
        coordinator_online: true,
        carries: true,
        accepts_dns: true,
        addresses: vec!["100.64.0.1".parse().unwrap()],
        ..NodeFacts::default()
    };
    let facts = GuestFacts {
        tun: TunFacts { exists: true, is_device: true, mode: 0o660, ..TunFacts::default() },
        forwarding: Forwarding { v4: true, v6: true, accept_ra: Some(2) },
        mtu: Some(1500),
        resolv_conf: "nameserver 100.100.100.100\nnameserver 192.168.1.1\n".to_owned(),
        free_bytes: Some(100 << 20),
        program: ProgramFacts { installed: "a".to_owned(), running: "a".to_owned(), ..ProgramFacts::default() },
        node: Some(node),
        ..GuestFacts::default()
    };
    GuestView {
        vmid: Some(vmid),
        host: Some("pve".parse().unwrap()),
        mark: Some(mark),
        running: true,
        config,
        raw: Some(Vec::new()),
        ipfilter: Some(AddressFilter::default()),
        ahead: Some(0),
        facts: Some(facts),
        node: Some(entry("exit-1")),
        ..GuestView::default()
    }
}

fn entry(name: &str) -> NodeInfo {
    serde_json::from_value(serde_json::json!({
        "id": 1, "name": name, "fqdn": name, "user": "pvemesh", "key": "nodekey:".to_owned() + &"1".repeat(64), "addresses": ["100.64.0.1"],
        "online": true, "tags": [], "advertised_routes": ["0.0.0.0/0"], "approved_routes": ["0.0.0.0/0"], "os": "linux"
    }))
    .unwrap()
}

fn host() -> HostFacts {
    let storage = Storage {
        name: "local".parse().unwrap(),
        content: vec!["vztmpl".to_owned()],
        usable: true,
        shared: false,
        available: Some(10 << 30),
    };
    HostFacts {
        name: "pve".parse().unwrap(),
        online: true,
        version: Some(Version::new(9, 1, 0)),
        storages: vec![storage],
        tun: Some(true),
        ahead: Some(1),
    }
}

fn patient(guests: Vec<GuestView>) -> Patient {
    let nodes = guests.iter().filter_map(|guest| guest.node.clone()).collect();
    Patient { guests, hosts: vec![host()], nodes: Some(nodes), coordinator_trouble: None, now: NOW }
}

fn codes(patient: &Patient) -> Vec<&'static str> {
    let findings = examine(patient);
    for finding in &findings {
        assert!(!finding.what.is_empty() && !finding.why.is_empty() && !finding.fix.is_empty(), "{finding:?}");
    }
    findings.iter().map(|finding| finding.code).collect()
}

#[track_caller]
fn provokes(code: &str, change: impl FnOnce(&mut GuestView)) {
    let mut guest = well();
    change(&mut guest);
    assert_eq!(codes(&patient(vec![guest])), [code]);
}

fn facts(guest: &mut GuestView) -> &mut GuestFacts {
    guest.facts.as_mut().unwrap()
}

fn node(guest: &mut GuestView) -> &mut NodeFacts {
    facts(guest).node.as_mut().unwrap()
}

fn set(guest: &mut GuestView, key: &str, value: &str) {
    guest.config.values.insert(key.to_owned(), value.to_owned());
}

fn raw(text: &str) -> Option<Vec<RawLine>> {
    Some(raw_lines(text))
}

const OLD_LINES: &str = "lxc.cgroup2.devices.allow: c 10:200 rwm\nlxc.mount.entry: /dev/net/tun dev/net/tun none bind,create=file\n";

#[test]
fn a_guest_that_is_well_is_left_alone() {
    assert_eq!(codes(&patient(vec![well()])), Vec::<&str>::new());
    // One that nothing but the API is known of, too.
    let mut unknown = well();
    (unknown.facts, unknown.raw, unknown.ipfilter, unknown.ahead) = (None, None, None, None);
    assert_eq!(codes(&patient(vec![unknown])), Vec::<&str>::new());
}

#[test]
fn the_tun_device_in_every_wrong_form_is_named() {
    provokes("tun-missing", |guest| facts(guest).tun = TunFacts::default());
    provokes("tun-no-device", |guest| facts(guest).tun.is_device = false);
    provokes("tun-denied", |guest| facts(guest).tun.trouble = Some("Permission denied".to_owned()));
    provokes("tun-twice", |guest| guest.raw = raw(OLD_LINES));
    provokes("tun-mode", |guest| set(guest, "dev0", "/dev/net/tun,mode=0000"));
    provokes("tun-mode", |guest| set(guest, "dev0", "path=/dev/net/tun,uid=1000,mode=0660"));
    provokes("tun-old-form", |guest| {
        guest.config.values.remove("dev0");
        guest.raw = raw(OLD_LINES);
    });
    // Appended to the end of the file, the lines belong to the last snapshot.
    provokes("tun-in-snapshot", |guest| {
        guest.config.values.remove("dev0");
        guest.raw = raw(&format!("arch: amd64\n\n[before-upgrade]\narch: amd64\n{OLD_LINES}"));
    });
}

#[test]
fn what_keeps_packets_back_is_named() {
    provokes("forwarding-off", |guest| facts(guest).forwarding.v4 = false);
    provokes("accept-ra", |guest| facts(guest).forwarding.accept_ra = Some(1));
    provokes("no-nftables", |guest| facts(guest).nft_trouble = Some("the kernel has no nf_tables".to_owned()));
    provokes("mtu-small", |guest| facts(guest).mtu = Some(1280));
    provokes("firewall-on", |guest| set(guest, "net0", "name=eth0,bridge=vmbr0,firewall=1"));
    provokes("firewall-ipfilter", |guest| {
        set(guest, "net0", "name=eth0,bridge=vmbr0,firewall=1");
        guest.ipfilter = Some(AddressFilter { everywhere: true, ..AddressFilter::default() });
    });
    provokes("firewall-ipfilter", |guest| {
        set(guest, "net0", "name=eth0,bridge=vmbr0,firewall=1");
        guest.ipfilter = Some(AddressFilter { interfaces: ["net0".to_owned()].into(), off: true, ..AddressFilter::default() });
    });
    provokes("firewall-on", |guest| {
        set(guest, "net0", "name=eth0,bridge=vmbr0,firewall=1");
        guest.ipfilter = Some(AddressFilter { interfaces: ["net1".to_owned()].into(), ..AddressFilter::default() });
    });
    provokes("other-mesh", |guest| facts(guest).others.push("tailscaled".to_owned()));
    provokes("rules-removed", |guest| node(guest).repairs = 50);
    // A plain node forwards nothing, and need not.
    let mut plain = well();
    plain.mark.as_mut().unwrap().role = "node".to_owned();
    facts(&mut plain).forwarding.v4 = false;
    assert_eq!(codes(&patient(vec![plain])), Vec::<&str>::new());
}

#[test]
fn names_clock_and_disk_are_looked_at() {
    provokes("dns-none", |guest| facts(guest).resolv_conf = "# nothing\n".to_owned());
    provokes("dns-two-writers", |guest| {
        guest.mark.as_mut().unwrap().role = "enrolled-exit-node".to_owned();
        set(guest, "ostype", "debian");
    });
    provokes("clock", |guest| guest.ahead = Some(3600));
    provokes("clock", |guest| guest.ahead = Some(-3600));
    provokes("disk-full", |guest| facts(guest).free_bytes = Some(1 << 20));
    provokes("old-program-runs", |guest| facts(guest).program.running = "b".to_owned());
    provokes("on-trial", |guest| facts(guest).program.trial = true);
}

#[test]
fn a_node_that_is_not_in_the_mesh_is_named_with_its_cure() {
    provokes("node-down", |guest| facts(guest).node = None);
    provokes("key-refused", |guest| node(guest).state = "NeedsLogin".to_owned());
    provokes("not-approved", |guest| node(guest).state = "NeedsMachineAuth".to_owned());
    provokes("node-off", |guest| node(guest).state = "Stopped".to_owned());
    provokes("coordinator-unreached", |guest| node(guest).coordinator_online = false);
    provokes("offers-nothing", |guest| node(guest).carries = false);
    provokes("node-says", |guest| node(guest).health.push("something".to_owned()));
    provokes("not-entered", |guest| {
        guest.facts = None;
        guest.facts_trouble = Some("no way".to_owned());
    });
    let mut expired = well();
    node(&mut expired).state = "NeedsLogin".to_owned();
    let fix = examine(&patient(vec![expired])).remove(0).fix;
    assert_eq!(fix, "pvemesh rekey 101");
}

#[test]
fn what_the_coordinator_says_is_compared() {
    let expiry = |at: i64| move |guest: &mut GuestView| guest.node.as_mut().unwrap().key_expiry = jiff::Timestamp::from_second(at).ok();
    provokes("key-expired", expiry(NOW - 1));
    provokes("key-expires", expiry(NOW + 3 * 24 * 3600));
    provokes("unknown-node", |guest| guest.node = None);
    provokes("node-offline", |guest| guest.node.as_mut().unwrap().online = false);
    provokes("route-not-approved", |guest| guest.node.as_mut().unwrap().approved_routes.clear());
    let mut far = well();
    expiry(NOW + 100 * 24 * 3600)(&mut far);
    assert_eq!(codes(&patient(vec![far])), Vec::<&str>::new());
    let down = Patient { coordinator_trouble: Some("no answer".to_owned()), nodes: None, ..patient(vec![well()]) };
    assert_eq!(codes(&down), ["coordinator-down"]);
}

#[test]
fn a_clone_that_runs_beside_the_original_is_told_apart() {
    let mut clone = well();
    clone.vmid = Some("201".parse().unwrap());
    let findings = examine(&patient(vec![well(), clone]));
    assert_eq!(findings.iter().map(|finding| finding.code).collect::<Vec<_>>(), ["identity-twice", "copied"]);
    assert!(findings.iter().any(|f| f.what.contains("101 and 201") && f.fix.contains("pct stop 201")), "{findings:?}");
}

#[test]
fn the_containers_own_settings_are_looked_at() {
    provokes("locked", |guest| guest.config.lock = Some("backup".to_owned()));
    provokes("unfinished", |guest| guest.mark.as_mut().unwrap().ready = false);
    provokes("privileged", |guest| set(guest, "unprivileged", "0"));
    provokes("not-on-boot", |guest| drop(guest.config.values.remove("onboot")));
    provokes("hookscript-missing", |guest| {
        set(guest, "hookscript", "local:snippets/pvemesh-hook");
        guest.hookscript_missing = vec!["pve2".parse().unwrap()];
    });
    provokes("stopped", |guest| {
        guest.running = false;
        guest.facts = None;
        guest.node.as_mut().unwrap().online = false;
    });
}

#[test]
fn hosts_are_looked_at() {
    let with = |change: fn(&mut HostFacts)| {
        let mut all = patient(vec![well()]);
        all.hosts.iter_mut().for_each(change);
        codes(&all)
    };
    assert_eq!(with(|host| host.online = false), ["host-offline"]);
    assert_eq!(with(|host| host.version = Some(Version::new(7, 4, 0))), ["host-old"]);
    assert_eq!(with(|host| host.tun = Some(false)), ["host-tun"]);
    assert_eq!(with(|host| host.ahead = Some(-3600)), ["clock"]);
    assert_eq!(with(|host| host.storages.iter_mut().for_each(|s| s.available = Some(1 << 20))), ["template-storage-full"]);
}

#[test]
fn a_clock_that_is_the_host_s_is_said_to_be_off_once() {
    let mut all = patient(vec![well()]);
    all.hosts.iter_mut().for_each(|host| host.ahead = Some(3600));
    all.guests.iter_mut().for_each(|guest| guest.ahead = Some(3610));
    let found: Vec<String> = examine(&all).into_iter().map(|finding| finding.subject).collect();
    assert_eq!(found, ["node pve"]);
}

#[test]
fn every_finding_is_in_the_documentation() {
    let documented = include_str!("../../../docs/doctor.md");
    for source in [include_str!("mod.rs"), include_str!("config.rs"), include_str!("inside.rs"), include_str!("mesh.rs")] {
        // A call may be written on several lines.
        let starts = source.split("finding(").chain(source.split("code:")).filter_map(|after| after.trim_start().strip_prefix('"'));
        for after in starts {
            let code = after.split('"').next().unwrap_or_default();
            assert!(documented.contains(&format!("`{code}`")), "{code} is not in docs/doctor.md");
        }
    }
}
