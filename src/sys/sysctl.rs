//! Kernel settings of a node: forwarding on, router advertisements still heard, reverse-path checks that let the tunnel through.
//!
//! Previous values are written to a file before they are changed, so that they come back also after a kill. A setting that somebody else
//! changed meanwhile is left alone. Settings belong to a network namespace, and so does the file's name.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::filter::Forwards;

const ROOT: &str = "/proc/sys/net";
const MEMORY_DIR: &str = "/run/pvemesh";

/// Why a kernel setting was not changed.
#[derive(Debug, thiserror::Error)]
#[error("{tried} {path}: {error}")]
pub struct SysctlError {
    tried: &'static str,
    path: String,
    error: io::Error,
}

/// One changed setting.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Change {
    before: String,
    after: String,
}

/// Path below `/proc/sys/net`, as in `ipv4/ip_forward`, and its change.
type Changes = BTreeMap<String, Change>;

/// The settings a node changed.
#[derive(Debug)]
pub struct Sysctls {
    memory: PathBuf,
    root: PathBuf,
}

/// The file for previous values, of this thread's network namespace: two nodes in two namespaces that share `/run` keep two files.
pub fn default_memory() -> PathBuf {
    let namespace = std::fs::read_link("/proc/thread-self/ns/net").unwrap_or_default();
    let digits: String = namespace.to_string_lossy().chars().filter(char::is_ascii_digit).collect();
    Path::new(MEMORY_DIR).join(format!("sysctl-{digits}.json"))
}

/// Whether the kernel was built and started with IPv6.
pub fn kernel_has_ipv6() -> bool {
    Path::new(ROOT).join("ipv6/conf/all").exists()
}

/// Which packets that come in by an interface the kernel sends on.
pub fn forwards(interface: &str) -> Forwards {
    let on = |path: &str| std::fs::read_to_string(Path::new(ROOT).join(path)).is_ok_and(|value| value.trim() != "0");
    // In IPv6 the switch of all interfaces is the one that counts.
    Forwards { v4: on(&format!("ipv4/conf/{interface}/forwarding")), v6: on("ipv6/conf/all/forwarding") }
}

/// Lets our own interface have IPv6 addresses, where the machine's default forbids them to new ones. False if that is not possible.
/// The setting goes away with the interface, so nothing has to be remembered.
pub fn enable_ipv6(interface: &str) -> bool {
    let path = Path::new(ROOT).join("ipv6/conf").join(interface).join("disable_ipv6");
    carries_ipv6(interface) || (path.exists() && std::fs::write(path, "0").is_ok())
}

/// Whether an interface carries IPv6. What a machine sends to itself goes over `lo`.
pub fn carries_ipv6(interface: &str) -> bool {
    let path = Path::new(ROOT).join("ipv6/conf").join(interface).join("disable_ipv6");
    std::fs::read_to_string(path).is_ok_and(|value| value.trim() == "0")
}

/// Turns on the kernel's address autoconfiguration for an uplink, or off. A missing IPv6 is no fault.
///
/// # Errors
///
/// When the kernel refuses.
pub fn accept_advertisements(interface: &str, accept: bool) -> Result<(), SysctlError> {
    let directory = Path::new(ROOT).join("ipv6/conf").join(interface);
    if !directory.exists() {
        return Ok(());
    }
    // 2, not 1: a guest that forwards must still hear its router.
    for (name, value) in [("disable_ipv6", "0"), ("accept_ra", if accept { "2" } else { "0" })] {
        let path = directory.join(name);
        std::fs::write(&path, value).map_err(|error| SysctlError { tried: "write", path: path.display().to_string(), error })?;
    }
    Ok(())
}

/// Turns off the reverse-path check on an interface that has no address yet: with it, the kernel drops every answer to a broadcast question,
/// since nothing says where their sender lives. A kernel that refuses has DHCP fail with its own words, so this says nothing.
pub fn hear_before_address(interface: &str) {
    for name in ["all", interface] {
        let path = Path::new(ROOT).join("ipv4/conf").join(name).join("rp_filter");
        if let Err(error) = std::fs::write(&path, "0") {
            tracing::debug!(%error, "write {}", path.display());
        }
    }
}

impl Sysctls {
    /// Settings whose previous values are kept in this file. Changes nothing.
    pub fn new(memory: PathBuf) -> Self {
        Self { memory, root: PathBuf::from(ROOT) }
    }

    /// Sets what a node needs that forwards (`forward`), or that sends or receives addresses outside the mesh (`outside`), through
    /// `interface`. Called again with less, it gives back what is not needed any more. Says how many it had to set.
    ///
    /// # Errors
    ///
    /// When a setting cannot be written, or its previous value not be recorded.
    pub fn apply(&self, forward: bool, outside: bool, interface: &str) -> Result<usize, SysctlError> {
        let mut changes = self.recall();
        if changes.keys().any(|path| path.ends_with("forwarding") || path.ends_with("ip_forward")) && !forward {
            self.restore()?;
            changes = Changes::new();
        }
        let mut wanted = Vec::new();
        if forward {
            // Before forwarding: turning it on makes the kernel drop the default routes it learnt on interfaces that are not at 2.
            wanted.extend(self.each("ipv6/conf", "accept_ra", "1", interface).into_iter().map(|path| (path, "2")));
            wanted.push(("ipv4/ip_forward".to_owned(), "1"));
            wanted.push(("ipv6/conf/all/forwarding".to_owned(), "1"));
        }
        if outside {
            wanted.extend(self.each("ipv4/conf", "rp_filter", "1", interface).into_iter().map(|path| (path, "2")));
        }
        // `ip_forward` and `all/forwarding` change these along.
        let along = if forward { self.dependents() } else { Vec::new() };
        wanted.retain(|(path, after)| self.read(path).is_some_and(|value| value != *after));
        if wanted.is_empty() {
            return Ok(0);
        }
        for path in along.into_iter().chain(wanted.iter().map(|(path, _)| path.clone())) {
            if let Some(before) = self.read(&path) {
                changes.entry(path).or_insert(Change { after: before.clone(), before });
            }
        }
        self.remember(&changes)?;
        for (path, after) in &wanted {
            self.write(path, after)?;
        }
        for (path, change) in &mut changes {
            change.after = self.read(path).unwrap_or_default();
        }
        self.remember(&changes)?;
        Ok(wanted.len())
    }

    /// Gives every setting its previous value, unless it was changed by somebody else since.
    ///
    /// # Errors
    ///
    /// The first setting that could not be written; the others are restored nevertheless.
    pub fn restore(&self) -> Result<(), SysctlError> {
        let changes = self.recall();
        let mut first = Ok(());
        // The two master switches first, since writing them overwrites the single ones.
        let mut order: Vec<&String> = changes.keys().collect();
        order.sort_by_key(|path| !matches!(path.as_str(), "ipv4/ip_forward" | "ipv6/conf/all/forwarding"));
        let foreign: Vec<&String> =
            order.iter().copied().filter(|path| changes.get(*path).is_some_and(|c| self.read(path) != Some(c.after.clone()))).collect();
        for path in order {
            let Some(change) = changes.get(path) else { continue };
            if foreign.contains(&path) || self.read(path).is_none_or(|value| value == change.before) {
                continue;
            }
            let written = self.write(path, &change.before);
            if first.is_ok() {
                first = written;
            }
        }
        if let Err(error) = std::fs::remove_file(&self.memory)
            && error.kind() != io::ErrorKind::NotFound
            && first.is_ok()
        {
            first = Err(SysctlError { tried: "remove", path: self.memory.display().to_string(), error });
        }
        first
    }

    /// The settings of all interfaces but `lo` and ours that have this value in effect.
    fn each(&self, directory: &str, name: &str, value: &str, except: &str) -> Vec<String> {
        self.interfaces(directory)
            .into_iter()
            .filter(|interface| ![except, "lo", "all", "default"].contains(&interface.as_str()))
            .map(|interface| format!("{directory}/{interface}/{name}"))
            .filter(|path| {
                // The reverse-path filter in effect is the larger of the interface's and the one of `all`.
                let floor = if name == "rp_filter" { self.read(&format!("{directory}/all/{name}")) } else { None };
                self.read(path).max(floor).is_some_and(|present| present == value)
            })
            .collect()
    }

    fn dependents(&self) -> Vec<String> {
        let mut paths = vec!["ipv4/conf/all/accept_redirects".to_owned()];
        for directory in ["ipv4/conf", "ipv6/conf"] {
            paths.extend(self.interfaces(directory).into_iter().map(|interface| format!("{directory}/{interface}/forwarding")));
        }
        paths
    }

    fn interfaces(&self, directory: &str) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(self.root.join(directory)) else { return Vec::new() };
        entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect()
    }

    fn read(&self, path: &str) -> Option<String> {
        Some(std::fs::read_to_string(self.root.join(path)).ok()?.trim().to_owned())
    }

    fn write(&self, path: &str, value: &str) -> Result<(), SysctlError> {
        let path = self.root.join(path);
        std::fs::write(&path, value).map_err(|error| SysctlError { tried: "write", path: path.display().to_string(), error })
    }

    /// What was remembered. An unreadable file counts as none: wrong values must not be restored.
    fn recall(&self) -> Changes {
        let Ok(text) = std::fs::read(&self.memory) else { return Changes::new() };
        let mut changes: Changes = serde_json::from_slice(&text).unwrap_or_default();
        changes.retain(|path, _| !path.split('/').any(|part| matches!(part, "" | "." | "..")));
        changes
    }

    fn remember(&self, changes: &Changes) -> Result<(), SysctlError> {
        let at = |error| SysctlError { tried: "record previous settings in", path: self.memory.display().to_string(), error };
        let text = serde_json::to_vec_pretty(changes).map_err(|error| at(error.into()))?;
        if let Some(parent) = self.memory.parent() {
            std::fs::create_dir_all(parent).map_err(at)?;
        }
        let fresh = self.memory.with_extension("new");
        std::fs::write(&fresh, text).and_then(|()| std::fs::rename(&fresh, &self.memory)).map_err(at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory that looks like `/proc/sys/net` with one uplink.
    fn tree(values: &[(&str, &str)]) -> (tempfile::TempDir, Sysctls) {
        let directory = tempfile::tempdir().unwrap();
        for (path, value) in values {
            let path = directory.path().join("net").join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, value).unwrap();
        }
        let sysctls = Sysctls { memory: directory.path().join("run/memory.json"), root: directory.path().join("net") };
        (directory, sysctls)
    }

    const UPLINK: [(&str, &str); 6] = [
        ("ipv4/ip_forward", "0\n"),
        ("ipv6/conf/all/forwarding", "0\n"),
        ("ipv6/conf/eth0/accept_ra", "1\n"),
        ("ipv4/conf/all/rp_filter", "1\n"),
        ("ipv4/conf/eth0/rp_filter", "0\n"),
        ("ipv4/conf/eth1/rp_filter", "2\n"),
    ];

    #[test]
    fn forwarding_keeps_advertisements_and_loosens_only_strict_filters() {
        let (_directory, sysctls) = tree(&UPLINK);
        sysctls.apply(true, true, "pvemesh0").unwrap();
        let read = |path: &str| sysctls.read(path).unwrap();
        assert_eq!((read("ipv4/ip_forward"), read("ipv6/conf/eth0/accept_ra")), ("1".to_owned(), "2".to_owned()));
        assert_eq!((read("ipv4/conf/eth0/rp_filter"), read("ipv4/conf/eth1/rp_filter")), ("2".to_owned(), "2".to_owned()));
        sysctls.apply(true, true, "pvemesh0").unwrap();
        sysctls.restore().unwrap();
        for (path, value) in UPLINK {
            assert_eq!(read(path), value.trim(), "{path}");
        }
        assert!(!sysctls.memory.exists());
    }

    #[test]
    fn a_setting_changed_by_somebody_else_is_left_alone() {
        let (_directory, sysctls) = tree(&UPLINK);
        sysctls.apply(true, false, "pvemesh0").unwrap();
        sysctls.write("ipv6/conf/eth0/accept_ra", "0").unwrap();
        sysctls.restore().unwrap();
        assert_eq!(sysctls.read("ipv6/conf/eth0/accept_ra").unwrap(), "0");
        assert_eq!(sysctls.read("ipv4/ip_forward").unwrap(), "0");
    }

    #[test]
    fn a_mangled_memory_restores_nothing() {
        let (_directory, sysctls) = tree(&UPLINK);
        std::fs::create_dir_all(sysctls.memory.parent().unwrap()).unwrap();
        for text in ["{", r#"{"../../kernel/x":{"before":"1","after":"0"}}"#] {
            std::fs::write(&sysctls.memory, text).unwrap();
            sysctls.restore().unwrap();
            assert_eq!(sysctls.read("ipv4/ip_forward").unwrap(), "0");
        }
    }
}
