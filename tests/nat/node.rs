//! Nodes, ours and stock, each with an echo beside it.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, UdpSocket};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::coordinator::{Coordinator, Process, call, ours, spawn};
use crate::netns::{Machine, eventually};
use crate::place::CENTRE;

/// Where every node's echo is.
pub const PORT: u16 = 7000;
/// How long a daemon may take to start.
const START: Duration = Duration::from_secs(20);

/// Which program a node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Ours,
    Stock,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Self::Ours => "pvemesh",
            Self::Stock => "tailscaled",
        }
    }

    fn status(self) -> &'static str {
        match self {
            Self::Ours => "GET /v1/status HTTP/1.0\r\nHost: node\r\n\r\n",
            Self::Stock => "GET /localapi/v0/status HTTP/1.0\r\nHost: local-tailscaled.sock\r\n\r\n",
        }
    }
}

/// Where `make interop` leaves the stock programs, or the place that `PVEMESH_PEERS` names.
pub fn peers() -> Result<PathBuf, String> {
    let here = || Path::new(env!("CARGO_MANIFEST_DIR")).join("target/interop/bin");
    let place = std::env::var_os("PVEMESH_PEERS").map_or_else(here, PathBuf::from);
    let all = ["tailscale", "tailscaled"].iter().all(|name| place.join(name).exists());
    if all { Ok(place) } else { Err(format!("there is no tailscaled in {}: `make peers` builds it", place.display())) }
}

/// A node on a machine, with an echo for every datagram, and a note of when each came.
pub struct Node {
    pub name: String,
    pub kind: Kind,
    pub address: IpAddr,
    socket: PathBuf,
    udp: UdpSocket,
    came: Arc<Mutex<BTreeMap<u64, Instant>>>,
    process: Option<Process>,
}

/// Starts our daemon and waits until it answers.
fn run_ours(machine: &Machine, name: &str, home: &Path) -> Process {
    let socket = home.join(format!("{name}.sock"));
    let _ = std::fs::remove_file(&socket);
    let arguments = format!("-v node --socket {} run --tun pvm0 --state-dir {}", socket.display(), home.join(name).display());
    let log = std::fs::OpenOptions::new().create(true).append(true).open(home.join(format!("{name}.log"))).unwrap();
    let process = spawn(machine, ours(&arguments), log);
    eventually("the node's socket", START, || socket.exists());
    process
}

impl Node {
    /// Starts our node and lets it join.
    pub fn start(machine: &Machine, name: &str, home: &Path, coordinator: &Coordinator) -> Self {
        Self::start_as(Kind::Ours, machine, name, home, coordinator)
    }

    pub fn start_as(kind: Kind, machine: &Machine, name: &str, home: &Path, coordinator: &Coordinator) -> Self {
        let socket = home.join(format!("{name}.sock"));
        let (authority, key) = (coordinator.authority.display(), coordinator.key.display());
        let (process, said) = match kind {
            Kind::Ours => {
                let process = run_ours(machine, name, home);
                let up = format!(
                    "node --socket {} up --login-server https://{CENTRE} --ca-file {authority} --auth-key-file {key} --hostname {name} --timeout 30s",
                    socket.display(),
                );
                (process, call(machine, ours(&up)))
            }
            Kind::Stock => {
                let peers = peers().unwrap();
                let process = spawn(
                    machine,
                    stock(&peers, name, home, &coordinator.authority),
                    std::fs::File::create(home.join(format!("{name}.log"))).unwrap(),
                );
                eventually("tailscaled's socket", START, || UnixStream::connect(&socket).is_ok());
                let client = |line: &str| {
                    let mut command = Command::new(peers.join("tailscale"));
                    command.arg(format!("--socket={}", socket.display())).args(line.split_whitespace());
                    command
                };
                let up =
                    format!("up --login-server=https://{CENTRE} --auth-key=file:{key} --hostname={name} --accept-dns=false --timeout=30s");
                call(machine, client(&up));
                (process, call(machine, client("ip -4")))
            }
        };
        let address: IpAddr = said.lines().next().and_then(|line| line.parse().ok()).unwrap_or_else(|| panic!("{name}: {said}"));
        let udp = machine.run(|| UdpSocket::bind(("0.0.0.0", PORT)).unwrap());
        let came = Arc::<Mutex<BTreeMap<u64, Instant>>>::default();
        echo(udp.try_clone().unwrap(), Arc::clone(&came));
        Self { name: name.to_owned(), kind, address, socket, udp, came, process: Some(process) }
    }

    /// Kills the daemon, which has no time for anything.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// Starts our daemon again with what it has on disk.
    pub fn run_again(&mut self, machine: &Machine, home: &Path) {
        self.process = Some(run_ours(machine, &self.name, home));
    }

    /// Sends a question.
    pub fn ask(&self, other: &Self, number: u64) {
        let _ = self.udp.send_to(&number.to_le_bytes(), (other.address, PORT));
    }

    /// When a number came.
    pub fn came(&self, number: u64) -> Option<Instant> {
        self.came.lock().unwrap().get(&number).copied()
    }

    pub fn status(&self) -> Value {
        let mut stream = UnixStream::connect(&self.socket).unwrap();
        stream.write_all(self.kind.status().as_bytes()).unwrap();
        let mut text = Vec::new();
        stream.read_to_end(&mut text).unwrap();
        let body = text.windows(4).position(|four| four == b"\r\n\r\n").map_or(0, |at| at + 4);
        serde_json::from_slice(&text[body..]).unwrap_or_default()
    }

    /// What it says of another node.
    fn peer(&self, other: &Self) -> Value {
        let status = self.status();
        let mut peers = status["Peer"].as_object().into_iter().flatten().map(|(_, peer)| peer);
        let start = format!("{}.", other.name);
        peers.find(|peer| peer["DNSName"].as_str().is_some_and(|name| name.starts_with(&start))).cloned().unwrap_or_default()
    }

    /// The code of another node's home relay.
    pub fn home_of(&self, other: &Self) -> String {
        self.peer(other)["Relay"].as_str().unwrap_or_default().to_owned()
    }

    /// How another node is reached: `direct`, `relay` or nothing, and the address.
    pub fn path(&self, other: &Self) -> (String, String) {
        let peer = self.peer(other);
        let text = |field: &str| peer[field].as_str().unwrap_or_default().to_owned();
        let address = text("CurAddr");
        match self.kind {
            Kind::Ours => (text("Path"), address),
            // Stock names the address if there is one, and the peer's relay in any case.
            Kind::Stock if address.is_empty() => ("relay".to_owned(), address),
            Kind::Stock => ("direct".to_owned(), address),
        }
    }

    /// Whether it has everything it needs to be reached: a home relay, and the others in its map.
    pub fn is_settled(&self, others: usize) -> bool {
        let status = self.status();
        let peers: Vec<&Value> = status["Peer"].as_object().into_iter().flatten().map(|(_, peer)| peer).collect();
        peers.len() == others && peers.iter().all(|peer| peer["Relay"].as_str().is_some_and(|relay| !relay.is_empty()))
    }
}

/// Answers every datagram, and notes when it came: an odd number is a question, the even one behind it its answer. Ends with the test's
/// process.
fn echo(socket: UdpSocket, notes: Arc<Mutex<BTreeMap<u64, Instant>>>) {
    std::thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            let Ok(bytes) = buffer[..length].try_into() else { continue };
            let number = u64::from_le_bytes(bytes);
            notes.lock().unwrap().entry(number).or_insert_with(Instant::now);
            if number % 2 == 1 {
                let _ = socket.send_to(&(number + 1).to_le_bytes(), from);
            }
        }
    });
}

/// tailscaled with files of its own where it would change this machine's, and no way to its makers' servers.
fn stock(peers: &Path, name: &str, home: &Path, authority: &Path) -> Command {
    let (home, peers) = (home.display(), peers.display());
    let script = format!(
        "mkdir -p {home}/{name}.etc && cp -a /etc/passwd /etc/group /etc/os-release {home}/{name}.etc/ && : > {home}/{name}.etc/resolv.conf && \
         mount --bind {home}/{name}.etc /etc && mount -t tmpfs none /run && mount -t tmpfs none /var/lib && mount -t sysfs none /sys && \
         exec {peers}/tailscaled --tun=ts0 --port=41641 --no-logs-no-support --statedir={home}/{name} --socket={home}/{name}.sock"
    );
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-ec", &script]);
    command.env("SSL_CERT_FILE", authority).env("TS_NO_LOGS_NO_SUPPORT", "true").env("TS_DEBUG_FIREWALL_MODE", "nftables");
    command
}
