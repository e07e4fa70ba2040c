//! The cluster file system: `etc/pve/nodes/HOST/lxc/ID.conf` below the stand-in's directory. The files are the truth: what somebody writes
//! into them beside the API is read before the next call.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::guest_config::Config;
use super::{Core, Inner};

/// Makes the directories and the links that a host shows of itself, and the one for locks.
///
/// # Errors
/// If they cannot be made.
pub fn make(dir: &Path, hosts: &[super::cluster::Host]) -> std::io::Result<()> {
    let root = dir.join("etc/pve");
    std::fs::create_dir_all(dir.join("run/lock/lxc"))?;
    for host in hosts {
        for kind in ["lxc", "qemu-server"] {
            std::fs::create_dir_all(root.join("nodes").join(&host.name).join(kind))?;
        }
    }
    let first = hosts.first().map_or("pve", |host| &host.name);
    let nodes = format!("nodes/{first}");
    for (name, target) in [("local", nodes.clone()), ("lxc", format!("{nodes}/lxc")), ("qemu-server", format!("{nodes}/qemu-server"))] {
        let link = root.join(name);
        if !link.is_symlink() {
            std::os::unix::fs::symlink(target, link)?;
        }
    }
    Ok(())
}

/// The file of a container on a host.
pub fn path(core: &Core, host: &str, id: u32) -> PathBuf {
    core.options.dir.join("etc/pve/nodes").join(host).join("lxc").join(format!("{id}.conf"))
}

/// Writes a container's file where it is now, or removes it, and remembers what was written.
pub fn save(core: &Core, inner: &mut Inner, id: u32) {
    let here = inner.place_of(id).map(str::to_owned);
    for host in &core.hosts {
        let path = path(core, &host.name, id);
        match inner.guests.get(&id).filter(|_| here.as_ref() == Some(&host.name)) {
            Some(config) => {
                let text = config.file();
                // As the real one: a new file is moved into place, so that a reader sees one or the other.
                let fresh = path.with_extension("conf.tmp");
                let _ = std::fs::write(&fresh, &text).and_then(|()| std::fs::rename(&fresh, &path));
                inner.written.insert(id, text);
            }
            None => drop(std::fs::remove_file(path)),
        }
    }
    if here.is_none() {
        inner.written.remove(&id);
    }
}

/// Reads what was changed beside the API.
pub fn refresh(core: &Core, inner: &mut Inner) {
    let ids: Vec<u32> = inner.guests.keys().copied().collect();
    for id in ids {
        let Some(host) = inner.place_of(id) else { continue };
        let Ok(text) = std::fs::read_to_string(path(core, host, id)) else { continue };
        if inner.written.get(&id) != Some(&text) {
            inner.guests.insert(id, Config::read(&text));
            inner.written.insert(id, text);
        }
    }
}

/// Runs something while the lock on a container's file is held; nothing if somebody else holds it for longer than `limit`.
pub fn locked<T>(core: &Core, id: u32, limit: Duration, body: impl FnOnce() -> T) -> Option<T> {
    use rustix::fs::{FlockOperation, flock};
    let path = core.options.dir.join(format!("run/lock/lxc/pve-config-{id}.lock"));
    let file = std::fs::OpenOptions::new().create(true).append(true).open(path).ok()?;
    let free = super::lxc::until(limit, || flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok());
    free.then(body)
}
