//! A golden container and its clone as real unprivileged containers.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::golden::as_token;
use crate::standin::lxc::{Lxc, missing};
use crate::world::World;

const BUSYBOX: &str = "/bin/busybox";
/// Says whether it has the device and a configuration, and takes the address that a node would.
const INIT: &str = r#"#!/bin/busybox sh
trap 'exit 0' PWR TERM
busybox ip link set eth0 up
busybox ip addr add 192.168.50.101/24 dev eth0
busybox ip addr add 100.64.0.101/32 dev eth0
busybox tunctl -t tap7 && echo TUN works
test -n "$PVEMESH_CONFIG" && echo configured as "$(busybox cat /proc/sys/kernel/hostname)"
while :; do busybox sleep 0.1; done
"#;

/// A network namespace with a bridge, removed when dropped.
struct Namespace(String);

impl Namespace {
    fn with_bridge() -> Self {
        let name = format!("pvg-{}", std::process::id());
        for line in [format!("netns add {name}"), format!("-n {name} link add vmbr0 type bridge"), format!("-n {name} link set vmbr0 up")] {
            assert!(Command::new("ip").args(line.split(' ')).status().unwrap().success(), "ip {line}");
        }
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

fn image(at: &Path) {
    let mut archive = tar::Builder::new(flate2::write::GzEncoder::new(std::fs::File::create(at).unwrap(), flate2::Compression::fast()));
    let mut entry = |path: &str, kind: tar::EntryType, data: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o755);
        header.set_entry_type(kind);
        header.set_size(data.len() as u64);
        // `append_data` would drop the leading dot that Proxmox's exclusion of ./dev needs.
        header.as_gnu_mut().unwrap().name[..path.len()].copy_from_slice(path.as_bytes());
        header.set_cksum();
        archive.append(&header, data).unwrap();
    };
    for dir in ["./bin/", "./sbin/", "./etc/", "./dev/"] {
        entry(dir, tar::EntryType::Directory, &[]);
    }
    entry("./bin/busybox", tar::EntryType::Regular, &std::fs::read(BUSYBOX).unwrap());
    entry("./sbin/init", tar::EntryType::Regular, INIT.as_bytes());
    archive.into_inner().unwrap().finish().unwrap();
}

#[test]
fn a_token_s_clone_is_a_real_container_with_the_device_and_its_own_configuration() {
    if let Some(why) = missing() {
        println!("skipped: {why}");
        return;
    }
    if !Path::new(BUSYBOX).exists() {
        println!("skipped: busybox-static is not installed (make deps)");
        return;
    }
    let namespace = Namespace::with_bridge();
    let world = World::with(|options| {
        // The container's user must be able to walk to its root.
        let dir = options.dir.parent().unwrap();
        std::fs::set_permissions(dir, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        options.backend = Box::new(Lxc::new(&options.dir, &namespace.0, Some(namespace.path())));
    });
    image(&world.path("image.tar.gz"));
    world.init().run("image golden 9000 --image {dir}/image.tar.gz").succeeded();
    as_token(&world);
    world.create("").succeeded();
    let console = world.path("host/containers/101/console.log");
    let text = || std::fs::read_to_string(&console).unwrap_or_default();
    world.wait("the clone says what it has", || text().contains("configured as exit-1"));
    assert!(text().contains("TUN works"), "{}", text());
    let (clone, golden) = (world.path("host/containers/101/rootfs"), world.path("host/containers/9000/rootfs"));
    std::fs::write(clone.join("etc/state"), "x").unwrap();
    assert!(golden.join("sbin/init").exists() && !golden.join("etc/state").exists(), "the clone is no full copy");
    world.run("destroy 101 --yes").succeeded();
    assert!(!clone.exists() && golden.exists());
    world.run("destroy 9000 --yes").succeeded();
    assert!(!world.path("host/containers/9000").exists());
}
