//! A Proxmox host's own files, for what its API cannot do: raw LXC lines in a container's configuration.
//!
//! Done as Proxmox does it (PVE::LXC::Config, PVE::File): the lock on `/run/lock/lxc/pve-config-ID.lock` is held, and a new file is moved
//! into the place of the old one. What is written is decided in [`crate::pve::conf`].

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};

use crate::ident::Vmid;
use crate::pve::HostName;

/// How long Proxmox itself waits for a configuration's lock.
const LOCK_LIMIT: Duration = Duration::from_secs(10);
const LOCK_PAUSE: Duration = Duration::from_millis(50);
/// The cluster file system takes no longer file.
const MAX_FILE: u64 = 1 << 20;

/// Why a file was not changed.
#[derive(Debug, thiserror::Error)]
pub enum GuestConfigError {
    /// It cannot be read or written.
    #[error("{tried} {}: {source}", path.display())]
    Io {
        /// What was tried, as in "read".
        tried: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Somebody else holds the configuration's lock.
    #[error("another operation works on container {0} and did not end within {limit} s", limit = LOCK_LIMIT.as_secs())]
    Busy(Vmid),
    /// There is no such container on the host.
    #[error("container {vmid} is not on {host}")]
    Missing {
        /// The container.
        vmid: Vmid,
        /// The host.
        host: HostName,
    },
    /// An operation carries on with the container.
    #[error("container {vmid} is locked ({lock})")]
    Locked {
        /// The container.
        vmid: Vmid,
        /// By what.
        lock: String,
    },
}

/// Where the files are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestConfigs {
    cluster: PathBuf,
    locks: PathBuf,
}

impl Default for GuestConfigs {
    /// Those of the host this runs on.
    fn default() -> Self {
        Self::at("/etc/pve", "/run/lock")
    }
}

impl GuestConfigs {
    /// With other places for `/etc/pve` and `/run/lock`.
    pub fn at(cluster: impl Into<PathBuf>, locks: impl Into<PathBuf>) -> Self {
        Self { cluster: cluster.into(), locks: locks.into() }
    }

    /// The configuration file of a container.
    pub fn container(&self, host: &HostName, vmid: Vmid) -> PathBuf {
        self.cluster.join("nodes").join(host.as_str()).join("lxc").join(format!("{vmid}.conf"))
    }

    /// Changes a container's configuration file; `change` gives the new text, or `None` if nothing is to be done. True if it was changed.
    /// Waits for the file's lock, so not for a thread that others wait on.
    ///
    /// # Errors
    /// If the container is not on this host, is locked, or the file cannot be locked, read or replaced. The file is then as it was.
    pub fn edit(&self, host: &HostName, vmid: Vmid, change: impl FnOnce(&str) -> Option<String>) -> Result<bool, GuestConfigError> {
        let _held = self.lock(vmid)?;
        let path = self.container(host, vmid);
        let text = read(&path, host, vmid)?;
        if let Some(lock) = lock_of(&text).filter(|lock| *lock != "mounted") {
            return Err(GuestConfigError::Locked { vmid, lock: lock.to_owned() });
        }
        let Some(new) = change(&text) else { return Ok(false) };
        replace(&path, &new).map_err(|source| GuestConfigError::Io { tried: "write", path, source })?;
        Ok(true)
    }

    /// The lock on a container's configuration, held until the file is dropped.
    fn lock(&self, vmid: Vmid) -> Result<File, GuestConfigError> {
        let path = self.locks.join("lxc").join(format!("pve-config-{vmid}.lock"));
        let failed = |source| GuestConfigError::Io { tried: "lock", path: path.clone(), source };
        // Proxmox makes this directory at its first lock.
        let made = path.parent().map_or(Ok(()), std::fs::create_dir_all);
        made.map_err(failed)?;
        let file = OpenOptions::new().create(true).append(true).open(&path).map_err(failed)?;
        let begun = Instant::now();
        loop {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(file),
                Err(rustix::io::Errno::WOULDBLOCK) if begun.elapsed() < LOCK_LIMIT => std::thread::sleep(LOCK_PAUSE),
                Err(rustix::io::Errno::WOULDBLOCK) => return Err(GuestConfigError::Busy(vmid)),
                Err(error) => return Err(failed(error.into())),
            }
        }
    }
}

fn read(path: &Path, host: &HostName, vmid: Vmid) -> Result<String, GuestConfigError> {
    let failed = |source| GuestConfigError::Io { tried: "read", path: path.to_owned(), source };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(GuestConfigError::Missing { vmid, host: host.clone() }),
        Err(error) => return Err(failed(error)),
    };
    let mut text = String::new();
    file.take(MAX_FILE + 1).read_to_string(&mut text).map_err(failed)?;
    // Replacing a file that was read in part would lose the rest.
    if text.len() as u64 > MAX_FILE { Err(failed(io::Error::other("it is longer than 1 MiB"))) } else { Ok(text) }
}

/// The lock that the part in force carries, as in `backup`.
fn lock_of(text: &str) -> Option<&str> {
    text.lines().take_while(|line| !line.starts_with('[')).find_map(|line| line.strip_prefix("lock:")).map(str::trim)
}

/// The cluster file system moves a file within a directory in one step; its modes are its own.
fn replace(path: &Path, text: &str) -> io::Result<()> {
    let fresh = path.with_extension(format!("conf.tmp.{}", std::process::id()));
    let written = (|| {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o640).open(&fresh)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        drop(file);
        std::fs::rename(&fresh, path)
    })();
    if written.is_err() {
        let _ = std::fs::remove_file(&fresh);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host() -> HostName {
        "pve".parse().unwrap()
    }

    fn files() -> (tempfile::TempDir, GuestConfigs, Vmid) {
        let dir = tempfile::tempdir().unwrap();
        let files = GuestConfigs::at(dir.path().join("pve"), dir.path().join("lock"));
        let vmid = "101".parse().unwrap();
        std::fs::create_dir_all(files.container(&host(), vmid).parent().unwrap()).unwrap();
        (dir, files, vmid)
    }

    #[test]
    fn a_file_is_replaced_whole_and_nothing_else_is_left() {
        let (_dir, files, vmid) = files();
        let path = files.container(&host(), vmid);
        std::fs::write(&path, "arch: amd64\n").unwrap();
        assert!(files.edit(&host(), vmid, |text| Some(format!("{text}cores: 2\n"))).unwrap());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "arch: amd64\ncores: 2\n");
        assert!(!files.edit(&host(), vmid, |_| None).unwrap());
        assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn a_container_that_is_locked_or_elsewhere_is_left_alone() {
        let (_dir, files, vmid) = files();
        let edit = || files.edit(&host(), vmid, |_| Some(String::new())).unwrap_err().to_string();
        assert_eq!(edit(), "container 101 is not on pve");
        let text = "lock: backup\n\n[before]\nlock: create\n";
        std::fs::write(files.container(&host(), vmid), text).unwrap();
        assert_eq!(edit(), "container 101 is locked (backup)");
        assert_eq!(std::fs::read_to_string(files.container(&host(), vmid)).unwrap(), text);
    }

    #[test]
    fn the_lock_of_proxmox_is_waited_for() {
        let (_dir, files, vmid) = files();
        std::fs::write(files.container(&host(), vmid), "").unwrap();
        let held = files.lock(vmid).unwrap();
        std::thread::scope(|scope| {
            let edit = scope.spawn(|| files.edit(&host(), vmid, |_| Some("x: y\n".to_owned())));
            std::thread::sleep(Duration::from_millis(200));
            assert!(!edit.is_finished(), "it did not wait");
            drop(held);
            assert!(edit.join().unwrap().unwrap());
        });
    }
}
