//! Real containers behind the stand-in: a namespace with a bridge, and busybox as the first process.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::client::{call, log_in};
use crate::standin::lxc::{Lxc, missing, processes, until};
use crate::standin::{Options, Standin};

const BUSYBOX: &str = "/bin/busybox";

/// A network namespace with a bridge, removed when dropped.
struct Namespace(String);

fn ip(arguments: &str) {
    let done = Command::new("ip").args(arguments.split(' ')).status().unwrap();
    assert!(done.success(), "ip {arguments}");
}

impl Namespace {
    fn with_bridge() -> Self {
        let name = format!("pvt-{}", std::process::id());
        ip(&format!("netns add {name}"));
        ip(&format!("-n {name} link add vmbr0 type bridge"));
        ip(&format!("-n {name} link set vmbr0 up"));
        Self(name)
    }

    fn path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.0)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.0]).status();
    }
}

const INIT: &str = r#"#!/bin/busybox sh
trap 'echo asked to stop; exit 0' PWR
echo "init $FOO" "$(busybox cat /proc/sys/kernel/hostname)"
busybox ls -ln /dev/net/tun
busybox tunctl -t tap7 && echo TUN works
busybox ip link show lo | busybox grep -q 'UP' || echo lo is down
while :; do busybox sleep 0.1; done
"#;

/// A template with busybox and a device node that must not be unpacked.
fn template(at: &Path) {
    let mut archive = tar::Builder::new(flate2::write::GzEncoder::new(std::fs::File::create(at).unwrap(), flate2::Compression::fast()));
    let mut entry = |path: &str, mode: u32, kind: tar::EntryType, data: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_mode(mode);
        header.set_entry_type(kind);
        header.set_size(data.len() as u64);
        // `append_data` would drop the leading dot that PVE's exclusion of ./dev needs.
        header.as_gnu_mut().unwrap().name[..path.len()].copy_from_slice(path.as_bytes());
        header.set_cksum();
        archive.append(&header, data).unwrap();
    };
    for dir in ["./bin/", "./sbin/", "./etc/", "./dev/"] {
        entry(dir, 0o755, tar::EntryType::Directory, &[]);
    }
    entry("./bin/busybox", 0o755, tar::EntryType::Regular, &std::fs::read(BUSYBOX).unwrap());
    entry("./sbin/init", 0o755, tar::EntryType::Regular, INIT.as_bytes());
    entry("./dev/node", 0o644, tar::EntryType::Char, &[]);
    archive.into_inner().unwrap().finish().unwrap();
}

fn finished(standin: &Standin, root: &str, method: &str, path: &str, params: &[(&str, &str)]) -> String {
    let params: Vec<_> = params.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    let answer = call(standin, root, method, path, &params);
    let upid = answer.data().as_str().unwrap_or_else(|| panic!("{answer:?}")).to_owned();
    let mut exit = Value::Null;
    assert!(until(Duration::from_secs(30), || {
        exit = call(standin, root, "GET", &format!("/nodes/pve/tasks/{upid}/status"), &[]).data()["exitstatus"].clone();
        exit.is_string()
    }));
    exit.as_str().unwrap().to_owned()
}

#[test]
fn a_container_gets_its_device_its_environment_and_its_bridge_and_leaves_nothing() {
    if let Some(why) = missing() {
        println!("skipped: {why}");
        return;
    }
    if !Path::new(BUSYBOX).exists() {
        println!("skipped: busybox-static is not installed (make deps)");
        return;
    }
    let dir = tempfile::Builder::new().prefix("pvt").tempdir().unwrap();
    // The container's user must be able to walk to its root.
    std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let namespace = Namespace::with_bridge();
    let backend = Box::new(Lxc::new(dir.path(), &namespace.0, Some(namespace.path())));
    let standin = Standin::start(Options { backend, ..Options::new(dir.path()) }).unwrap();
    let root = log_in(&standin, "secret");
    template(&standin.storage_dir("local").join("template/cache/t.tar.gz"));
    let marks = dir.path().join("phases");
    let script = standin.storage_dir("local").join("snippets/hook.sh");
    std::fs::write(&script, format!("#!/bin/sh\necho $2 >> {}\n", marks.display())).unwrap();
    std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();

    let params = [
        ("vmid", "7100"),
        ("ostemplate", "local:vztmpl/t.tar.gz"),
        ("rootfs", "local-lvm:0.25"),
        ("hostname", "probe"),
        ("unprivileged", "1"),
        ("memory", "64"),
        ("dev0", "/dev/net/tun"),
        ("net0", "name=eth0,bridge=vmbr0,ip=192.168.50.7/24"),
        ("env", "FOO=bar baz"),
        ("hookscript", "local:snippets/hook.sh"),
    ];
    assert_eq!(finished(&standin, &root, "POST", "/nodes/pve/lxc", &params), "OK");
    let rootfs = dir.path().join("containers/7100/rootfs");
    let owner = std::os::unix::fs::MetadataExt::uid(&std::fs::metadata(rootfs.join("sbin/init")).unwrap());
    assert_eq!((owner, rootfs.join("dev/node").exists()), (100_000, false));

    assert_eq!(finished(&standin, &root, "POST", "/nodes/pve/lxc/7100/status/start", &[]), "OK");
    let console = dir.path().join("containers/7100/console.log");
    let text = || std::fs::read_to_string(&console).unwrap_or_default();
    let ready = until(Duration::from_secs(10), || text().contains("lo is down"));
    assert!(ready && text().contains("init bar baz probe") && text().contains("TUN works"), "{}", text());
    assert!(text().contains("crw-rw----"), "{}", text());
    let bridged = Command::new("ip").args(["-n", &namespace.0, "link", "show", "master", "vmbr0"]).output().unwrap();
    assert!(String::from_utf8_lossy(&bridged.stdout).contains("veth7100i0"));
    let status = call(&standin, &root, "GET", "/nodes/pve/lxc/7100/status/current", &[]).data();
    assert!(status["status"] == "running" && status["mem"].as_u64().unwrap() > 0, "{status}");
    let interfaces = call(&standin, &root, "GET", "/nodes/pve/lxc/7100/interfaces", &[]).data();
    assert!(interfaces.as_array().unwrap().iter().any(|i| i["name"] == "eth0"), "{interfaces}");

    let start = Instant::now();
    assert_eq!(finished(&standin, &root, "POST", "/nodes/pve/lxc/7100/status/shutdown", &[("timeout", "20")]), "OK");
    assert!(start.elapsed() < Duration::from_secs(10) && text().contains("asked to stop"));
    let phases = || std::fs::read_to_string(&marks).unwrap_or_default();
    assert!(until(Duration::from_secs(5), || phases().ends_with("post-stop\n")));
    assert_eq!(phases(), "pre-start\npost-start\npre-stop\npost-stop\n");
    assert_eq!(finished(&standin, &root, "DELETE", "/nodes/pve/lxc/7100", &[]), "OK");
    assert!(!dir.path().join("containers/7100").exists());
    drop(standin);
    let here = dir.path().display().to_string();
    assert!(!std::fs::read_to_string("/proc/mounts").unwrap().contains(&here));
    let left: Vec<_> = processes().filter(|(_, line)| line.contains(&here)).collect();
    assert!(left.is_empty(), "{left:?}");
}
