//! The implementations, each started in its own stage.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::stage::{COORDINATOR, EXIT, PLAIN, SUBNET, Stage};
use crate::bench::machines::Machine;
use crate::bench::measure::{Running, bound, start};
use crate::bench::subject::{Program, answers, configure, listens};
use crate::run::{Done, output};

/// A way through a relay, on a stage of its own.
pub struct Relayed {
    _processes: Vec<Running>,
    pub stage: Stage,
    pub target: String,
}

/// One implementation, running.
pub struct Subject {
    pub name: &'static str,
    /// What it says of its version.
    pub version: String,
    /// The two ends of its tunnel first; ends before the machines do.
    processes: Vec<Running>,
    pub stage: Stage,
    /// The tunnel's far end.
    pub tunnel: String,
    /// A machine behind the far end, as a subnet router's and as an exit node's.
    pub subnet: Option<&'static str>,
    pub exit: Option<&'static str>,
    pub relayed: Option<Relayed>,
    sockets: Vec<PathBuf>,
}

impl Drop for Subject {
    fn drop(&mut self) {
        self.processes.clear();
        for socket in &self.sockets {
            let _ = std::fs::remove_file(socket);
        }
    }
}

impl Subject {
    /// Starts all that are there, or those that are named.
    pub fn all(binary: &Path, peers: &Path, dir: &Path, only: &[String]) -> Done<Vec<Self>> {
        let wanted = |name: &str| only.is_empty() || only.iter().any(|o| o == name);
        let beyond = only.is_empty();
        let mut all = Vec::new();
        if wanted("bare") {
            all.push(Self::bare()?);
        }
        if wanted("pvemesh") {
            all.push(Self::ours(binary, &fresh(&dir.join("pvemesh"))?, beyond)?);
        }
        if wanted("tailscaled") {
            if peers.join("tailscaled").exists() && peers.join("tailscale").exists() {
                all.push(Self::stock(binary, peers, &fresh(&dir.join("tailscaled"))?, beyond)?);
            } else {
                eprintln!("left out: tailscaled (not in {})", peers.display());
            }
        }
        for (n, (name, file)) in
            [("wireguard-go", "wireguard"), ("boringtun-cli", "boringtun-cli"), ("gotatun", "gotatun")].iter().enumerate()
        {
            if wanted(name) {
                let program = peers.join(file);
                if program.exists() {
                    all.push(Self::wireguard(name, &program, n)?);
                } else {
                    eprintln!("left out: {name} ({} is not there)", program.display());
                }
            }
        }
        Ok(all)
    }

    fn on(name: &'static str, version: String, stage: Stage) -> Self {
        Self {
            name,
            version,
            processes: Vec::new(),
            stage,
            tunnel: String::new(),
            subnet: None,
            exit: None,
            relayed: None,
            sockets: Vec::new(),
        }
    }

    /// The cable itself, and the kernel's forwarding.
    fn bare() -> Done<Self> {
        let mut subject = Self::on("bare", String::new(), Stage::new()?);
        subject.tunnel = "192.0.2.2".into();
        subject.subnet = Some(PLAIN);
        answers(&subject.stage.near, PLAIN)?;
        Ok(subject)
    }

    /// Our program: a coordinator and a laptop on the near machine, a router.
    fn ours(binary: &Path, dir: &Path, beyond: bool) -> Done<Self> {
        let program = Program::new(binary, dir)?;
        let version = output(Command::new(binary).arg("--version"), "pvemesh --version")?;
        let mut subject = Self::on("pvemesh", version.trim().to_owned(), Stage::new()?);
        let Stage { near, router, .. } = &subject.stage;
        let coordinator = program.coordinator(near)?;
        let offers = "--advertise-routes 10.90.2.0/24 --advertise-exit-node";
        subject.processes.push(program.node(router, "router", "--tun pvlmesh1 --port 41643", offers)?);
        let takes = if beyond { "--accept-routes --exit-node router" } else { "" };
        subject.processes.push(program.node(near, "laptop", "--tun pvlmesh2 --port 41643", takes)?);
        subject.processes.push(coordinator);
        subject.tunnel = program.once(router, &format!("node ip -4 --socket {}", program.at("router.sock")))?.trim().to_owned();
        answers(near, &subject.tunnel)?;
        if beyond {
            (subject.subnet, subject.exit) = (Some(SUBNET), Some(EXIT));
            answers(near, SUBNET)?;
            answers(near, EXIT)?;
            let stage = Stage::without_udp()?;
            let dir = fresh(&dir.join("relayed"))?;
            let program = Program::new(binary, &dir)?;
            let mut processes = vec![program.coordinator(&stage.near)?];
            processes.push(program.node(&stage.router, "router", "--tun pvlmesh1 --port 41643", "")?);
            processes.push(program.node(&stage.near, "laptop", "--tun pvlmesh2 --port 41643", "")?);
            let target = program.once(&stage.router, &format!("node ip -4 --socket {}", program.at("router.sock")))?.trim().to_owned();
            answers(&stage.near, &target)?;
            subject.relayed = Some(Relayed { _processes: processes, stage, target });
        }
        Ok(subject)
    }

    /// Stock tailscaled on both ends, members of a mesh of our coordinator.
    fn stock(binary: &Path, peers: &Path, dir: &Path, beyond: bool) -> Done<Self> {
        let version = output(Command::new(peers.join("tailscale")).arg("version"), "tailscale version")?;
        let version = version.lines().next().unwrap_or_default().to_owned();
        let mut subject = Self::on("tailscaled", version, Stage::new()?);
        let (processes, tunnel) = stock_pair(binary, peers, dir, &subject.stage, beyond)?;
        (subject.processes, subject.tunnel) = (processes, tunnel);
        if beyond {
            (subject.subnet, subject.exit) = (Some(SUBNET), Some(EXIT));
            answers(&subject.stage.near, SUBNET)?;
            answers(&subject.stage.near, EXIT)?;
            let stage = Stage::without_udp()?;
            let (processes, target) = stock_pair(binary, peers, &fresh(&dir.join("relayed"))?, &stage, false)?;
            subject.relayed = Some(Relayed { _processes: processes, stage, target });
        }
        Ok(subject)
    }

    /// A userspace WireGuard that is configured through its socket in /var/run/wireguard.
    fn wireguard(name: &'static str, program: &Path, n: usize) -> Done<Self> {
        let version = Command::new(program).arg("--version").output().map_err(|e| format!("{name}: {e}"))?;
        let version = String::from_utf8_lossy(&version.stdout).lines().next().unwrap_or_default().trim().to_owned();
        let mut subject = Self::on(name, version, Stage::new()?);
        for (machine, own) in [(&subject.stage.router, 2_u8), (&subject.stage.near, 1)] {
            let interface = format!("pvlp{n}{own}");
            let mut command = bound(program);
            command.args(["-f", &interface]).stdout(Stdio::null()).stderr(Stdio::null());
            if name != "wireguard-go" {
                command.arg("--disable-drop-privileges");
            }
            // A process that starts in the background would have no such parent.
            command.env("WG_PROCESS_FOREGROUND", "1");
            subject.processes.push(start(machine, command)?);
            let socket = PathBuf::from(format!("/var/run/wireguard/{interface}.sock"));
            subject.sockets.push(socket.clone());
            if !listens(&socket) {
                return Err(format!("{name} does not open {}", socket.display()));
            }
            configure(&socket, own, n, if own == 1 { &["10.90.2.0/24"] } else { &[] })?;
            machine.ip(&format!("link set {interface} mtu 1280 up"));
            machine.ip(&format!("addr add 10.88.{n}.{own}/24 dev {interface}"));
            if own == 1 {
                machine.ip(&format!("route add 10.90.2.0/24 dev {interface}"));
            }
        }
        subject.tunnel = format!("10.88.{n}.2");
        subject.subnet = Some(SUBNET);
        answers(&subject.stage.near, &subject.tunnel)?;
        answers(&subject.stage.near, SUBNET)?;
        Ok(subject)
    }

    /// The most that either end of the tunnel has held in memory so far, in KiB.
    pub fn peak_memory(&self) -> Option<u64> {
        let peak = |process: &Running| {
            let status = std::fs::read_to_string(format!("/proc/{}/status", process.0.id())).ok()?;
            status.lines().find_map(|l| l.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.trim().parse().ok())
        };
        self.processes.iter().take(2).filter_map(peak).max()
    }
}

/// Two of tailscaled, the router first, and the router's address. Our coordinator is the third process.
fn stock_pair(binary: &Path, peers: &Path, dir: &Path, stage: &Stage, beyond: bool) -> Done<(Vec<Running>, String)> {
    let program = Program::new(binary, dir)?.with_coordinator_at(COORDINATOR);
    let coordinator = program.coordinator(&stage.near)?;
    let key = program.at("join.key");
    let mut processes = Vec::new();
    let say = |machine: &Machine, name: &str, line: &str| {
        let mut command = Command::new(peers.join("tailscale"));
        command.arg(format!("--socket={}", program.at(&format!("{name}.sock")))).args(line.split_whitespace());
        let what = format!("tailscale {line}");
        machine.run(move || output(&mut command, &what))
    };
    for (machine, name, options) in [
        (&stage.router, "router", "--advertise-routes=10.90.2.0/24 --advertise-exit-node"),
        (&stage.near, "laptop", if beyond { "--accept-routes --exit-node=router" } else { "" }),
    ] {
        let mut command = bound(peers.join("tailscaled"));
        let (socket, log) = (program.at(&format!("{name}.sock")), program.at(&format!("{name}.log")));
        command.args(["--tun=ts0", "--port=41641", "--no-logs-no-support"]);
        command.args([format!("--statedir={}", program.at(name)), format!("--socket={socket}")]);
        command.env("TS_NO_LOGS_NO_SUPPORT", "true").env("TS_DEBUG_FIREWALL_MODE", "nftables");
        command.stdout(Stdio::null()).stderr(std::fs::File::create(&log).map_err(|e| format!("{log}: {e}"))?);
        processes.push(start(machine, command)?);
        if !listens(Path::new(&socket)) {
            return Err(format!("tailscaled does not start: see {log}"));
        }
        let up = format!("up --login-server={} --auth-key=file:{key} --hostname={name} --accept-dns=false --timeout=30s", program.url());
        say(machine, name, &up)?;
        if !options.is_empty() {
            say(machine, name, &format!("set {options}"))?;
        }
    }
    processes.push(coordinator);
    let tunnel = say(&stage.router, "router", "ip -4")?.trim().to_owned();
    answers(&stage.near, &tunnel)?;
    Ok((processes, tunnel))
}

/// An empty directory that nobody else may read.
fn fresh(dir: &Path) -> Done<PathBuf> {
    use std::os::unix::fs::DirBuilderExt as _;
    let _ = std::fs::remove_dir_all(dir);
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(|e| format!("{}: {e}", dir.display()))?;
    dir.canonicalize().map_err(|e| format!("{}: {e}", dir.display()))
}
