//! A new program on trial: it runs in the old one's place for a while, and unless somebody says that all is well, the old one comes back by
//! itself, so that an admin whom the new one has cut off need do nothing.
//!
//! The old program stays where it is until the trial has ended well. Whoever keeps the service running starts the old one, which sees the order
//! below `/run` and becomes the new one (`execve`, so the process stays the same). The order is good until its time is over and for this start of
//! the system only; when neither holds any more, the old one is simply itself. A guard, made of the old program too, restarts the service
//! when the time is over.

use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};

use super::files::{self, ChoreError};
use crate::plan::guest::Service;

/// The order.
pub const ORDER: &str = "/run/pvemesh/trial.json";
/// Set in the environment of the program on trial, so that it does not look for itself.
const ON_TRIAL: &str = "PVEMESH_ON_TRIAL";
/// How long a program may take to say its version.
const VERSION_LIMIT: Duration = Duration::from_secs(10);
/// How often the guard looks whether the trial has ended.
const LOOK: Duration = Duration::from_millis(500);

/// A trial under way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Order {
    /// The program on trial.
    program: PathBuf,
    /// The one whose place it takes.
    installed: PathBuf,
    /// Who keeps the service running.
    service: Service,
    /// When the trial is over, in seconds on the clock that starts with the machine.
    until: u64,
    /// When the first process started, in ticks: an order of an earlier start of the system says nothing.
    init_started: u64,
}

/// Why a trial did not begin or end as wanted.
#[derive(Debug, thiserror::Error)]
pub enum TrialError {
    /// A file.
    #[error(transparent)]
    File(#[from] ChoreError),
    /// The new program does not even say its version.
    #[error("the new program does not run here: {0}")]
    Broken(String),
    /// There is none.
    #[error("no program is on trial; its time is over, or the system was restarted")]
    None,
    /// The service could not be restarted.
    #[error("restart the service ({service}): {why}")]
    Restart {
        /// Who keeps it running.
        service: Service,
        /// What happened.
        why: String,
    },
}

fn seconds_since_boot() -> u64 {
    u64::try_from(rustix::time::clock_gettime(rustix::time::ClockId::Boottime).tv_sec).unwrap_or(0)
}

/// When the first process of this system started (field 22 of `/proc/1/stat`).
fn init_started() -> u64 {
    let stat = std::fs::read_to_string("/proc/1/stat").unwrap_or_default();
    stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(19)?.parse().ok()).unwrap_or(0)
}

fn read() -> Option<Order> {
    serde_json::from_slice(&std::fs::read(ORDER).ok()?).ok()
}

fn in_force() -> Option<Order> {
    read().filter(|order| order.init_started == init_started() && seconds_since_boot() < order.until)
}

/// Whether a program is on trial.
pub fn is_on() -> bool {
    in_force().is_some()
}

/// Becomes the program on trial, if there is one and this is not it. Comes back if there is none, or if it cannot be run.
pub fn become_it() {
    if std::env::var_os(ON_TRIAL).is_some() {
        return;
    }
    if let Some(order) = in_force() {
        let error = Command::new(&order.program).args(std::env::args_os().skip(1)).env(ON_TRIAL, "1").exec();
        tracing::error!(%error, program = %order.program.display(), "the program on trial cannot be run");
    }
}

/// Begins a trial of `seconds`: the service is restarted, with `program` in its place.
///
/// # Errors
/// If the program does not run at all, the order cannot be written, or the service does not restart. Nothing has changed then.
pub fn begin(program: &Path, installed: &Path, service: Service, seconds: u64) -> Result<(), TrialError> {
    check_runs(program)?;
    let order = Order {
        program: program.to_owned(),
        installed: installed.to_owned(),
        service,
        until: seconds_since_boot() + seconds,
        init_started: init_started(),
    };
    let text = serde_json::to_vec(&order).map_err(|e| ChoreError::new("write", Path::new(ORDER), e.into()))?;
    files::write(Path::new(ORDER), 0o600, &*text)?;
    let guard = spawn_guard(installed);
    let begun = guard.and_then(|()| restart(service));
    if begun.is_err() {
        let _ = std::fs::remove_file(ORDER);
        let _ = restart(service);
    }
    begun
}

/// Ends the trial well: the new program takes the old one's place, which is kept as `keep`. What runs goes on running.
///
/// # Errors
/// If there is none any more, or the files cannot be changed.
pub fn confirm(keep: &Path) -> Result<(), TrialError> {
    let order = in_force().ok_or(TrialError::None)?;
    files::place(&order.program, &order.installed, Some(keep))?;
    // Only now: until here the old program would come back.
    std::fs::remove_file(ORDER).map_err(|e| ChoreError::new("remove", Path::new(ORDER), e))?;
    Ok(())
}

/// Ends the trial badly: the old program runs again, and the new one is removed. Without a trial there is nothing to do.
///
/// # Errors
/// If the service does not restart.
pub fn abort() -> Result<(), TrialError> {
    let Some(order) = read() else { return Ok(()) };
    let _ = std::fs::remove_file(ORDER);
    let restarted = restart(order.service);
    let _ = std::fs::remove_file(&order.program);
    restarted
}

/// Waits for the end of the trial, and ends it badly when its time is over.
pub fn guard() {
    let Some(mine) = read() else { return };
    while read().as_ref() == Some(&mine) {
        if seconds_since_boot() >= mine.until {
            if let Err(error) = abort() {
                tracing::error!(%error, "the old program does not come back");
            }
            return;
        }
        std::thread::sleep(LOOK);
    }
}

fn check_runs(program: &Path) -> Result<(), TrialError> {
    let broken = |why: String| TrialError::Broken(why);
    let mut child = Command::new(program)
        .arg("--version")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|e| broken(e.to_string()))?;
    let begun = std::time::Instant::now();
    loop {
        match child.try_wait() {
            Ok(Some(status)) if status.success() => return Ok(()),
            Ok(Some(status)) => return Err(broken(format!("asked for its version, it ended with {status}"))),
            Ok(None) if begun.elapsed() < VERSION_LIMIT => std::thread::sleep(Duration::from_millis(20)),
            Ok(None) => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(broken(format!("it did not say its version within {VERSION_LIMIT:?}")));
            }
            Err(error) => return Err(broken(error.to_string())),
        }
    }
}

/// Starts the guard from the old program, so that what it is to protect from cannot harm it.
fn spawn_guard(installed: &Path) -> Result<(), TrialError> {
    let mut command = Command::new(installed);
    command.args(["inside", "trial", "guard"]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
    command.spawn().map(drop).map_err(|e| TrialError::Broken(format!("start the guard: {e}")))
}

/// Restarts our service.
///
/// # Errors
/// If its manager does not do it.
pub fn restart(service: Service) -> Result<(), TrialError> {
    let failed = |why: String| TrialError::Restart { service, why };
    let Some(command) = service.restart() else {
        return kill_process(Pid::INIT, Signal::HUP).map_err(|e| failed(e.to_string()));
    };
    let (program, arguments) = command.split_first().ok_or_else(|| failed("no command".to_owned()))?;
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .output()
        .map_err(|e| failed(format!("{program}: {e}")))?;
    if output.status.success() { Ok(()) } else { Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_owned())) }
}
