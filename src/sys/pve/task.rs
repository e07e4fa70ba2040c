//! Waiting for a task while showing its log.

use std::time::{Duration, Instant};

use super::{CallError, Executor};
use crate::pve::reply::{self, TaskStatus};
use crate::pve::{ErrorKind, Upid, call};

/// First pause between two looks; doubled up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(60);
const LONGEST_PAUSE: Duration = Duration::from_millis(600);
/// A task goes on while the API restarts or the way to it is cut; so long it is asked about in vain.
const SILENCE: Duration = Duration::from_secs(60);
/// A task's log file may appear a moment after its id.
const APPEARS_WITHIN: Duration = Duration::from_secs(5);
const LINES_AT_ONCE: u32 = 200;
/// Log lines kept for the report of a failure.
const KEPT_LINES: usize = 40;

/// Why a task did not do what it was started for.
#[derive(Debug, thiserror::Error)]
pub enum TaskError {
    /// It failed.
    #[error("the task {kind} failed: {why}", kind = task.kind())]
    Failed {
        /// Which.
        task: Upid,
        /// Its last word.
        why: String,
        /// The end of its log.
        log: Vec<String>,
    },
    /// It did not end in time; it may still be running.
    #[error("the task {kind} did not end within {limit:?}", kind = task.kind())]
    TooLong {
        /// Which.
        task: Upid,
        /// The limit.
        limit: Duration,
    },
    /// Nobody could be asked about it.
    #[error("the task {kind} cannot be followed: {source}", kind = task.kind())]
    Unknown {
        /// Which.
        task: Upid,
        /// Why.
        source: CallError,
    },
}

/// Waits until `task` has ended, giving each new line of its log to `line`; true if it ended with warnings.
///
/// # Errors
/// If it fails, does not end within `limit`, or cannot be asked about.
pub async fn wait_task(
    executor: &dyn Executor,
    task: &Upid,
    limit: Duration,
    line: &mut (dyn FnMut(&str) + Send),
) -> Result<bool, TaskError> {
    let unknown = |source| TaskError::Unknown { task: task.clone(), source };
    let status = call::task_status(task).map_err(|e| unknown(e.into()))?;
    let started = Instant::now();
    let mut pause = FIRST_PAUSE;
    let mut log = Log { shown: 0, kept: Vec::new() };
    let mut answered = started;
    loop {
        let state = match executor.call(&status).await {
            Ok(value) => {
                answered = Instant::now();
                reply::task_status(&value).map_err(|e| unknown(e.into()))?
            }
            Err(error) if error.is_passing() && answered.elapsed() < SILENCE => {
                tracing::debug!(%task, %error, "asking again about a task");
                TaskStatus::Running
            }
            Err(error) if error.kind() == Some(ErrorKind::NoSuchTask) && started.elapsed() < APPEARS_WITHIN => TaskStatus::Running,
            Err(error) => return Err(unknown(error)),
        };
        // The log is for the reader; losing it must not lose the task.
        if let Err(error) = log.follow(executor, task, line).await {
            tracing::debug!(%task, %error, "its log cannot be read");
        }
        match state {
            TaskStatus::Running => {}
            TaskStatus::Done => return Ok(false),
            TaskStatus::DoneWithWarnings => return Ok(true),
            TaskStatus::Failed(why) => return Err(TaskError::Failed { task: task.clone(), why, log: log.kept }),
        }
        if started.elapsed() > limit {
            return Err(TaskError::TooLong { task: task.clone(), limit });
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

struct Log {
    shown: u64,
    kept: Vec<String>,
}

impl Log {
    async fn follow(&mut self, executor: &dyn Executor, task: &Upid, line: &mut (dyn FnMut(&str) + Send)) -> Result<(), CallError> {
        loop {
            let lines = reply::task_log(&executor.call(&call::task_log(task, self.shown, LINES_AT_ONCE)?).await?)?;
            let before = self.shown;
            for (number, text) in lines {
                // An empty log is shown by Proxmox as one line `no content`, and a missing file as an error line.
                if number <= self.shown || text == "no content" || text.starts_with("unable to open file") {
                    continue;
                }
                self.shown = number;
                let clean: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
                line(clean.trim_end());
                self.kept.push(clean.trim_end().to_owned());
                if self.kept.len() > KEPT_LINES {
                    self.kept.remove(0);
                }
            }
            if self.shown - before < u64::from(LINES_AT_ONCE) {
                return Ok(());
            }
        }
    }
}
