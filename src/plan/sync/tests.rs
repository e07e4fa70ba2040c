//! A pass by value.

use serde_json::json;

use super::*;
use crate::ident::{Mac, NodePublic};
use crate::pve::reply::ContainerConfig;

const MAC: &str = "BC:24:11:00:00:01";
const OTHER: &str = "BC:24:11:00:00:02";
const LAN: &str = "192.168.50.0/24";

fn vmid(n: u32) -> Vmid {
    Vmid::try_from(n).unwrap()
}

fn run() -> RunId {
    RunId::new(9)
}

fn mark(role: &str) -> Mark {
    Mark {
        vmid: vmid(101),
        role: role.to_owned(),
        name: "exit-1".parse().unwrap(),
        run: RunId::new(7),
        ready: true,
        identity: Identity::default(),
        fleet: None,
    }
}

fn node(id: i64, name: &str, more: serde_json::Value) -> NodeInfo {
    let mut value = json!({
        "id": id, "name": name, "fqdn": format!("{name}.mesh.internal"), "user": "pvemesh", "key": NodePublic::from_bytes([3; 32]),
        "addresses": ["100.64.0.5", "fd7a:115c:a1e0::5"], "online": true, "tags": ["tag:exit-node"], "advertised_routes": ["0.0.0.0/0", "::/0"],
        "approved_routes": ["0.0.0.0/0", "::/0"], "os": "linux", "client": "0.1.0", "home_relay": 900,
        "endpoints": ["192.168.50.101:41641", "192.168.50.101:41642", "203.0.113.7:41641"]
    });
    for (key, change) in more.as_object().unwrap() {
        value[key] = change.clone();
    }
    serde_json::from_value(value).unwrap()
}

/// A world that the tests change, and look at again.
struct Scene {
    guests: Vec<GuestSummary>,
    ours: Vec<Ours>,
    gone: BTreeSet<Vmid>,
    seen: BTreeMap<Vmid, Vec<IpAddr>>,
    nodes: Vec<NodeInfo>,
    dns: DnsSettings,
    ledger: Ledger,
    clones: Clones,
    started: Option<Vmid>,
    reachable: bool,
}

impl Scene {
    /// One exit node that was made long ago, as its maker left its notes.
    fn new() -> Self {
        let mut scene = Self {
            guests: Vec::new(),
            ours: Vec::new(),
            gone: BTreeSet::new(),
            seen: BTreeMap::new(),
            nodes: vec![node(1, "exit-1", json!({}))],
            dns: DnsSettings::default(),
            ledger: Ledger::default(),
            clones: Clones::default(),
            started: None,
            reachable: true,
        };
        scene.add(101, MAC, &mark("exit-node").attach("# pvemesh exit node: exit-1\n"));
        scene
    }

    fn add(&mut self, n: u32, mac: &str, notes: &str) {
        let values = [("net0".to_owned(), format!("name=eth0,bridge=vmbr0,hwaddr={mac}"))].into();
        let config = ContainerConfig {
            hostname: Some("exit-1".to_owned()),
            description: notes.to_owned(),
            tags: vec!["pvemesh".to_owned()],
            values,
            ..ContainerConfig::default()
        };
        self.list(n, true);
        self.ours.push(Ours { vmid: vmid(n), host: "pve".parse().unwrap(), running: true, config });
    }

    fn list(&mut self, n: u32, container: bool) {
        let host = "pve".parse().unwrap();
        self.guests.push(GuestSummary {
            vmid: vmid(n),
            host,
            container,
            name: format!("g{n}"),
            running: true,
            tags: Vec::new(),
            managed: false,
        });
    }

    fn attach(&mut self, n: u32, route: bool) {
        self.list(n, false);
        let attached = Attached {
            name: "nas".parse().unwrap(),
            container: false,
            macs: vec![Mac::from_bytes([0xbc, 0x24, 0x11, 0, 0, 9])],
            route,
            record: None,
            addresses: Vec::new(),
            approved: Vec::new(),
        };
        self.ledger.attached.insert(vmid(n), attached);
    }

    fn remove(&mut self, n: u32) {
        self.guests.retain(|guest| guest.vmid != vmid(n));
        self.ours.retain(|guest| guest.vmid != vmid(n));
        self.gone.insert(vmid(n));
    }

    fn pass(&self) -> Pass {
        let view = MeshView { url: "http://192.168.50.100:8080", base_domain: "mesh.internal", nodes: &self.nodes, dns: &self.dns };
        pass(&World {
            guests: &self.guests,
            gone: &self.gone,
            ours: &self.ours,
            seen: &self.seen,
            mesh: self.reachable.then_some(view),
            ledger: &self.ledger,
            clones: self.clones,
            started: self.started,
            run: run(),
        })
    }

    /// Carries a pass out, as `sys` would, and gives what was done that others see.
    fn settle(&mut self) -> Vec<String> {
        let planned = self.pass();
        for change in &planned.changes {
            match change {
                Change::Notes { vmid, part, .. } => {
                    let guest = self.ours.iter_mut().find(|guest| guest.vmid == *vmid).unwrap();
                    // Proxmox gives notes back with a line break at their end.
                    let notes = part.brought_into(&guest.config.description).unwrap();
                    guest.config.description = format!("{}\n", notes.trim_end());
                }
                Change::RemoveNode { node, .. } => self.nodes.retain(|there| there.id != *node),
                Change::Record { name, addresses, .. } => {
                    if let Some(changed) = crate::plan::attach::recorded(&self.dns, name, addresses) {
                        self.dns = changed;
                    }
                }
                Change::Approve { node, routes, .. } => {
                    self.nodes.iter_mut().find(|there| there.id == *node).unwrap().approved_routes.clone_from(routes);
                }
                Change::Remember(..) | Change::Forget(_) | Change::Renew(_) => {}
            }
            change.note(&mut self.ledger);
        }
        planned.changes.iter().filter(|change| !change.is_quiet()).map(ToString::to_string).collect()
    }

    fn notes(&self) -> &str {
        &self.ours.first().unwrap().config.description
    }
}

#[test]
fn notes_are_brought_up_to_date_once_and_then_there_is_nothing_to_do() {
    let mut scene = Scene::new();
    assert_eq!(scene.settle(), ["PUT /nodes/pve/lxc/101/config description=(notes)"]);
    let notes = scene.notes().to_owned();
    for part in ["exit-1", "100.64.0.5", "192.168.50.101", "203.0.113.7", "the internet", "relay 900", "<http://192.168.50.100:8080>"] {
        assert!(notes.contains(part), "{part}: {notes}");
    }
    let found = Mark::find(&notes).unwrap();
    assert_eq!((found.identity.mac.unwrap().to_string().as_str(), found.identity.address), (MAC, Some([100, 64, 0, 5].into())));
    assert_eq!(scene.pass(), Pass::default());
    assert_eq!(scene.ledger.guests[&vmid(101)].node, Some(NodeId(1)));
    // Ports come and go; addresses count.
    scene.nodes[0].endpoints[1] = "192.168.50.101:50000".parse().unwrap();
    assert_eq!(scene.pass(), Pass::default());
    scene.nodes[0].endpoints[1] = "192.168.50.200:50000".parse().unwrap();
    assert_eq!(scene.settle().len(), 1);
}

#[test]
fn the_admin_s_own_notes_stay() {
    let mut scene = Scene::new();
    let notes = format!("rack 3, <b>top</b>\n\n{}\nask Ines\n", scene.notes().trim_end());
    scene.ours[0].config.description = notes;
    scene.settle();
    assert!(scene.notes().starts_with("rack 3, <b>top</b>\n\n<!-- pvemesh-begin -->") && scene.notes().ends_with("-->\nask Ines\n"));
    scene.ours[0].config.description = "y".repeat(8000) + &scene.notes().replace("rack 3, <b>top</b>", "");
    let before = scene.notes().to_owned();
    scene.started = Some(vmid(101));
    let pass = scene.pass();
    assert!(pass.changes.is_empty() && pass.said[0].contains("full"), "{pass:?}");
    assert_eq!(scene.notes(), before);
}

#[test]
fn a_start_and_a_snapshot_count_up_and_a_return_to_before_is_seen() {
    let mut scene = Scene::new();
    scene.settle();
    scene.started = Some(vmid(101));
    assert_eq!(scene.settle().len(), 1);
    scene.started = None;
    assert_eq!(scene.pass(), Pass::default());
    let snapshot = scene.ours[0].config.clone();
    scene.ours[0].config.values.insert("parent".to_owned(), "before".to_owned());
    assert_eq!(scene.settle().len(), 1, "the state of now is another one than the snapshot's");
    assert_eq!(scene.pass(), Pass::default());
    let generation = scene.ledger.guests[&vmid(101)].generation;
    scene.ours[0].config = snapshot;
    scene.ours[0].config.values.insert("parent".to_owned(), "before".to_owned());
    let Change::Renew(renew) = &scene.pass().changes[0] else { panic!("{:?}", scene.pass()) };
    assert!(matches!(renew.reason, super::super::identity::Reason::WentBack { .. }), "{renew:?}");
    assert_eq!((renew.name.as_str(), renew.mark.identity.generation), ("exit-1", generation + 1));
    assert_eq!(renew.remove, [NodeId(1)], "its old keys are worth nothing any more");
}

#[test]
fn a_clone_becomes_a_node_of_its_own_and_the_original_stays_as_it_is() {
    let mut scene = Scene::new();
    scene.settle();
    let notes = scene.notes().to_owned();
    scene.add(102, OTHER, &notes);
    let pass = scene.pass();
    let [Change::Renew(renew)] = &pass.changes[..] else { panic!("{pass:?}") };
    assert_eq!((renew.vmid, renew.name.as_str(), renew.remove.len()), (vmid(102), "exit-2", 0));
    let shown = pass.changes[0].to_string();
    assert!(shown.contains("copy of guest 101") && shown.contains("only_for=exit-2"), "{shown}");
    // Two at once get two names.
    scene.add(103, "BC:24:11:00:00:03", &notes);
    let names: Vec<String> =
        scene.pass().changes.iter().map(|c| if let Change::Renew(r) = c { r.name.to_string() } else { panic!() }).collect();
    assert_eq!(names, ["exit-2", "exit-3"]);
    // What it is given in the end is recognised as its own.
    let Change::Renew(renew) = pass.changes[0].clone() else { panic!() };
    let (part, kept) = renewed(&renew, "http://192.168.50.100:8080", &node(2, "exit-2", json!({"addresses": ["100.64.0.6"]})));
    scene.nodes.push(node(2, "exit-2", json!({"addresses": ["100.64.0.6"]})));
    scene.ours.pop();
    scene.ours[1].config.description = part.within(&scene.ours[1].config.description);
    scene.ours[1].config.hostname = Some("exit-2".to_owned());
    scene.ledger.guests.insert(vmid(102), kept);
    assert_eq!(scene.pass(), Pass::default());
}

#[test]
fn a_refused_clone_loses_its_keys_once_and_is_told_of_from_then_on() {
    let mut scene = Scene::new();
    scene.settle();
    let notes = scene.notes().to_owned();
    scene.add(102, OTHER, &notes);
    scene.clones = Clones::Refuse;
    let shown = scene.settle();
    assert!(shown[0].contains("gets no others"), "{shown:?}");
    let pass = scene.pass();
    assert!(pass.changes.is_empty() && pass.said[0].contains("stays out of the mesh"), "{pass:?}");
}

#[test]
fn a_stopped_copy_and_an_absent_coordinator_are_waited_for() {
    let mut scene = Scene::new();
    scene.settle();
    let notes = scene.notes().to_owned();
    scene.add(102, OTHER, &notes);
    scene.ours[1].running = false;
    assert!(scene.pass().changes.is_empty() && scene.pass().said[0].contains("once it runs"));
    scene.ours[1].running = true;
    scene.reachable = false;
    assert!(scene.pass().changes.is_empty() && scene.pass().said[0].contains("coordinator answers"));
}

#[test]
fn a_guest_that_is_gone_takes_its_node_along_and_nothing_else() {
    let mut scene = Scene::new();
    scene.settle();
    scene.nodes.push(node(2, "exit-2", json!({})));
    scene.remove(101);
    scene.reachable = false;
    assert!(scene.pass().changes.is_empty() && scene.pass().said[0].contains("is gone"));
    scene.reachable = true;
    assert_eq!(scene.settle(), ["coordinator: DELETE nodes/1 (exit-1; guest 101 is gone)"]);
    assert_eq!(scene.nodes.len(), 1);
    assert_eq!(scene.ledger, Ledger::default());
    scene.gone.clear();
    assert_eq!(scene.pass(), Pass::default());
}

#[test]
fn an_heir_keeps_the_place_and_the_node_is_not_taken_from_it() {
    let mut scene = Scene::new();
    scene.settle();
    let notes = scene.notes().to_owned();
    scene.remove(101);
    scene.add(102, MAC, &notes);
    let pass = scene.pass();
    let [Change::Forget(gone), Change::Renew(renew)] = &pass.changes[..] else { panic!("{pass:?}") };
    assert_eq!((renew.name.as_str(), renew.key.as_ref().unwrap().address, *gone), ("exit-1", Some([100, 64, 0, 5].into()), vmid(101)));
}

#[test]
fn a_restored_guest_whose_node_was_removed_gets_its_place_back() {
    let mut scene = Scene::new();
    scene.settle();
    let guest = scene.ours[0].clone();
    scene.remove(101);
    scene.settle();
    scene.gone.clear();
    scene.list(101, true);
    scene.ours.push(guest);
    let pass = scene.pass();
    let [Change::Renew(renew)] = &pass.changes[..] else { panic!("{pass:?}") };
    assert_eq!((renew.name.as_str(), renew.mark.identity.address), ("exit-1", Some([100, 64, 0, 5].into())));
}

#[test]
fn guests_of_ours_without_a_mark_and_copies_of_servers_are_left_alone_and_said() {
    let mut scene = Scene::new();
    scene.ours[0].config.description = "somebody wiped this".to_owned();
    let server = Mark { vmid: vmid(100), ..mark("coordinator") };
    scene.add(104, OTHER, &server.attach("x"));
    let pass = scene.pass();
    assert!(pass.changes.is_empty());
    assert!(pass.said[0].contains("lost our mark") && pass.said[1].contains("copy of coordinator 100"), "{pass:?}");
}

fn address() -> IpAddr {
    "192.168.50.20".parse().unwrap()
}

#[test]
fn an_attached_guest_is_named_while_it_runs_and_followed() {
    let mut scene = Scene::new();
    scene.settle();
    scene.attach(200, false);
    scene.seen.insert(vmid(200), vec![address()]);
    assert_eq!(scene.settle(), ["coordinator: POST dns nas.mesh.internal=192.168.50.20"]);
    assert_eq!(scene.pass(), Pass::default());
    scene.seen.insert(vmid(200), vec!["192.168.50.21".parse().unwrap()]);
    assert_eq!(scene.settle(), ["coordinator: POST dns nas.mesh.internal=192.168.50.21"]);
    // An agent that does not answer for a while changes nothing.
    scene.seen.clear();
    assert_eq!(scene.pass(), Pass::default());
    scene.guests.last_mut().unwrap().running = false;
    assert_eq!(scene.settle(), ["coordinator: POST dns without nas.mesh.internal"]);
    assert_eq!(scene.pass(), Pass::default());
    scene.remove(200);
    assert!(scene.settle().is_empty() && scene.ledger.attached.is_empty());
}

#[test]
fn an_attached_guest_without_addresses_is_said_with_the_cure() {
    let mut scene = Scene::new();
    scene.attach(200, false);
    scene.seen.insert(vmid(200), Vec::new());
    assert!(scene.pass().said[0].contains("guest agent"), "{:?}", scene.pass());
}

#[test]
fn a_route_is_approved_on_the_routers_that_reach_it_and_withdrawn_with_the_address() {
    let mut scene = Scene::new();
    scene.settle();
    for id in [5, 6] {
        let routes = json!({"advertised_routes": [LAN], "approved_routes": ["10.0.0.0/8"]});
        scene.nodes.push(node(id, &format!("router-{id}"), routes));
    }
    scene.attach(200, true);
    scene.seen.insert(vmid(200), vec![address()]);
    let done = scene.settle();
    assert_eq!(
        done[1..],
        [
            "coordinator: POST nodes/5/routes (router-5) 10.0.0.0/8,192.168.50.20/32",
            "coordinator: POST nodes/6/routes (router-6) 10.0.0.0/8,192.168.50.20/32"
        ]
    );
    assert_eq!(scene.pass(), Pass::default());
    scene.seen.insert(vmid(200), vec!["192.168.50.21".parse().unwrap()]);
    assert_eq!(scene.settle()[1], "coordinator: POST nodes/5/routes (router-5) 10.0.0.0/8,192.168.50.21/32");
    let view = MeshView { url: "x", base_domain: "mesh.internal", nodes: &scene.nodes, dns: &scene.dns };
    let off: Vec<String> = detach(vmid(200), &scene.ledger.attached[&vmid(200)], view).iter().map(ToString::to_string).collect();
    assert_eq!(off[..2], ["coordinator: POST dns without nas.mesh.internal", "coordinator: POST nodes/5/routes (router-5) 10.0.0.0/8"]);
}

#[test]
fn two_guests_behind_one_router_do_not_take_each_other_s_route() {
    let mut scene = Scene::new();
    scene.settle();
    scene.nodes.push(node(5, "router-5", json!({"advertised_routes": [LAN], "approved_routes": []})));
    scene.attach(200, true);
    scene.attach(201, true);
    scene.ledger.attached.get_mut(&vmid(201)).unwrap().name = "tv".parse().unwrap();
    scene.seen.insert(vmid(200), vec![address()]);
    scene.seen.insert(vmid(201), vec!["192.168.50.21".parse().unwrap()]);
    scene.settle();
    assert_eq!(scene.nodes[1].approved_routes.len(), 2);
    scene.remove(200);
    scene.settle();
    assert_eq!(scene.nodes[1].approved_routes, ["192.168.50.21/32".parse::<IpNet>().unwrap()]);
}

#[test]
fn where_no_router_reaches_a_guest_the_command_that_helps_is_said() {
    let mut scene = Scene::new();
    scene.attach(200, true);
    scene.seen.insert(vmid(200), vec![address()]);
    let said = scene.pass().said;
    assert!(said[0].contains("create-subnet-router ID --route 192.168.50.0/24"), "{said:?}");
}

#[test]
fn a_name_that_somebody_else_recorded_is_not_taken() {
    let mut scene = Scene::new();
    scene.settle();
    scene.attach(200, false);
    scene.dns.records.insert("nas.mesh.internal".to_owned(), vec!["10.9.9.9".parse().unwrap()]);
    scene.seen.insert(vmid(200), vec![address()]);
    assert!(scene.settle().is_empty());
    scene.guests.last_mut().unwrap().running = false;
    assert!(scene.settle().is_empty());
    assert_eq!(scene.dns.records.len(), 1);
}
