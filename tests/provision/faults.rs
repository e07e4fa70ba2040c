//! Whatever goes wrong midway: the run takes back what it made, or the next one does; never two containers, never a leftover.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::standin::Inside;
use crate::standin::faults::Fault;
use crate::standin::lxc::until;
use crate::world::{CREATE, World};

/// Every call that changes something, in the order of a run.
const CHANGES: [(&str, &str, u32); 6] = [
    ("POST", "/storage/local/upload", 1),
    ("POST", "/nodes/pve/lxc", 1),
    ("PUT", "/lxc/101/config", 1),
    ("POST", "/lxc/101/status/start", 1),
    ("PUT", "/lxc/101/config", 2),
    ("PUT", "/lxc/101/config", 3),
];

fn faults() -> Vec<Fault> {
    vec![
        Fault::DropBefore,
        Fault::DropAfter,
        Fault::Answer(596, "Connection timed out".to_owned()),
        Fault::Answer(500, "disk full".to_owned()),
    ]
}

#[test]
fn a_fault_at_any_change_is_taken_back_and_the_next_run_succeeds() {
    for (method, path, nth) in CHANGES {
        for fault in faults() {
            let at = format!("{fault:?} at {method} {path} #{nth}");
            let world = World::new();
            world.init();
            world.standin.faults().on(method, path, nth, fault);
            let ran = world.create("");
            assert!(matches!(ran.code, Some(1 | 4)), "{at}: {ran:?}");
            assert!(ran.err.contains("what had been made was taken back"), "{at}: {ran:?}");
            assert!(world.standin.faults().is_empty(), "{at}: the fault did not happen");
            assert!(world.standin.settle(Duration::from_secs(10)));
            assert!(world.is_untouched(), "{at}: {:?} {:?} {ran:?}", world.standin.guests(), world.templates());
            world.create("").succeeded();
            assert_eq!(world.standin.guests(), [101], "{at}");
        }
    }
}

#[test]
fn a_lost_read_is_asked_again() {
    for path in ["/nodes", "/cluster/resources", "/nodes/pve/storage", "/nodes/pve/network", "/lxc/101/interfaces"] {
        for fault in [Fault::DropBefore, Fault::DropAfter] {
            let world = World::new();
            world.init();
            world.standin.faults().on("GET", path, 1, fault);
            world.create("").succeeded();
            assert!(world.standin.faults().is_empty(), "{path}");
        }
    }
}

#[test]
fn a_failed_task_shows_its_log_and_is_taken_back() {
    for (path, text) in [
        ("/storage/local/upload", "checksum mismatch: got 'a' != expect 'b'"),
        ("/nodes/pve/lxc", "unable to create CT 101 - no space left on device"),
        ("/lxc/101/status/start", "startup for container '101' failed"),
    ] {
        let world = World::new();
        world.init();
        world.standin.faults().on("POST", path, 1, Fault::TaskFails(text.to_owned()));
        let ran = world.create("");
        ran.failed(1, &[text, "the task's log ends with:", "| TASK ERROR", "what had been made was taken back"]);
        assert!(world.is_untouched(), "{path}: {ran:?}");
    }
}

#[test]
fn a_bridge_that_vanishes_is_told_by_the_start_task_and_taken_back() {
    let world = World::new();
    world.init();
    world.standin.faults().on("POST", "/lxc/101/status/start", 1, Fault::TaskFails("bridge 'vmbr0' does not exist".to_owned()));
    world.create("").failed(5, &["bridge 'vmbr0' does not exist"]);
    assert!(world.is_untouched());
}

#[test]
fn what_cannot_be_taken_back_is_listed_and_the_next_run_takes_it_back() {
    let world = World::new();
    world.init();
    world.standin.faults().on("POST", "/lxc/101/status/start", 1, Fault::TaskFails("no".to_owned()));
    world.standin.faults().on("DELETE", "/nodes/pve/lxc/101", 1, Fault::Answer(500, "no such luck".to_owned()));
    let ran = world.create("");
    ran.failed(6, &["not taken back: remove container 101 from pve: no such luck", "run the same command again"]);
    assert_eq!(world.standin.guests(), [101]);
    assert!(world.path("config/101.journal").exists());
    let again = world.create("");
    assert!(again.succeeded().err.contains("an earlier run for 101 did not come to its end"), "{again:?}");
    assert_eq!((world.standin.guests(), world.templates().len()), (vec![101], 1));
}

#[test]
fn destroy_takes_back_what_a_failed_run_left() {
    let world = World::new();
    world.init();
    world.standin.faults().on("POST", "/lxc/101/status/start", 1, Fault::TaskFails("no".to_owned()));
    world.standin.faults().on("DELETE", "/nodes/pve/lxc/101", 1, Fault::Answer(500, "no such luck".to_owned()));
    world.create("").failed(6, &["not taken back"]);
    let ran = world.run("destroy 101 --yes");
    assert!(ran.succeeded().out.contains("what a run for 101 had left is gone"), "{ran:?}");
    assert!(world.is_untouched());
}

#[test]
fn a_run_killed_at_any_call_is_taken_back_by_the_next_one() {
    for (method, path, nth) in CHANGES {
        let world = World::new();
        world.init();
        let faults = world.standin.faults();
        // The call is carried out while the program that made it dies.
        faults.on(method, path, nth, Fault::Slow(Duration::from_secs(30)));
        let mut child = world.start(CREATE);
        world.wait("the call arrives", || faults.is_empty());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(world.standin.settle(Duration::from_secs(10)));
        assert!(world.path("config/101.journal").exists(), "{method} {path} #{nth}");
        let again = world.create("");
        again.succeeded();
        assert_eq!((world.standin.guests(), world.templates().len()), (vec![101], 1), "{method} {path} #{nth}");
        assert!(!world.path("config/101.journal").exists());
        world.run("destroy 101 --yes").succeeded();
        assert!(world.is_untouched(), "{method} {path} #{nth}");
    }
}

#[test]
fn ctrl_c_takes_back_what_was_made() {
    let world = World::with(|options| options.task_delay = Duration::from_millis(300));
    world.init();
    let child = world.start(CREATE);
    world.wait("the container is there", || !world.standin.guests().is_empty());
    let pid = rustix::process::Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("interrupted"), "{said}");
    assert!(world.is_untouched(), "{said}");
}

#[test]
fn two_runs_at_once_make_one_container() {
    let world = World::with(|options| options.task_delay = Duration::from_millis(200));
    world.init();
    let first = world.start(CREATE);
    let second = world.start(CREATE);
    let outputs = [first.wait_with_output().unwrap(), second.wait_with_output().unwrap()];
    let mut codes: Vec<_> = outputs.iter().map(|o| o.status.code()).collect();
    codes.sort_unstable();
    // The other one found the guest at work, or ready.
    assert!(codes == [Some(0), Some(5)] || codes == [Some(0), Some(0)], "{outputs:?}");
    assert_eq!(world.standin.guests(), [101]);
}

#[test]
fn of_two_runs_that_want_the_same_name_one_gets_it_and_the_other_leaves_nothing() {
    use crate::estate::Estate;
    use crate::world::Ran;
    let estate = Estate::remote("pve");
    // Both have looked, and found the name free, before either makes anything.
    let begun = Arc::new(AtomicU32::new(0));
    for _ in 0..2 {
        let begun = Arc::clone(&begun);
        let both = move |_: &Inside| {
            begun.fetch_add(1, Ordering::SeqCst);
            assert!(until(Duration::from_secs(60), || begun.load(Ordering::SeqCst) >= 2), "the other run does not come");
        };
        estate.world.standin.faults().on("POST", "/storage/local/upload", 1, Fault::meanwhile(both));
    }
    let words = |id: u32| format!("create-exit-node {id} --name way-out --image {{dir}}/image.tar.gz --tun userspace --json");
    let running = [101, 102].map(|id| (id, estate.world.start(&words(id))));
    let ended = running.map(|(id, child)| (id, Ran::of(child.wait_with_output().unwrap())));
    let (made, lost): (Vec<_>, Vec<_>) = ended.iter().partition(|(_, ran)| ran.code == Some(0));
    let ([(made, done)], [(lost, refused)]) = (made.as_slice(), lost.as_slice()) else { panic!("{ended:#?}") };
    assert_eq!(refused.code, Some(5), "{refused:?}");
    assert!(refused.err.contains("the name way-out went to another node") && refused.err.contains("--name"), "{refused:?}");
    assert_eq!(estate.world.standin.guests(), [*made]);
    let node = estate.wait_online("way-out");
    assert_eq!(done.json()["mesh_addresses"][0], node["addresses"][0], "it took the other's for its own");
    let nodes = estate.world.run("coordinator nodes list --json --socket {dir}/c.sock").succeeded().json();
    assert_eq!(nodes["nodes"].as_array().unwrap().len(), 1, "{nodes}");
    assert!(!estate.world.path(&format!("config/{lost}.journal")).exists());
    estate.world.run(&words(*lost).replace("way-out", "way-in")).succeeded();
}

#[test]
fn somebody_else_s_container_under_the_number_survives_a_recovery() {
    let world = World::new();
    world.init();
    let faults = world.standin.faults();
    faults.on("POST", "/storage/local/upload", 1, Fault::Slow(Duration::from_secs(30)));
    let mut child = world.start(CREATE);
    world.wait("the upload arrives", || faults.is_empty());
    child.kill().unwrap();
    child.wait().unwrap();
    world.standin.add_guest(101, crate::standin::guest_config::Config::default());
    world.create("").failed(5, &["VMID 101 is in use"]);
    assert_eq!(world.standin.guests(), [101]);
    assert!(world.templates().is_empty());
}
