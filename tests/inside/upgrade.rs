//! Upgrades of real guests: a good program, and bad ones of every kind.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::admin::Admin;
use crate::enroll::with_coordinator;
use crate::site::{Ran, Site, program, read};

/// The program again, told apart by a few bytes behind its end.
pub fn good(site: &Site, mark: &str) -> PathBuf {
    let path = site.path(&format!("good-{mark}"));
    std::fs::copy(program(), &path).unwrap();
    let mut file = std::fs::OpenOptions::new().append(true).open(&path).unwrap();
    file.write_all(mark.as_bytes()).unwrap();
    path
}

/// A program that says a version, and otherwise does this.
fn bad(site: &Site, name: &str, does: &str) -> PathBuf {
    let (source, path) = (site.path(&format!("{name}.c")), site.path(name));
    let text = format!(
        "#include <stdlib.h>\n#include <string.h>\n#include <unistd.h>\nint main(int c, char **v) {{ if (c > 1 && !strcmp(v[1], \"--version\")) return 0; {does}; }}\n"
    );
    std::fs::write(&source, text).unwrap();
    let made = Command::new("cc").args(["-static", "-o"]).arg(&path).arg(&source).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    path
}

fn upgrade(site: &Site, words: &str, to: &std::path::Path) -> Ran {
    site.run(&format!("upgrade {words} --ssh root@pve --to {} --json", to.display()))
}

fn outcomes(report: &Value) -> Vec<(u64, String)> {
    let rows = report["guests"].as_array().unwrap();
    rows.iter().map(|row| (row["vmid"].as_u64().unwrap(), row["outcome"].as_str().unwrap().to_owned())).collect()
}

fn facts(site: &Site, id: &str) -> Value {
    let program = if id == "105" { "/usr/local/bin/pvemesh" } else { "/sbin/init" };
    serde_json::from_str(&site.pct(&["exec", id, "--keep-env", "0", "--", program, "node", "self-check"]).succeeded().out).unwrap()
}

fn online(site: &Site, name: &str) -> bool {
    site.nodes().as_array().unwrap().iter().any(|node| node["name"] == name && node["online"] == true)
}

#[test]
fn a_good_program_takes_its_place_and_a_bad_one_leaves_no_trace() {
    let Some(site) = with_coordinator() else { return };
    site.run("create-exit-node 101 --name exit-1 --ip 192.168.60.101/24 --gw 192.168.60.1 --ip6 none").succeeded();
    site.run("create-node 102 --name plain --ip 192.168.60.102/24 --gw 192.168.60.1 --ip6 none").succeeded();
    site.run("upgrade 101").failed(4, &["no way into a container"]);
    let old = facts(&site, "101");
    assert_eq!(upgrade(&site, "101", program()).succeeded().json()["guests"][0]["outcome"], "same");

    // Another node's packets meanwhile, ten a second.
    let pid = site.standin.pid(102).unwrap().to_string();
    let address = old["node"]["addresses"][0].as_str().unwrap().to_owned();
    let new = good(&site, "new");
    let shown = upgrade(&site, "101 --dry-run", &new);
    assert_eq!(shown.succeeded().json()["guests"][0]["outcome"], "would be upgraded");
    assert_eq!(facts(&site, "101")["program"], old["program"]);
    let ping =
        Command::new("nsenter").args(["-t", &pid, "-n", "ping", "-q", "-i", "0.1", &address]).stdout(Stdio::piped()).spawn().unwrap();
    let done = upgrade(&site, "101", &new);
    assert_eq!(outcomes(&done.succeeded().json()), [(101, "upgraded".to_owned())]);
    let pid = rustix::process::Pid::from_child(&ping);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let said = String::from_utf8(ping.wait_with_output().unwrap().stdout).unwrap();
    let count = |before: &str| -> u32 { said.split(before).next().unwrap().split([' ', '\n']).next_back().unwrap().parse().unwrap() };
    let lost = count(" packets transmitted") - count(" received");
    println!("lost {lost} of {} packets, 0.1 s apart: {said}", count(" packets transmitted"));
    assert!(lost < 50, "the gap was longer than 5 s: {said}");
    let after = facts(&site, "101");
    assert_ne!(after["program"]["running"], old["program"]["running"]);
    assert_eq!((&after["program"]["installed"], &after["program"]["trial"]), (&after["program"]["running"], &Value::Bool(false)));
    assert!(site.rootfs(101, "/sbin/init.before").exists() && !site.rootfs(101, "/sbin/init.new").exists());
    // Init has started the child from the file in its place, and does so again.
    let first = site.standin.pid(101);
    site.pct(&["exec", "101", "--keep-env", "0", "--", "/sbin/init", "node", "down"]);
    assert_eq!(site.standin.pid(101), first, "the first process has changed");

    bad_ones(&site, &after);
    a_killed_upgrader(&site, &after);
}

fn bad_ones(site: &Site, good: &Value) {
    site.pct(&["exec", "101", "--keep-env", "0", "--", "/sbin/init", "node", "up"]);
    site.wait("the node is up", 30, || online(site, "exit-1"));
    for (name, does, why) in [("idle", "for (;;) pause()", "does not answer"), ("crash", "abort()", "")] {
        let begun = Instant::now();
        let tried = upgrade(site, "101 --patience 15", &bad(site, name, does));
        tried.failed(1, &["rolled back", why]);
        println!("{name}: rolled back after {:?}", begun.elapsed());
        assert_eq!(outcomes(&tried.json()), [(101, "rolled back".to_owned())]);
        assert_eq!(facts(site, "101")["program"], good["program"]);
        assert!(online(site, "exit-1"), "{name}: the node is not back");
        assert!(!site.rootfs(101, "/sbin/init.new").exists() && !site.rootfs(101, "/run/pvemesh/trial.json").exists());
    }
    let mute = bad(site, "mute", "");
    std::fs::write(site.path("mute.c"), "int main(void) { return 3; }\n").unwrap();
    Command::new("cc").args(["-static", "-o"]).arg(&mute).arg(site.path("mute.c")).status().unwrap();
    upgrade(site, "101", &mute).failed(1, &["does not run here"]);
    let foreign = site.path("foreign");
    let mut bytes = std::fs::read(program()).unwrap();
    bytes[18] = 183;
    std::fs::write(&foreign, bytes).unwrap();
    upgrade(site, "101", &foreign).failed(1, &["aarch64"]);
    std::fs::write(site.path("text"), "#!/bin/sh\n").unwrap();
    upgrade(site, "101", &site.path("text")).failed(2, &["ELF"]);
    assert_eq!(facts(site, "101")["program"], good["program"]);
    assert!(!site.rootfs(101, "/sbin/init.new").exists());
}

/// The guest itself takes the old program back.
fn a_killed_upgrader(site: &Site, good: &Value) {
    let idle = site.path("idle");
    let mut upgrader = site.pvemesh(&format!("upgrade 101 --ssh root@pve --patience 12 --to {}", idle.display())).spawn().unwrap();
    site.wait("the bad program runs", 30, || site.rootfs(101, "/run/pvemesh/trial.json").exists() && facts(site, "101")["node"].is_null());
    upgrader.kill().unwrap();
    upgrader.wait().unwrap();
    let begun = Instant::now();
    site.wait("the old program is back", 40, || facts(site, "101")["program"] == good["program"] && online(site, "exit-1"));
    println!("back {:?} after the upgrader was killed", begun.elapsed());
    assert!(!site.rootfs(101, "/sbin/init.new").exists());
}

#[test]
fn all_are_upgraded_in_order_and_a_bad_program_stops_at_the_first() {
    let Some(site) = with_coordinator() else { return };
    site.busybox(105, &[]);
    site.run("enroll 105 --ssh root@pve --route 10.66.0.0/16").succeeded();
    site.run("create-subnet-router 103 --name second --route 10.66.0.0/16 --ip 192.168.60.103/24 --gw 192.168.60.1 --ip6 none").succeeded();
    let idle = bad(&site, "idle", "for (;;) pause()");
    let tried = upgrade(&site, "--all --patience 12", &idle);
    tried.failed(1, &["rolled back"]);
    let expected = [(100, "rolled back"), (103, "not tried"), (105, "not tried")].map(|(id, what)| (id, what.to_owned()));
    assert_eq!(outcomes(&tried.json()), expected);
    let new = good(&site, "all");
    let done = watched(&site, &new);
    assert_eq!(outcomes(&done.succeeded().json()), [100, 103, 105].map(|id| (id, "upgraded".to_owned())));
    assert!(!done.err.contains("nobody else carries"), "{done:?}");
    for name in ["second", "wiki"] {
        assert!(online(&site, name), "{name}");
    }
    let again = site.run(&format!("upgrade --all --ssh root@pve --to {}", new.display()));
    assert!(again.succeeded().out.contains("nothing to do"), "{again:?}");
}

/// Upgrades all, and watches meanwhile that of the two routers of one network one is always there and none is begun before the other is done.
fn watched(site: &Site, to: &std::path::Path) -> Ran {
    let mut child = site.pvemesh(&format!("upgrade --all --ssh root@pve --to {} --json", to.display())).spawn().unwrap();
    let on_trial = |id| site.rootfs(id, "/run/pvemesh/trial.json").exists();
    let (mut seen, mut looks, mut last) = ([false; 2], 0, Instant::now());
    while child.try_wait().unwrap().is_none() {
        let [first, second] = [on_trial(103), on_trial(105)];
        assert!(!(first && second), "both routers are on trial at once");
        assert!(!second || site.rootfs(103, "/sbin/init.before").exists(), "the second router was begun before the first was done");
        seen = [seen[0] || first, seen[1] || second];
        if last.elapsed() > Duration::from_millis(200) {
            let listed = site.pct(&["exec", "100", "--keep-env", "0", "--", "/sbin/init", "--json", "coordinator", "nodes", "list"]);
            // The coordinator is upgraded, too.
            if let Ok(list) = serde_json::from_str::<Value>(&listed.out) {
                let there =
                    |name: &str| list["nodes"].as_array().unwrap().iter().any(|node| node["name"] == name && node["online"] == true);
                assert!(!(seen[0] || seen[1]) || there("second") || there("wiki"), "no router is there: {list}");
                looks += 1;
            }
            last = Instant::now();
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    println!("the routers were looked at {looks} times");
    assert_eq!(seen, [true, true], "a trial was missed");
    read(child.wait_with_output().unwrap())
}

/// The program with another constant in its key exchange (the hash of `Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s` it begins with, WireGuard white paper
/// 5.4.2): it runs, knows the coordinator, answers disco pings, and no packet gets through it.
fn deaf(site: &Site) -> PathBuf {
    const BEGIN: [u8; 16] = [0x60, 0xe2, 0x6d, 0xae, 0xf3, 0x27, 0xef, 0xc0, 0x2e, 0xc3, 0x35, 0xe2, 0xa0, 0x25, 0xd2, 0xd0];
    let mut bytes = std::fs::read(program()).unwrap();
    let at: Vec<usize> = bytes.windows(BEGIN.len()).enumerate().filter(|(_, window)| *window == BEGIN).map(|(at, _)| at).collect();
    assert!(!at.is_empty(), "the constant is not in the program");
    at.iter().for_each(|at| bytes[*at] ^= 1);
    let path = site.path("deaf");
    std::fs::write(&path, bytes).unwrap();
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    path
}

#[test]
fn the_only_way_in_is_upgraded_last_and_comes_back_by_itself_from_a_program_that_carries_nothing() {
    let Some(site) = with_coordinator() else { return };
    let lan = |id: u32| format!("--ip 192.168.60.{id}/24 --gw 192.168.60.1 --ip6 none");
    site.run(&format!("create-subnet-router 101 --name way-in --route 192.168.60.0/24 {}", lan(101))).succeeded();
    site.run(&format!("create-node 102 --name plain {}", lan(102))).succeeded();
    site.run(&format!("create-exit-node 103 --name exit-1 {}", lan(103))).succeeded();
    let admin = Admin::new(&site, &["192.168.60.100", "192.168.60.101"]);
    site.wait("the admin reaches the host through the mesh", 30, || admin.reaches_the_host());
    site.pct(&["exec", "101", "--keep-env", "0", "--", "/sbin/init", "node", "down"]);
    assert!(!admin.reaches_the_host(), "there is another way than through 101");
    site.pct(&["exec", "101", "--keep-env", "0", "--", "/sbin/init", "node", "up"]);
    site.wait("the way is back", 30, || admin.reaches_the_host());

    let upgrade =
        |words: &str, to: &std::path::Path| admin.run(&format!("upgrade {words} --ssh root@192.168.60.2 --to {} --json", to.display()));
    let done = upgrade("101 103", &good(&site, "far"));
    assert_eq!(outcomes(&done.succeeded().json()), [103, 101].map(|id| (id, "upgraded".to_owned())));
    assert!(done.err.contains("2/2 way-in (101): the way in from here: last"), "{done:?}");
    let (good, plain) = (facts(&site, "101"), facts(&site, "102"));

    // All that can be asked without the mesh finds nothing wrong with it.
    let deaf = deaf(&site);
    let tried = upgrade("102 101 --patience 10", &deaf);
    tried.failed(1, &["rolled back", "does not answer through the mesh"]);
    assert_eq!(outcomes(&tried.json()), [(102, "rolled back".to_owned()), (101, "not tried".to_owned())]);
    assert_eq!(facts(&site, "102")["program"], plain["program"]);

    // Now it cuts the admin off, who cannot take anything back.
    let begun = Instant::now();
    let cut = upgrade("101 --patience 10", &deaf);
    println!("cut off and back within {:?}", begun.elapsed());
    cut.failed(1, &["rolled back"]);
    assert_eq!(outcomes(&cut.json()), [(101, "rolled back".to_owned())]);
    assert_eq!(facts(&site, "101")["program"], good["program"]);
    assert!(admin.reaches_the_host());
}
