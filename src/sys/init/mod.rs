//! The appliance's first process: reads the guest's configuration, brings up the network, keeps the node and the coordinator running, reaps
//! what dies, and stops within a second when asked to.
//!
//! It is not a general init: no login, no shell, no units. With a configuration that it cannot use it says so on the console and stays,
//! doing nothing else, so that the console can be read; it still stops when asked to.
//!
//! LXC mounts `/proc`, `/sys` and `/dev`. A container is asked to halt by SIGPWR, SIGTERM (OCI), or SIGRTMIN+3 where PID 1 blocks it; SIGINT
//! asks for a reboot, which Proxmox does itself by starting the container again.

mod config;
mod log;
mod network;
mod services;

use std::ffi::OsString;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus};
use tokio::signal::unix::{Signal as Listener, SignalKind, signal};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until, timeout};

use crate::settings::{Guest, RENEWAL_VARIABLE};
use crate::time::Time;
use services::Services;

pub use config::{ConfigError, STORED, VARIABLE, read as read_config};

/// How long children may take to end; what is left of the second is for the file system.
const GRACE: Duration = Duration::from_millis(800);
/// How long storing what is in memory may hold up the end. Whoever writes state syncs it himself.
const SYNC: Duration = Duration::from_millis(100);
/// How long the children wait for the first lease. A node that starts without a network fails its first try and then pauses.
const NETWORK_FIRST: Duration = Duration::from_secs(2);

/// Whether this process is the first of its system: number 1 and without arguments, since `pvemesh coordinator serve` may be number 1 too.
pub fn is_init() -> bool {
    rustix::process::getpid() == Pid::INIT && std::env::args_os().len() <= 1
}

/// Runs as the first process, until it is asked to stop.
pub fn main() -> ExitCode {
    take_console();
    start_log();
    let variable = std::env::var(VARIABLE).ok();
    let renewal = std::env::var(RENEWAL_VARIABLE).ok();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!("start: {error}");
            return ExitCode::FAILURE;
        }
    };
    let result = runtime.block_on(run(variable, renewal));
    // Not waiting for what is still storing.
    runtime.shutdown_background();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("listen for signals: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Puts the console in the place of standard output and error where they lead nowhere, as under a container manager in the background.
/// The children inherit it. An output that was given (a terminal, a pipe) stays.
fn take_console() {
    let nowhere = |path: &str| std::fs::metadata(path).map(|data| data.rdev()).ok();
    if nowhere("/proc/self/fd/2") != nowhere("/dev/null") {
        return;
    }
    // Not as controlling terminal: a ^C there is not for the first process.
    let flags = OFlags::WRONLY | OFlags::NOCTTY | OFlags::CLOEXEC;
    if let Ok(console) = rustix::fs::open("/dev/console", flags, Mode::empty()) {
        let _ = rustix::stdio::dup2_stdout(&console).and_then(|()| rustix::stdio::dup2_stderr(&console));
    }
}

/// The console is standard error; what goes there is also kept.
fn start_log() {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    let log = tracing_subscriber::fmt().with_writer(log::Tee).with_ansi(false).with_target(false).without_time().with_env_filter(filter);
    let _ = log.try_init();
}

/// The signals that init answers.
struct Signals {
    child: Listener,
    power: Listener,
    terminate: Listener,
    interrupt: Listener,
    halt: Listener,
    hangup: Listener,
}

impl Signals {
    fn listen() -> std::io::Result<Self> {
        Ok(Self {
            child: signal(SignalKind::child())?,
            power: signal(SignalKind::from_raw(libc::SIGPWR))?,
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            halt: signal(SignalKind::from_raw(libc::SIGRTMIN() + 3))?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// Waits until asked to stop; gives the signal's name.
    async fn stop(power: &mut Listener, terminate: &mut Listener, interrupt: &mut Listener, halt: &mut Listener) -> &'static str {
        tokio::select! {
            _ = power.recv() => "SIGPWR",
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
            _ = halt.recv() => "SIGRTMIN+3",
        }
    }
}

async fn run(variable: Option<String>, renewal: Option<String>) -> std::io::Result<()> {
    // While it still has its name.
    program();
    // First of all: PID 1 ignores signals that it has no handler for.
    let mut signals = Signals::listen()?;
    let clock = Instant::now();
    let now = || Time::from_start(clock.elapsed());
    let mut services = Services::default();
    let guest = prepare(variable.as_deref());
    if let Some(error) = renewal.and_then(|renewal| config::take_renewal(Path::new("/"), &renewal).err()) {
        tracing::error!("{error}; the node stays who it is");
    }
    let ready = Notify::new();
    let network = async {
        match &guest {
            Some(guest) => network::run(guest, &ready).await,
            None => std::future::pending().await,
        }
    };
    tokio::pin!(network);
    let first = timeout(NETWORK_FIRST, ready.notified());
    tokio::pin!(first);
    let mut waiting = true;
    loop {
        let due = services.poll_timeout().map(|due| clock + due.at.since(Time::default()));
        let start = async {
            match due {
                Some(due) => sleep_until(due).await,
                None => std::future::pending().await,
            }
        };
        let Signals { child, power, terminate, interrupt, halt, hangup } = &mut signals;
        tokio::select! {
            name = Signals::stop(power, terminate, interrupt, halt) => {
                tracing::info!("{name}: stopping");
                break;
            }
            _ = child.recv() => reap(&mut services, now()),
            _ = hangup.recv() => {
                tracing::info!("SIGHUP: restarting what runs");
                services.restart();
                tell(&services, Signal::TERM);
            }
            () = start => start_due(&mut services, now()),
            _ = &mut first, if waiting => {
                waiting = false;
                add_services(&mut services, guest.as_ref(), now());
            }
            never = &mut network => match never {},
        }
    }
    stop(&mut services, &mut signals.child, &now).await;
    Ok(())
}

/// Makes the directories, reads the configuration and writes the names. `None`, and a word on the console, if there is nothing to run.
fn prepare(variable: Option<&str>) -> Option<Guest> {
    for directory in ["/run", "/tmp", "/var/lib"] {
        if let Err(error) = std::fs::create_dir_all(directory) {
            tracing::error!("make {directory}: {error}");
        }
    }
    // `/run` need not be a memory file system here; sockets of the last start must not look alive.
    let _ = std::fs::remove_dir_all("/run/pvemesh");
    for directory in ["/run/pvemesh", "/var/lib/pvemesh"] {
        if let Err(error) = config::private_directory(Path::new(directory)) {
            tracing::error!("{error}");
        }
    }
    match config::read(Path::new("/"), variable) {
        Ok(guest) => {
            tracing::info!("pvemesh {} as guest {} ({})", env!("CARGO_PKG_VERSION"), guest.vmid, guest.hostname);
            network::write_names(&guest.hostname);
            Some(guest)
        }
        Err(error) => {
            tracing::error!("{error}");
            tracing::error!(
                "nothing is started: correct the configuration (pvemesh apply, or the container's env in Proxmox) and start the container again"
            );
            None
        }
    }
}

fn add_services(services: &mut Services, guest: Option<&Guest>, now: Time) {
    let arguments = |words: [&str; 2]| -> Vec<String> { words.into_iter().chain(["--guest-config", STORED]).map(str::to_owned).collect() };
    let Some(guest) = guest else { return };
    if guest.coordinator.is_some() {
        services.add(now, "coordinator", arguments(["coordinator", "serve"]));
    }
    if guest.relay.is_some() {
        services.add(now, "relay", arguments(["relay", "serve"]));
    }
    if let Some(node) = &guest.node {
        let mut arguments = arguments(["node", "run"]);
        if node.userspace {
            arguments.extend(["--tun", "userspace"].map(str::to_owned));
        }
        services.add(now, "node", arguments);
    }
}

/// What the children are made of: our own file under its name, which an upgrade may have put another one in the place of.
fn program() -> &'static Path {
    static PROGRAM: std::sync::OnceLock<std::path::PathBuf> = std::sync::OnceLock::new();
    let path = PROGRAM.get_or_init(|| std::env::current_exe().unwrap_or_default());
    if path.is_file() { path } else { Path::new("/proc/self/exe") }
}

fn start_due(services: &mut Services, now: Time) {
    for service in services.due(now) {
        let mut command = Command::new(program());
        // The configuration is in the file; the join key has no place in every child's environment.
        command.arg0("pvemesh").args(&service.arguments).env_remove(VARIABLE).env_remove(RENEWAL_VARIABLE).stdin(Stdio::null());
        log::keep(&mut command);
        if std::env::var_os("PATH").is_none() {
            command.env("PATH", OsString::from("/sbin:/bin"));
        }
        match command.spawn() {
            Ok(child) => {
                let pid = i32::try_from(child.id()).unwrap_or_default();
                service.started(now, pid);
                tracing::info!("{} started as process {pid}", service.name);
            }
            Err(error) => {
                let pause = service.pause(now);
                tracing::error!("start {}: {error}; trying again in {pause:?}", service.name);
            }
        }
    }
}

/// Collects every process that has ended, children and orphans.
fn reap(services: &mut Services, now: Time) {
    while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
        if let Some(ended) = services.ended(now, pid.as_raw_nonzero().get()) {
            tracing::warn!("{} {} after {:.1?}; starting again in {:?}", ended.name, words(status), ended.ran, ended.pause);
        }
    }
}

fn words(status: WaitStatus) -> String {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => format!("exited with status {code}"),
        (_, Some(number)) => format!("was killed by signal {number}"),
        _ => "ended".to_owned(),
    }
}

fn tell(services: &Services, signal: Signal) {
    for pid in services.running().into_iter().filter_map(Pid::from_raw) {
        let _ = rustix::process::kill_process(pid, signal);
    }
}

/// Asks the children to end, ends those that do not, and stores what is in memory.
async fn stop(services: &mut Services, child: &mut Listener, now: &impl Fn() -> Time) {
    let ended = |services: &mut Services| {
        while let Ok(Some((pid, _))) = rustix::process::wait(WaitOptions::NOHANG) {
            services.ended(now(), pid.as_raw_nonzero().get());
        }
        services.running().is_empty()
    };
    tell(services, Signal::TERM);
    let all = async {
        while !ended(services) {
            child.recv().await;
        }
    };
    if timeout(GRACE, all).await.is_err() {
        tracing::warn!("some children did not end in {GRACE:?}; they are killed");
        tell(services, Signal::KILL);
    }
    // On another thread: a busy disk must not hold up the container's end.
    let sync = tokio::task::spawn_blocking(|| std::fs::File::open("/var/lib/pvemesh").map(rustix::fs::syncfs));
    let _ = timeout(SYNC, sync).await;
    tracing::info!("stopped");
}
