//! What becomes a step, by what is found.

use super::*;
use crate::ident::{MachinePublic, NodeId};
use crate::plan::guest::RECORD;
use crate::plan::inside::{Content, Deed, InsideAction, InsideUndo, UndoDeed};
use crate::plan::mark::TAG;
use crate::plan::observed::HostView;
use crate::plan::options::KnownCoordinator;
use crate::plan::render;
use crate::plan::step::{Action, Undo};
use crate::pve::Principal;
use crate::pve::reply::{ContainerConfig, GuestSummary};

fn vmid() -> Vmid {
    "105".parse().unwrap()
}

fn wanted() -> Wanted {
    let known = KnownCoordinator {
        vmid: None,
        lan_url: "http://192.168.1.5:8080".to_owned(),
        url: "http://192.168.1.5:8080".to_owned(),
        server_key: MachinePublic::ZERO,
    };
    Wanted {
        vmid: vmid(),
        name: None,
        kind: NodeKind::Member,
        join: Join::Ours(known),
        domain: Some("mesh.internal".to_owned()),
        endpoints: Vec::new(),
        accept_routes: false,
        userspace: false,
        dns: true,
        restart: false,
        program: PathBuf::from("/usr/bin/pvemesh"),
        machine: "x86_64",
    }
}

const SEEN: &str = "user=0\nmachine=x86_64\nos=debian\nwritable=/usr/local/bin\nservice=systemd\ntun=absent\nresolv=nameserver 192.168.1.1\nresolv=search lan\n";

/// A Debian container `wiki` on a host of this version.
fn found(version: Version) -> Found {
    let values = [("ostype", "debian"), ("hostname", "wiki"), ("tags", "prod")];
    let config = ContainerConfig {
        hostname: Some("wiki".to_owned()),
        description: "# My wiki".to_owned(),
        tags: vec!["prod".to_owned()],
        values: values.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect(),
        ..ContainerConfig::default()
    };
    let host: HostName = "pve".parse().unwrap();
    let summary = GuestSummary {
        vmid: vmid(),
        host: host.clone(),
        container: true,
        name: "wiki".to_owned(),
        running: true,
        tags: Vec::new(),
        managed: false,
    };
    let view = HostView {
        name: host.clone(),
        online: true,
        version: Some(version),
        storages: Vec::new(),
        bridges: Vec::new(),
        templates: Vec::new(),
    };
    let observed = Observed {
        principal: Principal::RootHost,
        local: None,
        hosts: vec![view],
        guests: vec![summary],
        mesh: Vec::new(),
        goldens: Vec::new(),
        hookscript: crate::plan::observed::Hookscript::default(),
        target: Some(Target { host, config, running: true }),
    };
    Found { observed, seen: Some(Seen::read(SEEN)), record: None, settings: None, service_file: None, approved: None }
}

const NINE: Version = Version::new(9, 1, 0);

fn plan(wanted: &Wanted, found: &Found) -> Plan {
    match enroll(wanted, found, RunId::new(7)).unwrap() {
        Outcome::Plan(plan) => plan,
        Outcome::NothingToDo { .. } => panic!("nothing to do"),
    }
}

fn lines(plan: &Plan) -> Vec<String> {
    plan.steps.iter().map(|step| step.action.to_string()).collect()
}

/// What is there once these steps were carried out.
fn done(mut found: Found, plan: &Plan) -> Found {
    let target = found.observed.target.as_mut().unwrap();
    for step in &plan.steps {
        match &step.action {
            Action::Call { request, .. } => {
                for (key, value) in &request.params {
                    target.config.values.insert(key.clone(), value.expose().to_owned());
                }
            }
            Action::Inside(InsideAction { deed: Deed::Write { to, content, .. }, .. }) => match content {
                Content::Settings(guest) => found.settings = Some((**guest).clone()),
                Content::Text(text) if to == RECORD => found.record = serde_json::from_str(text).ok(),
                Content::Text(text) => found.service_file = Some(text.clone()),
            },
            Action::Inside(InsideAction { deed: Deed::Notes { ours }, .. }) => {
                target.config.description = joined_notes(&target.config.description, ours.as_deref(), "").unwrap();
            }
            Action::MintKey(key) => found.approved = Some(key.approve_routes.clone()),
            Action::Inside(InsideAction { deed: Deed::Approve { routes, .. }, .. }) => found.approved = Some(routes.clone()),
            _ => {}
        }
    }
    target.config.tags = target.config.values["tags"].split(';').map(str::to_owned).collect();
    if let Some(seen) = found.seen.as_mut() {
        seen.tun = TunSeen::Usable;
    }
    found
}

#[test]
fn a_debian_container_gets_device_program_service_names_and_notes() {
    let shown = lines(&plan(&wanted(), &found(NINE)));
    let has = |words: &str| assert!(shown.iter().any(|line| line.contains(words)), "{words}: {shown:#?}");
    has("PUT /nodes/pve/lxc/105/config dev0=/dev/net/tun");
    has("pct push 105 /usr/bin/pvemesh /usr/local/bin/pvemesh");
    has("write /etc/pvemesh/guest.toml (secret, mode 600)");
    has("write /etc/systemd/system/pvemesh.service");
    has("systemctl enable --now pvemesh.service");
    has("nameserver=\"100.100.100.100 192.168.1.1\" searchdomain=\"mesh.internal lan\" tags=node;prod;pvemesh");
    assert!(!shown.iter().any(|line| line.contains("reboot")), "{shown:#?}");
}

#[test]
fn the_second_run_has_nothing_to_do_and_a_changed_option_changes_just_that() {
    let first = found(NINE);
    let after = done(first.clone(), &plan(&wanted(), &first));
    assert!(matches!(enroll(&wanted(), &after, RunId::new(8)).unwrap(), Outcome::NothingToDo { .. }));
    let router = Wanted { kind: kind(false, vec!["10.1.0.0/16".parse().unwrap()]).unwrap(), ..wanted() };
    let change = plan(&router, &after);
    let titles: Vec<&str> = change.steps.iter().map(|step| step.title.as_str()).collect();
    assert_eq!(
        titles,
        [
            "write the node's settings",
            "restart the service",
            "let it carry these networks",
            "wait for wiki to join",
            "set tags",
            "write the notes"
        ]
    );
    let after = done(after, &change);
    assert!(matches!(enroll(&router, &after, RunId::new(9)).unwrap(), Outcome::NothingToDo { .. }));
    assert_eq!(after.observed.target.unwrap().config.values["tags"], "prod;pvemesh;subnet-router");
}

#[test]
fn what_takes_a_new_node_back_leaves_nothing_and_a_changed_one_is_what_it_was() {
    let undos = |plan: &Plan| -> Vec<String> {
        let undos = plan.steps.iter().rev().filter_map(|step| step.undo.as_ref());
        undos.map(|undo| serde_json::to_string(undo).unwrap()).collect()
    };
    let first = found(NINE);
    let new = plan(&wanted(), &first);
    let shown = undos(&new);
    let at = |words: &str| shown.iter().position(|line| line.contains(words)).unwrap_or_else(|| panic!("{words}: {shown:#?}"));
    // The service ends before its node goes, and that one before the files.
    assert!(at("disable --now") < at("remove-node") && at("remove-node") < at("pvemesh.new") && at("pvemesh.new") < at("revoke-key"));
    assert!(shown[at("pvemesh.new")].contains("daemon-reload") && shown[0].contains("notes"), "{shown:#?}");

    let after = done(first, &new);
    let before = after.observed.target.as_ref().unwrap().config.description.clone();
    let router = Wanted { kind: kind(false, vec!["10.1.0.0/16".parse().unwrap()]).unwrap(), ..wanted() };
    let change = plan(&router, &after);
    let shown = undos(&change);
    let at = |words: &str| shown.iter().position(|line| line.contains(words)).unwrap_or_else(|| panic!("{words}: {shown:#?}"));
    assert!(!shown.iter().any(|line| line.contains("disable --now") || line.contains("revoke-key")), "{shown:#?}");
    assert!(shown[at("approve-routes")].contains(r#""add":[],"remove":["10.1.0.0/16"]"#), "{shown:#?}");
    assert!(shown[at("restore")].contains("node;prod;pvemesh"), "{shown:#?}");
    let Some(Undo::Inside(InsideUndo { deed: UndoDeed::Notes { before: Some(part), .. }, .. })) = change.steps.last().unwrap().undo.clone()
    else {
        panic!("{shown:#?}")
    };
    assert!(before.contains(&part), "{part}");
    let Some(Undo::Inside(InsideUndo { deed: UndoDeed::Rewrite { files, then, .. }, .. })) = change.steps[0].undo.clone() else {
        panic!("{shown:#?}")
    };
    assert_eq!(files.iter().map(|file| file.text.as_deref().unwrap()).filter(|text| text.contains("10.1.0.0/16")).count(), 0);
    assert_eq!(Guest::from_toml(files[1].text.as_deref().unwrap()).ok(), after.settings);
    assert_eq!(then.last().unwrap().join(" "), "systemctl restart pvemesh.service");
}

#[test]
fn taking_out_gives_back_what_was_there() {
    let first = found(NINE);
    let after = done(first.clone(), &plan(&wanted(), &first));
    let removal = unenroll(vmid(), &after, true).unwrap();
    let shown: Vec<String> = removal.steps.iter().map(|step| step.action.to_string()).collect();
    assert!(shown[0].contains("systemctl disable --now pvemesh.service"), "{shown:#?}");
    assert!(shown.iter().any(|line| line.contains("delete=dev0,nameserver,searchdomain tags=prod")), "{shown:#?}");
    assert!(shown.iter().any(|line| line.contains("/usr/local/bin/pvemesh") && line.contains("/var/lib/pvemesh")), "{shown:#?}");
    assert!(shown.last().unwrap().contains("daemon-reload"), "{shown:#?}");
    // What the owner has changed since is his.
    let mut changed = after;
    changed.observed.target.as_mut().unwrap().config.values.insert("nameserver".to_owned(), "9.9.9.9".to_owned());
    let shown: Vec<String> = unenroll(vmid(), &changed, true).unwrap().steps.iter().map(|step| step.action.to_string()).collect();
    assert!(shown.iter().any(|line| line.contains("delete=dev0 tags=prod")), "{shown:#?}");
    assert!(unenroll(vmid(), &first, true).unwrap_err().to_string().contains("was not enrolled"));
}

#[test]
fn names_are_led_by_proxmox_or_by_the_node_but_never_by_both() {
    let node_leads = |change: &dyn Fn(&mut Found)| {
        let mut found = found(NINE);
        change(&mut found);
        let plan = plan(&wanted(), &found);
        let dns = plan.steps.iter().find_map(|step| match &step.action {
            Action::Inside(InsideAction { deed: Deed::Write { content: Content::Settings(guest), .. }, .. }) => {
                guest.node.as_ref().map(|node| node.accept_dns)
            }
            _ => None,
        });
        let by_proxmox = lines(&plan).iter().any(|line| line.contains("nameserver="));
        assert_ne!(dns.unwrap(), by_proxmox);
        dns.unwrap()
    };
    let value = |found: &mut Found, key: &str, value: &str| {
        found.observed.target.as_mut().unwrap().config.values.insert(key.to_owned(), value.to_owned());
    };
    assert!(!node_leads(&|_| {}));
    assert!(!node_leads(&|found| value(found, "nameserver", "10.0.0.1 10.0.0.2 10.0.0.3")));
    assert!(node_leads(&|found| value(found, "ostype", "unmanaged")));
    assert!(node_leads(&|found| found.seen.as_mut().unwrap().resolv_ignored = true));
    assert!(node_leads(&|found| found.seen.as_mut().unwrap().nameservers = vec!["127.0.0.53".parse().unwrap()]));
    let off = lines(&plan(&Wanted { dns: false, ..wanted() }, &found(NINE)));
    assert!(!off.iter().any(|line| line.contains("nameserver=")), "{off:#?}");
}

#[test]
fn a_device_comes_in_as_the_host_can_give_it() {
    let refused = |wanted: &Wanted, found: &Found| enroll(wanted, found, RunId::new(7)).unwrap_err().to_string();
    assert!(refused(&wanted(), &found(Version::new(8, 4, 0))).contains("after its next start only"));
    let restart = Wanted { restart: true, ..wanted() };
    let shown = lines(&plan(&restart, &found(Version::new(8, 4, 0))));
    let at = |words: &str| shown.iter().position(|line| line.contains(words)).unwrap();
    assert!(at("dev0=/dev/net/tun") < at("status/reboot") && at("status/reboot") < at("systemctl enable"), "{shown:#?}");
    assert!(refused(&restart, &found(Version::new(7, 4, 0))).contains("Proxmox VE 7.4.0"));
    let mut token = found(NINE);
    token.observed.principal = Principal::Token("root@pam!t".to_owned());
    assert!(matches!(enroll(&wanted(), &token, RunId::new(7)), Err(Refusal::RootOnly { .. })));
    let userspace = Wanted { userspace: true, ..wanted() };
    assert!(!lines(&plan(&userspace, &token)).iter().any(|line| line.contains("dev0")));
    // What is there and can be opened stays as it is, old raw lines included.
    let mut there = token;
    there.seen.as_mut().unwrap().tun = TunSeen::Usable;
    assert!(!lines(&plan(&wanted(), &there)).iter().any(|line| line.contains("dev0")));
    let raw = ("lxc.mount.entry".to_owned(), "/dev/net/tun dev/net/tun none bind,create=file".to_owned());
    there = found(NINE);
    there.seen.as_mut().unwrap().tun = TunSeen::Usable;
    there.observed.target.as_mut().unwrap().config.raw.push(raw);
    assert!(!lines(&plan(&wanted(), &there)).iter().any(|line| line.contains("dev0")));
    // What nothing in the configuration brings would be missing after the next start.
    there.observed.target.as_mut().unwrap().config.raw.clear();
    assert!(lines(&plan(&wanted(), &there)).iter().any(|line| line.contains("dev0=/dev/net/tun")));
    let mut taken = found(NINE);
    taken.observed.target.as_mut().unwrap().config.values.insert("dev0".to_owned(), "/dev/dri/card0".to_owned());
    assert!(lines(&plan(&wanted(), &taken)).iter().any(|line| line.contains("dev1=/dev/net/tun")));
}

#[test]
fn what_cannot_be_worked_on_is_refused() {
    let refused = |change: &dyn Fn(&mut Found)| {
        let mut found = found(NINE);
        change(&mut found);
        enroll(&wanted(), &found, RunId::new(7)).unwrap_err().to_string()
    };
    let seen = |found: &mut Found, line: &str| found.seen = Some(Seen::read(&format!("{line}\n{SEEN}")));
    assert!(refused(&|found| found.observed.target.as_mut().unwrap().running = false).contains("does not run"));
    assert!(refused(&|found| found.observed.target.as_mut().unwrap().config.lock = Some("backup".to_owned())).contains("locked (backup)"));
    assert!(refused(&|found| seen(found, "other=tailscaled")).contains("tailscaled runs"));
    assert!(refused(&|found| found.seen.as_mut().unwrap().machine = "aarch64".to_owned()).contains("for aarch64"));
    assert!(refused(&|found| found.seen.as_mut().unwrap().service = None).contains("what starts services"));
    assert!(refused(&|found| found.observed.mesh = vec![(NodeId(1), "wiki".parse().unwrap())]).contains("name wiki is taken"));
    assert!(refused(&|found| found.observed.target = None).contains("no guest 105"));
    let ours = Mark {
        vmid: vmid(),
        role: "exit-node".to_owned(),
        name: "e".parse().unwrap(),
        run: RunId::new(1),
        ready: true,
        identity: crate::plan::mark::Identity::default(),
        fleet: None,
    };
    let is_ours = |found: &mut Found| {
        let config = &mut found.observed.target.as_mut().unwrap().config;
        (config.description, config.tags) = (ours.attach("x"), vec![TAG.to_owned()]);
    };
    assert!(refused(&is_ours).contains("is a pvemesh exit-node"));
}

#[test]
fn the_systemd_unit_is_this() {
    let text = render::service(Service::Systemd, "/usr/local/bin/pvemesh").unwrap().unwrap();
    let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
    assert_eq!(
        lines,
        [
            "[Unit]",
            "Description=pvemesh mesh node",
            "Wants=network-online.target",
            "After=network-online.target nss-lookup.target",
            "",
            "[Service]",
            "ExecStart=/usr/local/bin/pvemesh node run --guest-config /etc/pvemesh/guest.toml",
            "Restart=always",
            "RestartSec=1",
            "LimitNOFILE=65536",
            "",
            "[Install]",
            "WantedBy=multi-user.target"
        ]
    );
    for service in Service::ALL {
        let text = render::service(service, "/opt/bin/pvemesh").unwrap();
        assert_eq!(text.is_some(), service.file().is_some(), "{service}");
        let Some(text) = text else { continue };
        assert!(text.contains("/opt/bin/pvemesh") && text.contains("guest.toml"), "{service}: {text}");
        let script = matches!(service, Service::Openrc | Service::Runit | Service::Sysv | Service::Rcs);
        assert_eq!(text.starts_with("#!/"), script, "{service}: {text}");
    }
}
