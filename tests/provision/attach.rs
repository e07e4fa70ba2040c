//! Guests without a client: named while they run, followed, and let go again.

use futures_util::future::BoxFuture;
use pvemesh::plan::ledger::{Attached, Ledger};
use pvemesh::pve::{ApiError, Principal, Request, Upid};
use pvemesh::sys::pve::{CallError, Executor, Upload, reconcile};
use serde_json::{Value, json};

use crate::estate::Estate;
use crate::standin::guest_config::Config;

fn nas(estate: &Estate) {
    let mut config = Config::default();
    for (key, value) in [
        ("hostname", "nas"),
        ("description", "my NAS\n"),
        ("tags", "storage"),
        ("net0", "name=eth0,bridge=vmbr0,hwaddr=BC:24:11:00:02:00,ip=dhcp"),
    ] {
        config.set(key, value);
    }
    estate.world.standin.add_guest(200, config);
}

fn records(estate: &Estate) -> Value {
    estate.world.run("coordinator dns show --json --socket {dir}/c.sock").succeeded().json()["records"].clone()
}

#[test]
fn a_guest_is_attached_followed_and_detached_without_a_trace() {
    let estate = Estate::new();
    nas(&estate);
    estate.start(200);
    let untouched = estate.world.standin.config(200).unwrap();
    let shown = estate.world.run("attach 200 --dry-run");
    assert!(shown.succeeded().out.contains("POST dns nas.mesh.internal=192.168.50.200"), "{shown:?}");
    assert_eq!((records(&estate), estate.notes(200)), (json!({}), "my NAS\n".to_owned()));

    let done = estate.world.run("attach 200 --json").succeeded().json();
    assert_eq!((&done["changed"], &done["name"], &done["addresses"]), (&json!(true), &json!("nas"), &json!(["192.168.50.200"])));
    assert_eq!(records(&estate), json!({ "nas.mesh.internal": ["192.168.50.200"] }));
    assert!(estate.notes(200).starts_with("my NAS\n") && estate.notes(200).contains("pvemesh detach 200"), "{}", estate.notes(200));
    assert_eq!(estate.world.standin.config(200).unwrap().get("tags"), Some("storage"));
    assert_eq!(estate.world.run("attach 200 --json").succeeded().json()["changed"], json!(false));
    assert_eq!(estate.sync()["changed"], json!(false));

    estate.stop(200);
    estate.sync();
    assert_eq!(records(&estate), json!({}), "it has its name while it runs");
    estate.start(200);
    estate.sync();
    assert_eq!(records(&estate), json!({ "nas.mesh.internal": ["192.168.50.200"] }));

    assert!(estate.world.run("detach 200 --dry-run").succeeded().out.contains("without nas.mesh.internal"));
    estate.world.run("detach 200").succeeded();
    assert_eq!((records(&estate), estate.notes(200)), (json!({}), "my NAS\n".to_owned()));
    assert_eq!(estate.world.standin.config(200).unwrap().file(), untouched.file());
    assert!(estate.world.run("detach 200").succeeded().out.contains("nothing to do"));
}

#[test]
fn names_that_are_taken_and_guests_that_are_not_there_are_refused() {
    let estate = Estate::new();
    estate.create(101);
    nas(&estate);
    estate.world.run("attach 200 --name exit-1").failed(5, &["a node of the mesh has the name exit-1", "--name"]);
    estate.world.run("attach 200 --name a.b").failed(2, &["--name"]);
    estate.world.run("attach 101").failed(5, &["part of the mesh itself"]);
    estate.world.run("attach 300").failed(5, &["there is no guest 300"]);
    estate.world.run("coordinator dns records add nas.mesh.internal 10.0.0.9 --socket {dir}/c.sock").succeeded();
    estate.world.run("attach 200").failed(5, &["nas.mesh.internal is a name", "--name"]);
    let stopped = estate.world.run("attach 200 --name store --route");
    assert!(stopped.succeeded().out.contains("is stopped"), "{stopped:?}");
    // Its route: nobody reaches its network yet.
    estate.start(200);
    let report = estate.sync();
    assert!(report["notes"].to_string().contains("create-subnet-router ID --route 192.168.50.0/24"), "{report}");
}

#[test]
fn a_guest_that_is_destroyed_loses_its_name() {
    let estate = Estate::new();
    nas(&estate);
    estate.start(200);
    estate.world.run("attach 200").succeeded();
    estate.stop(200);
    estate.call("DELETE", "/nodes/pve/lxc/200", &[]);
    estate.sync();
    assert_eq!(records(&estate), json!({}));
    assert!(!estate.world.path("config/guests.json").exists());
}

/// A Proxmox that knows a few replies, and counts what it is asked.
struct Replies {
    known: std::collections::BTreeMap<&'static str, Value>,
    asked: std::sync::Mutex<Vec<String>>,
}

impl Executor for Replies {
    fn call<'a>(&'a self, request: &'a Request) -> BoxFuture<'a, Result<Value, CallError>> {
        Box::pin(async {
            self.asked.lock().unwrap().push(request.to_string());
            let missing = || ApiError::from_text("QEMU guest agent is not running");
            self.known.get(request.path.as_str()).cloned().ok_or_else(|| CallError::Api(missing()))
        })
    }

    fn upload<'a>(&'a self, _: &'a Upload) -> BoxFuture<'a, Result<Upid, CallError>> {
        Box::pin(async { Err(CallError::Setup("nothing is uploaded".to_owned())) })
    }

    fn principal(&self) -> Principal {
        Principal::RootTicket
    }

    fn place(&self) -> String {
        "paper".to_owned()
    }
}

#[test]
fn a_pass_asks_once_for_the_list_and_once_for_each_guest_of_ours_and_an_agent_that_is_silent_is_said() {
    let row = |vmid: u32, kind: &str, tags: &str| json!({"vmid": vmid, "node": "pve", "type": kind, "status": "running", "name": "x", "tags": tags});
    let guests = json!([
        row(101, "lxc", "pvemesh;exit-node"),
        row(102, "lxc", "exit-node;pvemesh"),
        row(150, "lxc", ""),
        row(200, "qemu", ""),
        row(201, "qemu", ""),
        row(300, "qemu", "pvemesh")
    ]);
    let agent = json!({"result": [
        {"name": "ens18", "hardware-address": "bc:24:11:00:02:00", "ip-addresses": [{"ip-address": "192.168.50.20", "ip-address-type": "ipv4", "prefix": 24}]},
        {"name": "br-1", "hardware-address": "02:42:00:00:00:01", "ip-addresses": [{"ip-address": "172.18.0.1", "ip-address-type": "ipv4", "prefix": 16}]}
    ]});
    let config = json!({"hostname": "x", "tags": "pvemesh", "digest": "0"});
    let known = [
        ("/cluster/resources", guests),
        ("/nodes/pve/lxc/101/config", config.clone()),
        ("/nodes/pve/lxc/102/config", config),
        ("/nodes/pve/qemu/200/agent/network-get-interfaces", agent),
    ];
    let replies = Replies { known: known.into(), asked: std::sync::Mutex::default() };
    let attached = |name: &str, mac: &str| Attached {
        name: name.parse().unwrap(),
        container: false,
        macs: vec![mac.parse().unwrap()],
        route: false,
        record: None,
        addresses: Vec::new(),
        approved: Vec::new(),
    };
    let vmid = |n: u32| pvemesh::ident::Vmid::try_from(n).unwrap();
    let attached = [(vmid(200), attached("nas", "BC:24:11:00:02:00")), (vmid(201), attached("tv", "BC:24:11:00:02:01"))].into();
    let ledger = Ledger { attached, ..Ledger::default() };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let survey = runtime.block_on(reconcile::survey(&replies, &ledger, None)).unwrap();
    assert_eq!(survey.seen[&vmid(200)], ["192.168.50.20".parse::<std::net::IpAddr>().unwrap()]);
    assert!(survey.seen[&vmid(201)].is_empty() && survey.said[0].contains("guest agent is not running"), "{:?}", survey.said);
    let asked = replies.asked.lock().unwrap();
    assert_eq!(asked.len(), 1 + 2 + 2, "{asked:#?}");
    assert!(survey.gone.is_empty());
    drop(asked);
    // A cluster file system that is down looks like a host without guests.
    let nothing = Replies { known: [("/cluster/resources", json!([]))].into(), asked: std::sync::Mutex::default() };
    let survey = runtime.block_on(reconcile::survey(&nothing, &ledger, None)).unwrap();
    assert!(survey.gone.is_empty() && survey.said[0].contains("not believed"), "{:?}", survey.said);
}
