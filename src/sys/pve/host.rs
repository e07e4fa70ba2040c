//! The Proxmox host that we run on, as its files show it: guests' configurations, devices, modules. No tool of Proxmox is run for it,
//! since those take most of a second to start and some wait for locks that a hook's caller holds.

use std::io;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode};

use crate::ident::Vmid;
use crate::plan::hook::{Facts, Heal, HostFacts, MODULES, Module, Tun};
use crate::pve::GuestFile;

/// Where the host's files are looked for instead of `/`; for tests, and for a host that is looked at from outside.
pub const ROOT_VARIABLE: &str = "PVEMESH_HOST_ROOT";
/// The numbers of `/dev/net/tun`.
const TUN_NUMBERS: (u32, u32) = (10, 200);

/// The files of a host.
#[derive(Debug, Clone)]
pub struct HostFiles {
    root: PathBuf,
}

impl HostFiles {
    /// Those of this machine, or where the environment says.
    pub fn here() -> Self {
        let named = std::env::var_os(ROOT_VARIABLE).filter(|v| !v.is_empty());
        Self::at(named.map_or_else(|| PathBuf::from("/"), PathBuf::from))
    }

    /// Those below this directory.
    pub fn at(root: PathBuf) -> Self {
        Self { root }
    }

    /// Where they are, if that is not `/`.
    pub fn elsewhere(&self) -> Option<&Path> {
        (self.root != Path::new("/")).then_some(self.root.as_path())
    }

    /// A file or directory of the host.
    pub fn path(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    /// What is seen of a guest. A configuration that is not here belongs to a guest on another host, or to none.
    ///
    /// # Errors
    /// If the cluster's files cannot be read.
    pub fn facts(&self, vmid: Vmid) -> io::Result<Facts> {
        let mut file = None;
        for place in ["lxc", "qemu-server"] {
            match std::fs::read(self.path(&format!("etc/pve/{place}/{vmid}.conf"))) {
                Ok(bytes) => file = Some(GuestFile::parse(&String::from_utf8_lossy(&bytes))),
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(e),
            }
        }
        Ok(Facts { vmid, file, running: self.is_running(vmid) })
    }

    /// Whether a guest runs, as Proxmox itself looks: a container's command socket, a virtual machine's process.
    fn is_running(&self, vmid: Vmid) -> bool {
        let socket = format!("@/var/lib/lxc/{vmid}/command");
        let sockets = std::fs::read_to_string(self.path("proc/net/unix")).unwrap_or_default();
        let machine = || {
            let pid = std::fs::read_to_string(self.path(&format!("run/qemu-server/{vmid}.pid"))).ok()?;
            let pid: u32 = pid.trim().parse().ok()?;
            self.path(&format!("proc/{pid}")).is_dir().then_some(())
        };
        sockets.lines().any(|line| line.ends_with(&socket)) || machine().is_some()
    }

    /// What the host has for containers.
    pub fn devices(&self) -> HostFacts {
        let tun = match std::fs::metadata(self.path("dev/net/tun")) {
            Ok(data) if data.file_type().is_char_device() => Tun::Device,
            Ok(_) => Tun::Other,
            Err(_) => Tun::Missing,
        };
        let release = rustix::system::uname().release().to_string_lossy().into_owned();
        let built_in = std::fs::read_to_string(self.path(&format!("lib/modules/{release}/modules.builtin"))).unwrap_or_default();
        let is_there = |name: &str| {
            let file = format!("/{name}.ko");
            self.path(&format!("sys/module/{name}")).is_dir() || built_in.lines().any(|line| line.ends_with(&file))
        };
        let modules = MODULES.iter().map(|name| (*name, if is_there(name) { Module::There } else { Module::Absent })).collect();
        HostFacts { tun, modules }
    }

    /// Puts something right.
    ///
    /// # Errors
    /// If it cannot be; the reason in words.
    pub fn heal(&self, heal: Heal) -> Result<(), String> {
        match heal {
            Heal::LoadModule(name) => load(name),
            Heal::MakeTun => make_tun(&self.path("dev/net/tun")).map_err(|e| e.to_string()),
        }
    }
}

fn load(name: &str) -> Result<(), String> {
    let output = std::process::Command::new("modprobe").arg("--quiet").arg(name).stdin(std::process::Stdio::null()).output();
    let output = output.map_err(|e| format!("modprobe: {e}"))?;
    if output.status.success() { Ok(()) } else { Err(format!("modprobe {name}: {}", String::from_utf8_lossy(&output.stderr).trim())) }
}

fn make_tun(path: &Path) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    let (major, minor) = TUN_NUMBERS;
    rustix::fs::mknodat(rustix::fs::CWD, path, FileType::CharacterDevice, Mode::from_raw_mode(0o666), rustix::fs::makedev(major, minor))?;
    // Whatever our mask is; containers' users are others.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place() -> (tempfile::TempDir, HostFiles) {
        let dir = tempfile::tempdir().unwrap();
        for sub in ["etc/pve/lxc", "etc/pve/qemu-server", "proc/net", "proc/77", "run/qemu-server"] {
            std::fs::create_dir_all(dir.path().join(sub)).unwrap();
        }
        let files = HostFiles::at(dir.path().to_owned());
        (dir, files)
    }

    #[test]
    fn guests_of_both_kinds_are_seen_with_their_state() {
        let (_dir, files) = place();
        let vmid = |n: u32| Vmid::try_from(n).unwrap();
        std::fs::write(files.path("etc/pve/lxc/101.conf"), "hostname: exit-1\n").unwrap();
        std::fs::write(files.path("etc/pve/qemu-server/200.conf"), "name: nas\n").unwrap();
        std::fs::write(files.path("proc/net/unix"), "Num RefCount\n0000: 00000002 00000000 00010000 0001 01 1 @/var/lib/lxc/101/command\n")
            .unwrap();
        std::fs::write(files.path("run/qemu-server/200.pid"), "77\n").unwrap();
        assert!(files.facts(vmid(101)).unwrap().running);
        assert!(files.facts(vmid(200)).unwrap().running);
        // Not mixed up with a number that ends alike, nor with a process that is gone.
        let other = files.facts(vmid(1101)).unwrap();
        assert_eq!((other.file, other.running), (None, false));
        std::fs::remove_dir(files.path("proc/77")).unwrap();
        assert!(!files.facts(vmid(200)).unwrap().running);
    }

    #[test]
    fn a_missing_device_is_made_where_that_is_allowed() {
        let (_dir, files) = place();
        assert_eq!(files.devices().tun, Tun::Missing);
        match files.heal(Heal::MakeTun) {
            Ok(()) => {
                assert_eq!(files.devices().tun, Tun::Device);
                assert_eq!(std::fs::metadata(files.path("dev/net/tun")).unwrap().permissions().mode() & 0o777, 0o666);
            }
            // Making device nodes is for root, and for few of those in containers.
            Err(why) => assert!(!why.is_empty()),
        }
        std::fs::create_dir_all(files.path("sys/module/tun")).unwrap();
        assert_eq!(files.devices().modules.first(), Some(&("tun", Module::There)));
    }
}
