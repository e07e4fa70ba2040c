//! Making, showing and removing guests.

use serde_json::json;

use crate::standin::Version;
use crate::world::World;

#[test]
fn an_exit_node_is_made_with_one_command_and_a_second_run_changes_nothing() {
    let world = World::new();
    let made = world.init().create("--json");
    let report = made.succeeded().json();
    assert_eq!(
        (&report["vmid"], &report["name"], &report["role"], &report["node"], &report["changed"]),
        (&json!(101), &json!("exit-1"), &json!("exit-node"), &json!("pve"), &json!(true))
    );
    assert_eq!(report["mesh_addresses"], json!(["100.64.0.101"]));
    let choices = report["choices"].as_array().unwrap();
    let value = |what: &str| choices.iter().find(|c| c["what"] == what).unwrap()["value"].clone();
    assert_eq!((value("storage"), value("template storage"), value("bridge")), (json!("local-lvm"), json!("local"), json!("vmbr0")));

    let config = world.standin.config(101).unwrap();
    for (key, wanted) in [
        ("unprivileged", "1"),
        ("ostype", "unmanaged"),
        ("onboot", "1"),
        ("memory", "64"),
        ("swap", "0"),
        ("hostname", "exit-1"),
        ("dev0", "/dev/net/tun"),
        ("cmode", "console"),
    ] {
        assert_eq!(config.get(key), Some(wanted), "{key}");
    }
    let tags = config.get("tags").unwrap();
    assert!(tags.contains("pvemesh") && tags.contains("exit-node"), "{tags}");
    let notes = config.get("description").unwrap();
    assert!(notes.contains("100.64.0.101") && notes.contains("state=ready") && !notes.contains("tskey"), "{notes}");
    assert!(world.standin.is_running(101));

    let again = world.create("--json");
    assert_eq!(again.succeeded().json()["changed"], json!(false));
    assert!(again.err.contains("already there"), "{again:?}");
    assert_eq!(world.standin.guests(), [101]);
    assert_eq!(world.templates().len(), 1);
}

#[test]
fn the_join_key_is_in_no_output_and_leaves_the_container_s_configuration() {
    let world = World::new();
    let made = world.init().create("-vv");
    made.succeeded();
    assert!(!made.out.contains("tskey-auth") && !made.err.contains("tskey-auth"));
    let dry = World::new();
    let shown = dry.init().create("--dry-run");
    assert!(shown.succeeded().out.contains("env=(secret)") && !shown.out.contains("tskey-auth"), "{shown:?}");
    assert!(dry.is_untouched());
    let calls = world.standin.config(101).unwrap().get("env").map(ToOwned::to_owned);
    // A running container keeps the value until its next start; the change is pending.
    if let Some(kept) = calls {
        assert!(!kept.contains("tskey-auth"), "it is base64 at least");
    }
}

#[test]
fn a_stopped_exit_node_is_started_again() {
    let world = World::new();
    world.init().create("").succeeded();
    world.standin.set_lock(101, None);
    let stopped = world.run("status 101 --json");
    assert_eq!(stopped.succeeded().json()["running"], json!(true));
    stop(&world);
    let again = world.create("");
    assert!(again.succeeded().err.contains("bringing it up"), "{again:?}");
    assert!(world.standin.is_running(101));
}

fn stop(world: &World) {
    // Proxmox's own panel would do the same.
    let pid = world.standin.pid(101);
    assert!(pid.is_some());
    let password = crate::world::PASSWORD;
    crate::login::raw(world, "POST", "/nodes/pve/lxc/101/status/stop", password);
    world.wait("the container stops", || !world.standin.is_running(101));
}

#[test]
fn names_are_counted_up_and_the_image_is_uploaded_once() {
    let world = World::new();
    world.init().create("").succeeded();
    let second = world.run(&crate::world::CREATE.replace("101", "102"));
    assert!(second.succeeded().out.contains("exit-2"), "{second:?}");
    assert!(!second.err.contains("upload the image"), "{second:?}");
    assert_eq!((world.standin.guests(), world.templates().len()), (vec![101, 102], 1));

    let listed = world.run("list --json").succeeded().json();
    let names: Vec<_> = listed.as_array().unwrap().iter().map(|row| row["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["exit-1", "exit-2"]);
    let text = world.run("list").succeeded().out.clone();
    assert!(text.contains("exit-2") && text.contains("100.64.0.102"), "{text}");
}

#[test]
fn removing_leaves_nothing_and_the_image_goes_with_the_last_guest() {
    let world = World::new();
    world.init().create("").succeeded();
    world.run(&crate::world::CREATE.replace("101", "102")).succeeded();
    world.run("destroy 101").failed(2, &["--yes"]);
    let shown = world.run("destroy 101 --dry-run");
    assert!(shown.succeeded().out.contains("DELETE /nodes/pve/lxc/101 purge=1"), "{shown:?}");
    world.run("destroy 101 --yes").succeeded();
    assert_eq!((world.standin.guests(), world.templates().len()), (vec![102], 1));
    world.run("destroy 102 --yes").succeeded();
    assert!(world.is_untouched());
    world.run("destroy 102 --yes").failed(5, &["there is no guest 102"]);
}

#[test]
fn before_9_1_the_configuration_travels_in_an_image_that_is_removed_after_use() {
    let world = World::with(|options| options.version = Version(8, 4));
    let shown = world.init().create("--dry-run");
    assert!(shown.succeeded().out.contains("with the guest's configuration inside"), "{shown:?}");
    assert!(shown.out.contains("DELETE /nodes/pve/storage/local/content/local:vztmpl/pvemesh-"), "{shown:?}");
    assert!(!shown.out.contains("env="), "{shown:?}");
}

#[test]
fn a_fixed_address_and_every_choice_can_be_given() {
    let world = World::new();
    let made = world.init().create(
        "--name way-out --node pve --storage local-lvm --template-storage local --bridge vmbr0 --memory 128 --cores 1 \
         --ip 192.168.50.60/24 --gw 192.168.50.1 --ip6 none --dns 192.168.50.1 --endpoint 203.0.113.7:41641",
    );
    made.succeeded();
    let config = world.standin.config(101).unwrap();
    let net0 = config.get("net0").unwrap();
    assert!(net0.contains("ip=192.168.50.60/24") && net0.contains("gw=192.168.50.1") && !net0.contains("ip6"), "{net0}");
    assert_eq!((config.get("hostname"), config.get("memory"), config.get("cores")), (Some("way-out"), Some("128"), Some("1")));
}
