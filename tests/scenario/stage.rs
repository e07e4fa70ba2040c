//! The lab as a test uses it: one at a time on a machine, taken down whatever happens.

use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Polls a condition.
pub fn until(limit: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let start = Instant::now();
    while !condition() {
        if start.elapsed() > limit {
            return false;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    true
}

fn program(variable: &str, beside: &str) -> Option<PathBuf> {
    if let Some(named) = std::env::var_os(variable) {
        return Some(PathBuf::from(named));
    }
    let here = std::env::current_exe().ok()?;
    let found = here.parent()?.parent()?.join(beside);
    found.exists().then_some(found)
}

/// The lab program, the product, and a directory for their state.
pub struct Stage {
    pub lab: PathBuf,
    pub pvemesh: PathBuf,
    pub dir: PathBuf,
    _lock: UnixListener,
}

impl Stage {
    /// The stage, or why there is none here.
    pub fn new() -> Result<Self, String> {
        if !rustix::process::geteuid().is_root() {
            return Err("the lab needs root".to_owned());
        }
        if !Path::new("/usr/bin/lxc-start").exists() {
            return Err("lxc is not installed (make deps)".to_owned());
        }
        let lab = program("PVEMESH_LAB", "examples/pvemesh-lab").ok_or("pvemesh-lab is not built (make build)")?;
        let pvemesh = program("PVEMESH_BINARY", "pvemesh").unwrap_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_pvemesh")));
        let name = SocketAddr::from_abstract_name("pvemesh-lab").unwrap();
        let mut lock = None;
        let held = until(Duration::from_secs(1800), || {
            lock = UnixListener::bind_addr(&name).ok();
            lock.is_some()
        });
        assert!(held, "another lab holds this machine");
        let dir = std::env::temp_dir().join(format!("pvl-scenario-{}", std::process::id()));
        Ok(Self { lab, pvemesh, dir, _lock: lock.unwrap() })
    }

    /// The lab program with its state directory.
    pub fn lab(&self) -> Command {
        let mut command = Command::new(&self.lab);
        command.arg("--no-lock").arg("--dir").arg(&self.dir).stdin(Stdio::null());
        command
    }

    /// Runs a lab command, which must succeed.
    pub fn run(&self, words: &[&str]) {
        let output = self.lab().args(words).output().unwrap();
        assert!(output.status.success(), "pvemesh-lab {words:?}: {}", said(&output));
    }

    /// A pvemesh command as the demo's admin (`pve`) or laptop types it.
    pub fn pvemesh(&self, namespace: &str, words: &str) -> Command {
        let home = self.dir.join(if namespace == "pve" { "admin" } else { namespace });
        std::fs::create_dir_all(&home).unwrap();
        let mut command = self.lab();
        command.args(["exec", namespace, "--"]).arg(&self.pvemesh).args(words.split_whitespace());
        command.env("HOME", &home).env("PVEMESH_CONFIG_DIR", home.join("pvemesh"));
        command.env("PVEMESH_SOCKET", home.join("node.sock")).env("PVEMESH_STATE_DIR", home.join("state"));
        command
    }

    /// Its standard output; it must succeed.
    pub fn answer(&self, namespace: &str, words: &str) -> String {
        let output = self.pvemesh(namespace, words).output().unwrap();
        assert!(output.status.success(), "pvemesh {words}: {}", said(&output));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// A `pvesh` call as root on the host.
    pub fn pvesh(&self, words: &str) -> Output {
        let script = self.dir.join("bin/pvesh");
        Command::new(script).args(words.split_whitespace()).output().unwrap()
    }

    /// Who the web server sees, asked from the laptop.
    pub fn web_page(&self) -> String {
        let output = self.lab().args(["fetch", "laptop"]).output().unwrap();
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }
}

impl Stage {
    /// The ends of all logs, for whoever reads a failed test.
    fn show_logs(&self) {
        let containers = std::fs::read_dir(self.dir.join("pve/containers")).into_iter().flatten().flatten();
        let consoles = containers.map(|c| c.path().join("console.log"));
        let nodes = ["laptop", "inet"].map(|home| self.dir.join(home).join("state/node.log"));
        for path in consoles.chain(nodes).filter(|p| p.exists()) {
            let text = std::fs::read_to_string(&path).unwrap_or_default();
            let lines: Vec<_> = text.lines().collect();
            println!("--- {}\n{}", path.display(), lines[lines.len().saturating_sub(40)..].join("\n"));
        }
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.show_logs();
        }
        let output = self.lab().arg("down").output().unwrap();
        if !output.status.success() && !std::thread::panicking() {
            panic!("pvemesh-lab down: {}", said(&output));
        }
    }
}

/// Both outputs of a command, for a failure's message.
pub fn said(output: &Output) -> String {
    format!("{}\n{}{}", output.status, String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}
