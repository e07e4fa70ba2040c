//! Interrupted and killed at every call that changes something, at the same time as others, and what `pvemesh resume` makes of it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use crate::standin::Version;
use crate::standin::faults::Fault;
use crate::standin::guest_config::Config;
use crate::versions::{cannot_be_on_the_host, host_command};
use crate::world::{CREATE, Ran, World};

/// What a run changes on the way where the configuration travels in the environment.
const WRITES: u32 = 6;
/// And where it travels in an image.
const WRITES_BY_IMAGE: u32 = 5;

/// A host with somebody else's container and template, so that too much taken back would show.
fn world() -> World {
    let world = by_release(Version::V9_1);
    world.init();
    world
}

fn by_release(release: Version) -> World {
    let world = World::with(|options| options.version = release);
    let mut theirs = Config::default();
    theirs.set("hostname", "debian");
    world.standin.add_guest(900, theirs);
    std::fs::write(world.standin.storage_dir("local").join("template/cache/debian.tar.zst"), "theirs").unwrap();
    world
}

type State = (BTreeMap<u32, Config>, Vec<String>, Vec<String>);

fn state(world: &World) -> State {
    let configs = world.standin.guests().into_iter().map(|id| (id, world.standin.config(id).unwrap())).collect();
    let names = |dir: std::path::PathBuf| {
        let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
        entries.map(|e| e.file_name().into_string().unwrap()).collect::<Vec<_>>()
    };
    let mut files = names(world.path("config"));
    files.extend(names(world.path("config/images")));
    // What is staged for pvesh by a process that is gone.
    let gone = |name: &String| {
        let pid = name.strip_prefix("pveupload-70766d6573682d00").and_then(|rest| u32::from_str_radix(rest.get(..8)?, 16).ok());
        pid.is_some_and(|pid| !std::path::Path::new(&format!("/proc/{pid}")).exists())
    };
    files.extend(names("/var/tmp".into()).into_iter().filter(gone));
    // The work lock of a killed run and its admin key are no traces of a guest.
    files.retain(|name| name != "101.lock" && name != "admin.key" && name != "images");
    files.sort();
    (configs, world.templates(), files)
}

/// Starts a run that is sent a signal while its `nth` change arrives; the change is still carried out.
fn signalled(world: &World, mut command: std::process::Command, nth: u32, signal: Signal) -> Ran {
    let pid = Arc::new(AtomicI32::new(0));
    let target = Arc::clone(&pid);
    world.standin.faults().on_write(
        nth,
        Fault::meanwhile(move |_| {
            while target.load(Ordering::SeqCst) == 0 {
                std::thread::yield_now();
            }
            kill_process(Pid::from_raw(target.load(Ordering::SeqCst)).unwrap(), signal).unwrap();
        }),
    );
    let child = command.spawn().unwrap();
    pid.store(i32::try_from(child.id()).unwrap(), Ordering::SeqCst);
    let ran = Ran::of(child.wait_with_output().unwrap());
    assert!(world.standin.faults().is_empty(), "{nth}: {ran:?}");
    assert!(world.standin.settle(Duration::from_secs(10)));
    ran
}

/// How a command is run: from afar, or as root on the host.
type Way = fn(&World, &str) -> std::process::Command;

fn from_afar(world: &World, words: &str) -> std::process::Command {
    world.command(words)
}

#[test]
fn a_run_killed_at_any_change_is_taken_back_by_resume() {
    let ready = |release| {
        let world = by_release(release);
        world.init();
        world
    };
    killed_at_any_change(&|| ready(Version::V9_1), from_afar, WRITES);
    killed_at_any_change(&|| ready(Version(8, 4)), from_afar, WRITES_BY_IMAGE);
}

#[test]
fn a_run_on_the_host_killed_at_any_change_is_taken_back_by_resume() {
    if let Some(why) = cannot_be_on_the_host() {
        println!("skipped: {why}");
        return;
    }
    // One more than from afar: there the hook is set, too.
    killed_at_any_change(&|| by_release(Version::V9_1), host_command, WRITES_BY_IMAGE + 1);
}

fn killed_at_any_change(make: &dyn Fn() -> World, way: Way, writes: u32) {
    let run = |world: &World, words: &str| Ran::of(way(world, words).output().unwrap());
    for nth in 1..=writes {
        let world = make();
        let before = state(&world);
        let ran = signalled(&world, way(&world, CREATE), nth, Signal::KILL);
        assert_eq!(ran.code, None, "{nth}: {ran:?}");
        // The call was being carried out as the program died.
        let calls = world.standin.calls();
        world.wait("the call is carried out", || calls.writes().len() >= nth as usize && calls.is_idle());
        assert!(world.standin.settle(Duration::from_secs(60)), "{nth}: its task goes on");
        let between = state(&world);
        assert!(world.path("config/101.journal").exists(), "{nth}");
        let shown = run(&world, "resume --dry-run --json").succeeded().json();
        assert_eq!(shown["runs"][0]["vmid"], 101, "{shown}");
        assert_eq!(state(&world), between, "{nth}: a dry run changed something");
        let resumed = run(&world, "resume --json");
        let row = resumed.succeeded().json()["runs"][0].clone();
        if nth == writes {
            // The notes said that it was ready; only the journal was left.
            assert_eq!((&row["state"], &shown["runs"][0]["state"]), (&json!("finished"), &json!("finished")));
            assert!(world.standin.is_running(101));
        } else {
            assert_eq!((&row["state"], &shown["runs"][0]["state"]), (&json!("taken-back"), &json!("planned")), "{nth}: {resumed:?}");
            assert_eq!(state(&world), before, "{nth}: {resumed:?}");
        }
        assert!(run(&world, "resume").succeeded().out.contains("no run is unfinished, nothing to do"));
        run(&world, CREATE).succeeded();
        assert_eq!(world.standin.guests(), [101, 900], "{nth}");
    }
}

#[test]
fn a_run_interrupted_at_any_change_takes_itself_back() {
    interrupted_at_any_change(&world, from_afar, WRITES);
}

#[test]
fn a_run_on_the_host_interrupted_at_any_change_takes_itself_back() {
    if let Some(why) = cannot_be_on_the_host() {
        println!("skipped: {why}");
        return;
    }
    interrupted_at_any_change(&|| by_release(Version::V9_1), host_command, WRITES_BY_IMAGE);
}

fn interrupted_at_any_change(make: &dyn Fn() -> World, way: Way, writes: u32) {
    for nth in 1..=writes {
        let world = make();
        let before = state(&world);
        let ran = signalled(&world, way(&world, CREATE), nth, Signal::INT);
        ran.failed(1, &["interrupted", "what had been made was taken back"]);
        assert_eq!(state(&world), before, "{nth}: {ran:?}");
        assert!(Ran::of(way(&world, CREATE).output().unwrap()).code == Some(0));
        assert_eq!(world.standin.guests(), [101, 900], "{nth}");
    }
}

#[test]
fn resume_says_what_is_left_and_leaves_a_run_at_work_alone() {
    let world = world();
    world.standin.faults().on("POST", "/lxc/101/status/start", 1, Fault::TaskFails("no".to_owned()));
    world.standin.faults().on("DELETE", "/nodes/pve/lxc/101", 1, Fault::Answer(500, "no such luck".to_owned()));
    world.create("").failed(6, &["not taken back"]);
    assert!(world.run("resume 102").succeeded().out.contains("nothing to do"));
    world.standin.faults().on("DELETE", "/nodes/pve/lxc/101", 1, Fault::Answer(500, "no such luck".to_owned()));
    world.run("resume 101").failed(6, &["101: remove container 101 from pve: no such luck", "next: "]);
    let held = std::fs::OpenOptions::new().create(true).append(true).open(world.path("config/101.lock")).unwrap();
    rustix::fs::flock(&held, rustix::fs::FlockOperation::LockExclusive).unwrap();
    assert_eq!(world.run("resume --json").succeeded().json()["runs"][0]["state"], "busy");
    drop(held);
    assert!(world.run("resume").succeeded().out.contains("exit-node 101 (exit-1): taken back"));
    assert_eq!(world.standin.guests(), [900]);
    world.run("resume x").failed(2, &["ID"]);
}

#[test]
fn of_two_machines_that_make_the_same_guest_one_does_and_the_other_harms_nothing() {
    for round in 0..4 {
        let world = World::with(|options| options.task_delay = Duration::from_millis(40 * round));
        world.init();
        let second = world.path("second");
        std::fs::create_dir(&second).unwrap();
        std::fs::copy(world.path("config/config.toml"), second.join("config.toml")).unwrap();
        let mut other = world.command(CREATE);
        other.env("PVEMESH_CONFIG_DIR", &second);
        let (first, other) = (world.start(CREATE), other.spawn().unwrap());
        let ran = [Ran::of(first.wait_with_output().unwrap()), Ran::of(other.wait_with_output().unwrap())];
        let mut codes = [ran[0].code, ran[1].code];
        codes.sort_unstable();
        let conflict = ran
            .iter()
            .any(|r| ["already exists on node", "is locked (create)", "another run", "already there"].iter().any(|t| r.err.contains(t)));
        assert!(codes == [Some(0), Some(5)] || codes == [Some(0), Some(0)], "{round}: {ran:?}");
        assert!(conflict, "{round}: the other one did not say so: {ran:?}");
        assert_eq!(world.standin.guests(), [101], "{round}");
        let config = world.standin.config(101).unwrap();
        assert!(config.get("description").unwrap().contains("state=ready") && config.lock.is_none(), "{round}: {ran:?}");
        assert!(world.standin.is_running(101) && world.templates().len() == 1, "{round}: {:?} {ran:?}", world.templates());
        for dir in [world.path("config"), second] {
            assert!(!dir.join("101.journal").exists(), "{round}: {ran:?}");
        }
    }
}

#[test]
fn what_somebody_writes_into_the_notes_meanwhile_stays() {
    let world = world();
    world.standin.faults().on_write(
        WRITES,
        Fault::meanwhile(|pve| {
            pve.edit(101, |config| {
                let notes = format!("behind the fridge\n\n{}the admin's\n", config.get("description").unwrap_or_default());
                config.set("description", &notes);
                config.set("tags", "pvemesh;exit-node;kitchen");
            });
        }),
    );
    world.create("").succeeded();
    let config = world.standin.config(101).unwrap();
    let notes = config.get("description").unwrap();
    assert!(
        notes.starts_with("behind the fridge\n\n<!-- pvemesh-begin -->\n# pvemesh exit node") && notes.ends_with("the admin's\n"),
        "{notes}"
    );
    assert!(notes.contains("state=ready") && notes.contains("100.64.0.101") && !notes.contains("state=unfinished"), "{notes}");
    assert_eq!(config.get("tags"), Some("exit-node;kitchen;pvemesh"));
    let writes = world.standin.calls().writes();
    let notes: Vec<_> = writes.iter().filter(|call| call.param("description").is_some() && call.method == "PUT").collect();
    assert!(notes.len() == 2 && notes.iter().all(|call| call.param("digest").is_some()), "{notes:?}");
}

#[test]
fn a_backup_that_locks_the_guest_midway_is_told_and_resume_clears_up_after_it() {
    std::thread::scope(|scope| {
        // From the change after the container was made on.
        for nth in 3..=WRITES {
            scope.spawn(move || {
                let world = world();
                let before = state(&world);
                world.standin.faults().on_write(nth, Fault::meanwhile(|pve| pve.set_lock(101, Some("backup"))));
                let ran = world.create("");
                ran.failed(6, &["CT is locked (backup)", "not taken back: remove container 101 from pve"]);
                assert_eq!(world.standin.guests(), [101, 900], "{nth}: {ran:?}");
                world.standin.set_lock(101, None);
                world.run("resume").succeeded();
                assert_eq!(state(&world), before, "{nth}");
            });
        }
    });
}
