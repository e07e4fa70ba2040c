//! Whatever ends the lab, nothing of it is left.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::stage::{Stage, said, until};

/// What a machine shows of a lab: namespaces, interfaces, rules, mounts, control groups, files, processes.
fn traces(stage: &Stage) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut add = |what: &str, program: &str, words: &[&str]| {
        let output = Command::new(program).args(words).output().unwrap();
        found.extend(String::from_utf8_lossy(&output.stdout).lines().map(|line| format!("{what}: {line}")));
    };
    add("namespace", "ip", &["netns", "list"]);
    add("link", "ip", &["-o", "-br", "link"]);
    add("rule", "ip", &["rule"]);
    add("nftables", "nft", &["list", "ruleset"]);
    add("mount", "cat", &["/proc/self/mounts"]);
    add("run", "ls", &["/run"]);
    add("group", "find", &["/sys/fs/cgroup", "-name", "*pvl-*"]);
    // Only the lab's own processes: others come and go on this machine.
    let dir = stage.dir.display().to_string();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if line.contains(&dir) {
            found.insert(format!("process: {line}"));
        }
    }
    if stage.dir.exists() {
        found.insert(format!("directory: {dir}"));
    }
    // Namespaces that tests beside this one make and remove.
    found.retain(|line| !line.starts_with("namespace: ") || line.contains("pvl-"));
    found.retain(|line| !line.starts_with("mount: nsfs"));
    found
}

fn assert_nothing_new(stage: &Stage, before: &BTreeSet<String>) {
    let now = traces(stage);
    let left: Vec<_> = now.difference(before).collect();
    assert!(left.is_empty(), "left behind: {left:#?}");
}

fn processes_of(stage: &Stage, word: &str) -> Vec<i32> {
    let dir = stage.dir.display().to_string();
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|e| {
        let line = String::from_utf8_lossy(&std::fs::read(e.path().join("cmdline")).ok()?).replace('\0', " ");
        (line.contains(&dir) && line.contains(word)).then(|| e.file_name().to_string_lossy().parse().ok())?
    });
    pids.collect()
}

#[test]
fn taking_the_lab_down_leaves_nothing() {
    let stage = match Stage::new() {
        Ok(stage) => stage,
        Err(why) => return println!("skipped: {why}"),
    };
    let before = traces(&stage);
    stage.run(&["up"]);
    assert_eq!(stage.web_page(), "198.51.100.20");
    assert!(traces(&stage).len() > before.len() + 5);
    stage.run(&["down"]);
    assert_nothing_new(&stage, &before);
}

#[test]
fn a_crashed_lab_is_swept_by_the_next_command() {
    let stage = match Stage::new() {
        Ok(stage) => stage,
        Err(why) => return println!("skipped: {why}"),
    };
    let before = traces(&stage);
    stage.run(&["up"]);
    let standin = processes_of(&stage, " host ");
    assert_eq!(standin.len(), 1);
    for pid in standin {
        kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
    }
    stage.run(&["up"]);
    assert_eq!(processes_of(&stage, " host ").len(), 1);
    stage.run(&["down"]);
    assert_nothing_new(&stage, &before);
}

#[test]
fn an_interrupted_demo_leaves_nothing() {
    let stage = match Stage::new() {
        Ok(stage) => stage,
        Err(why) => return println!("skipped: {why}"),
    };
    let before = traces(&stage);
    // A program that never ends stands in for pvemesh, so that the demo hangs in its first command.
    let waiting = tempfile::tempdir().unwrap();
    let (program, flag) = (waiting.path().join("pvemesh"), waiting.path().join("started"));
    std::fs::write(&program, format!("#!/bin/sh\ntouch {}\nexec sleep 600\n", flag.display())).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let mut demo = stage.lab();
    demo.args(["demo", "--quick", "--binary"]).arg(&program).stdout(Stdio::null()).stderr(Stdio::null());
    let mut demo = demo.spawn().unwrap();
    assert!(until(Duration::from_secs(30), || flag.exists()), "the demo did not get to its first command");
    kill_process(Pid::from_child(&demo), Signal::INT).unwrap();
    assert!(until(Duration::from_secs(30), || demo.try_wait().unwrap().is_some()));
    assert!(!demo.wait().unwrap().success());
    assert_nothing_new(&stage, &before);
}

#[test]
fn the_stand_in_for_pvesh_hides_failed_tasks_in_its_exit_code_as_the_real_one() {
    let stage = match Stage::new() {
        Ok(stage) => stage,
        Err(why) => return println!("skipped: {why}"),
    };
    stage.run(&["up"]);
    let failed = stage.pvesh("create /nodes/pve/lxc --vmid 100 --ostemplate local:vztmpl/nosuch.tar.gz --rootfs local-lvm:1");
    assert!(failed.status.success(), "{}", said(&failed));
    let text = String::from_utf8_lossy(&failed.stdout).into_owned();
    assert!(text.lines().last().unwrap().starts_with("UPID:pve:"), "{text}");
    assert!(String::from_utf8_lossy(&failed.stderr).contains("volume 'local:vztmpl/nosuch.tar.gz' does not exist"));
    let wrong = stage.pvesh("create /nodes/pve/lxc --vmid abc");
    let words = String::from_utf8_lossy(&wrong.stderr).into_owned();
    assert!(!wrong.status.success() && words.starts_with("400 Parameter verification failed.\n"), "{words}");
    assert!(words.contains("vmid: type check ('integer') failed - got 'abc'\n"), "{words}");
    let absent = stage.pvesh("get /nodes/pve/lxc/999/config");
    assert_eq!(String::from_utf8_lossy(&absent.stderr), "Configuration file 'nodes/pve/lxc/999.conf' does not exist\n");
}
