//! Guests without a client: named while they run, followed, and let go again.

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
