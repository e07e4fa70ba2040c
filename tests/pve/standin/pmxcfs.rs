//! The cluster file system: `etc/pve/nodes/HOST/lxc/ID.conf` below the stand-in's directory. The files are the truth: what somebody writes
//! into them beside the API is read before the next call.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::guest_config::Config;
use super::{Core, Inner, Options, on_host, qemu};

/// Makes the directories and the links that a host shows of itself, and the one for locks.
///
/// # Errors
/// If they cannot be made.
pub fn make(options: &Options, hosts: &[super::cluster::Host]) -> std::io::Result<()> {
    let root = options.dir.join("etc/pve");
    for sub in ["run/lock/lxc", "run/qemu-server"] {
        std::fs::create_dir_all(options.dir.join(sub))?;
    }
    for host in hosts {
        for kind in ["lxc", "qemu-server"] {
            std::fs::create_dir_all(root.join("nodes").join(&host.name).join(kind))?;
        }
    }
    own_links(&root, hosts.first().map_or("pve", |host| &host.name))?;
    if options.tools.is_none() {
        return Ok(());
    }
    // The directory that is root's alone, and the same tree as the other hosts see it.
    std::fs::create_dir_all(root.join("priv"))?;
    for host in hosts.iter().skip(1) {
        let home = on_host::home(options, &host.name);
        std::fs::create_dir_all(home.join("etc/pve"))?;
        std::fs::create_dir_all(home.join("run/qemu-server"))?;
        for shared in ["etc/pve/nodes", "etc/pve/priv", "run/lock"] {
            link(&std::path::absolute(options.dir.join(shared))?, &home.join(shared))?;
        }
        own_links(&home.join("etc/pve"), &host.name)?;
    }
    Ok(())
}

/// What a host shows as its own.
fn own_links(root: &Path, host: &str) -> std::io::Result<()> {
    let nodes = format!("nodes/{host}");
    for (name, target) in [("local", nodes.clone()), ("lxc", format!("{nodes}/lxc")), ("qemu-server", format!("{nodes}/qemu-server"))] {
        link(Path::new(&target), &root.join(name))?;
    }
    Ok(())
}

fn link(target: &Path, link: &Path) -> std::io::Result<()> {
    if link.is_symlink() { Ok(()) } else { std::os::unix::fs::symlink(target, link) }
}

/// Writes a virtual machine's file where it is now, or removes it, and says there by its process number whether it runs.
pub fn save_machine(core: &Core, inner: &Inner, id: u32) {
    for host in &core.hosts {
        let file = core.options.dir.join("etc/pve/nodes").join(&host.name).join(format!("qemu-server/{id}.conf"));
        let pid = on_host::home(&core.options, &host.name).join(format!("run/qemu-server/{id}.pid"));
        let here = inner.machines.get(&id).filter(|_| inner.place_of(id) == Some(&host.name));
        let set = |path: &Path, text: Option<String>| match text {
            Some(text) => {
                let fresh = path.with_extension("tmp");
                let _ = std::fs::write(&fresh, text).and_then(|()| std::fs::rename(&fresh, path));
            }
            None => drop(std::fs::remove_file(path)),
        };
        set(&file, here.map(qemu::Machine::file));
        // It runs on paper: a process that is there as long as this.
        set(&pid, here.filter(|machine| machine.running).map(|_| format!("{}\n", std::process::id())));
    }
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
