//! The binary as the first process of a PID, mount and network namespace, in the root that the image holds.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::rc::Rc;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use base64::Engine as _;
use pvemesh::node::RouterConfig;
use pvemesh::plan::render;
use pvemesh::settings::Guest;
use pvemesh::sys::router::Router;
use rustix::process::{Pid, Signal, kill_process};

use crate::dhcp::Lan;
use crate::image::PROGRAM;
use crate::netns::{Netns, has, root, wait_for};

/// What ends well ends within milliseconds, and what has to be killed after a second; LXC would wait for a minute.
const PROMPT: Duration = Duration::from_secs(8);

/// A guest's root, made from the image, and the process that is its init.
struct Appliance {
    root: Rc<tempfile::TempDir>,
    child: Child,
    /// Init's number outside.
    pid: Pid,
    console: Arc<Mutex<String>>,
}

/// The image, built once.
pub(crate) fn image() -> &'static [u8] {
    static IMAGE: OnceLock<Vec<u8>> = OnceLock::new();
    IMAGE.get_or_init(|| {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("image.tar.gz");
        pvemesh::sys::image::build(Path::new(PROGRAM), None, &path).unwrap();
        std::fs::read(path).unwrap()
    })
}

/// Unpacks the image into a new directory.
fn unpack() -> Rc<tempfile::TempDir> {
    let root = tempfile::tempdir().unwrap();
    let mut tar = Command::new("tar").arg("-xzC").arg(root.path()).stdin(Stdio::piped()).spawn().unwrap();
    tar.stdin.take().unwrap().write_all(image()).unwrap();
    assert!(tar.wait().unwrap().success());
    Rc::new(root)
}

impl Appliance {
    /// Starts init in a network namespace; `variable` is what `PVEMESH_CONFIG` holds.
    fn start(netns: &Netns, root: Rc<tempfile::TempDir>, variable: Option<&str>) -> Self {
        let path = root.path().display();
        let line = format!(
            "mount --bind {path} {path} && mount -t proc proc {path}/proc && mount --bind /dev {path}/dev && exec chroot {path} /sbin/init"
        );
        let mut command = netns.command("unshare");
        command.args(["--pid", "--fork", "--mount", "--kill-child", "sh", "-c", &line]);
        command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        if let Some(variable) = variable {
            command.env("PVEMESH_CONFIG", variable);
        }
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let console = Arc::new(Mutex::new(String::new()));
        let (lines, text) = (BufReader::new(child.stderr.take().unwrap()), Arc::clone(&console));
        std::thread::spawn(move || {
            for line in lines.lines().map_while(Result::ok) {
                println!("console: {line}");
                *text.lock().unwrap() += &(line + "\n");
            }
        });
        // unshare waits for its one child, which is init.
        let unshare = child.id();
        let pid = wait_for("init to run", 10, || {
            let children = std::fs::read_to_string(format!("/proc/{unshare}/task/{unshare}/children")).ok()?;
            let pid: i32 = children.split_whitespace().next()?.parse().ok()?;
            let exe = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).ok()?;
            exe.starts_with("/sbin/init").then(|| Pid::from_raw(pid).unwrap())
        });
        Self { root, child, pid, console }
    }

    fn console(&self) -> String {
        self.console.lock().unwrap().clone()
    }

    fn wait_console(&self, words: &str) {
        wait_for(words, 15, || self.console().contains(words).then_some(()));
    }

    fn file(&self, path: &str) -> PathBuf {
        self.root.path().join(path)
    }

    /// The numbers (outside) and states of init's children.
    fn children(&self) -> Vec<(i32, char)> {
        let pid = self.pid.as_raw_nonzero();
        let list = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        let state = |pid: &str| {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            Some((pid.parse().ok()?, stat.rsplit(") ").next()?.chars().next()?))
        };
        list.split_whitespace().filter_map(state).collect()
    }

    /// Sends a signal and measures the time until init is gone.
    fn stop(mut self, signal: Signal) -> (Duration, String) {
        let asked = Instant::now();
        kill_process(self.pid, signal).unwrap();
        let status = wait_for("init to end", 5, || self.child.try_wait().unwrap());
        let took = asked.elapsed();
        assert!(status.success(), "{status}: {}", self.console());
        (took, self.console())
    }
}

impl Drop for Appliance {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn guest(network: &str, roles: &str) -> Guest {
    Guest::from_toml(&format!("vmid = 101\nhostname = \"exit-1\"\n[network]\n{network}\n{roles}")).unwrap()
}

pub(crate) const NODE: &str = "[node]\nlogin_server = \"http://192.0.2.1:8080\"\nauth_key = \"test-join-key\"\n";

pub(crate) fn encode(guest: &Guest) -> String {
    base64::engine::general_purpose::STANDARD.encode(render::guest(guest).unwrap())
}

#[test]
fn a_fixed_address_comes_up_and_it_stops_promptly() {
    if !root() || !has("unshare") {
        return;
    }
    let netns = Netns::new("init");
    netns.run("ip link set lo down; ip link add eth0 type veth peer name lan0 && ip link set lan0 up");
    let config = guest(
        "ipv4 = \"192.168.5.9/24\"\ngateway4 = \"192.168.5.1\"\nipv6 = \"2001:db8:5::9/64\"\ngateway6 = \"fe80::1\"\nnameservers = [\"192.168.5.1\"]",
        NODE,
    );
    let appliance = Appliance::start(&netns, unpack(), Some(&encode(&config)));
    appliance.wait_console("eth0 has 192.168.5.9/24");
    assert!(netns.run("ip addr show lo").contains("127.0.0.1/8"));
    assert!(netns.run("ip -4 route").contains("default via 192.168.5.1 dev eth0"), "{}", netns.run("ip -4 route"));
    assert!(netns.run("ip -6 route").contains("default via fe80::1 dev eth0"));
    assert!(netns.run("ip -6 addr show eth0").contains("2001:db8:5::9/64"));
    assert_eq!(netns.run("cat /proc/sys/net/ipv6/conf/eth0/accept_ra").trim(), "0");
    let read = |path: &str| std::fs::read_to_string(appliance.file(path)).unwrap();
    assert!(read("etc/resolv.conf").contains("nameserver 192.168.5.1"));
    assert!(read("etc/hosts").contains("exit-1") && read("etc/hostname") == "exit-1\n");
    let stored = appliance.file("var/lib/pvemesh/guest.toml");
    assert_eq!(Guest::from_toml(&std::fs::read_to_string(&stored).unwrap()).unwrap(), config);
    assert_eq!(std::fs::metadata(&stored).unwrap().permissions().mode() & 0o777, 0o600);

    appliance.wait_console("node started as process");
    assert!(!appliance.console().contains("test-join-key"));
    let (took, console) = appliance.stop(Signal::POWER);
    assert!(took < PROMPT, "{took:?}\n{console}");
    assert!(console.contains("SIGPWR: stopping") && console.contains("stopped"), "{console}");
}

#[test]
fn a_killed_child_is_started_again_and_one_that_does_not_end_is_killed_in_time() {
    if !root() || !has("unshare") {
        return;
    }
    let netns = Netns::new("child");
    netns.run("ip link add eth0 type veth peer name lan0 && ip link set lan0 up");
    let role = "[coordinator]\nurl = \"http://192.168.5.10:8080\"\nlisten = \"192.168.5.10:8080\"\nbase_domain = \"mesh.internal\"\n";
    let config = guest("ipv4 = \"192.168.5.10/24\"\ngateway4 = \"192.168.5.1\"", role);
    let variable = encode(&config);
    let appliance = Appliance::start(&netns, unpack(), Some(&variable));
    let serving = || {
        let child = appliance.children().iter().find(|(_, state)| *state != 'Z')?.0;
        netns.run("ss -lnt").contains("192.168.5.10:8080").then_some(child)
    };
    let first = wait_for("the coordinator to listen", 15, serving);
    // Nothing of the configuration is in the child's environment or arguments.
    for file in ["environ", "cmdline"] {
        let text = String::from_utf8_lossy(&std::fs::read(format!("/proc/{first}/{file}")).unwrap()).into_owned();
        assert!(!text.contains("PVEMESH_CONFIG") && !text.contains(&variable), "{text}");
    }
    kill_process(Pid::from_raw(first).unwrap(), Signal::KILL).unwrap();
    let second = wait_for("another coordinator", 15, || serving().filter(|pid| *pid != first));
    assert!(appliance.console().contains("coordinator was killed by signal 9"), "{}", appliance.console());
    // A stopped process does not hear SIGTERM.
    kill_process(Pid::from_raw(second).unwrap(), Signal::STOP).unwrap();
    let (took, console) = appliance.stop(Signal::POWER);
    assert!(console.contains("did not end"), "{console}");
    // It is given a second; how much a busy machine adds to that is not ours to say.
    assert!((Duration::from_millis(800)..PROMPT).contains(&took), "{took:?}");
    assert!(!netns.run("ss -lnt").contains(":8080"));
}

#[test]
fn every_stop_signal_is_answered_and_a_bad_configuration_is_told_and_kept_alive() {
    if !root() || !has("unshare") {
        return;
    }
    let netns = Netns::new("bad");
    let bad = base64::engine::general_purpose::STANDARD.encode("vmid = 101\nhostnam = \"x\"\nauth_key = \"test-join-key\"\n");
    let root = unpack();
    for signal in [Signal::POWER, Signal::TERM, Signal::INT] {
        let appliance = Appliance::start(&netns, Rc::clone(&root), Some(&bad));
        appliance.wait_console("nothing is started");
        assert!(appliance.console().contains("PVEMESH_CONFIG: the guest configuration, line"), "{}", appliance.console());
        assert!(!appliance.console().contains("test-join-key"));
        assert!(appliance.children().is_empty());
        let (took, _) = appliance.stop(signal);
        assert!(took < PROMPT, "{took:?}");
    }
    let appliance = Appliance::start(&netns, root, None);
    appliance.wait_console("no configuration");
    let status = Command::new("kill").args(["-s", "RTMIN+3", &appliance.pid.as_raw_nonzero().to_string()]).status().unwrap();
    assert!(status.success());
    appliance.wait_console("SIGRTMIN+3: stopping");
}

#[test]
fn orphans_are_reaped() {
    if !root() || !has("unshare") {
        return;
    }
    let netns = Netns::new("reap");
    let appliance = Appliance::start(&netns, unpack(), Some(&encode(&guest("ipv4 = \"none\"", ""))));
    appliance.wait_console("as guest 101");
    // In init's PID namespace: a process whose parent ends at once becomes init's, and ends later.
    let pid = appliance.pid.as_raw_nonzero().to_string();
    let status = Command::new("nsenter")
        .args(["--target", &pid, "--pid", "sh", "-c", "(sleep 0.3 & sleep 0.3 & sleep 0.3 &) ; true"])
        .status()
        .unwrap();
    assert!(status.success());
    wait_for("the orphans", 5, || (appliance.children().len() == 3).then_some(()));
    wait_for("their end", 5, || appliance.children().is_empty().then_some(()));
    let (took, _) = appliance.stop(Signal::TERM);
    assert!(took < PROMPT);
}

#[test]
fn a_lease_sets_address_route_and_name_servers_also_with_strict_reverse_path_checks() {
    if !root() || !has("unshare") || !has("dnsmasq") {
        return;
    }
    let mut lan = Lan::new();
    // As a container inherits it from a careful host.
    lan.guest.run("ip link set lo down; echo 1 > /proc/sys/net/ipv4/conf/all/rp_filter; echo 1 > /proc/sys/net/ipv4/conf/eth0/rp_filter");
    let appliance = Appliance::start(&lan.guest, unpack(), Some(&encode(&guest("ipv4 = \"dhcp\"", NODE))));
    // The node starts although there is no lease yet.
    appliance.wait_console("node started as process");
    assert!(!appliance.console().contains("eth0 has"));
    lan.host.run("ip addr add 2001:db8:77::1/64 dev lan0 nodad");
    lan.serve(
        "192.168.77.50,192.168.77.60,255.255.255.0,120",
        &["--dhcp-option=6,192.168.77.1", "--enable-ra", "--dhcp-range=2001:db8:77::,ra-only", "--ra-param=lan0,4,60"],
    );
    appliance.wait_console("eth0 has 192.168.77.");
    wait_for("the default route", 5, || lan.guest.run("ip route").contains("default via 192.168.77.1 dev eth0").then_some(()));
    wait_for("name servers", 5, || {
        std::fs::read_to_string(appliance.file("etc/resolv.conf")).unwrap().contains("nameserver 192.168.77.1").then_some(())
    });
    assert!(lan.guest.run("ping -c1 -W2 192.168.77.1").contains("1 received"));
    assert_eq!(lan.guest.run("cat /proc/sys/net/ipv6/conf/eth0/accept_ra").trim(), "2");
    assert!(lan.leases().contains("exit-1"));
    // The router's advertisement gave an address and a way out, and turning forwarding on loses neither.
    let advertised =
        || lan.guest.run("ip -6 route show default").contains("proto ra") && lan.guest.run("ip -6 addr show eth0").contains("2001:db8:77:");
    wait_for("the router advertisement", 30, || advertised().then_some(()));
    // The node itself has pvemesh0.
    lan.guest.run("ip tuntap add mode tun test0");
    lan.guest.enter(async || {
        let mut router = Router::new().await.unwrap();
        let config = RouterConfig {
            interface: "test0".to_owned(),
            addresses: vec!["100.64.0.1/32".parse().unwrap()],
            routes: Vec::new(),
            local_routes: Vec::new(),
            lan_first: true,
            forward: true,
            masquerade: true,
            lan_gateway: false,
            shields_up: false,
            mtu: 1280,
        };
        router.apply(&config).await.unwrap();
        assert!(advertised());
        // A forwarding guest asks for and hears advertisements too: all is gone with IPv6 off, and comes back.
        lan.guest
            .run("f=/proc/sys/net/ipv6/conf/eth0/disable_ipv6; echo 1 > $f; ip -6 route show default | grep -q . && exit 1; echo 0 > $f");
        wait_for("the next router advertisement", 30, || advertised().then_some(()));
        router.clear().await.unwrap();
    });
    let (took, _) = appliance.stop(Signal::POWER);
    assert!(took < PROMPT, "{took:?}");
}
