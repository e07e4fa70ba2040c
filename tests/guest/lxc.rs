//! The image as a real unprivileged LXC container, and the router with the rights such a container has.

use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use pvemesh::node::RouterConfig;
use pvemesh::sys::router::Router;

use crate::dhcp::Lan;
use crate::init::{NODE, encode, guest, image};
use crate::netns::{assert_same, has, root, wait_for};

/// Root's ids in the container, outside.
const FIRST_ID: u32 = 100_000;

/// A container below its own directory, in a namespace of the test's; its interface is the namespace's `eth0`.
struct Container<'l> {
    lan: &'l Lan,
    directory: tempfile::TempDir,
    name: String,
}

impl<'l> Container<'l> {
    fn new(lan: &'l Lan, variable: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().display().to_string();
        let name = lan.guest.name.clone();
        let home = directory.path().join(&name);
        let rootfs = home.join("rootfs");
        std::fs::create_dir_all(&rootfs).unwrap();
        for place in [directory.path(), &home] {
            std::fs::set_permissions(place, std::fs::Permissions::from_mode(0o755)).unwrap();
        }
        std::os::unix::fs::chown(&rootfs, Some(FIRST_ID), Some(FIRST_ID)).unwrap();
        // As Proxmox unpacks it: inside the id map, without what stands in /dev.
        let map = format!("0:{FIRST_ID}:65536");
        let mut unpack = Command::new("lxc-usernsexec");
        unpack.args([
            "-m",
            &format!("u:{map}"),
            "-m",
            &format!("g:{map}"),
            "--",
            "tar",
            "-xz",
            "--numeric-owner",
            "--skip-old-files",
            "--anchored",
        ]);
        unpack.args(["--exclude", "./dev/*", "-C"]).arg(&rootfs);
        let mut unpack = unpack.stdin(Stdio::piped()).spawn().unwrap();
        unpack.stdin.take().unwrap().write_all(image()).unwrap();
        assert!(unpack.wait().unwrap().success());
        let config = format!(
            "lxc.idmap = u 0 {FIRST_ID} 65536\nlxc.idmap = g 0 {FIRST_ID} 65536\nlxc.uts.name = exit-1\nlxc.rootfs.path = dir:{path}/{name}/rootfs\n\
             lxc.mount.auto = cgroup:mixed proc:mixed sys:mixed\nlxc.monitor.unshare = 1\nlxc.tty.max = 2\nlxc.console.logfile = {path}/console\n\
             lxc.net.0.type = phys\nlxc.net.0.link = eth0\nlxc.net.0.name = eth0\nlxc.environment = PVEMESH_CONFIG={variable}\n"
        );
        std::fs::write(home.join("config"), config).unwrap();
        Self { lan, directory, name }
    }

    fn lxc(&self, program: &str, arguments: &[&str]) -> Output {
        self.lan
            .guest
            .command(program)
            .arg("-P")
            .arg(self.directory.path())
            .args(["-n", &self.name])
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    fn start(&self) {
        let log = self.directory.path().join("log");
        let out = self.lxc("lxc-start", &["-d", "-l", "INFO", "-o", log.to_str().unwrap()]);
        let text = || String::from_utf8_lossy(&out.stderr).into_owned() + &std::fs::read_to_string(&log).unwrap_or_default();
        assert!(out.status.success(), "{}", text());
    }

    /// Init's number, outside; nothing when the container does not run.
    fn pid(&self) -> Option<String> {
        let text = String::from_utf8(self.lxc("lxc-info", &["-p", "-H"]).stdout).unwrap();
        text.trim().parse::<u32>().is_ok().then(|| text.trim().to_owned())
    }

    fn console(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("console")).unwrap_or_default()
    }

    fn rootfs(&self, path: &str) -> std::path::PathBuf {
        self.directory.path().join(&self.name).join("rootfs").join(path)
    }

    /// Runs a shell command of this machine with the container's network, as the container's root.
    fn inside(&self, line: &str) -> String {
        let pid = self.pid().unwrap();
        let out = Command::new("nsenter").args(["--target", &pid, "--user", "--net", "sh", "-c", line]).output().unwrap();
        assert!(out.status.success(), "{line}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap()
    }
}

impl Drop for Container<'_> {
    fn drop(&mut self) {
        if self.pid().is_some() {
            self.lxc("lxc-stop", &["-k"]);
        }
    }
}

#[test]
fn the_image_runs_as_an_unprivileged_container_and_halts_promptly() {
    if !root() || !has("lxc-start") || !has("dnsmasq") {
        return;
    }
    let mut lan = Lan::new();
    lan.serve("192.168.77.50,192.168.77.60,255.255.255.0,120", &["--dhcp-option=6,192.168.77.1"]);
    let container = Container::new(&lan, &encode(&guest("ipv4 = \"dhcp\"", NODE)));
    let begun = Instant::now();
    container.start();
    wait_for("a lease", 20, || container.console().contains("eth0 has 192.168.77.").then_some(()));
    println!("container start to lease: {:?}\n{}", begun.elapsed(), container.console());
    let console = container.console();
    let address = console.split_once("eth0 has ").unwrap().1.split('/').next().unwrap();
    assert!(lan.host.run(&format!("ping -c1 -W2 {address}")).contains("1 received"));
    wait_for("name servers", 5, || {
        std::fs::read_to_string(container.rootfs("etc/resolv.conf")).unwrap().contains("192.168.77.1").then_some(())
    });
    wait_for("the node", 10, || container.console().contains("node started as process").then_some(()));
    assert!(!container.console().contains("test-join-key"));
    let stored = std::fs::metadata(container.rootfs("var/lib/pvemesh/guest.toml")).unwrap();
    assert_eq!((stored.permissions().mode() & 0o777, std::os::unix::fs::MetadataExt::uid(&stored)), (0o600, FIRST_ID));
    let pid = container.pid().unwrap();
    let resident = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    println!("init: {}", resident.lines().find(|line| line.starts_with("VmRSS")).unwrap_or_default());

    let asked = Instant::now();
    container.lxc("lxc-stop", &["--nokill", "--timeout", "5"]);
    let took = asked.elapsed();
    assert!(container.pid().is_none(), "still running: {}", container.console());
    assert!(container.console().contains("SIGPWR: stopping"), "{}", container.console());
    assert!(took < Duration::from_secs(10), "{took:?}, with LXC's own work");

    // A second start: the variable is unchanged, the stored file stays, the lease comes again. LXC gave eth0 back to the namespace.
    let marker = "# edited\n";
    let path = container.rootfs("var/lib/pvemesh/guest.toml");
    std::fs::write(&path, std::fs::read_to_string(&path).unwrap() + marker).unwrap();
    let before = container.console().len();
    container.start();
    wait_for("a lease again", 20, || {
        container.console().get(before..).is_some_and(|text| text.contains("eth0 has 192.168.77.")).then_some(())
    });
    assert!(std::fs::read_to_string(&path).unwrap().ends_with(marker), "the stored configuration was overwritten");
}

/// Where the helper below keeps previous settings; also what tells it to do anything.
const HELPER: &str = "PVEMESH_TEST_ROUTER_MEMORY";

#[test]
fn the_router_works_with_the_rights_of_an_unprivileged_container() {
    if let Some(memory) = std::env::var_os(HELPER) {
        return router_helper(Path::new(&memory));
    }
    if !root() || !has("lxc-start") || !has("nft") {
        return;
    }
    let lan = Lan::new();
    let container = Container::new(&lan, &encode(&guest("ipv4 = \"192.168.77.9/24\"\nipv6 = \"none\"", "")));
    container.start();
    wait_for("the address", 10, || container.console().contains("eth0 has 192.168.77.9/24").then_some(()));
    let dump = "ip rule; ip -6 rule; ip -4 route show table all; ip -6 route show table 52; nft list ruleset; cat /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv6/conf/all/forwarding";
    container.inside("ip link add pvemesh0 type veth peer name other");
    let before = container.inside(dump);
    let memory = tempfile::tempdir().unwrap();
    std::fs::set_permissions(memory.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    // This very test again, inside: the namespaces of a thread cannot all be changed from a program with several.
    // A copy, since the build directory need not be open to others.
    let place = memory.path().display();
    std::fs::copy("/proc/self/exe", memory.path().join("helper")).unwrap();
    let name = "lxc::the_router_works_with_the_rights_of_an_unprivileged_container";
    let line = format!("{HELPER}={place}/sysctl.json {place}/helper --exact {name} --nocapture");
    println!("{}", container.inside(&line));
    container.inside("ip link set pvemesh0 down; ip addr flush dev pvemesh0");
    assert_same(&before, &container.inside(dump));
}

/// Runs as the container's root in its network.
fn router_helper(memory: &Path) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
        let mut router = Router::with_memory(memory.to_owned()).await.unwrap();
        let config = RouterConfig {
            interface: "pvemesh0".to_owned(),
            addresses: vec!["100.64.0.1/32".parse().unwrap(), "fd7a:115c:a1e0::1/128".parse().unwrap()],
            routes: vec!["100.64.0.2/32".parse().unwrap(), "fd7a:115c:a1e0::2/128".parse().unwrap()],
            local_routes: Vec::new(),
            lan_first: true,
            forward: true,
            masquerade: true,
            lan_gateway: false,
            shields_up: false,
            mtu: 1280,
        };
        router.apply(&config).await.unwrap();
        let shell = |line: &str| String::from_utf8(Command::new("sh").args(["-c", line]).output().unwrap().stdout).unwrap();
        assert!(shell("nft list ruleset").contains("masquerade"), "{}", shell("nft list ruleset"));
        assert_eq!(shell("cat /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv6/conf/all/forwarding"), "1\n1\n");
        assert!(shell("ip route show table 52").contains("100.64.0.2"));
        router.clear().await.unwrap();
    });
}

/// What makes a node's keys, in a container's root.
fn key_files(container: &Container<'_>) -> (Option<String>, bool) {
    let state = std::fs::read_to_string(container.rootfs("var/lib/pvemesh/node/state.json")).ok();
    let key =
        state.as_ref().and_then(|text| serde_json::from_str::<serde_json::Value>(text).ok()?["machine_key"].as_str().map(str::to_owned));
    (key, container.rootfs("var/lib/pvemesh/renewal.toml").exists())
}

#[test]
fn a_cloned_container_discards_the_original_s_keys_and_waits_for_a_join_key() {
    if !root() || !has("lxc-start") {
        return;
    }
    let lan = Lan::new();
    let variable = encode(&guest("ipv4 = \"192.168.77.9/24\"\nipv6 = \"none\"", NODE));
    let original = Container::new(&lan, &variable);
    original.start();
    let made = wait_for("the original's keys", 20, || key_files(&original).0);
    wait_for("the binding", 10, || original.rootfs("var/lib/pvemesh/binding.toml").exists().then_some(()));
    original.lxc("lxc-stop", &["--nokill", "--timeout", "5"]);
    assert!(original.pid().is_none());

    // As Proxmox clones: everything but the hardware address.
    let copy = Container::new(&lan, &variable);
    let (from, to) = (original.rootfs(""), copy.rootfs(""));
    std::fs::remove_dir_all(&to).unwrap();
    assert!(Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap().success());
    assert_eq!(key_files(&copy).0.as_ref(), Some(&made), "it starts with the original's keys");
    lan.guest.run("ip link set eth0 address bc:24:11:00:00:02");
    copy.start();
    wait_for("the copy to notice", 20, || copy.console().contains("this guest is a copy").then_some(()));
    wait_for("the keys to go", 5, || key_files(&copy).0.is_none().then_some(()));
    wait_for("it to wait", 5, || copy.console().contains("waits for a join key").then_some(()));
    let stored = std::fs::read_to_string(copy.rootfs("var/lib/pvemesh/guest.toml")).unwrap();
    assert!(!stored.contains("auth_key"), "the original's join key goes, too");

    // As the host pushes it: a file of the container's root.
    let renewal = copy.rootfs("var/lib/pvemesh/renewal.toml");
    let fresh = copy.rootfs("var/lib/pvemesh/renewal.new");
    std::fs::write(&fresh, "vmid = 102\nhostname = \"exit-2\"\ngeneration = 1\nauth_key = \"fresh-join-key\"\n").unwrap();
    std::fs::set_permissions(&fresh, std::fs::Permissions::from_mode(0o600)).unwrap();
    std::os::unix::fs::chown(&fresh, Some(FIRST_ID), Some(FIRST_ID)).unwrap();
    std::fs::rename(&fresh, &renewal).unwrap();
    let own = wait_for("keys of its own", 20, || key_files(&copy).0);
    assert_ne!(own, made);
    wait_for("the file to be taken away", 5, || (!key_files(&copy).1).then_some(()));
    let stored = std::fs::read_to_string(copy.rootfs("var/lib/pvemesh/guest.toml")).unwrap();
    assert!(stored.contains("vmid = 102") && stored.contains("exit-2") && stored.contains("fresh-join-key"));
    assert!(!copy.console().contains("fresh-join-key"));
    copy.lxc("lxc-stop", &["--nokill", "--timeout", "5"]);

    // A second start is no copy any more.
    let before = copy.console().len();
    copy.start();
    // There is no TUN for it here, so it ends after it has looked at its keys.
    wait_for("the second start", 20, || copy.console().get(before..).is_some_and(|text| text.contains("node exited")).then_some(()));
    assert_eq!(key_files(&copy).0, Some(own));
}
