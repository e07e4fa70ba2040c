//! The whole program in network namespaces: coordinator, exit node, laptop, and a web server behind the exit node.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rand_core::{RngCore as _, SeedableRng as _};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tempfile::TempDir;

const PROGRAM: &str = env!("CARGO_BIN_EXE_pvemesh");
const WEB: &str = "203.0.113.1:80";

/// Whether the tests here can run; says why not otherwise.
fn possible() -> bool {
    let root = rustix::process::geteuid().is_root();
    let tools = ["ip", "nft"].iter().all(|tool| Command::new(tool).arg("-V").output().is_ok_and(|out| out.status.success()));
    let tun = Path::new("/dev/net/tun").exists();
    if !(root && tools && tun) {
        println!("skipped: needs root, iproute2, nftables and /dev/net/tun");
    }
    root && tools && tun
}

fn wait_for<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < end, "waited 20 s for: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A machine: a network namespace, removed on drop together with what runs in it.
struct Machine {
    name: String,
    files: TempDir,
    children: Vec<Child>,
}

impl Machine {
    fn new(what: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("control-{}-{}-{what}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let machine = Self { name, files: tempfile::tempdir().unwrap(), children: Vec::new() };
        assert!(Command::new("ip").args(["netns", "add", &machine.name]).status().unwrap().success());
        machine.sh("ip link set lo up; echo 0 > /proc/sys/net/ipv6/conf/default/accept_dad");
        machine
    }

    fn path(&self, name: &str) -> PathBuf {
        self.files.path().join(name)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name, program]).stdin(Stdio::null());
        command
    }

    fn sh(&self, line: &str) -> String {
        let out = self.command("sh").args(["-c", line]).output().unwrap();
        assert!(out.status.success(), "{line}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap()
    }

    /// A cable to another machine, with an address at each end.
    fn cable(&self, interface: &str, address: &str, other: &Self, other_interface: &str, other_address: &str) {
        let made = Command::new("ip")
            .args(["link", "add", interface, "netns", &self.name, "type", "veth", "peer", "name", other_interface, "netns", &other.name])
            .status();
        assert!(made.unwrap().success());
        self.sh(&format!("ip addr add {address} dev {interface} && ip link set {interface} up"));
        other.sh(&format!("ip addr add {other_address} dev {other_interface} && ip link set {other_interface} up"));
    }

    /// Runs something on a thread that is inside.
    fn inside<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> std::thread::JoinHandle<T> {
        let file = std::fs::File::open(format!("/run/netns/{}", self.name)).unwrap();
        std::thread::spawn(move || {
            move_into_link_name_space(std::os::fd::AsFd::as_fd(&file), Some(LinkNameSpaceType::Network)).unwrap();
            job()
        })
    }

    fn node(&self, arguments: &[&str]) -> Output {
        self.command(PROGRAM).args(["node", "--socket"]).arg(self.path("node.sock")).args(arguments).output().unwrap()
    }

    fn up(&self, arguments: &[&str]) -> Output {
        let state = self.path("state");
        self.node(&[&["up", "--state-dir", state.to_str().unwrap()], arguments].concat())
    }

    /// Starts `node run` in the foreground.
    fn run_node(&mut self, arguments: &[&str]) {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.path("run.log")).unwrap();
        let mut command = self.command(PROGRAM);
        command.args(["node", "--socket"]).arg(self.path("node.sock")).arg("run").arg("--state-dir").arg(self.path("state"));
        self.children.push(command.args(arguments).stderr(log).spawn().unwrap());
    }

    fn status(&self) -> Option<serde_json::Value> {
        let out = self.node(&["--json", "status"]);
        out.status.success().then(|| serde_json::from_slice(&out.stdout).unwrap())
    }

    fn wait_until_running(&self) -> serde_json::Value {
        wait_for("a running node", || {
            self.status().filter(|status| status["BackendState"] == "Running" && status["CoordinatorOnline"] == true)
        })
    }

    /// Everything of the kernel's that a node touches.
    fn traces(&self) -> String {
        self.sh(
            "for f in -4 -6; do ip $f rule; ip $f route show table all | grep -v 'expires\\|ff00::\\|fe80:'; done; ip -br link | cut -d' ' -f1; nft list ruleset; \
             cat /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv6/conf/all/forwarding",
        )
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.node(&["down"]);
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
        let _ = Command::new("ip").args(["netns", "del", &self.name]).status();
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A coordinator machine with cables to an exit node and a laptop.
struct World {
    coordinator: Machine,
    exit: Machine,
    laptop: Machine,
    _web: Machine,
}

impl World {
    fn new() -> Self {
        let (mut coordinator, exit, laptop, web) = (Machine::new("c"), Machine::new("x"), Machine::new("l"), Machine::new("w"));
        // The coordinator's machine is the router between home (10.9.1.0/24) and cafe (10.9.2.0/24).
        coordinator.cable("home", "10.9.1.1/24", &exit, "eth0", "10.9.1.2/24");
        coordinator.cable("cafe", "10.9.2.1/24", &laptop, "eth0", "10.9.2.2/24");
        exit.cable("eth1", "203.0.113.2/24", &web, "eth0", "203.0.113.1/24");
        coordinator.sh("echo 1 > /proc/sys/net/ipv4/ip_forward");
        exit.sh("ip route add 10.9.2.0/24 via 10.9.1.1");
        laptop.sh("ip route add default via 10.9.2.1");

        let mut serve = coordinator.command(PROGRAM);
        serve.args(["coordinator", "serve", "--url", "http://10.9.1.1:8080", "--state-dir"]).arg(coordinator.path("c"));
        serve.arg("--socket").arg(coordinator.path("c.sock")).stderr(Stdio::null());
        let child = serve.spawn().unwrap();
        coordinator.children.push(child);
        wait_for("the coordinator", || coordinator.path("c.sock").exists().then_some(()));

        // The web server tells its callers their address.
        let (told, ready) = std::sync::mpsc::channel();
        web.inside(move || {
            let listener = TcpListener::bind(WEB).unwrap();
            told.send(()).unwrap();
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { return };
                let caller = stream.peer_addr().map(|a| a.ip().to_string()).unwrap_or_default();
                let _ = stream.write_all(caller.as_bytes());
            }
        });
        ready.recv().unwrap();
        Self { coordinator, exit, laptop, _web: web }
    }

    fn key(&self, arguments: &[&str]) -> String {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let file = self.coordinator.path(&format!("key-{}", COUNT.fetch_add(1, Ordering::Relaxed)));
        let mut create = self.coordinator.command(PROGRAM);
        create.args(["coordinator", "keys", "create", "--socket"]).arg(self.coordinator.path("c.sock")).arg("--output-file").arg(&file);
        let out = create.args(arguments).output().unwrap();
        assert!(out.status.success(), "{}", text(&out.stderr));
        file.to_str().unwrap().to_owned()
    }

    fn start_exit_node(&self) {
        let key = self.key(&["--approve-exit-node"]);
        let up = ["--login-server", "http://10.9.1.1:8080", "--auth-key-file", &key, "--hostname", "exit-1", "--advertise-exit-node"];
        let out = self.exit.up(&up);
        assert!(out.status.success(), "{}", text(&out.stderr));
    }

    /// The address that the web server sees, if the laptop reaches it.
    fn seen_by_web(&self) -> Option<String> {
        let fetch = self.laptop.inside(|| {
            let address: SocketAddr = WEB.parse().unwrap();
            let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(3)).ok()?;
            stream.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
            let mut seen = String::new();
            stream.read_to_string(&mut seen).ok()?;
            Some(seen)
        });
        fetch.join().unwrap()
    }
}

#[test]
fn a_laptops_traffic_leaves_through_the_exit_node_and_down_undoes_everything() {
    if !possible() {
        return;
    }
    let world = World::new();
    let (exit_before, laptop_before) = (world.exit.traces(), world.laptop.traces());
    assert_eq!(world.seen_by_web(), None, "without the mesh there is no way");
    world.start_exit_node();
    let key = world.key(&[]);
    let out = world.laptop.up(&[
        "--login-server",
        "http://10.9.1.1:8080",
        "--auth-key-file",
        &key,
        "--hostname",
        "laptop",
        "--exit-node",
        "exit-1",
    ]);
    assert!(out.status.success(), "{}", text(&out.stderr));
    assert!(text(&out.stdout).starts_with("100."), "{}", text(&out.stdout));
    assert_eq!(world.seen_by_web().as_deref(), Some("203.0.113.2"));

    let ping = world.laptop.node(&["--json", "ping", "-c", "1", "exit-1"]);
    let report: serde_json::Value = serde_json::from_slice(&ping.stdout).unwrap();
    assert_eq!((report["received"].as_u64(), report["via"].as_str()), (Some(1), Some("10.9.1.2:41641")), "{report}");

    for machine in [&world.laptop, &world.exit] {
        assert!(machine.node(&["down"]).status.success());
        wait_for("the node's end", || machine.status().is_none().then_some(()));
    }
    assert_eq!(world.exit.traces(), exit_before);
    assert_eq!(world.laptop.traces(), laptop_before);
    assert_eq!(world.seen_by_web(), None);
}

#[test]
fn a_killed_node_comes_back_as_itself_and_a_stopped_one_leaves_nothing() {
    if !possible() {
        return;
    }
    let mut world = World::new();
    let before = world.exit.traces();
    let key = std::fs::read_to_string(world.key(&["--approve-exit-node"])).unwrap();
    let guest = format!(
        "vmid = 101\nhostname = \"exit-1\"\n[network]\nipv4 = \"dhcp\"\n[node]\nlogin_server = \"http://10.9.1.1:8080\"\nauth_key = \"{}\"\nadvertise_exit_node = true\n",
        key.trim()
    );
    let config = world.exit.path("guest.toml");
    std::fs::write(&config, guest).unwrap();
    let arguments = ["--guest-config", config.to_str().unwrap()];
    world.exit.run_node(&arguments);
    let first = world.exit.wait_until_running();
    assert!(!std::fs::read_to_string(&config).unwrap().contains(key.trim()), "the join key is dropped once it has served");
    let at_work = world.exit.traces();

    let mut child = world.exit.children.pop().unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    world.exit.run_node(&arguments);
    let second = world.exit.wait_until_running();
    assert_eq!(second["TailscaleIPs"], first["TailscaleIPs"]);
    assert_eq!(second["Self"]["PublicKey"], first["Self"]["PublicKey"]);
    assert_eq!(world.exit.traces(), at_work, "nothing of the killed one is left twice");

    // A second one on the same files is refused, and does the first no harm.
    let state = world.exit.path("state");
    let other = world.exit.node(&["run", "--state-dir", state.to_str().unwrap()]);
    assert!(!other.status.success() && text(&other.stderr).contains("another node runs"), "{}", text(&other.stderr));
    assert!(world.exit.status().is_some());

    let mut child = world.exit.children.pop().unwrap();
    let begun = Instant::now();
    rustix::process::kill_process(rustix::process::Pid::from_child(&child), rustix::process::Signal::TERM).unwrap();
    assert!(child.wait().unwrap().success());
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    assert_eq!(world.exit.traces(), before);
    assert!(!world.exit.path("node.sock").exists());
}

#[test]
fn traffic_goes_on_while_the_coordinator_is_away_and_after_a_restart_of_the_node() {
    if !possible() {
        return;
    }
    let mut world = World::new();
    world.start_exit_node();
    let key = world.key(&[]);
    let up = ["--login-server", "http://10.9.1.1:8080", "--auth-key-file", &key, "--exit-node", "exit-1"];
    assert!(world.laptop.up(&up).status.success());
    let mut coordinator = world.coordinator.children.pop().unwrap();
    coordinator.kill().unwrap();
    coordinator.wait().unwrap();
    wait_for("the loss of the coordinator", || world.laptop.status().filter(|s| s["CoordinatorOnline"] == false));
    assert_eq!(world.seen_by_web().as_deref(), Some("203.0.113.2"));

    assert!(world.laptop.node(&["down"]).status.success());
    wait_for("the node's end", || world.laptop.status().is_none().then_some(()));
    let out = world.laptop.up(&["--timeout", "5s"]);
    assert!(out.status.success(), "the last map is enough: {}", text(&out.stderr));
    assert_eq!(world.seen_by_web().as_deref(), Some("203.0.113.2"));

    // One can leave a mesh whose coordinator is gone for good.
    let out = world.laptop.node(&["logout"]);
    assert!(out.status.success() && text(&out.stderr).contains("could not be told"), "{}", text(&out.stderr));
    assert_eq!(world.laptop.status().unwrap()["BackendState"], "NoState");
    assert!(!world.laptop.sh("ip route show table all").contains("pvemesh0"));
}

#[test]
fn what_cannot_be_had_is_taken_back() {
    if !possible() {
        return;
    }
    let world = World::new();
    let before = world.laptop.traces();
    let wrong = world.laptop.path("wrong");
    std::fs::write(&wrong, "hskey-auth-000000000000-wrong").unwrap();
    let out = world.laptop.up(&["--login-server", "http://10.9.1.1:8080", "--auth-key-file", wrong.to_str().unwrap()]);
    assert_eq!(out.status.code(), Some(3), "{}", text(&out.stderr));
    wait_for("the end of what `up` started", || world.laptop.status().is_none().then_some(()));
    assert_eq!(world.laptop.traces(), before);

    let key = world.key(&[]);
    let join = ["--login-server", "http://10.9.1.1:8080", "--auth-key-file", &key, "--exit-node", "nobody", "--timeout", "1s"];
    let out = world.laptop.up(&join);
    assert_eq!(out.status.code(), Some(5), "{}", text(&out.stderr));
    assert!(text(&out.stderr).contains("nobody"));
    assert!(!world.laptop.sh("ip route show table 52").contains("default"), "traffic is not held back for a node that does not exist");

    let out = world.laptop.node(&["set", "--advertise-routes", "10.9.2.7/24"]);
    assert_eq!(out.status.code(), Some(2));
    assert!(text(&out.stderr).contains("10.9.2.0/24"));
}

#[test]
fn a_coordinator_that_is_not_there_is_named_and_waited_for() {
    if !possible() {
        return;
    }
    let laptop = Machine::new("l");
    let key = laptop.path("key");
    std::fs::write(&key, "hskey-auth-000000000000-x").unwrap();
    let up = ["--login-server", "http://127.0.0.1:9", "--auth-key-file", key.to_str().unwrap(), "--timeout", "1s"];
    let out = laptop.up(&up);
    assert_eq!(out.status.code(), Some(4), "{}", text(&out.stderr));
    assert!(text(&out.stderr).contains("127.0.0.1:9"), "{}", text(&out.stderr));
    assert_eq!(laptop.status().unwrap()["BackendState"], "Starting");
}

/// Resident memory of a process, KiB.
fn resident(child: &Child) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Sends 64 KiB that begin like a request or like nothing, and reads what comes back for a moment.
fn throw(socket: &Path, seed: u64) {
    let mut bytes =
        [&b""[..], b"GET /status HTTP/1.1\r\n", b"POST /up HTTP/1.1\r\nContent-Length: 99999999\r\n\r\n"][seed as usize % 3].to_vec();
    let mut random = vec![0; 64 * 1024];
    rand_chacha::ChaCha8Rng::seed_from_u64(seed).fill_bytes(&mut random);
    bytes.extend(random);
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    stream.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
    let _ = stream.write_all(&bytes);
    let _ = stream.read(&mut [0; 4096]);
}

#[test]
fn garbage_on_the_local_sockets_neither_stops_nor_grows_the_programs() {
    if !possible() {
        return;
    }
    let seed = 20_261_123;
    println!("seed {seed}");
    let mut world = World::new();
    world.exit.run_node(&[]);
    wait_for("the node's socket", || world.exit.status());
    for (machine, socket) in [(&world.exit, "node.sock"), (&world.coordinator, "c.sock")] {
        let (socket, child) = (machine.path(socket), machine.children.last().unwrap());
        // Half a request each, held open throughout.
        let half_open: Vec<_> = (0..20)
            .map(|_| {
                let mut stream = UnixStream::connect(&socket).unwrap();
                stream.write_all(b"GET /status HT").unwrap();
                stream
            })
            .collect();
        let rounds: Vec<_> = (0..5)
            .map(|round| {
                (0..30).for_each(|n| throw(&socket, seed + round * 100 + n));
                resident(child)
            })
            .collect();
        assert!(rounds[4] < rounds[1] + 4096, "resident KiB after each round: {rounds:?}");
        drop(half_open);
    }
    // Both still serve.
    world.start_exit_node();
}
