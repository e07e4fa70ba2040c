//! Fleets: a file, the stand-in, and the binary between them.

use std::time::Duration;

use crate::standin::Version;
use crate::standin::cluster::Host;
use crate::standin::faults::Fault;
use crate::world::World;

const FLEET: &str = "[defaults]\nlogin_server = \"http://mesh.example.org\"\nauth_key_file = \"auth-key\"\n";

fn world(file: &str) -> World {
    let world = World::new();
    world.init();
    write(&world, file);
    world
}

fn write(world: &World, file: &str) {
    std::fs::write(world.path("fleet.toml"), format!("{FLEET}{file}")).unwrap();
}

const APPLY: &str = "apply {dir}/fleet.toml --image {dir}/image.tar.gz";
const THREE: &str = "[[guest]]\nid = 101\nrole = \"exit-node\"\n[[guest]]\nid = \"200-201\"\nrole = \"node\"\n";

#[test]
fn fifty_guests_are_made_at_once_and_the_second_run_needs_one_call_a_guest() {
    let world = world("[[guest]]\nid = \"200-249\"\nrole = \"node\"\n");
    let made = world.run(&format!("{APPLY} --json"));
    let report = made.succeeded().json();
    assert_eq!(world.standin.guests().len(), 50);
    assert_eq!(world.templates().len(), 1, "one image serves them all");
    let names: std::collections::BTreeSet<_> = report["guests"].as_array().unwrap().iter().map(|row| row["name"].to_string()).collect();
    assert_eq!(names.len(), 50, "{names:?}");
    assert!(world.standin.guests().iter().all(|id| world.standin.is_running(*id)));
    println!("50 guests: {} s, {} calls", report["seconds"], report["calls"]);

    let again = world.run(&format!("{APPLY} --json"));
    let report = again.succeeded().json();
    assert!(report["guests"].as_array().unwrap().iter().all(|row| row["outcome"] == "unchanged"), "{report}");
    assert_eq!(report["calls"], 51, "one for the list of guests, one for each");
}

#[test]
fn a_dry_run_shows_what_differs_and_changes_nothing() {
    let world = world(THREE);
    let dry = world.run(&format!("{APPLY} --dry-run"));
    for part in
        ["+ 101 exit-1 (exit-node) on pve", "+ 200 node-1", "+ 201 node-2", "POST /nodes/pve/lxc ", "3 to make", "nothing was changed"]
    {
        assert!(dry.succeeded().out.contains(part), "{part}: {dry:?}");
    }
    assert!(world.is_untouched());
    world.run(APPLY).succeeded();
    write(&world, &format!("{THREE}memory = 96\n"));
    let dry = world.run(&format!("{APPLY} --dry-run --json")).json();
    assert_eq!(dry["guests"][1]["outcome"], "change", "{dry}");
    assert_eq!(dry["guests"][1]["differences"][0]["what"], "memory");
    let report = world.run(&format!("{APPLY} --json")).json();
    let outcomes: Vec<_> = report["guests"].as_array().unwrap().iter().map(|row| row["outcome"].as_str().unwrap().to_owned()).collect();
    assert_eq!(outcomes, ["unchanged", "changed", "changed"]);
    assert_eq!(world.standin.config(101).unwrap().get("memory"), Some("64"));
}

#[test]
fn after_a_failure_none_is_begun_and_the_next_run_makes_the_rest() {
    let world = world("[[guest]]\nid = \"200-209\"\nrole = \"node\"\n");
    world.standin.faults().on("POST", "/lxc/202/status/start", 1, Fault::TaskFails("no more memory".to_owned()));
    let failed = world.run(&format!("{APPLY} --parallel 1 --json"));
    failed.failed(1, &["guest 202", "no more memory"]);
    let report = failed.json();
    let outcome = |id: usize| report["guests"][id]["outcome"].as_str().unwrap().to_owned();
    assert_eq!((outcome(0), outcome(2), outcome(3)), ("created".to_owned(), "failed".to_owned(), "not begun".to_owned()), "{report}");
    assert_eq!(world.standin.guests(), [200, 201], "what the failed one had made is taken back");
    let rest = world.run(&format!("{APPLY} --json")).json();
    assert_eq!(world.standin.guests().len(), 10);
    assert_eq!(rest["guests"][0]["outcome"], "unchanged");
}

#[test]
fn with_keep_going_the_others_are_made() {
    let world = world("[[guest]]\nid = \"200-205\"\nrole = \"node\"\n");
    world.standin.faults().on("POST", "/lxc/200/status/start", 1, Fault::TaskFails("no more memory".to_owned()));
    world.run(&format!("{APPLY} --keep-going --parallel 2")).failed(1, &["guest 200"]);
    assert_eq!(world.standin.guests(), [201, 202, 203, 204, 205]);
}

#[test]
fn a_fleet_none_of_which_came_to_be_leaves_nothing() {
    let world = world("[[guest]]\nid = 200\nrole = \"node\"\n");
    world.standin.faults().on("POST", "/lxc", 1, Fault::TaskFails("disk quota exceeded".to_owned()));
    world.run(APPLY).failed(1, &["disk quota exceeded"]);
    assert!(world.is_untouched() && !world.path("config/200.journal").exists());
}

#[test]
fn interrupted_it_ends_in_order_and_goes_on_the_next_time() {
    let world = {
        let world = World::with(|options| options.task_delay = Duration::from_millis(150));
        world.init();
        write(&world, "[[guest]]\nid = \"200-219\"\nrole = \"node\"\n");
        world
    };
    let mut child = world.start(APPLY);
    world.wait("some guests", || world.standin.guests().len() > 3);
    rustix::process::kill_process(rustix::process::Pid::from_child(&child), rustix::process::Signal::INT).unwrap();
    let ended = child.wait().unwrap();
    assert!(!ended.success());
    let journals =
        || std::fs::read_dir(world.path("config")).unwrap().flatten().any(|e| e.file_name().to_string_lossy().ends_with(".journal"));
    assert!(!journals(), "what was begun was taken back");
    let left = world.standin.guests();
    assert!(left.iter().all(|id| world.standin.is_running(*id)) && left.len() < 20, "{left:?}");
    world.run(APPLY).succeeded();
    assert_eq!(world.standin.guests().len(), 20);
}

#[test]
fn a_file_that_cannot_be_used_is_refused_before_anything_is_asked() {
    let world = World::new();
    for (file, said) in [("[[guest]]\nid = 101\nrole = \"node\"\nbridge = \"a,b\"\n", "guest 101: bridge"), ("[[guest]\n", "line ")] {
        write(&world, file);
        world.run(APPLY).failed(2, &[said]);
    }
    world.run("apply {dir}/nosuch.toml").failed(2, &["nosuch.toml"]);
}

/// Three hosts that share nothing.
fn cluster(version: Version) -> World {
    let world = World::with(|options| {
        "pve1".clone_into(&mut options.node);
        options.version = version;
        options.others = ["pve2", "pve3"].map(|name| Host { version, ..Host::new(name) }).to_vec();
    });
    world.init();
    world
}

fn places(world: &World) -> Vec<String> {
    world.standin.guests().into_iter().filter_map(|id| world.standin.place_of(id)).collect()
}

const PAIR: &str = "[[guest]]\nid = \"101-102\"\nrole = \"exit-node\"\ngroup = \"way-out\"\nha = true\n";

#[test]
fn a_fleet_spreads_over_the_hosts_and_each_gets_the_image_once() {
    let world = cluster(Version::V9_1);
    write(&world, "[[guest]]\nid = \"200-208\"\nrole = \"node\"\n");
    world.run(APPLY).succeeded();
    let places = places(&world);
    for host in ["pve1", "pve2", "pve3"] {
        assert_eq!(places.iter().filter(|place| *place == host).count(), 3, "{places:?}");
        let images = std::fs::read_dir(world.standin.storage_dir_on(host, "local").join("template/cache")).unwrap().count();
        assert_eq!(images, 1, "{host}");
    }
}

#[test]
fn guests_of_a_group_go_to_different_hosts_and_stay_apart_when_one_dies() {
    let world = cluster(Version::V9_1);
    write(&world, PAIR);
    let made = world.run(APPLY);
    assert!(made.succeeded().err.contains("resources=ct:101,ct:102"), "{made:?}");
    let before = places(&world);
    assert_ne!(before[0], before[1]);
    let calls = |ran: &crate::world::Ran| ran.json()["calls"].clone();
    let again = world.run(&format!("{APPLY} --json"));
    assert_eq!((calls(again.succeeded()), &again.json()["guests"][0]["outcome"]), (5.into(), &"unchanged".into()), "{again:?}");

    world.standin.set_down(&before[0], true);
    assert_eq!(world.standin.fail_over(), [101]);
    world.wait("it runs elsewhere", || world.standin.is_running(101));
    let after = places(&world);
    assert!(after[0] != before[0] && after[0] != after[1], "{before:?} {after:?}");

    let list = world.run("list");
    assert!(list.succeeded().out.contains(&after[0]), "{list:?}");
    for id in [101, 102] {
        world.run(&format!("destroy {id} --yes")).succeeded();
    }
    assert!(world.standin.guests().is_empty());
}

#[test]
fn an_older_cluster_has_no_rules_and_the_pair_is_apart_all_the_same() {
    let world = cluster(Version::V8_4);
    write(&world, PAIR);
    let made = world.run(APPLY);
    assert!(made.succeeded().err.contains("has no rules that keep the guests of group way-out apart"), "{made:?}");
    let places = places(&world);
    assert_ne!(places[0], places[1]);
}

#[test]
fn a_guest_is_put_under_high_availability_and_taken_out_by_its_line_in_the_file() {
    let world = cluster(Version::V9_1);
    let file = |ha: &str| format!("[[guest]]\nid = 101\nrole = \"exit-node\"\n{ha}");
    write(&world, &file(""));
    world.run(APPLY).succeeded();
    for (line, to) in [("ha = true\n", "yes"), ("ha = false\n", "no")] {
        write(&world, &file(line));
        let dry = world.run(&format!("{APPLY} --dry-run --json")).json();
        assert_eq!(dry["guests"][0]["differences"][0]["to"], to, "{dry}");
        world.run(APPLY).succeeded();
        let again = world.run(&format!("{APPLY} --json")).json();
        assert_eq!(again["guests"][0]["outcome"], "unchanged", "{again}");
    }
    assert!(world.standin.is_running(101));
}

#[test]
fn a_host_that_is_down_takes_no_guest_and_the_others_do() {
    let world = cluster(Version::V9_1);
    world.standin.set_down("pve2", true);
    write(&world, "[[guest]]\nid = \"200-205\"\nrole = \"node\"\n");
    world.run(APPLY).succeeded();
    assert_eq!(places(&world).iter().filter(|place| *place == "pve2").count(), 0);
}
