//! An enrolling that fails or is killed, at each thing that it does: nothing of it is left, and a node that was only to be changed is what it was.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};

use pvemesh::settings::Guest;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::enroll::with_coordinator;
use crate::site::{Ran, Site};
use crate::standin::faults::Fault;

/// What is wrong with one call of `pct`.
#[derive(Debug, Clone, Copy)]
enum Wrong {
    /// It fails and has done nothing.
    Before,
    /// It fails and has done all.
    After,
    /// Whoever called it is killed when it has done all.
    Killed,
}

/// A `pct` whose `exec` and `push` are counted while there is a plan, the one of that number going wrong.
const WRAPPER: &str = r#"#!/bin/sh
at=@DIR@
real=$at/bin/real-pct
case $1 in push|exec) [ -e "$at/plan" ] || exec "$real" "$@" ;; *) exec "$real" "$@" ;; esac
count=$(($(cat "$at/count") + 1)); echo $count > "$at/count"; echo "$count $*" >> "$at/calls"
read -r nth wrong < "$at/plan"
[ $count = "$nth" ] || exec "$real" "$@"
case $wrong in
Before) ;;
After) "$real" "$@" >/dev/null ;;
Killed) "$real" "$@" >/dev/null; : > "$at/reached"; while [ -e "$at/plan" ]; do sleep 0.02; done ;;
esac
echo "the line went dead" >&2; exit 255
"#;

struct Faulty {
    site: Site,
}

impl Faulty {
    fn new() -> Option<Self> {
        let site = with_coordinator()?;
        std::fs::rename(site.path("bin/pct"), site.path("bin/real-pct")).unwrap();
        site.script("bin/pct", &WRAPPER.replace("@DIR@", &site.dir.path().display().to_string()));
        site.busybox(105, &[("description", "# My wiki"), ("tags", "prod;wiki")]);
        Some(Self { site })
    }

    fn plan(&self, nth: u32, wrong: Wrong) {
        std::fs::write(self.site.path("count"), "0").unwrap();
        std::fs::write(self.site.path("plan"), format!("{nth} {wrong:?}\n")).unwrap();
    }

    fn unplan(&self) {
        let count: u32 = std::fs::read_to_string(self.site.path("count")).unwrap().trim().parse().unwrap();
        let nth = std::fs::read_to_string(self.site.path("plan")).unwrap().split(' ').next().unwrap().parse().unwrap();
        assert!(count >= nth, "only {count} calls");
        let _ = std::fs::remove_file(self.site.path("reached"));
        std::fs::remove_file(self.site.path("plan")).unwrap();
    }

    /// The command fails in its `nth` call, and takes itself back.
    fn fails(&self, words: &str, nth: u32, wrong: Wrong) {
        println!("--- call {nth}: {wrong:?}");
        self.plan(nth, wrong);
        let ran = self.site.run(words);
        self.unplan();
        taken_back(&ran);
    }

    /// The command is killed in its `nth` call.
    fn killed(&self, words: &str, nth: u32) {
        println!("--- call {nth}: killed");
        self.plan(nth, Wrong::Killed);
        let mut child = self.site.pvemesh(words).spawn().unwrap();
        self.site.wait("the call is made", 60, || self.site.path("reached").exists() || child.try_wait().unwrap().is_some());
        child.kill().unwrap();
        let status = child.wait().unwrap();
        assert!(status.code().is_none(), "it had ended by itself: {status}");
        self.unplan();
    }

    /// The command is killed while its `nth` change of the API arrives, which is still carried out.
    fn killed_by_write(&self, words: &str, nth: u32) {
        println!("--- change {nth}: killed");
        let target = Arc::new(AtomicI32::new(0));
        let pid = Arc::clone(&target);
        self.site.standin.faults().on_write(
            nth,
            Fault::meanwhile(move |_| {
                while pid.load(Ordering::SeqCst) == 0 {
                    std::thread::yield_now();
                }
                kill_process(Pid::from_raw(pid.load(Ordering::SeqCst)).unwrap(), Signal::KILL).unwrap();
            }),
        );
        let mut child = self.site.pvemesh(words).spawn().unwrap();
        target.store(i32::try_from(child.id()).unwrap(), Ordering::SeqCst);
        assert!(child.wait().unwrap().code().is_none());
        assert!(self.site.standin.faults().is_empty());
    }

    fn write_fails(&self, words: &str, nth: u32, fault: Fault) {
        println!("--- change {nth}: {fault:?}");
        self.site.standin.faults().on_write(nth, fault);
        let ran = self.site.run(words);
        assert!(self.site.standin.faults().is_empty());
        taken_back(&ran);
    }

    fn resumed(&self) {
        let shown = self.site.run("resume --ssh root@pve --dry-run --json").succeeded().json();
        assert_eq!(shown["runs"][0]["state"], "planned", "{shown}");
        let done = self.site.run("resume --ssh root@pve --json").succeeded().json();
        assert_eq!(done["runs"][0]["state"], "taken-back", "{done}");
    }

    /// The configuration as it is from the next start on: no device is taken out of a running container.
    fn config(&self) -> BTreeMap<String, String> {
        let config = self.site.api("GET", "/nodes/pve/lxc/105/config", &[]);
        let text = |key: &str| Some((key.to_owned(), config[key].as_str()?.trim_end().to_owned()));
        ["description", "tags", "dev0", "nameserver", "searchdomain"].into_iter().filter_map(text).collect()
    }

    fn file(&self, path: &str) -> Option<String> {
        std::fs::read_to_string(self.site.rootfs(105, path)).ok()
    }

    #[track_caller]
    fn nothing_is_left(&self, untouched: &BTreeMap<String, String>) {
        assert_eq!(self.config(), *untouched);
        for path in OURS {
            assert!(!self.site.rootfs(105, path).exists(), "{path} was left");
        }
        assert_eq!(self.site.nodes(), json!([]));
        let processes = self.site.pct(&["exec", "105", "--", "ps"]);
        assert!(!processes.succeeded().out.contains("pvemesh"), "{processes:?}");
        assert_eq!(self.site.run("resume --json").succeeded().json()["runs"], json!([]));
        let keys = self.site.pct(&["exec", "100", "--keep-env", "0", "--", "/sbin/init", "--json", "coordinator", "keys", "list"]);
        let keys = keys.succeeded().json();
        let usable = keys.as_array().unwrap().iter().filter(|key| key["used"] == false && key["revoked"] == false).count();
        assert_eq!(usable, 0, "{keys}");
    }
}

const OURS: [&str; 8] = [
    "/usr/local/bin/pvemesh",
    "/usr/local/bin/pvemesh.new",
    "/usr/local/bin/pvemesh.before",
    "/etc/pvemesh",
    "/var/lib/pvemesh",
    "/etc/init.d/S99pvemesh",
    "/etc/init.d/S99pvemesh.new",
    "/run/pvemesh",
];

#[track_caller]
fn taken_back(ran: &Ran) {
    assert!(ran.code.is_some_and(|code| code != 0) && ran.err.contains("what had been made was taken back"), "{ran:?}");
}

const ENROLL: &str = "enroll 105 --ssh root@pve";

#[test]
fn an_enrolling_that_fails_or_is_killed_anywhere_leaves_nothing() {
    let Some(at) = Faulty::new() else { return };
    let untouched = at.config();
    // The first call looks and the second makes a directory that is there; then: push, place, record, settings, service, start.
    for (nth, wrong) in [(3, Wrong::After), (4, Wrong::Before), (6, Wrong::After), (7, Wrong::Before), (8, Wrong::After)] {
        at.fails(ENROLL, nth, wrong);
        at.nothing_is_left(&untouched);
    }
    // Device, tags, notes.
    for (nth, fault) in [(1, Fault::DropAfter), (2, Fault::Answer(500, "no".to_owned())), (3, Fault::DropAfter)] {
        at.write_fails(ENROLL, nth, fault);
        at.nothing_is_left(&untouched);
    }
    for nth in [4, 8] {
        at.killed(ENROLL, nth);
        at.resumed();
        at.nothing_is_left(&untouched);
    }
    at.full_disk();
    at.nothing_is_left(&untouched);

    // The next run takes back what this one leaves, and goes on.
    at.killed(ENROLL, 6);
    let again = at.site.run(ENROLL);
    assert!(again.succeeded().err.contains("taking back what it left"), "{again:?}");
    assert_eq!(at.site.nodes().as_array().unwrap().len(), 1);
    at.site.run("unenroll 105 --ssh root@pve --yes").succeeded();

    // By the notes the node is complete: nothing is to be taken back.
    at.killed_by_write(ENROLL, 3);
    let done = at.site.run("resume --ssh root@pve --json").succeeded().json();
    assert_eq!(done["runs"][0]["state"], "finished", "{done}");
    let same = at.site.run(&format!("{ENROLL} --json"));
    assert_eq!(same.succeeded().json()["changed"], json!(false));

    // Of a container that has gone meanwhile nothing is to be taken back.
    at.site.run("unenroll 105 --ssh root@pve --yes").succeeded();
    at.killed(ENROLL, 5);
    at.site.stop(105);
    at.site.api("DELETE", "/nodes/pve/lxc/105", &[]);
    at.site.run("resume --ssh root@pve --json").succeeded();
    assert_eq!(at.site.run("resume --json").succeeded().json()["runs"], json!([]));
}

impl Faulty {
    fn full_disk(&self) {
        let inside = |line: &str| assert_eq!(self.site.pct(&["exec", "105", "--", "sh", "-c", line]).code, Some(0), "{line}");
        inside("/bin/busybox mount -t tmpfs -o size=1m none /usr/local/bin");
        let ran = self.site.run(ENROLL);
        taken_back(&ran);
        assert!(ran.err.contains("pvemesh.new did not arrive"), "{ran:?}");
        inside("ls /usr/local/bin | grep . && exit 1; /bin/busybox umount /usr/local/bin");
    }
}

/// Everything of an enrolled node that a change may change.
#[derive(Debug, PartialEq)]
struct State {
    config: BTreeMap<String, String>,
    settings: Option<Guest>,
    files: [Option<String>; 2],
    node: Value,
}

impl Faulty {
    fn state(&self) -> State {
        let config = self.config();
        let settings = self.file("/etc/pvemesh/guest.toml").and_then(|text| Guest::from_toml(&text).ok());
        assert!(settings.is_some());
        let files = ["/etc/pvemesh/enrolled.json", "/etc/init.d/S99pvemesh"].map(|path| self.file(path));
        self.site.wait("the node is connected", 30, || self.site.nodes()[0]["online"] == true && self.offers().is_some());
        let mut node = self.site.nodes()[0].clone();
        node.as_object_mut()
            .unwrap()
            .retain(|key, _| ["id", "name", "key", "tags", "addresses", "approved_routes"].contains(&key.as_str()));
        State { config, settings, files, node }
    }

    /// Whether the running node carries others' traffic; nothing if none answers.
    fn offers(&self) -> Option<bool> {
        let said = self.site.pct(&["exec", "105", "--keep-env", "0", "--", "/usr/local/bin/pvemesh", "node", "self-check"]);
        serde_json::from_str::<Value>(&said.out).ok()?["node"]["carries"].as_bool()
    }

    #[track_caller]
    fn is_as_before(&self, before: &State) {
        assert_eq!(self.state(), *before);
        self.site.wait("what runs is what it was", 20, || self.offers() == Some(false));
        assert_eq!(self.site.run("resume --json").succeeded().json()["runs"], json!([]));
        let same = self.site.run(&format!("{ENROLL} --json"));
        assert_eq!(same.succeeded().json()["changed"], json!(false));
    }
}

#[test]
fn a_changed_node_is_what_it_was_when_its_change_fails_or_is_killed() {
    let Some(at) = Faulty::new() else { return };
    at.site.run(ENROLL).succeeded();
    let before = at.state();
    let change = format!("{ENROLL} --route 10.66.0.0/16");
    // The first call looks; then: settings, restart.
    at.fails(&change, 3, Wrong::After);
    at.is_as_before(&before);
    // Tags, then notes.
    at.write_fails(&change, 2, Fault::DropAfter);
    at.is_as_before(&before);
    for nth in [2, 3] {
        at.killed(&change, nth);
        at.resumed();
        at.is_as_before(&before);
    }
    at.killed_by_write(&change, 1);
    let taken_out = at.site.run("unenroll 105 --ssh root@pve --yes");
    assert!(taken_out.succeeded().err.contains("taking back what it left"), "{taken_out:?}");
    assert_eq!(at.site.nodes(), json!([]));
    assert_eq!(at.config()["tags"], "prod;wiki");
}
