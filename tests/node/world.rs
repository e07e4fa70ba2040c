//! Machines made of network namespaces: coordinator, exit node, laptop, and a web server behind the exit node.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tempfile::TempDir;

pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_pvemesh");
pub(crate) const WEB: &str = "192.0.2.80:80";

/// Whether the tests here can run; says why not otherwise.
pub(crate) fn possible() -> bool {
    let root = rustix::process::geteuid().is_root();
    let tools = ["ip", "nft"].iter().all(|tool| Command::new(tool).arg("-V").output().is_ok_and(|out| out.status.success()));
    let tun = Path::new("/dev/net/tun").exists();
    if !(root && tools && tun) {
        println!("skipped: needs root, iproute2, nftables and /dev/net/tun");
    }
    root && tools && tun
}

pub(crate) fn wait_for<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
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
pub(crate) struct Machine {
    name: String,
    files: TempDir,
    pub(crate) children: Vec<Child>,
}

impl Machine {
    pub(crate) fn new(what: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("control-{}-{}-{what}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let machine = Self { name, files: tempfile::tempdir().unwrap(), children: Vec::new() };
        assert!(Command::new("ip").args(["netns", "add", &machine.name]).status().unwrap().success());
        machine.sh("ip link set lo up; echo 0 > /proc/sys/net/ipv6/conf/default/accept_dad");
        machine
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.files.path().join(name)
    }

    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name, program]).stdin(Stdio::null());
        command
    }

    pub(crate) fn sh(&self, line: &str) -> String {
        let out = self.command("sh").args(["-c", line]).output().unwrap();
        assert!(out.status.success(), "{line}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap()
    }

    /// A cable to another machine, with an address at each end.
    pub(crate) fn cable(&self, interface: &str, address: &str, other: &Self, other_interface: &str, other_address: &str) {
        let made = Command::new("ip")
            .args(["link", "add", interface, "netns", &self.name, "type", "veth", "peer", "name", other_interface, "netns", &other.name])
            .status();
        assert!(made.unwrap().success());
        self.sh(&format!("ip addr add {address} dev {interface} && ip link set {interface} up"));
        other.sh(&format!("ip addr add {other_address} dev {other_interface} && ip link set {other_interface} up"));
    }

    /// The file of its network namespace.
    pub(crate) fn namespace(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.name)
    }

    /// Runs something on a thread that is inside.
    pub(crate) fn inside<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> std::thread::JoinHandle<T> {
        let file = std::fs::File::open(self.namespace()).unwrap();
        std::thread::spawn(move || {
            move_into_link_name_space(std::os::fd::AsFd::as_fd(&file), Some(LinkNameSpaceType::Network)).unwrap();
            job()
        })
    }

    /// Serves at an address of this machine, telling its callers their address.
    pub(crate) fn tell_callers(&self, address: &str) {
        let address: SocketAddr = address.parse().unwrap();
        let (told, ready) = std::sync::mpsc::channel();
        self.inside(move || {
            let listener = TcpListener::bind(address).unwrap();
            told.send(()).unwrap();
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { return };
                let caller = stream.peer_addr().map(|a| a.ip().to_string()).unwrap_or_default();
                let _ = stream.write_all(caller.as_bytes());
            }
        });
        ready.recv().unwrap();
    }

    /// The address that such a server sees of this machine, if it is reached.
    pub(crate) fn seen_by(&self, server: &str) -> Option<String> {
        let server: SocketAddr = server.parse().unwrap();
        let fetch = self.inside(move || {
            let mut stream = TcpStream::connect_timeout(&server, Duration::from_secs(3)).ok()?;
            stream.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
            let mut seen = String::new();
            stream.read_to_string(&mut seen).ok()?;
            Some(seen)
        });
        fetch.join().unwrap()
    }

    pub(crate) fn node(&self, arguments: &[&str]) -> Output {
        self.command(PROGRAM).args(["node", "--socket"]).arg(self.path("node.sock")).args(arguments).output().unwrap()
    }

    pub(crate) fn up(&self, arguments: &[&str]) -> Output {
        let state = self.path("state");
        self.node(&[&["up", "--state-dir", state.to_str().unwrap()], arguments].concat())
    }

    /// Starts `node run` in the foreground.
    pub(crate) fn run_node(&mut self, arguments: &[&str]) {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.path("run.log")).unwrap();
        let mut command = self.command(PROGRAM);
        command.args(["node", "--socket"]).arg(self.path("node.sock")).arg("run").arg("--state-dir").arg(self.path("state"));
        self.children.push(command.args(arguments).stderr(log).spawn().unwrap());
    }

    /// Starts `node run` with mounts of its own, after these commands; gives its process number.
    pub(crate) fn run_node_after(&mut self, commands: &str) -> String {
        let script = format!(
            "{commands}; exec {PROGRAM} node --socket {} run --state-dir {}",
            self.path("node.sock").display(),
            self.path("state").display()
        );
        let mut command = self.command("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-ec", &script]);
        let child = command.spawn().unwrap();
        let pid = child.id().to_string();
        self.children.push(child);
        wait_for("the node's socket", || self.path("node.sock").exists().then_some(()));
        pid
    }

    pub(crate) fn status(&self) -> Option<serde_json::Value> {
        let out = self.node(&["--json", "status"]);
        out.status.success().then(|| serde_json::from_slice(&out.stdout).unwrap())
    }

    pub(crate) fn wait_until_running(&self) -> serde_json::Value {
        wait_for("a running node", || {
            self.status().filter(|status| status["BackendState"] == "Running" && status["CoordinatorOnline"] == true)
        })
    }

    /// Everything of the kernel's that a node touches.
    pub(crate) fn traces(&self) -> String {
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

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A coordinator machine with cables to an exit node and a laptop.
pub(crate) struct World {
    pub(crate) coordinator: Machine,
    pub(crate) exit: Machine,
    pub(crate) laptop: Machine,
    pub(crate) web: Machine,
}

impl World {
    pub(crate) fn new() -> Self {
        let (mut coordinator, exit, laptop, web) = (Machine::new("c"), Machine::new("x"), Machine::new("l"), Machine::new("w"));
        // The coordinator's machine is the router between home (10.9.1.0/24) and cafe (10.9.2.0/24).
        coordinator.cable("home", "10.9.1.1/24", &exit, "eth0", "10.9.1.2/24");
        coordinator.cable("cafe", "10.9.2.1/24", &laptop, "eth0", "10.9.2.2/24");
        exit.cable("eth1", "203.0.113.2/24", &web, "eth0", "203.0.113.1/24");
        coordinator.sh("echo 1 > /proc/sys/net/ipv4/ip_forward");
        exit.sh("ip route add 10.9.2.0/24 via 10.9.1.1");
        // The web server is the internet, not a neighbour: an exit node does not lead to its own networks.
        web.sh("ip link set lo up && ip addr add 192.0.2.80/32 dev lo");
        exit.sh("ip route add 192.0.2.80 via 203.0.113.1");
        laptop.sh("ip route add default via 10.9.2.1");

        let mut serve = coordinator.command(PROGRAM);
        serve.args(["coordinator", "serve", "--url", "http://10.9.1.1:8080", "--state-dir"]).arg(coordinator.path("c"));
        serve.arg("--socket").arg(coordinator.path("c.sock")).stderr(Stdio::null());
        let child = serve.spawn().unwrap();
        coordinator.children.push(child);
        wait_for("the coordinator", || coordinator.path("c.sock").exists().then_some(()));

        web.tell_callers(WEB);
        Self { coordinator, exit, laptop, web }
    }

    pub(crate) fn key(&self, arguments: &[&str]) -> String {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let file = self.coordinator.path(&format!("key-{}", COUNT.fetch_add(1, Ordering::Relaxed)));
        let mut create = self.coordinator.command(PROGRAM);
        create.args(["coordinator", "keys", "create", "--socket"]).arg(self.coordinator.path("c.sock")).arg("--output-file").arg(&file);
        let out = create.args(arguments).output().unwrap();
        assert!(out.status.success(), "{}", text(&out.stderr));
        file.to_str().unwrap().to_owned()
    }

    /// A command on the coordinator's machine.
    pub(crate) fn admin(&self, arguments: &[&str]) -> serde_json::Value {
        let mut command = self.coordinator.command(PROGRAM);
        let out =
            command.args(["--json", "coordinator"]).args(arguments).arg("--socket").arg(self.coordinator.path("c.sock")).output().unwrap();
        assert!(out.status.success(), "{arguments:?}: {}", text(&out.stderr));
        serde_json::from_slice(&out.stdout).unwrap()
    }

    pub(crate) fn start_exit_node(&self) {
        let key = self.key(&["--approve-exit-node"]);
        let up = ["--login-server", "http://10.9.1.1:8080", "--auth-key-file", &key, "--hostname", "exit-1", "--advertise-exit-node"];
        let out = self.exit.up(&up);
        assert!(out.status.success(), "{}", text(&out.stderr));
    }

    /// The address that the web server sees, if the laptop reaches it.
    pub(crate) fn seen_by_web(&self) -> Option<String> {
        self.laptop.seen_by(WEB)
    }
}
