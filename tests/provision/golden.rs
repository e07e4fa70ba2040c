//! The golden container: made by root once, cloned by tokens for ever.

use crate::standin::Version;
use crate::standin::access::ALL;
use crate::standin::faults::Fault;
use crate::world::{CREATE, Ran, World};

const GOLDEN: &str = "image golden 9000 --image {dir}/image.tar.gz";
const SECRET: &str = "8f6e1d0c-5b7a-4c39-9e2d-1f0a3b5c7d9e";

/// Goes on as a token with every right there is.
pub fn as_token(world: &World) {
    world.standin.access(|access| {
        access.add_token("root@pam!full", SECRET, false);
        access.grant("/", "root@pam!full", ALL);
    });
    world.secret("token", &format!("root@pam!full={SECRET}"));
    world.run("init --url {url} --token-file {dir}/token --fingerprint {fingerprint}").succeeded();
}

fn with_golden() -> World {
    let world = World::new();
    world.init().run(GOLDEN).succeeded();
    as_token(&world);
    world
}

fn config(world: &World, id: u32, key: &str) -> Option<String> {
    world.standin.config(id).unwrap().get(key).map(ToOwned::to_owned)
}

#[test]
fn it_is_made_once_and_the_second_run_changes_nothing() {
    let world = World::new();
    let dry = world.init().run(&format!("{GOLDEN} --dry-run"));
    assert!(dry.succeeded().out.contains("POST /nodes/pve/lxc/9000/template") && world.standin.guests().is_empty(), "{dry:?}");
    let made = world.run(&format!("{GOLDEN} --json"));
    assert_eq!(made.succeeded().json()["changed"], true);
    for (key, wanted) in
        [("template", Some("1")), ("dev0", Some("/dev/net/tun")), ("net0", None), ("onboot", None), ("unprivileged", Some("1"))]
    {
        assert_eq!(config(&world, 9000, key).as_deref(), wanted, "{key}");
    }
    assert!(config(&world, 9000, "tags").unwrap().contains("golden"));
    let tasks = world.standin.task_exits().len();
    assert_eq!(world.run(&format!("{GOLDEN} --json")).succeeded().json()["changed"], false);
    assert_eq!(world.standin.task_exits().len(), tasks, "something was done");
    assert!(world.run("list").succeeded().out.contains("template"));
    // A later image takes its place.
    std::fs::write(world.path("image.tar.gz"), [&[0x1f, 0x8b][..], &[8; 600]].concat()).unwrap();
    assert_eq!(world.run(&format!("{GOLDEN} --json")).succeeded().json()["changed"], true);
    assert_eq!(world.standin.guests(), [9000]);
    assert_eq!(config(&world, 9000, "template").as_deref(), Some("1"));
    world.run("destroy 9000 --yes").succeeded();
    assert!(world.standin.guests().is_empty());
}

#[test]
fn a_token_makes_an_exit_node_with_a_device_by_cloning() {
    let world = with_golden();
    let made = world.create("--json --memory 96 --name way-out");
    let report = made.succeeded().json();
    assert_eq!((&report["name"], &report["changed"]), (&"way-out".into(), &true.into()));
    assert!(made.err.contains("golden container 9000"), "{made:?}");
    for (key, wanted) in [("dev0", "/dev/net/tun"), ("memory", "96"), ("hostname", "way-out"), ("onboot", "1"), ("unprivileged", "1")] {
        assert_eq!(config(&world, 101, key).as_deref(), Some(wanted), "{key}");
    }
    assert_eq!(config(&world, 101, "template"), None);
    assert!(config(&world, 101, "net0").unwrap().contains("bridge=vmbr0"));
    let tags = config(&world, 101, "tags").unwrap();
    assert!(tags.contains("exit-node") && tags.contains("pvemesh") && !tags.contains("golden"), "{tags}");
    let notes = config(&world, 101, "description").unwrap();
    assert!(notes.contains("state=ready") && notes.contains("vmid=101") && !notes.contains("golden"), "{notes}");
    assert!(config(&world, 101, "rootfs").unwrap().starts_with("local-lvm:vm-101-"), "{:?}", config(&world, 101, "rootfs"));
    assert!(world.standin.is_running(101) && !world.standin.is_running(9000));
    assert_eq!(world.create("--json").succeeded().json()["changed"], false);
    world.run("destroy 101 --yes").succeeded();
    assert_eq!(world.standin.guests(), [9000]);
}

fn is_as_before(world: &World) -> bool {
    world.standin.guests() == [9000] && !world.path("config/101.journal").exists()
}

#[test]
fn a_clone_that_got_no_further_is_found_and_removed() {
    let refused = || Fault::Answer(500, "storage is not online".to_owned());
    for (method, path, fault) in [
        ("PUT", "/nodes/pve/lxc/101/config", refused()),
        ("POST", "/nodes/pve/lxc/9000/clone", refused()),
        ("POST", "/nodes/pve/lxc/9000/clone", Fault::DropAfter),
        ("POST", "/nodes/pve/lxc/9000/clone", Fault::TaskFails("clone failed: no space left on device".to_owned())),
        ("POST", "/nodes/pve/lxc/101/status/start", refused()),
    ] {
        let world = with_golden();
        let shown = format!("{method} {path} {fault:?}");
        world.standin.faults().on(method, path, 1, fault);
        let ran: Ran = world.create("");
        assert_ne!(ran.code, Some(0), "{shown}: {ran:?}");
        assert!(ran.err.contains("taken back"), "{shown}: {ran:?}");
        assert!(world.standin.faults().is_empty(), "{shown}");
        assert!(is_as_before(&world), "{shown}: {:?} {ran:?}", world.standin.guests());
    }
}

#[test]
fn a_run_killed_while_it_clones_is_taken_back_by_the_next() {
    let world = World::with(|options| options.task_delay = std::time::Duration::from_millis(500));
    world.init().run(GOLDEN).succeeded();
    as_token(&world);
    let mut child = world.start(CREATE);
    world.wait("the clone is begun", || world.standin.guests().contains(&101));
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(world.path("config/101.journal").exists());
    let again = world.create("");
    assert!(again.succeeded().err.contains("an earlier run for 101 did not come to its end"), "{again:?}");
    assert!(world.standin.is_running(101));
    assert_eq!(config(&world, 101, "dev0").as_deref(), Some("/dev/net/tun"));
}

#[test]
fn a_golden_container_that_will_not_do_is_named_with_the_reason() {
    let world = with_golden();
    let mut old = world.standin.config(9000).unwrap();
    let notes = old.get("description").unwrap().replace("<!-- pvemesh-image version=", "<!-- pvemesh-image version=0.0.");
    old.set("description", &notes);
    world.standin.add_guest(9000, old.clone());
    world.create("").failed(3, &["dev0", "9000 on pve has version", "pvemesh image golden 9000", "--tun userspace"]);
    old.set("arch", "arm64");
    world.standin.add_guest(9000, old);
    world.create("").failed(3, &["is for another architecture"]);
    assert!(is_as_before(&world));
}

#[test]
fn only_root_makes_one_and_only_where_a_clone_can_be_configured() {
    let world = World::new();
    as_token(&world);
    world.run(GOLDEN).failed(3, &["root@pam!full", "dev0", "root@pam"]);
    let older = World::with(|options| options.version = Version(8, 4));
    older.init().run(GOLDEN).failed(5, &["Proxmox VE 8.4", "`env`", "--tun userspace"]);
    assert!(world.standin.guests().is_empty() && older.standin.guests().is_empty());
    older.standin.add_guest(9000, {
        let made = with_golden();
        made.standin.config(9000).unwrap()
    });
    as_token(&older);
    older.create("").failed(3, &["no `env` yet", "--tun userspace"]);
}

#[test]
fn another_guest_under_its_number_is_left_alone() {
    let world = World::new();
    world.init().create("").succeeded();
    world.run("image golden 101 --image {dir}/image.tar.gz").failed(5, &["container 101 is a pvemesh exit-node, not a golden"]);
    assert!(world.standin.is_running(101));
}
