//! What is measured: the bare path, the mesh, its packet engine alone, another userspace WireGuard.

use std::io::{Read as _, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use pvemesh::ident::{DiscoPrivate, NodeId, NodePrivate, NodePublic};
use pvemesh::node::PeerConfig;
use pvemesh::sys::engine::Engine;

use super::machines::{Machine, ip};
use super::measure::{Running, bound, start};
use super::names::Asked;
use crate::run::{Done, output};
use crate::standin::lxc::until;

/// One way from the near machine to the far one.
pub struct Subject {
    pub name: String,
    /// The far end's address this way.
    pub target: String,
    /// Whom the near machine asks for names, if there is anybody.
    pub asked: Option<Asked>,
    /// The far node's key, of a mesh.
    far_key: Option<NodePublic>,
    pub(super) processes: Vec<Running>,
    /// Files and directories that outlive their program.
    pub(super) files: Vec<PathBuf>,
}

impl Drop for Subject {
    fn drop(&mut self) {
        self.processes.clear();
        for file in &self.files {
            let _ = if file.is_dir() { std::fs::remove_dir_all(file) } else { std::fs::remove_file(file) };
        }
    }
}

pub(super) const LIMIT: Duration = Duration::from_secs(20);

pub fn answers(machine: &Machine, target: &str) -> Done {
    let target = target.to_owned();
    let said = target.clone();
    let reached = until(LIMIT, || {
        let target = target.clone();
        machine.run(move || {
            let mut ping = bound("ping");
            ping.args(["-c", "1", "-W", "1", &target]).stdout(Stdio::null()).stderr(Stdio::null());
            ping.status().is_ok_and(|s| s.success())
        })
    });
    if reached { Ok(()) } else { Err(format!("{said} does not answer within {LIMIT:?}")) }
}

/// Key and peer of the engine of machine `n`.
pub fn key(n: u8) -> NodePrivate {
    NodePrivate::from_seed([n; 32])
}

fn disco(n: u8) -> DiscoPrivate {
    DiscoPrivate::from_seed([100 + n; 32])
}

/// `pvemesh-lab engine`: a packet engine in this network namespace, with one peer, until killed.
#[derive(Debug, Clone, clap::Args)]
pub struct EngineOptions {
    /// Which end this is: 1 or 2.
    number: u8,
    /// Instead of the other end, so many peers of which nothing but their keys is known.
    #[arg(long)]
    crowd: Option<u16>,
}

/// Key and address of one of a crowd.
pub fn member(n: u16) -> (NodePrivate, std::net::Ipv4Addr) {
    let [high, low] = n.to_be_bytes();
    let mut seed = [200; 32];
    (seed[0], seed[1]) = (high, low);
    (NodePrivate::from_seed(seed), std::net::Ipv4Addr::new(100, 65, high, low))
}

/// Runs one end of a tunnel.
pub fn engine(options: &EngineOptions) -> Done {
    let (own, peer) = (options.number, 3 - options.number);
    let engine = Engine::start(pvemesh::sys::engine::EngineOptions {
        interface: "pvlbench0".into(),
        mtu: 1280,
        port: 41641,
        key: key(own),
        disco: disco(own),
        mark: None,
        offload: pvemesh::sys::engine::TunOffload::TcpAndUdp,
    });
    let engine = engine.map_err(|e| e.to_string())?;
    ip(&format!("addr add 100.64.0.{own}/32 dev pvlbench0"));
    ip("route add 100.64.0.0/10 dev pvlbench0");
    engine.set_filter(pvemesh::filter::Filter::open());
    let other = PeerConfig {
        id: NodeId(peer.into()),
        key: key(peer).public(),
        disco: Some(disco(peer).public()),
        name: format!("end-{peer}"),
        allowed_ips: vec![format!("100.64.0.{peer}/32").parse().map_err(|_| "address")?],
        endpoints: vec![format!("192.0.2.{peer}:41641").parse().map_err(|_| "address")?],
        home: None,
        ends: None,
        v4: None,
    };
    let peers = match options.crowd {
        None => vec![other],
        Some(count) => (0..count)
            .map(|n| {
                let (key, address) = member(n);
                let allowed_ips = vec![format!("{address}/32").parse().map_err(|_| "address")?];
                let name = format!("member-{n}");
                Ok(PeerConfig {
                    id: NodeId(i64::from(n) + 1),
                    key: key.public(),
                    disco: None,
                    name,
                    allowed_ips,
                    endpoints: Vec::new(),
                    ..other.clone()
                })
            })
            .collect::<Result<_, &str>>()?,
    };
    engine.set_peers(&peers);
    loop {
        std::thread::park();
    }
}

/// The program, and a directory for what its processes keep.
pub struct Program {
    binary: PathBuf,
    dir: PathBuf,
    /// The coordinator's address.
    address: &'static str,
}

impl Program {
    pub fn new(binary: &Path, dir: &Path) -> Done<Self> {
        let binary = binary.canonicalize().map_err(|e| format!("{}: {e}", binary.display()))?;
        Ok(Self { binary, dir: dir.to_owned(), address: "192.0.2.1" })
    }

    /// The same with another address for the coordinator.
    pub fn with_coordinator_at(mut self, address: &'static str) -> Self {
        self.address = address;
        self
    }

    pub fn url(&self) -> String {
        format!("http://{}:8080", self.address)
    }

    pub fn at(&self, name: &str) -> String {
        self.dir.join(name).display().to_string()
    }

    /// Runs a command to its end.
    pub fn once(&self, machine: &Machine, line: &str) -> Done<String> {
        let (binary, line) = (self.binary.clone(), line.to_owned());
        machine.run(move || output(bound(binary).args(line.split_whitespace()), &format!("pvemesh {line}")))
    }

    fn background(&self, machine: &Machine, name: &str, line: &str, socket: &str) -> Done<Running> {
        let log = self.dir.join(format!("{name}.log"));
        let file = std::fs::File::create(&log).map_err(|e| e.to_string())?;
        let mut command = bound(&self.binary);
        command.args(line.split_whitespace()).stdout(Stdio::null()).stderr(file);
        let running = start(machine, command)?;
        if listens(Path::new(socket)) { Ok(running) } else { Err(format!("{name} does not start: see {}", log.display())) }
    }

    /// A coordinator on the machine with its address, and a key for all nodes.
    pub fn coordinator(&self, machine: &Machine) -> Done<Running> {
        let (admin, state) = (self.at("coordinator.sock"), self.at("coordinator"));
        let serve = format!("coordinator serve --url {} --listen {}:8080 --state-dir {state} --socket {admin}", self.url(), self.address);
        let running = self.background(machine, "coordinator", &serve, &admin)?;
        let key = self.at("join.key");
        self.once(
            machine,
            &format!(
                "coordinator keys create --reusable --approve-exit-node --approve-routes 10.90.2.0/24,10.90.3.0/24 --socket {admin} --output-file {key}"
            ),
        )?;
        Ok(running)
    }

    /// A node that has joined.
    pub fn node(&self, machine: &Machine, name: &str, run: &str, up: &str) -> Done<Running> {
        let (socket, state, key) = (self.at(&format!("{name}.sock")), self.at(name), self.at("join.key"));
        let running = self.background(machine, name, &format!("node run --socket {socket} --state-dir {state} {run}"), &socket)?;
        self.once(
            machine,
            &format!("node up --socket {socket} --login-server {} --auth-key-file {key} --hostname {name} {up}", self.url()),
        )?;
        Ok(running)
    }
}

impl Subject {
    pub fn bare(asked: Asked) -> Self {
        let mut bare = Self::way("bare veth", "192.0.2.2");
        bare.asked = Some(asked);
        bare
    }

    /// A way that is there without processes of its own.
    pub fn way(name: &str, target: &str) -> Self {
        Self { name: name.into(), target: target.into(), asked: None, far_key: None, processes: Vec::new(), files: Vec::new() }
    }

    /// The real program: a coordinator and a node on the near machine, a node on the far one. Their state lies in `dir`.
    pub fn mesh(binary: &Path, dir: &Path, a: &Machine, b: &Machine) -> Done<Self> {
        let _ = std::fs::remove_dir_all(dir);
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(|e| format!("{}: {e}", dir.display()))?;
        let program = Program::new(binary, dir)?;
        let mut subject = Self {
            name: "pvemesh".into(),
            target: String::new(),
            asked: Some(Asked::node()),
            far_key: None,
            processes: Vec::new(),
            files: Vec::new(),
        };
        let coordinator = program.coordinator(a)?;
        for (machine, n) in [(a, 1), (b, 2)] {
            let name = format!("end-{n}");
            subject.processes.push(program.node(machine, &name, &format!("--tun pvlmesh{n} --port 41643"), "")?);
            subject.target =
                program.once(machine, &format!("node ip -4 --socket {}", program.at(&format!("{name}.sock"))))?.trim().to_owned();
        }
        subject.files.push(dir.to_owned());
        let status = program.once(b, &format!("node status --json --socket {}", program.at("end-2.sock")))?;
        let status: serde_json::Value = serde_json::from_str(&status).map_err(|e| format!("node status: {e}"))?;
        subject.far_key = status["Self"]["PublicKey"].as_str().and_then(|key| key.parse().ok());
        // Behind the nodes, so that the memory of the first process is a node's.
        subject.processes.push(coordinator);
        answers(a, &subject.target)?;
        Ok(subject)
    }

    /// Two packet engines and nothing else.
    pub fn engine(a: &Machine, b: &Machine) -> Done<Self> {
        let own = std::env::current_exe().map_err(|e| e.to_string())?;
        let mut processes = Vec::new();
        for (machine, n) in [(a, "1"), (b, "2")] {
            let mut command = bound(&own);
            command.args(["engine", n]);
            processes.push(start(machine, command)?);
        }
        answers(a, "100.64.0.2")?;
        Ok(Self { name: "pvemesh engine".into(), target: "100.64.0.2".into(), asked: None, far_key: None, processes, files: Vec::new() })
    }

    /// Another userspace WireGuard, configured through its socket in /var/run/wireguard.
    pub fn other(program: &Path, n: usize, a: &Machine, b: &Machine) -> Done<Self> {
        let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let mut subject = Self {
            name: name.clone(),
            target: format!("10.88.{n}.2"),
            asked: None,
            far_key: None,
            processes: Vec::new(),
            files: Vec::new(),
        };
        for (machine, own) in [(a, 1_u8), (b, 2)] {
            let interface = format!("pvlb{n}{own}");
            let mut command = bound(program);
            command.args(["-f", &interface]).stdout(Stdio::null()).stderr(Stdio::null());
            if name.contains("boringtun") {
                command.arg("--disable-drop-privileges");
            }
            // A process that starts in the background would have no such parent.
            command.env("WG_PROCESS_FOREGROUND", "1");
            subject.processes.push(start(machine, command)?);
            let socket = PathBuf::from(format!("/var/run/wireguard/{interface}.sock"));
            subject.files.push(socket.clone());
            if !listens(&socket) {
                return Err(format!("{name} does not open {}", socket.display()));
            }
            configure(&socket, own, n, &[])?;
            machine.ip(&format!("link set {interface} mtu 1280 up"));
            machine.ip(&format!("addr add 10.88.{n}.{own}/24 dev {interface}"));
        }
        answers(a, &subject.target)?;
        Ok(subject)
    }

    /// The far node's key.
    pub fn far_key(&self) -> Done<NodePublic> {
        self.far_key.ok_or_else(|| format!("{} has no node whose key is known", self.name))
    }

    /// Resident memory of the near end, in KiB.
    pub fn memory(&self) -> Option<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.processes.first()?.0.id())).ok()?;
        status.lines().find_map(|l| l.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?.trim().parse().ok())
    }
}

/// Waits for somebody to listen on a socket; `false` if nobody does.
pub fn listens(socket: &Path) -> bool {
    until(LIMIT, || UnixStream::connect(socket).is_ok())
}

/// Gives a userspace WireGuard its key and its peer through its socket; the peer also has these networks.
pub fn configure(socket: &Path, own: u8, n: usize, networks: &[&str]) -> Done {
    let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
    let peer = 3 - own;
    let port = 51_000 + n * 10;
    let networks: String = networks.iter().map(|network| format!("allowed_ip={network}\n")).collect();
    let text = format!(
        "set=1\nprivate_key={}\nlisten_port={}\nreplace_peers=true\npublic_key={}\nendpoint=192.0.2.{peer}:{}\nallowed_ip=10.88.{n}.{peer}/32\n{networks}\n",
        hex(key(own).as_bytes()),
        port + usize::from(own),
        hex(key(peer).public().as_bytes()),
        port + usize::from(peer),
    );
    let mut stream = UnixStream::connect(socket).map_err(|e| e.to_string())?;
    stream.set_read_timeout(Some(LIMIT)).map_err(|e| e.to_string())?;
    stream.write_all(text.as_bytes()).map_err(|e| e.to_string())?;
    let mut answer = vec![0; 256];
    let length = stream.read(&mut answer).map_err(|e| e.to_string())?;
    let answer = String::from_utf8_lossy(answer.get(..length).unwrap_or_default()).into_owned();
    if answer.contains("errno=0") { Ok(()) } else { Err(format!("{}: {answer}", socket.display())) }
}
