//! Real nodes, and a coordinator with a relay in it.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, UdpSocket};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, IsCa, KeyPair, KeyUsagePurpose};
use serde_json::Value;

use crate::netns::{Machine, eventually};
use crate::place::CENTRE;

const PROGRAM: &str = env!("CARGO_BIN_EXE_pvemesh");
/// Where every node's echo is.
pub const PORT: u16 = 7000;

/// A program that is killed when the test ends.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn spawn(machine: &Machine, arguments: Vec<String>, log: PathBuf) -> Process {
    machine.run(move || {
        let log = std::fs::File::create(log).unwrap();
        let errors = log.try_clone().unwrap();
        Process(Command::new(PROGRAM).args(arguments).stdin(Stdio::null()).stdout(log).stderr(errors).spawn().unwrap())
    })
}

fn call(machine: &Machine, arguments: Vec<String>) -> String {
    machine.run(move || {
        let output = Command::new(PROGRAM).args(&arguments).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    })
}

fn words(line: &str) -> Vec<String> {
    line.split_whitespace().map(str::to_owned).collect()
}

/// The coordinator in the middle, at port 443 with a certificate of an authority of its own.
pub struct Coordinator {
    process: Option<Process>,
    arguments: String,
    log: PathBuf,
    pub key: PathBuf,
    authority: PathBuf,
}

fn certificates(home: &Path) {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "an authority of the test's own");
    let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(vec![CENTRE.to_owned()]).unwrap().signed_by(&key, &issuer).unwrap();
    std::fs::write(home.join("ca.pem"), issuer.pem()).unwrap();
    std::fs::write(home.join("cert.pem"), certificate.pem()).unwrap();
    std::fs::write(home.join("key.pem"), key.serialize_pem()).unwrap();
}

impl Coordinator {
    pub fn start(machine: &Machine, home: &Path) -> Self {
        certificates(home);
        let at = |name: &str| home.join(name).display().to_string();
        let arguments = format!(
            "coordinator serve --url https://{CENTRE} --listen 0.0.0.0:443 --tls-cert {} --tls-key {} --state-dir {} --socket {}",
            at("cert.pem"),
            at("key.pem"),
            at("coordinator"),
            at("c.sock")
        );
        let process = spawn(machine, words(&arguments), home.join("coordinator.log"));
        eventually("the coordinator's socket", Duration::from_secs(20), || home.join("c.sock").exists());
        let key = call(machine, words(&format!("coordinator keys create --reusable --socket {}", at("c.sock"))));
        std::fs::write(home.join("join.key"), key).unwrap();
        let log = home.join("coordinator.log");
        Self { process: Some(process), arguments, log, key: home.join("join.key"), authority: home.join("ca.pem") }
    }

    /// Kills it, and the relay in it.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// Starts it with what it has on disk.
    pub fn start_again(&mut self, machine: &Machine) {
        self.process = Some(spawn(machine, words(&self.arguments), self.log.clone()));
    }
}

/// A node on a machine, with an echo for every datagram, and a note of when each came.
pub struct Node {
    pub name: String,
    pub address: IpAddr,
    socket: PathBuf,
    udp: UdpSocket,
    came: Arc<Mutex<BTreeMap<u64, Instant>>>,
    _process: Process,
}

impl Node {
    pub fn start(machine: &Machine, name: &str, home: &Path, coordinator: &Coordinator) -> Self {
        let socket = home.join(format!("{name}.sock"));
        let process = Self::run(machine, name, home);
        let up = format!(
            "node --socket {} up --login-server https://{CENTRE} --ca-file {} --auth-key-file {} --hostname {name} --timeout 30s",
            socket.display(),
            coordinator.authority.display(),
            coordinator.key.display()
        );
        let said = call(machine, words(&up));
        let address: IpAddr = said.lines().next().and_then(|line| line.parse().ok()).unwrap_or_else(|| panic!("{name}: {said}"));
        let udp = machine.run(|| UdpSocket::bind(("0.0.0.0", PORT)).unwrap());
        let came = Arc::<Mutex<BTreeMap<u64, Instant>>>::default();
        let (listener, notes) = (udp.try_clone().unwrap(), Arc::clone(&came));
        std::thread::spawn(move || {
            let mut buffer = [0; 64];
            // An odd number is a question, the even one behind it its answer. Ends with the test's process.
            while let Ok((length, from)) = listener.recv_from(&mut buffer) {
                let Ok(bytes) = buffer[..length].try_into() else { continue };
                let number = u64::from_le_bytes(bytes);
                notes.lock().unwrap().entry(number).or_insert_with(Instant::now);
                if number % 2 == 1 {
                    let _ = listener.send_to(&(number + 1).to_le_bytes(), from);
                }
            }
        });
        Self { name: name.to_owned(), address, socket, udp, came, _process: process }
    }

    fn run(machine: &Machine, name: &str, home: &Path) -> Process {
        let (socket, state) = (home.join(format!("{name}.sock")), home.join(name));
        let _ = std::fs::remove_file(&socket);
        let arguments = format!("-v node --socket {} run --tun pvm0 --state-dir {}", socket.display(), state.display());
        let process = spawn(machine, words(&arguments), home.join(format!("{name}.log")));
        eventually("the node's socket", Duration::from_secs(20), || socket.exists());
        process
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
        stream.write_all(b"GET /v1/status HTTP/1.0\r\nHost: node\r\n\r\n").unwrap();
        let mut text = Vec::new();
        stream.read_to_end(&mut text).unwrap();
        let body = text.windows(4).position(|four| four == b"\r\n\r\n").map_or(0, |at| at + 4);
        serde_json::from_slice(&text[body..]).unwrap_or_default()
    }

    /// How another node is reached: `direct`, `relay` or nothing, and the address.
    pub fn path(&self, other: &Self) -> (String, String) {
        let status = self.status();
        let peers = status["Peer"].as_object().into_iter().flatten().map(|(_, peer)| peer);
        let start = format!("{}.", other.name);
        let peer = peers.into_iter().find(|peer| peer["DNSName"].as_str().is_some_and(|name| name.starts_with(&start)));
        let text = |field: &str| peer.and_then(|peer| peer[field].as_str()).unwrap_or_default().to_owned();
        (text("Path"), text("CurAddr"))
    }

    /// Whether it has everything it needs to be reached: a home relay, and the others in its map.
    pub fn is_settled(&self, others: usize) -> bool {
        let status = self.status();
        let peers: Vec<&Value> = status["Peer"].as_object().into_iter().flatten().map(|(_, peer)| peer).collect();
        peers.len() == others && peers.iter().all(|peer| peer["Relay"].as_str().is_some_and(|relay| !relay.is_empty()))
    }
}
