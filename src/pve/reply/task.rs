//! Tasks: how they stand and what they said.

use serde_json::Value;

use super::{ReplyError, list, not, number, text};

/// How a task stands, from `GET /nodes/N/tasks/UPID/status`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TaskStatus {
    /// It runs.
    Running,
    /// It ended well.
    Done,
    /// It ended well but complained; the log has the lines.
    DoneWithWarnings,
    /// It failed with this text.
    Failed(String),
}

/// Reads `GET /nodes/N/tasks/UPID/status`.
///
/// # Errors
/// If there is no state in it.
pub fn task_status(value: &Value) -> Result<TaskStatus, ReplyError> {
    match text(value.get("status")).as_deref() {
        Some("running") => Ok(TaskStatus::Running),
        Some("stopped") => Ok(match text(value.get("exitstatus")).as_deref() {
            Some("OK") => TaskStatus::Done,
            Some(end) if end.starts_with("WARNINGS") => TaskStatus::DoneWithWarnings,
            Some(end) => TaskStatus::Failed(end.trim().to_owned()),
            None => TaskStatus::Failed("it ended without saying how".to_owned()),
        }),
        _ => Err(not("a task's state", value)),
    }
}

/// Reads `GET /nodes/N/tasks/UPID/log`: the lines with their numbers, counted from 1.
///
/// # Errors
/// If it is no list.
pub fn task_log(value: &Value) -> Result<Vec<(u64, String)>, ReplyError> {
    list(value, "a task's log", |item| Some((number(item.get("n"))?, text(item.get("t")).unwrap_or_default())))
}
