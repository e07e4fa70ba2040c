//! The main job, typed as an admin would, in the lab.

use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use crate::namespaces::{LAPTOP, PVE, inside};
use crate::network::{FORWARDED_PORT, HOME_ADDRESS, WEB_ADDRESS};
use crate::run::{Done, prepare};
use crate::standin::Version;
use crate::standin::lxc::until;
use crate::summary::{Findings, Step};
use crate::{host, measure, sweep};

/// The coordinator's container.
const COORDINATOR: u32 = 100;
/// The exit node's container.
const EXIT_NODE: u32 = 101;

#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// The pvemesh program.
    #[arg(long)]
    binary: PathBuf,
    /// Where to write the figures.
    #[arg(long)]
    result: Option<PathBuf>,
    /// Leave the lab up afterwards.
    #[arg(long)]
    keep: bool,
    /// Do not measure throughput.
    #[arg(long)]
    quick: bool,
    /// The Proxmox release played.
    #[arg(long, default_value = "9.1")]
    pve_version: Version,
    /// Proxmox hosts in the cluster.
    #[arg(long, default_value_t = 1)]
    hosts: u8,
}

/// The lock, if nobody has it.
pub fn try_lock() -> Option<UnixListener> {
    UnixListener::bind_addr(&SocketAddr::from_abstract_name("pvemesh-lab").ok()?).ok()
}

/// One lab per machine, as its namespaces have fixed names; the lock goes with the process.
pub fn lock() -> Done<UnixListener> {
    let mut said = false;
    let mut held = None;
    until(Duration::from_secs(1200), || {
        held = try_lock();
        if held.is_none() && !said {
            eprintln!("another lab runs on this machine; waiting for it to end");
            said = true;
        }
        held.is_some()
    });
    held.ok_or_else(|| "another lab still runs on this machine".to_owned())
}

/// Plays the demo; whatever ends it, the lab is taken down unless it is to be kept.
pub fn main(dir: &Path, options: Options, locked: bool) -> ExitCode {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let (keep, home) = (options.keep, dir.to_owned());
    let playing = runtime.spawn_blocking(move || {
        let _lock = if locked { None } else { Some(lock()?) };
        let dir = prepare(&home)?;
        let played = play(&dir, &options);
        if played.is_err() {
            show_consoles(&dir);
        }
        played
    });
    let result = runtime.block_on(async {
        use tokio::signal::unix::{SignalKind, signal};
        let mut ended = signal(SignalKind::terminate()).expect("a signal handler");
        tokio::select! {
            played = playing => played.unwrap_or_else(|e| Err(e.to_string())),
            _ = tokio::signal::ctrl_c() => Err("interrupted".to_owned()),
            _ = ended.recv() => Err("told to stop".to_owned()),
        }
    });
    let interrupted = matches!(&result, Err(why) if why == "interrupted" || why == "told to stop");
    if !keep || interrupted {
        match sweep::down(dir) {
            Ok(()) => println!("the lab is taken down; nothing of it is left"),
            Err(why) => eprintln!("pvemesh-lab: {why}"),
        }
    }
    let code = match result {
        Ok(()) => 0,
        Err(why) => {
            eprintln!("pvemesh-lab: {why}");
            1
        }
    };
    // A thread that still waits for a command must not hold the process.
    std::process::exit(code)
}

fn show_consoles(dir: &Path) {
    for id in [COORDINATOR, EXIT_NODE] {
        let text = std::fs::read_to_string(dir.join(format!("pve/containers/{id}/console.log"))).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        eprintln!("--- console of container {id}, last lines");
        lines.iter().skip(lines.len().saturating_sub(30)).for_each(|line| eprintln!("    {line}"));
    }
    let laptop = std::fs::read_to_string(dir.join("laptop/state/node.log")).unwrap_or_default();
    let lines: Vec<_> = laptop.lines().collect();
    eprintln!("--- the laptop's node, last lines");
    lines.iter().skip(lines.len().saturating_sub(30)).for_each(|line| eprintln!("    {line}"));
}

struct Play<'a> {
    dir: &'a Path,
    binary: PathBuf,
    start: Instant,
    findings: Findings,
}

fn play(dir: &Path, options: &Options) -> Done {
    let binary = options.binary.canonicalize().map_err(|e| format!("{}: {e}", options.binary.display()))?;
    let mut play = Play { dir, binary, start: Instant::now(), findings: Findings::default() };
    play.step("the lab comes up", "pvemesh-lab up", |_| host::up(dir, options.pve_version, options.hosts))?;
    play.findings.binary_bytes = std::fs::metadata(&play.binary).map_err(|e| e.to_string())?.len();
    play.before(options)?;
    play.on_the_host()?;
    play.on_the_laptop()?;
    play.after(options)?;
    println!("{}", play.findings.text());
    if let Some(path) = &options.result {
        std::fs::write(path, format!("{:#}\n", play.findings.json())).map_err(|e| format!("{}: {e}", path.display()))?;
        println!("  the figures: {}", path.display());
    }
    play.findings.fault().map_or(Ok(()), Err)
}

impl Play<'_> {
    fn step(&mut self, name: &str, command: &str, body: impl FnOnce(&mut Self) -> Done) -> Done {
        println!("\n[{:6.2} s] {name}\n           $ {command}", self.start.elapsed().as_secs_f64());
        let start = Instant::now();
        body(self)?;
        let seconds = start.elapsed().as_secs_f64();
        self.findings.steps.push(Step { name: name.to_owned(), command: command.to_owned(), seconds });
        Ok(())
    }

    /// Types a pvemesh command in a namespace.
    fn pvemesh(&mut self, namespace: &'static str, name: &str, words: &str) -> Done {
        let command = format!("pvemesh {words}");
        self.step(name, &command, |play| {
            let status = play.prepared(namespace, words).status().map_err(|e| e.to_string())?;
            if status.success() { Ok(()) } else { Err(format!("`pvemesh {words}` failed ({status})")) }
        })
    }

    /// A pvemesh command with a home of its own, so that this machine's settings are neither read nor changed.
    fn prepared(&self, namespace: &str, words: &str) -> Command {
        let mut command = inside(namespace, &self.binary);
        let home = self.dir.join(if namespace == PVE { "admin" } else { "laptop" });
        let _ = std::fs::create_dir_all(&home);
        command.args(words.split_whitespace()).env("HOME", &home).env("PVEMESH_CONFIG_DIR", home.join("pvemesh"));
        command.env("PVEMESH_SOCKET", home.join("node.sock")).env("PVEMESH_STATE_DIR", home.join("state")).stdin(Stdio::null());
        command
    }

    fn before(&mut self, options: &Options) -> Done {
        self.step("before: who does the web server see?", &format!("curl http://{WEB_ADDRESS}/"), |play| {
            play.findings.web_before = measure::web_page(LAPTOP)?;
            println!("           {}", play.findings.web_before);
            Ok(())
        })?;
        self.step("the bare path's round trip and throughput", &format!("ping {WEB_ADDRESS}; iperf3 -c {WEB_ADDRESS}"), |play| {
            play.findings.bare_rtt_ms = measure::round_trip(LAPTOP, WEB_ADDRESS, 20)?;
            measure::throughput_server()?;
            if !options.quick {
                play.findings.bare_tcp = measure::throughput(LAPTOP, 4)?;
            }
            Ok(())
        })
    }

    fn on_the_host(&mut self) -> Done {
        let fingerprint = std::fs::read_to_string(self.dir.join("pve/fingerprint")).map_err(|e| e.to_string())?;
        let password = self.dir.join("password").display().to_string();
        let init = format!("init --url https://127.0.0.1:8006 --user root@pam --password-file {password} --fingerprint {fingerprint}");
        self.pvemesh(PVE, "the admin says how to reach the host", &init)?;
        let url = format!("http://{HOME_ADDRESS}:{FORWARDED_PORT}");
        let coordinator = format!("create-coordinator {COORDINATOR} --ip 192.168.50.100/24 --gw 192.168.50.1 --url {url}");
        self.pvemesh(PVE, "a coordinator in container 100", &coordinator)?;
        let endpoint = format!("{HOME_ADDRESS}:{FORWARDED_PORT}");
        let exit = format!("create-exit-node {EXIT_NODE} --name exit-1 --ip 192.168.50.101/24 --gw 192.168.50.1 --endpoint {endpoint}");
        self.findings.seconds_to_first_packet = self.start.elapsed().as_secs_f64();
        self.pvemesh(PVE, "an exit node in container 101", &exit)?;
        self.step("a join key for the laptop", "pvemesh keys create --only-for laptop > laptop.key", |play| {
            let output = play.prepared(PVE, "keys create --only-for laptop").output().map_err(|e| e.to_string())?;
            if !output.status.success() {
                return Err(format!("`pvemesh keys create` failed: {}", String::from_utf8_lossy(&output.stderr)));
            }
            let key = String::from_utf8_lossy(&output.stdout).trim().to_owned();
            host::secret(&play.dir.join("laptop.key"), &key)
        })
    }

    fn on_the_laptop(&mut self) -> Done {
        let url = format!("http://{HOME_ADDRESS}:{FORWARDED_PORT}");
        let key = self.dir.join("laptop.key").display().to_string();
        let up = format!("node up --login-server {url} --auth-key-file {key} --exit-node exit-1 --hostname laptop");
        self.pvemesh(LAPTOP, "in the cafe, the laptop joins", &up)?;
        self.step("after: who does the web server see?", &format!("curl http://{WEB_ADDRESS}/"), |play| {
            let mut seen = Err("not tried".to_owned());
            until(Duration::from_secs(30), || {
                seen = measure::web_page(LAPTOP);
                seen.as_deref() == Ok(HOME_ADDRESS)
            });
            play.findings.seconds_to_first_packet = play.start.elapsed().as_secs_f64() - play.findings.seconds_to_first_packet;
            play.findings.web_after = seen?;
            println!("           {}", play.findings.web_after);
            Ok(())
        })
    }

    fn after(&mut self, options: &Options) -> Done {
        if let Some(fault) = self.findings.fault() {
            return Err(fault);
        }
        self.step("the tunnel's round trip and throughput", &format!("ping {WEB_ADDRESS}; iperf3 -c {WEB_ADDRESS}"), |play| {
            play.findings.rtt_ms = measure::round_trip(LAPTOP, WEB_ADDRESS, 20)?;
            if !options.quick {
                play.findings.tcp = measure::throughput(LAPTOP, 4)?;
            }
            Ok(())
        })?;
        let addresses = |words: &str, play: &Self| -> String {
            let output = play.prepared(LAPTOP, words).output().map(|o| String::from_utf8_lossy(&o.stdout).into_owned());
            output.unwrap_or_default().lines().next().unwrap_or_default().trim().to_owned()
        };
        self.findings.laptop = addresses("node ip", self);
        self.findings.exit_node = addresses("node ip exit-1", self);
        self.findings.node_rss_kib = measure::node_memory(EXIT_NODE)?;
        let image = self.dir.join("image.tar.gz");
        self.pvemesh(PVE, "the appliance image, for its size", &format!("image build --output {}", image.display()))?;
        self.findings.image_bytes = std::fs::metadata(&image).map_err(|e| format!("{}: {e}", image.display()))?.len();
        Ok(())
    }
}
