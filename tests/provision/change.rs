//! Guests that are there: what differs is changed and nothing else, by value and through the binary.

use std::collections::BTreeMap;

use pvemesh::plan::create::{self, Image, Outcome, Plan};
use pvemesh::plan::mark::{Mark, RunId, TAG};
use pvemesh::plan::observed::{HostView, Observed, Target};
use pvemesh::plan::options::{GuestTexts, Join, KnownCoordinator, NodeKind, Role};
use pvemesh::plan::render::{self, Notes};
use pvemesh::plan::{Action, Carrier, Refusal, Undo};
use pvemesh::pve::call::Arch;
use pvemesh::pve::reply::ContainerConfig;
use pvemesh::pve::{Principal, Version};
use pvemesh::settings::Guest;

use crate::world::World;

const RUN: RunId = RunId::new(0xfeed);
const SETTINGS: &str = "vmid = 101\nhostname = \"router-1\"\n[network]\nipv4 = \"dhcp\"\nipv6 = \"auto\"\n[node]\nlogin_server = \"http://192.168.50.100:8080\"\n\
                        advertise_routes = [\"10.0.0.0/8\", \"192.168.50.0/24\"]\n";
const NET0: &str = "name=eth0,bridge=vmbr0,hwaddr=BC:24:11:00:00:01,ip=dhcp,ip6=auto,tag=7,type=veth";

fn told() -> Guest {
    Guest::from_toml(SETTINGS).unwrap()
}

fn there(version: Version, description: &str) -> Observed {
    let values = [("memory", "64"), ("cores", "2"), ("net0", NET0), ("rootfs", "local-lvm:vm-101-disk-0,size=256M")];
    let values: BTreeMap<String, String> = values.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
    let tags = vec![TAG.to_owned(), "subnet-router".to_owned()];
    let config =
        ContainerConfig { description: description.to_owned(), tags, values, digest: Some("abc".to_owned()), ..ContainerConfig::default() };
    let host = HostView {
        name: "pve".parse().unwrap(),
        online: true,
        version: Some(version),
        storages: Vec::new(),
        bridges: Vec::new(),
        templates: Vec::new(),
    };
    Observed {
        principal: Principal::RootTicket,
        local: None,
        hosts: vec![host],
        guests: Vec::new(),
        mesh: Vec::new(),
        goldens: Vec::new(),
        hookscript: pvemesh::plan::observed::Hookscript::default(),
        target: Some(Target { host: "pve".parse().unwrap(), config, running: true }),
    }
}

fn notes(guest: &Guest) -> String {
    let mark = Mark {
        vmid: "101".parse().unwrap(),
        role: "subnet-router".to_owned(),
        name: "router-1".parse().unwrap(),
        run: RunId::new(1),
        ready: true,
        identity: pvemesh::plan::mark::Identity::default(),
        fleet: None,
    };
    mark.attach(&render::notes(&Notes::of(guest, "subnet router", "0.1.0")).unwrap())
}

fn router(routes: &[&str], auto: bool) -> Role {
    let routes = routes.iter().map(|net| net.parse().unwrap()).collect();
    let known = KnownCoordinator {
        vmid: None,
        lan_url: "http://192.168.50.100:8080".to_owned(),
        url: "http://192.168.50.100:8080".to_owned(),
        server_key: pvemesh::ident::MachinePublic::from_bytes([9; 32]),
    };
    Role::Node {
        kind: NodeKind::SubnetRouter { routes, lan: auto, snat: None, gateway: None },
        join: Join::Ours(known),
        endpoints: Vec::new(),
        userspace: None,
    }
}

fn asked(change: impl FnOnce(&mut GuestTexts), role: &Role, observed: &Observed) -> Result<Outcome, Refusal> {
    let mut texts = GuestTexts { vmid: "101".to_owned(), ..GuestTexts::default() };
    change(&mut texts);
    let image = Image::new("0.1.0", &"0123456789abcdef".repeat(4), Arch::Amd64);
    create::create(&texts.check().unwrap(), role, observed, &image, RUN)
}

fn changed(change: impl FnOnce(&mut GuestTexts), role: &Role) -> Plan {
    match asked(change, role, &there(Version::new(9, 1, 9), &notes(&told()))).unwrap() {
        Outcome::Change(plan) => plan,
        other => panic!("{other:?}"),
    }
}

fn lines(plan: &Plan) -> Vec<String> {
    plan.steps.iter().map(|step| step.action.to_string()).collect()
}

#[test]
fn what_was_not_asked_for_is_not_compared() {
    let observed = there(Version::new(9, 1, 9), &notes(&told()));
    for role in [
        router(&["10.0.0.0/8"], true),
        router(&["192.168.50.0/24", "10.0.0.0/8"], false),
        router(&["10.0.0.0/8", "192.168.50.0/24"], false),
    ] {
        let outcome = asked(|_| {}, &role, &observed).unwrap();
        assert!(matches!(outcome, Outcome::AlreadyThere(_)), "{outcome:?}");
    }
    let same = |texts: &mut GuestTexts| {
        (texts.memory, texts.cores, texts.ip, texts.bridge) = (Some(64), Some(2), Some("dhcp".to_owned()), Some("vmbr0".to_owned()));
        (texts.name, texts.storage, texts.node) = (Some("router-1".to_owned()), Some("local-lvm".to_owned()), Some("pve".to_owned()));
    };
    assert!(matches!(asked(same, &router(&["10.0.0.0/8"], true), &observed).unwrap(), Outcome::AlreadyThere(_)));
}

#[test]
fn memory_and_cores_change_in_one_call_that_a_later_edit_of_somebody_else_stops() {
    let plan = changed(|texts| (texts.memory, texts.cores) = (Some(96), Some(4)), &router(&["10.0.0.0/8"], true));
    assert_eq!(lines(&plan), ["PUT /nodes/pve/lxc/101/config cores=4 digest=abc memory=96"]);
    let undo = plan.steps[0].undo.clone().unwrap();
    assert!(matches!(&undo, Undo::PutBack { values, added, .. } if values["memory"] == "64" && values["cores"] == "2" && added.is_empty()));
    let words: Vec<_> = plan.differences.iter().map(|d| (d.what, d.from.as_str(), d.to.as_str())).collect();
    assert_eq!(words, [("memory", "64", "96"), ("cores", "2", "4")]);
}

#[test]
fn a_bridge_changes_in_place_and_what_the_admin_added_to_the_interface_stays() {
    let plan = changed(|texts| texts.bridge = Some("vmbr1".to_owned()), &router(&["10.0.0.0/8"], true));
    let net = NET0.replace("vmbr0", "vmbr1");
    assert_eq!(lines(&plan), [format!("PUT /nodes/pve/lxc/101/config digest=abc net0={net}")]);
}

#[test]
fn other_routes_are_approved_handed_over_and_set_back_if_the_node_does_not_return() {
    let plan = changed(|_| {}, &router(&["10.0.0.0/8", "172.16.0.0/12"], false));
    assert_eq!(
        lines(&plan),
        [
            "coordinator: POST node router-1 routes add=172.16.0.0/12 remove=192.168.50.0/24",
            "PUT /nodes/pve/lxc/101/config env=(the guest's settings)",
            "POST /nodes/pve/lxc/101/status/reboot timeout=10 (task, at most 90 s)",
            "coordinator: GET nodes (until router-1 is online, at most 90 s)",
            "PUT /nodes/pve/lxc/101/config delete=env",
            "PUT /nodes/pve/lxc/101/config description=(notes with the address in the mesh)",
        ]
    );
    let Action::Redeliver { guest, .. } = &plan.steps[1].action else { panic!("{plan:?}") };
    let node = guest.node.as_ref().unwrap();
    assert_eq!(node.advertise_routes, ["10.0.0.0/8".parse().unwrap(), "172.16.0.0/12".parse::<ipnet::IpNet>().unwrap()]);
    assert!(matches!(plan.steps[1].undo.as_ref().unwrap(), Undo::HandBack { settings, restart: true, .. } if **settings == told()));
    let text = serde_json::to_string(&plan.steps[1].undo).unwrap();
    assert_eq!(serde_json::from_str::<Option<Undo>>(&text).unwrap(), plan.steps[1].undo, "the journal keeps it");
}

#[test]
fn before_the_environment_came_settings_are_written_in_the_running_guest() {
    let mut observed = there(Version::new(9, 0, 11), &notes(&told()));
    let plan = |observed: &Observed| match asked(|_| {}, &router(&["10.0.0.0/8"], false), observed).unwrap() {
        Outcome::Change(plan) => plan,
        other => panic!("{other:?}"),
    };
    let running = plan(&observed);
    let rest = [
        "coordinator: POST node router-1 routes add= remove=192.168.50.0/24",
        "pct exec 101: write /etc/pvemesh/guest.toml (secret, mode 600)",
        "POST /nodes/pve/lxc/101/status/reboot timeout=10 (task, at most 90 s)",
        "coordinator: GET nodes (until router-1 is online, at most 90 s)",
        "PUT /nodes/pve/lxc/101/config description=(notes with the address in the mesh)",
    ];
    assert_eq!(lines(&running), [&["pct exec 101 -- /sbin/init --version"][..], &rest].concat());
    assert!(running.enters() && running.steps[0].undo.is_none());
    let undo = running.steps[2].undo.as_ref().unwrap();
    assert!(matches!(undo, Undo::HandBack { settings, restart: true, carrier: Carrier::Inside, .. } if **settings == told()));
    assert_eq!(undo.enters().unwrap().as_str(), "pve");
    // Journals of before know one way only.
    let old = serde_json::json!({ "undo": "hand-back", "host": "pve", "settings": told(), "restart": true });
    assert!(matches!(serde_json::from_value(old).unwrap(), Undo::HandBack { carrier: Carrier::Environment, .. }));

    // One that is stopped runs for it, and is stopped again if it fails.
    observed.target.as_mut().unwrap().running = false;
    let stopped = plan(&observed);
    assert_eq!(lines(&stopped)[0], "POST /nodes/pve/lxc/101/status/start (task, at most 90 s)");
    assert_eq!(lines(&stopped)[2..], rest);
    assert!(matches!(&stopped.steps[0].undo, Some(Undo::Stop { .. })));
    // Memory alone needs nobody inside.
    let memory = asked(|texts| texts.memory = Some(96), &router(&["10.0.0.0/8"], true), &observed).unwrap();
    assert!(matches!(&memory, Outcome::Change(plan) if !plan.enters()), "{memory:?}");
}

#[test]
fn another_name_is_set_in_proxmox_at_the_coordinator_and_in_the_guest() {
    let plan = changed(|texts| texts.name = Some("gate".to_owned()), &router(&["10.0.0.0/8"], true));
    let lines = lines(&plan);
    assert_eq!(lines[0], "PUT /nodes/pve/lxc/101/config digest=abc hostname=gate");
    assert_eq!(lines[1], "coordinator: POST node router-1 name=gate");
    assert!(lines.iter().any(|line| line.contains("until gate is online")), "{lines:?}");
    assert_eq!(plan.name.as_str(), "gate");
}

#[test]
fn an_address_changes_where_proxmox_shows_it_and_in_the_guest() {
    let plan = changed(
        |texts| (texts.ip, texts.gw) = (Some("192.168.50.9/24".to_owned()), Some("192.168.50.1".to_owned())),
        &router(&["10.0.0.0/8"], true),
    );
    let net = NET0.replace("ip=dhcp", "ip=192.168.50.9/24");
    assert_eq!(lines(&plan)[0], format!("PUT /nodes/pve/lxc/101/config digest=abc net0={net},gw=192.168.50.1"));
    assert_eq!(plan.differences[0].to, "192.168.50.9/24 via 192.168.50.1, auto");
}

#[test]
fn a_changed_coordinator_keeps_the_address_its_clients_are_told() {
    let coordinator = |url: &str| {
        Guest::from_toml(&format!(
            "vmid = 101\nhostname = \"coordinator\"\n[network]\nipv4 = \"192.168.50.100/24\"\nipv6 = \"auto\"\n[coordinator]\n\
             url = \"{url}\"\nlisten = \"0.0.0.0:8080\"\nbase_domain = \"mesh.internal\"\n"
        ))
        .unwrap()
    };
    let admin_key = pvemesh::ident::MachinePublic::from_bytes([5; 32]);
    let role = Role::Coordinator { url: None, base_domain: None, admin_key, trusted_proxies: Vec::new() };
    for (told, kept) in [("https://mesh.example.org", Some("https://mesh.example.org")), ("http://192.168.50.100:8080", None)] {
        let notes = notes(&coordinator(told)).replace("role=subnet-router name=router-1", "role=coordinator name=coordinator");
        let observed = there(Version::new(9, 1, 9), &notes);
        let Outcome::Change(plan) = asked(|texts| texts.dns = vec!["192.168.50.1".to_owned()], &role, &observed).unwrap() else {
            panic!("nothing differs")
        };
        let met = plan.steps.iter().find_map(|step| match &step.action {
            Action::MeetCoordinator { url, .. } => Some(url.as_deref()),
            _ => None,
        });
        assert_eq!(met, Some(kept), "{told}");
    }
}

#[test]
fn what_pvemesh_does_not_change_is_refused_with_the_way_to_change_it() {
    let observed = there(Version::new(9, 1, 9), &notes(&told()));
    let role = router(&["10.0.0.0/8"], true);
    let refused = |change: &dyn Fn(&mut GuestTexts), role: &Role, observed: &Observed| {
        let refusal = asked(change, role, observed).unwrap_err();
        format!("{refusal} / {}", refusal.next())
    };
    let text = refused(&|texts| texts.node = Some("pve2".to_owned()), &role, &observed);
    assert!(text.contains("its node is pve, not pve2") && text.contains("pct migrate 101 pve2"), "{text}");
    let text = refused(&|texts| texts.storage = Some("fast".to_owned()), &role, &observed);
    assert!(text.contains("its storage is local-lvm, not fast") && text.contains("pct move-volume 101 rootfs fast"), "{text}");
    let mut elsewhere = told();
    elsewhere.node.as_mut().unwrap().login_server = "https://mesh.example.org".to_owned();
    let text = refused(&|_| {}, &role, &there(Version::new(9, 1, 9), &notes(&elsewhere)));
    assert!(text.contains("its coordinator is https://mesh.example.org"), "{text}");
    let mut locked = there(Version::new(9, 1, 9), &notes(&told()));
    locked.target.as_mut().unwrap().config.lock = Some("backup".to_owned());
    let text = refused(&|texts| texts.memory = Some(96), &role, &locked);
    assert!(text.contains("locked (backup)"), "{text}");
    let strange = notes(&told()).replace("settings of this", "nothing of this");
    let text = refused(&|_| {}, &role, &there(Version::new(9, 1, 9), &strange));
    assert!(text.contains("not kept in its notes"), "{text}");
}

#[test]
fn the_second_run_does_nothing_and_a_changed_option_changes_just_that() {
    let world = World::new();
    world.init();
    world.create("--memory 64").succeeded();
    let before = world.standin.config(101).unwrap();
    let again = world.create("--json");
    assert_eq!((again.json()["changed"].as_bool(), again.code), (Some(false), Some(0)), "{again:?}");
    assert_eq!(world.standin.config(101).unwrap().digest(), before.digest());
    let dry = world.create("--memory 96 --dry-run");
    assert!(dry.succeeded().out.contains("memory            64 -> 96"), "{dry:?}");
    assert_eq!(world.standin.config(101).unwrap().digest(), before.digest());
    let more = world.create("--memory 96 --json");
    assert_eq!(more.json()["differences"][0]["to"], "96", "{more:?}");
    let after = world.standin.config(101).unwrap();
    assert_eq!(after.get("memory"), Some("96"));
    assert_eq!((after.get("net0"), after.get("description")), (before.get("net0"), before.get("description")));
    assert!(!world.path("config/101.journal").exists());
}

#[test]
fn a_change_that_fails_leaves_the_guest_as_it_was() {
    use crate::standin::faults::Fault;
    let world = World::new();
    world.init();
    world.create("").succeeded();
    let before = world.standin.config(101).unwrap();
    world.standin.faults().on("POST", "/status/reboot", 1, Fault::TaskFails("no space left".to_owned()));
    world.create("--dns 192.168.50.1 --memory 96").failed(1, &["restart container 101", "what had been made was taken back"]);
    let after = world.standin.config(101).unwrap();
    for key in ["memory", "net0", "hostname", "description", "tags"] {
        assert_eq!(after.get(key), before.get(key), "{key}");
    }
    assert!(world.standin.is_running(101) && !world.path("config/101.journal").exists());
    world.create("--dns 192.168.50.1 --memory 96").succeeded();
    assert_eq!(world.standin.config(101).unwrap().get("memory"), Some("96"));
}
