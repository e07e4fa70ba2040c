//! Plans by value: what is decided and what would be called, without anything to call.

use pvemesh::ident::{MachinePublic, Secret};
use pvemesh::plan::create::{self, Image, Outcome, Plan};
use pvemesh::plan::destroy;
use pvemesh::plan::journal::{Journal, Recovery};
use pvemesh::plan::mark::{Identity, Mark, RunId, TAG};
use pvemesh::plan::observed::{Hookscript, HostView, Observed, Target};
use pvemesh::plan::options::{GuestTexts, Join, KnownCoordinator, NodeKind, Role};
use pvemesh::plan::{Action, Refusal, render};
use pvemesh::pve::call::Arch;
use pvemesh::pve::reply::{Bridge, ContainerConfig, GuestSummary, Storage};
use pvemesh::pve::{Principal, Version};
use pvemesh::settings::Guest;

const RUN: RunId = RunId::new(0x0123_4567_89ab_cdef);
const GIB: u64 = 1 << 30;

fn storage(name: &str, content: &str, gib: u64, shared: bool) -> Storage {
    let content = content.split(',').map(ToOwned::to_owned).collect();
    Storage { name: name.parse().unwrap(), content, usable: true, shared, available: Some(gib * GIB) }
}

fn bridge(name: &str, has_gateway: bool) -> Bridge {
    Bridge { name: name.to_owned(), active: true, address: None, has_gateway }
}

fn host(name: &str) -> HostView {
    HostView {
        name: name.parse().unwrap(),
        online: true,
        version: Some(Version::new(9, 1, 9)),
        storages: vec![storage("local", "iso,vztmpl,backup", 20, false), storage("local-lvm", "rootdir,images", 100, false)],
        bridges: vec![bridge("vmbr0", true)],
        templates: Vec::new(),
    }
}

fn one_host() -> Observed {
    Observed {
        principal: Principal::RootTicket,
        local: None,
        hosts: vec![host("pve")],
        guests: Vec::new(),
        mesh: Vec::new(),
        goldens: Vec::new(),
        target: None,
        hookscript: Hookscript::default(),
    }
}

fn image() -> Image {
    Image::new("0.1.0", &"0123456789abcdef".repeat(4), Arch::Amd64)
}

fn known() -> KnownCoordinator {
    KnownCoordinator {
        vmid: Some("100".parse().unwrap()),
        lan_url: "http://192.168.50.100:8080".to_owned(),
        url: "https://mesh.example.org".to_owned(),
        server_key: MachinePublic::from_bytes([9; 32]),
    }
}

fn exit_node() -> Role {
    Role::Node {
        kind: NodeKind::ExitNode,
        join: Join::Ours(known()),
        endpoints: vec!["203.0.113.7:41641".parse().unwrap()],
        userspace: None,
    }
}

fn coordinator() -> Role {
    let admin_key = MachinePublic::from_bytes([5; 32]);
    Role::Coordinator { url: None, base_domain: None, admin_key, trusted_proxies: Vec::new() }
}

fn texts() -> GuestTexts {
    GuestTexts { vmid: "101".to_owned(), ..GuestTexts::default() }
}

fn plan_with(texts: &GuestTexts, role: &Role, observed: &Observed) -> Result<Plan, Refusal> {
    match create::create(&texts.check().unwrap(), role, observed, &image(), RUN)? {
        Outcome::Plan(plan) => Ok(plan),
        other => panic!("{other:?}"),
    }
}

fn plan(role: &Role, observed: &Observed) -> Result<Plan, Refusal> {
    plan_with(&texts(), role, observed)
}

fn chosen(plan: &Plan, what: &str) -> (String, String) {
    let choice = plan.choices.iter().find(|c| c.what == what).unwrap();
    (choice.value.clone(), choice.why.clone())
}

/// The plan as text, one line per step, its call and its undo.
fn shown(plan: &Plan) -> String {
    let mut text = String::new();
    for step in &plan.steps {
        text.push_str(&format!("{}\n    {}\n", step.title, step.action));
        if let Some(undo) = &step.undo {
            text.push_str(&format!("    undo: {undo}\n"));
        }
    }
    text
}

#[test]
fn the_steps_of_an_exit_node_are_these() {
    insta::assert_snapshot!(shown(&plan(&exit_node(), &one_host()).unwrap()));
}

#[test]
fn the_steps_of_a_coordinator_are_these() {
    let mut texts = texts();
    (texts.ip, texts.gw) = (Some("192.168.50.100/24".to_owned()), Some("192.168.50.1".to_owned()));
    insta::assert_snapshot!(shown(&plan_with(&texts, &coordinator(), &one_host()).unwrap()));
}

#[test]
fn a_coordinator_behind_a_reverse_proxy_is_told_whose_word_to_take() {
    let proxies: Vec<ipnet::IpNet> = vec!["192.168.50.5/32".parse().unwrap(), "fd00::5/128".parse().unwrap()];
    let Role::Coordinator { base_domain, admin_key, .. } = coordinator() else { unreachable!() };
    let url = Some("https://mesh.example.org".to_owned());
    let role = Role::Coordinator { url, base_domain, admin_key, trusted_proxies: proxies.clone() };
    let plan = plan(&role, &one_host()).unwrap();
    let delivered = plan.steps.iter().find_map(|step| match &step.action {
        Action::Deliver { guest, .. } => Some(guest),
        _ => None,
    });
    let text = render::guest(delivered.unwrap()).unwrap();
    let coordinator = Guest::from_toml(&text).unwrap().coordinator.unwrap();
    assert_eq!(coordinator.front.trusted_proxies, proxies, "{text}");
    assert_eq!(coordinator.url, "https://mesh.example.org");
}

#[test]
fn a_subnet_router_takes_the_network_it_stands_in_where_somebody_says_which() {
    let router = |routes: &[&str]| {
        let routes = routes.iter().map(|net| net.parse().unwrap()).collect();
        Role::Node {
            kind: NodeKind::SubnetRouter { routes, lan: true, snat: None, gateway: None },
            join: Join::Ours(known()),
            endpoints: Vec::new(),
            userspace: None,
        }
    };
    let delivered = |plan: &Plan| {
        let guest = plan.steps.iter().find_map(|step| match &step.action {
            Action::Deliver { guest, .. } => guest.node.clone(),
            _ => None,
        });
        guest.unwrap().advertise_routes.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    let approved = |plan: &Plan| shown(plan).contains("192.168.50.0/24");
    let mut lan = one_host();
    lan.hosts[0].bridges[0].address = "192.168.50.2/24".parse().ok();
    let by_host = plan(&router(&["10.0.0.0/8"]), &lan).unwrap();
    assert_eq!((delivered(&by_host), approved(&by_host)), (vec!["10.0.0.0/8".to_owned(), "192.168.50.0/24".to_owned()], true));
    assert!(chosen(&by_host, "route").1.contains("pve's own network on vmbr0"), "{:?}", chosen(&by_host, "route"));
    let mut fixed = texts();
    (fixed.ip, fixed.gw) = (Some("192.168.77.9/24".to_owned()), Some("192.168.77.1".to_owned()));
    assert_eq!(delivered(&plan_with(&fixed, &router(&[]), &one_host()).unwrap()), ["192.168.77.0/24"]);
    let refusal = plan(&router(&[]), &one_host()).unwrap_err();
    assert!(matches!(refusal, Refusal::NoNetwork { .. }) && refusal.next().contains("--route"), "{refusal}");
}

#[test]
fn a_subnet_router_is_its_networks_gateway_into_the_mesh_only_if_it_is_to_be() {
    for is_gateway in [true, false] {
        let gateway = Some(is_gateway);
        let kind = NodeKind::SubnetRouter { routes: vec!["10.0.0.0/8".parse().unwrap()], lan: false, snat: None, gateway };
        let role = Role::Node { kind, join: Join::Ours(known()), endpoints: Vec::new(), userspace: None };
        let plan = plan(&role, &one_host()).unwrap();
        let delivered = plan.steps.iter().find_map(|step| match &step.action {
            Action::Deliver { guest, .. } => Some(guest),
            _ => None,
        });
        let text = render::guest(delivered.unwrap()).unwrap();
        let node = Guest::from_toml(&text).unwrap().node.unwrap();
        let mut prefs = pvemesh::node::Prefs::default();
        prefs.adopt(&node, &"router".parse().unwrap());
        assert_eq!((node.lan_gateway, prefs.lan_gateway), (is_gateway, is_gateway), "{text}");
    }
}

#[test]
fn the_steps_of_a_relay_are_these() {
    let relay = Role::Relay { coordinator: known(), address: None };
    insta::assert_snapshot!(shown(&plan(&relay, &one_host()).unwrap()));
    let mark = Mark { role: "relay".to_owned(), name: "relay-1".parse().unwrap(), ..mark(true) };
    let observed = Observed { target: Some(target(&mark)), ..one_host() };
    let removal = destroy::destroy("101".parse().unwrap(), &observed, Some(Some("100".parse().unwrap()))).unwrap();
    assert_eq!(removal.steps[2].action.to_string(), "coordinator: DELETE relay relay-1");
}

#[test]
fn the_steps_on_an_older_host_are_these() {
    let mut observed = one_host();
    observed.hosts[0].version = Some(Version::new(8, 4, 1));
    insta::assert_snapshot!(shown(&plan(&exit_node(), &observed).unwrap()));
}

#[test]
fn no_plan_shows_a_join_key() {
    let join = Join::Other { login_server: "https://headscale.example.org".to_owned(), auth_key: Secret::new("hskey-secret") };
    let role = Role::Node { kind: NodeKind::Member, join, endpoints: Vec::new(), userspace: None };
    let plan = plan(&role, &one_host()).unwrap();
    assert!(!shown(&plan).contains("hskey-secret") && !format!("{plan:?}").contains("hskey-secret"));
    assert!(!serde_json::to_string(&Journal::new(&plan)).unwrap().contains("hskey"));
}

#[test]
fn an_image_that_is_there_is_not_uploaded_again() {
    let mut observed = one_host();
    observed.hosts[0].templates = vec![format!("local:vztmpl/{}", image().file).parse().unwrap()];
    let plan = plan(&exit_node(), &observed).unwrap();
    assert!(!plan.steps.iter().any(|s| matches!(s.action, Action::Upload { .. })));
    assert_eq!(chosen(&plan, "template storage").1, "the image is there already");
}

#[test]
fn the_node_is_the_one_we_are_on_else_the_one_with_most_space() {
    let mut observed = one_host();
    observed.hosts = vec![host("alpha"), host("beta"), host("gamma")];
    observed.hosts[1].storages[1].available = Some(500 * GIB);
    assert_eq!(chosen(&plan(&exit_node(), &observed).unwrap(), "node").0, "beta");
    observed.hosts[1].online = false;
    assert_eq!(chosen(&plan(&exit_node(), &observed).unwrap(), "node").0, "alpha");
    observed.local = Some("gamma".parse().unwrap());
    let plan = plan(&exit_node(), &observed).unwrap();
    assert_eq!(chosen(&plan, "node"), ("gamma".to_owned(), "the node this command runs on".to_owned()));
}

#[test]
fn a_local_storage_with_most_space_and_the_bridge_to_the_internet_are_taken() {
    let mut observed = one_host();
    observed.hosts[0].storages = vec![
        storage("nas", "rootdir,vztmpl", 9000, true),
        storage("small", "rootdir", 10, false),
        storage("large", "rootdir,vztmpl", 50, false),
    ];
    observed.hosts[0].bridges = vec![bridge("vmbr0", false), bridge("vmbr1", true)];
    let plan = plan(&exit_node(), &observed).unwrap();
    assert_eq!((chosen(&plan, "storage").0, chosen(&plan, "template storage").0), ("large".to_owned(), "large".to_owned()));
    assert_eq!(chosen(&plan, "bridge"), ("vmbr1".to_owned(), "the node's own way to the internet".to_owned()));
}

#[test]
fn names_already_in_the_mesh_or_on_guests_are_not_given_twice() {
    let mut observed = one_host();
    let guest = |vmid: &str, name: &str| GuestSummary {
        vmid: vmid.parse().unwrap(),
        host: "pve".parse().unwrap(),
        container: true,
        name: name.to_owned(),
        running: true,
        tags: Vec::new(),
        managed: false,
    };
    observed.guests = vec![guest("110", "exit-1")];
    observed.mesh = vec![(pvemesh::ident::NodeId(4), "exit-2".parse().unwrap())];
    assert_eq!(plan(&exit_node(), &observed).unwrap().name.as_str(), "exit-3");
    for taken in ["exit-1", "exit-2"] {
        let texts = GuestTexts { name: Some(taken.to_owned()), ..texts() };
        assert!(matches!(plan_with(&texts, &exit_node(), &observed), Err(Refusal::NameTaken { .. })), "{taken}");
    }
}

#[test]
fn only_the_literal_root_may_make_one() {
    for principal in [Principal::Token("root@pam!t".to_owned()), Principal::User("admin@pve".to_owned())] {
        let observed = Observed { principal, ..one_host() };
        assert!(plan(&coordinator(), &observed).is_ok(), "a coordinator needs no device");
        let refusal = plan(&exit_node(), &observed).unwrap_err();
        assert!(matches!(refusal, Refusal::NeedsRoot { .. }));
        assert!(refusal.to_string().contains("dev0") && refusal.next().contains("--tun userspace"), "{refusal}");
        let Role::Node { kind, join, endpoints, .. } = exit_node() else { panic!("a node") };
        let plan = plan(&Role::Node { kind, join, endpoints, userspace: Some(true) }, &observed).unwrap();
        let requests =
            plan.steps.iter().filter_map(|s| if let Action::Call { request, .. } = &s.action { Some(request.to_string()) } else { None });
        let create = requests.into_iter().find(|request| request.contains("/lxc arch=")).unwrap();
        assert!(!create.contains("dev0"), "{create}");
    }
    let on_host = Observed { principal: Principal::RootHost, ..one_host() };
    let plan = plan(&exit_node(), &on_host).unwrap();
    assert!(!plan.steps.iter().any(|s| matches!(s.action, Action::Deliver { .. })), "pvesh would show the key to every user of the host");
}

#[test]
fn every_way_a_cluster_can_be_unfit_is_refused() {
    let refusal = |change: &dyn Fn(&mut HostView)| {
        let mut observed = one_host();
        change(&mut observed.hosts[0]);
        plan(&exit_node(), &observed).unwrap_err()
    };
    assert!(matches!(refusal(&|h| h.online = false), Refusal::HostOffline(_)));
    assert!(matches!(refusal(&|h| h.version = Some(Version::new(8, 0, 4))), Refusal::TooOld { .. }));
    assert!(matches!(refusal(&|h| h.version = None), Refusal::TooOld { .. }));
    assert!(matches!(refusal(&|h| h.storages.clear()), Refusal::NoStorage { content: "rootdir", .. }));
    assert!(matches!(refusal(&|h| h.storages[0].usable = false), Refusal::NoStorage { content: "vztmpl", .. }));
    assert!(matches!(refusal(&|h| h.storages[1].available = Some(1 << 20)), Refusal::NoStorage { content: "rootdir", .. }));
    assert!(matches!(refusal(&|h| h.bridges[0].active = false), Refusal::NoBridge(_)));
    let empty = Observed { hosts: Vec::new(), ..one_host() };
    assert!(matches!(plan(&exit_node(), &empty), Err(Refusal::NoHost(_))));
    let mut two = one_host();
    two.hosts.push(HostView { online: false, ..host("other") });
    two.hosts[0].bridges.clear();
    let text = plan(&exit_node(), &two).unwrap_err().to_string();
    assert!(text.contains("pve has no active bridge") && text.contains("node other is offline"), "{text}");
}

/// A container of ours with the notes of the exit node that [`exit_node`] asks for.
fn target(mark: &Mark) -> Target {
    let plan = plan(&exit_node(), &one_host()).unwrap();
    let notes = plan.steps.iter().find_map(|step| match &step.action {
        Action::Finish { notes, .. } => Some(render::notes(notes).unwrap()),
        _ => None,
    });
    let config = ContainerConfig { description: mark.attach(&notes.unwrap()), tags: vec![TAG.to_owned()], ..ContainerConfig::default() };
    Target { host: "pve".parse().unwrap(), config, running: true }
}

fn mark(ready: bool) -> Mark {
    Mark {
        vmid: "101".parse().unwrap(),
        role: "exit-node".to_owned(),
        name: "exit-1".parse().unwrap(),
        run: RUN,
        ready,
        identity: Identity::default(),
        fleet: None,
    }
}

#[test]
fn what_is_there_decides_between_nothing_to_do_and_a_conflict() {
    let with = |target: Target| Observed { target: Some(target), ..one_host() };
    let options = texts().check().unwrap();
    let outcome = create::create(&options, &exit_node(), &with(target(&mark(true))), &image(), RUN).unwrap();
    assert!(matches!(outcome, Outcome::AlreadyThere(existing) if existing.running && existing.name.as_str() == "exit-1"));
    assert!(matches!(plan(&exit_node(), &with(target(&mark(false)))), Err(Refusal::Unfinished { .. })));
    assert!(matches!(plan(&coordinator(), &with(target(&mark(true)))), Err(Refusal::OtherRole { .. })));
    let clone = Mark { vmid: "140".parse().unwrap(), ..mark(true) };
    assert!(matches!(plan(&exit_node(), &with(target(&clone))), Err(Refusal::VmidInUse { .. })));
    let mut creating = target(&mark(true));
    creating.config = ContainerConfig { lock: Some("create".to_owned()), ..ContainerConfig::default() };
    assert!(matches!(plan(&exit_node(), &with(creating)), Err(Refusal::Locked { .. })));
}

#[test]
fn a_journal_is_undone_backwards_unless_the_run_had_ended() {
    let plan = plan(&exit_node(), &one_host()).unwrap();
    let mut journal = Journal::new(&plan);
    journal.undo = plan.steps.iter().filter_map(|s| s.undo.clone()).collect();
    let text = serde_json::to_string(&journal).unwrap();
    assert_eq!(serde_json::from_str::<Journal>(&text).unwrap(), journal);

    let mut backwards = journal.undo.clone();
    backwards.reverse();
    assert_eq!(journal.recover(None), Recovery::TakeBack(backwards.clone()));
    assert_eq!(journal.recover(Some(&target(&mark(false)).config)), Recovery::TakeBack(backwards.clone()));
    assert_eq!(journal.recover(Some(&target(&mark(true)).config)), Recovery::Finished);
    let of_another_run = Mark { run: RunId::new(1), ..mark(true) };
    assert_eq!(journal.recover(Some(&target(&of_another_run).config)), Recovery::TakeBack(backwards));
}

#[test]
fn the_image_goes_with_the_last_guest_of_ours_only() {
    let mut observed = Observed { target: Some(target(&mark(true))), ..one_host() };
    observed.hosts[0].templates =
        vec![format!("local:vztmpl/{}", image().file).parse().unwrap(), "local:vztmpl/debian.tar.gz".parse().unwrap()];
    let vmid = "101".parse().unwrap();
    let calls = |observed: &Observed| -> Vec<String> {
        let removal = destroy::destroy(vmid, observed, Some(Some("100".parse().unwrap()))).unwrap();
        removal.steps.iter().map(|s| s.action.to_string()).collect()
    };
    assert_eq!(
        calls(&observed),
        [
            "POST /nodes/pve/lxc/101/status/shutdown forceStop=1 timeout=10 (task, at most 60 s)".to_owned(),
            "DELETE /nodes/pve/lxc/101 purge=1 (task, at most 120 s)".to_owned(),
            "coordinator: DELETE node exit-1".to_owned(),
            format!("DELETE /nodes/pve/storage/local/content/local:vztmpl/{} delay=15 (task, at most 60 s)", image().file),
        ]
    );
    let tags = vec![TAG.to_owned()];
    let other = GuestSummary {
        vmid: "100".parse().unwrap(),
        host: "pve".parse().unwrap(),
        container: true,
        name: "coordinator".to_owned(),
        running: true,
        tags,
        managed: false,
    };
    observed.guests.push(other);
    assert_eq!(calls(&observed).len(), 3);
}
