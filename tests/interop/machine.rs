//! Machines: a network namespace, a host name, and an `/etc` and `/run` of their own.

use std::fs::File;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::Done;
use crate::wait;

/// Runs a command and takes its standard output.
pub fn run(words: &[&str]) -> Done<String> {
    output(Command::new(words[0]).args(&words[1..]), &words.join(" "))
}

/// Runs `ip` with words split at blanks.
pub fn ip(line: &str) -> Done {
    run(&[&["ip"], line.split_whitespace().collect::<Vec<_>>().as_slice()].concat()).map(drop)
}

/// Runs a command and takes its standard output; what it printed otherwise is the reason of a failure.
pub fn output(command: &mut Command, said: &str) -> Done<String> {
    let Output { status, stdout, stderr } = command.stdin(Stdio::null()).output().map_err(|e| format!("`{said}`: {e}"))?;
    let text = String::from_utf8_lossy(&stdout).into_owned();
    if status.success() {
        return Ok(text);
    }
    Err(format!("`{said}` failed ({status}): {} {}", String::from_utf8_lossy(&stderr).trim(), text.trim()).trim_end().to_owned())
}

/// A program that runs until it is stopped or dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    name: String,
    pub log: PathBuf,
}

impl Process {
    /// Asks it to end and waits; kills it if it does not.
    pub fn stop(&mut self) {
        self.signal(Signal::TERM);
        let ended =
            wait::until(&self.name, Duration::from_secs(10), || self.child.try_wait().map(|s| s.is_some()).map_err(|e| e.to_string()));
        if ended.is_err() {
            self.kill();
        }
    }

    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Tells it to read its settings again.
    pub fn reread(&self) {
        self.signal(Signal::HUP);
    }

    fn signal(&self, signal: Signal) {
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            let _ = kill_process(pid, signal);
        }
    }

    /// Waits until it can be used; gives up at once if it ends.
    pub fn ready(&mut self, what: &str, limit: Duration, mut is: impl FnMut() -> Done<bool>) -> Done {
        let mut ended = None;
        wait::until(what, limit, || {
            ended = self.ended();
            if ended.is_some() { Ok(true) } else { is() }
        })?;
        ended.map_or(Ok(()), Err)
    }

    /// Why it ended, if it did.
    pub fn ended(&mut self) -> Option<String> {
        let status = self.child.try_wait().ok().flatten()?;
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        Some(format!("{} ended ({status}): {}", self.name, lines[lines.len().saturating_sub(3)..].join(" | ")))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// What a machine has of this one's `/etc`, if it is there.
const FROM_HERE: [&str; 7] = ["passwd", "group", "services", "protocols", "os-release", "ld.so.cache", "login.defs"];

#[derive(Debug)]
struct Inner {
    name: String,
    namespace: String,
    home: PathBuf,
    holder: Process,
}

/// A machine. Clones are the same machine.
#[derive(Debug, Clone)]
pub struct Machine(Arc<Inner>);

impl Machine {
    /// A machine with a loopback interface; its files are below `home`.
    pub fn new(stage: &str, name: &str, home: &Path, name_server: &str) -> Done<Self> {
        let namespace = format!("{stage}-{name}");
        let home = home.join(name);
        std::fs::create_dir_all(&home).map_err(|e| e.to_string())?;
        ip(&format!("netns add {namespace}"))?;
        ip(&format!("-n {namespace} link set lo up"))?;
        let etc = home.join("etc");
        std::fs::create_dir_all(etc.join("ssl/certs")).map_err(|e| e.to_string())?;
        for file in FROM_HERE {
            let _ = std::fs::copy(Path::new("/etc").join(file), etc.join(file));
        }
        std::fs::write(etc.join("resolv.conf"), format!("nameserver {name_server}\n")).map_err(|e| e.to_string())?;
        std::fs::write(etc.join("hostname"), format!("{name}\n")).map_err(|e| e.to_string())?;
        std::fs::write(etc.join("hosts"), format!("127.0.0.1 localhost {name}\n")).map_err(|e| e.to_string())?;
        // nsswitch may name services that answer from the machine outside.
        std::fs::write(etc.join("nsswitch.conf"), "passwd: files\ngroup: files\nhosts: files dns\n").map_err(|e| e.to_string())?;
        let script = format!(
            "hostname {name} && mount --bind {etc} /etc && mount -t tmpfs none /run && mount -t tmpfs none /var/lib && \
             mount -t sysfs none /sys && touch {home}/made && exec sleep infinity",
            etc = etc.display(),
            home = home.display(),
        );
        let mut holder = Command::new("nsenter");
        holder.arg(format!("--net=/run/netns/{namespace}"));
        holder.args(["unshare", "--mount", "--uts", "--propagation", "private", "sh", "-c", &script]);
        let mut holder = spawn(holder, &format!("machine {name}"), &home.join("machine.log"))?;
        holder.ready(&format!("machine {name} is made"), Duration::from_secs(10), || Ok(home.join("made").exists()))?;
        Ok(Self(Arc::new(Inner { name: name.to_owned(), namespace, home, holder })))
    }

    pub fn name(&self) -> &str {
        &self.0.name
    }

    pub fn namespace(&self) -> &str {
        &self.0.namespace
    }

    /// Where its files are.
    pub fn home(&self) -> &Path {
        &self.0.home
    }

    pub fn ip(&self, line: &str) -> Done {
        ip(&format!("-n {} {line}", self.namespace()))
    }

    /// A command on the machine.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.0.holder.child.id().to_string(), "--net", "--mount", "--uts", "--"]).arg(program);
        command.env("HOME", self.home()).env_remove("XDG_RUNTIME_DIR").current_dir(self.home());
        command
    }

    /// Runs a command on the machine and takes its standard output.
    pub fn run(&self, words: &[&str]) -> Done<String> {
        output(self.command(words[0]).args(&words[1..]), &words.join(" "))
    }

    /// Starts a program that stays.
    pub fn spawn(&self, command: Command, name: &str) -> Done<Process> {
        spawn(command, &format!("{name} on {}", self.name()), &self.home().join(format!("{name}.log")))
    }

    /// Does something in a thread that is in the machine's network.
    pub fn within<T: Send>(&self, action: impl FnOnce() -> T + Send) -> Done<T> {
        let entered = || -> Done<T> {
            self.enter()?;
            Ok(action())
        };
        std::thread::scope(|scope| scope.spawn(entered).join()).map_err(|_| format!("a thread on {} died", self.name()))?
    }

    /// The same, while the caller goes on.
    pub fn start<T: Send + 'static>(&self, action: impl FnOnce() -> T + Send + 'static) -> std::thread::JoinHandle<Done<T>> {
        let machine = self.clone();
        std::thread::spawn(move || {
            machine.enter()?;
            Ok(action())
        })
    }

    fn enter(&self) -> Done {
        let entry = File::open(Path::new("/run/netns").join(self.namespace())).map_err(|e| format!("{}: {e}", self.namespace()))?;
        move_into_link_name_space(entry.as_fd(), Some(LinkNameSpaceType::Network)).map_err(|e| format!("enter {}: {e}", self.namespace()))
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.holder.kill();
        let _ = ip(&format!("netns del {}", self.namespace));
    }
}

fn spawn(mut command: Command, name: &str, log: &Path) -> Done<Process> {
    let file = File::options().create(true).append(true).open(log).map_err(|e| format!("{}: {e}", log.display()))?;
    let errors = file.try_clone().map_err(|e| e.to_string())?;
    let child = command.stdin(Stdio::null()).stdout(file).stderr(errors).spawn().map_err(|e| format!("{name}: {e}"))?;
    Ok(Process { child, name: name.to_owned(), log: log.to_owned() })
}
