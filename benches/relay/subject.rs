//! The relays that are measured, each a process of its own with its state in a temporary directory.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use pvemesh::wire::control::DerpNode;
use tempfile::TempDir;

/// How long a relay may take to listen.
const START: Duration = Duration::from_secs(20);
const HOST: &str = "127.0.0.1";

/// A running relay.
pub struct Subject {
    child: Child,
    node: DerpNode,
    _dir: TempDir,
}

fn free_port() -> u16 {
    std::net::TcpListener::bind((HOST, 0)).unwrap().local_addr().unwrap().port()
}

impl Subject {
    pub fn pvemesh(program: &Path) -> Self {
        let (dir, port) = (tempfile::tempdir().unwrap(), free_port());
        let mut command = Command::new(program);
        command.args(["relay", "serve", "--hostname", HOST, "--listen", &format!("{HOST}:{port}"), "--no-stun", "--open", "--state-dir"]);
        command.arg(dir.path().join("relay"));
        Self::start(command, dir, port)
    }

    pub fn derper(program: &Path) -> Self {
        let (dir, port) = (tempfile::tempdir().unwrap(), free_port());
        let mut command = Command::new(program);
        command.args([
            "-a",
            &format!("{HOST}:{port}"),
            "-http-port",
            "-1",
            "-stun=false",
            "-certmode",
            "manual",
            "-hostname",
            HOST,
            "-certdir",
        ]);
        command.arg(dir.path()).arg("-c").arg(dir.path().join("derper.json"));
        Self::start(command, dir, port)
    }

    fn start(mut command: Command, dir: TempDir, port: u16) -> Self {
        let log = std::fs::File::create(dir.path().join("log")).unwrap();
        let child = command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
        let begun = Instant::now();
        while std::net::TcpStream::connect((HOST, port)).is_err() {
            let log = || std::fs::read_to_string(dir.path().join("log")).unwrap_or_default();
            assert!(begun.elapsed() < START, "the relay does not start: {}", log());
            std::thread::sleep(Duration::from_millis(20));
        }
        let node = DerpNode { host_name: HOST.to_owned(), derp_port: port, insecure_for_tests: true, ..DerpNode::default() };
        Self { child, node, _dir: dir }
    }

    pub fn node(&self) -> &DerpNode {
        &self.node
    }

    fn proc(&self, file: &str) -> String {
        std::fs::read_to_string(format!("/proc/{}/{file}", self.child.id())).unwrap_or_default()
    }

    /// Seconds of CPU time so far.
    pub fn cpu(&self) -> f64 {
        let stat = self.proc("stat");
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let ticks = |n: usize| fields.get(n).and_then(|text| text.parse::<f64>().ok()).unwrap_or(0.0);
        (ticks(11) + ticks(12)) / 100.0
    }

    /// Resident memory.
    pub fn kib(&self) -> f64 {
        let status = self.proc("status");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
        line.split_whitespace().next().and_then(|text| text.parse().ok()).unwrap_or(0.0)
    }
}

impl Drop for Subject {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
