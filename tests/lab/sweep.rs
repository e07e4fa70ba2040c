//! Removing every trace of the lab, of one that crashed too.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::run::{Done, quietly};
use crate::standin::lxc::{processes, until};
use crate::{demo, namespaces};

fn signal(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw)
        && pid != rustix::process::getpid()
    {
        let _ = kill_process(pid, signal);
    }
}

/// The control groups of the lab's containers, deepest first.
fn groups() -> Vec<PathBuf> {
    fn walk(dir: &Path, depth: u8, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten().filter(|e| e.path().is_dir()) {
            let name = entry.file_name().to_string_lossy().into_owned();
            let ours = name.starts_with("lxc.payload.pvl-") || name.starts_with("lxc.monitor.pvl-");
            if depth < 2 || ours || found_above(dir) {
                walk(&entry.path(), depth + 1, found);
            }
            if ours || found_above(dir) {
                found.push(entry.path());
            }
        }
    }
    fn found_above(dir: &Path) -> bool {
        dir.components().any(|c| c.as_os_str().to_string_lossy().contains(".pvl-"))
    }
    let mut found = Vec::new();
    walk(Path::new("/sys/fs/cgroup"), 0, &mut found);
    found
}

fn members(group: &Path) -> Vec<u32> {
    let listed = std::fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    listed.lines().filter_map(|pid| pid.parse().ok()).collect()
}

/// Everything still running for the lab.
fn running() -> Vec<u32> {
    let mut pids: Vec<_> = namespaces::existing().into_iter().flat_map(namespaces::processes).collect();
    pids.extend(groups().iter().flat_map(|g| members(g)));
    pids.sort_unstable();
    pids.dedup();
    pids.retain(|pid| *pid != std::process::id());
    pids
}

fn mounts(dir: &Path) -> Vec<String> {
    let Ok(dir) = dir.canonicalize() else { return Vec::new() };
    let table = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let points = table.lines().filter_map(|l| l.split(' ').nth(1)).map(str::to_owned);
    points.filter(|p| Path::new(p).starts_with(&dir)).collect()
}

/// What of the lab is there, for people and for the test that nothing is left.
pub fn traces(dir: &Path) -> Vec<String> {
    let mut found: Vec<_> = namespaces::existing().into_iter().map(|n| format!("namespace {n}")).collect();
    found.extend(running().into_iter().map(|pid| format!("process {pid}")));
    found.extend(groups().into_iter().map(|g| format!("control group {}", g.display())));
    found.extend(mounts(dir).into_iter().map(|m| format!("mount {m}")));
    if dir.exists() {
        found.push(format!("directory {}", dir.display()));
    }
    found
}

/// Refuses while somebody else's demo or test is under way, as can be seen from its stand-in's directory.
pub fn not_anothers(dir: &Path) -> Done {
    let ours = dir.canonicalize().unwrap_or_else(|_| dir.to_owned()).display().to_string();
    let standins = processes().filter(|(_, line)| line.contains(" host --pve-version "));
    let other = standins.filter_map(|(_, line)| line.split(" --dir ").nth(1)?.split(' ').next().map(str::to_owned)).find(|d| *d != ours);
    match other {
        Some(other) if demo::try_lock().is_none() => {
            Err(format!("another lab is in use on this machine, with its state in {other}: wait for it, or name it with --dir"))
        }
        _ => Ok(()),
    }
}

/// Removes every trace. The stand-in is asked first, since it stops its containers in order; whatever is left then is ended.
pub fn down(dir: &Path) -> Done {
    if !rustix::process::geteuid().is_root() {
        return Err("the lab needs root".to_owned());
    }
    let before = running();
    before.iter().for_each(|pid| signal(*pid, Signal::TERM));
    if !until(Duration::from_secs(8), || running().is_empty()) {
        running().into_iter().for_each(|pid| signal(pid, Signal::KILL));
        until(Duration::from_secs(5), || running().is_empty());
    }
    mounts(dir).iter().rev().for_each(|point| drop(quietly(&format!("umount -l {point}"))));
    for group in groups() {
        let _ = std::fs::remove_dir(group);
    }
    namespaces::remove();
    let _ = std::fs::remove_dir_all(dir);
    let left = traces(dir);
    if left.is_empty() { Ok(()) } else { Err(format!("still there:\n{}", left.join("\n"))) }
}
