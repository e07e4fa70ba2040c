//! Tasks: asynchronous as on a real host, each with a UPID, a log and an exit status.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use super::access::Caller;
use super::http::Reply;
use super::schema::Params;
use super::{Context, Core};

/// One task.
#[derive(Debug)]
pub struct Task {
    /// Its name, `UPID:node:pid:pstart:starttime:type:id:user:`.
    pub upid: String,
    pid: u32,
    pstart: u32,
    starttime: u64,
    endtime: u64,
    kind: String,
    id: String,
    caller: Caller,
    lines: Vec<String>,
    warnings: u32,
    aborted: Arc<AtomicBool>,
    /// `OK`, `WARNINGS: n` or what went wrong; nothing while it runs.
    pub exit: Option<String>,
}

pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

impl Task {
    /// Its log.
    pub fn lines(&self) -> &[String] {
        &self.lines
    }

    /// The host it runs on.
    fn node(&self) -> &str {
        self.upid.split(':').nth(1).unwrap_or_default()
    }

    fn status(&self) -> Value {
        let node = self.node();
        let (user, token) = self.caller.parts();
        let mut status = json!({
            "node": node, "upid": self.upid, "pid": self.pid, "pstart": self.pstart, "starttime": self.starttime,
            "type": self.kind, "id": self.id, "user": user, "status": if self.exit.is_some() { "stopped" } else { "running" },
        });
        if let Some(token) = token {
            status["tokenid"] = json!(token);
        }
        if let Some(exit) = &self.exit {
            status["exitstatus"] = json!(exit);
        }
        status
    }
}

/// What a task's body writes its log with.
pub struct TaskLog {
    core: Arc<Core>,
    upid: String,
    fault: Option<String>,
    aborted: Arc<AtomicBool>,
}

impl TaskLog {
    /// Appends a line.
    pub fn line(&self, text: impl Into<String>) {
        self.with(|task| task.lines.push(text.into()));
    }

    /// Appends a warning; the task then ends with `WARNINGS: n`.
    pub fn warn(&self, text: &str) {
        self.with(|task| {
            task.lines.push(format!("WARN: {text}"));
            task.warnings += 1;
        });
    }

    fn with(&self, change: impl FnOnce(&mut Task)) {
        if let Some(task) = self.core.inner.lock().unwrap().tasks.iter_mut().find(|t| t.upid == self.upid) {
            change(task);
        }
    }

    /// Where a task may fail by an injected fault or end because it was aborted.
    ///
    /// # Errors
    /// The injected text, or the words of an abort.
    pub fn checkpoint(&self) -> Result<(), String> {
        if self.aborted.load(Ordering::SeqCst) {
            return Err("received interrupt".to_owned());
        }
        self.fault.clone().map_or(Ok(()), Err)
    }
}

/// Starts a task in a thread of its own, on the host that the call is for, and names it.
pub fn spawn(context: &Context, kind: &str, id: &str, body: impl FnOnce(&TaskLog) -> Result<(), String> + Send + 'static) -> String {
    spawn_on(context, &context.host, kind, id, body)
}

/// As [`spawn`], on a named host.
pub fn spawn_on(
    context: &Context,
    host: &str,
    kind: &str,
    id: &str,
    body: impl FnOnce(&TaskLog) -> Result<(), String> + Send + 'static,
) -> String {
    let core = context.core.clone();
    let aborted = Arc::new(AtomicBool::new(false));
    let upid = {
        let mut inner = core.inner.lock().unwrap();
        inner.next_pid += 37;
        let (pid, pstart, starttime) = (inner.next_pid, inner.next_pid + 300_000, now());
        let upid = format!("UPID:{}:{pid:08X}:{pstart:08X}:{starttime:08X}:{kind}:{id}:{}:", host, context.caller.0);
        let (kind, id, caller) = (kind.to_owned(), id.to_owned(), context.caller.clone());
        let (upid_kept, aborted) = (upid.clone(), aborted.clone());
        let (lines, warnings, exit, endtime) = (Vec::new(), 0, None, 0);
        inner.tasks.push(Task { upid: upid_kept, pid, pstart, starttime, endtime, kind, id, caller, lines, warnings, aborted, exit });
        upid
    };
    let log = TaskLog { core: core.clone(), upid: upid.clone(), fault: context.task_fault.clone(), aborted };
    std::thread::spawn(move || {
        std::thread::sleep(core.options.task_delay);
        let result = body(&log);
        log.with(|task| {
            let exit = match (result, task.warnings) {
                (Ok(()), 0) => "OK".to_owned(),
                (Ok(()), n) => format!("WARNINGS: {n}"),
                (Err(text), _) => text,
            };
            let good = exit == "OK" || exit.starts_with("WARNINGS: ");
            task.lines.push(format!("TASK {}{exit}", if good { "" } else { "ERROR: " }));
            task.exit = Some(exit);
            task.endtime = now();
        });
        core.changed.notify_all();
    });
    upid
}

fn well_formed(upid: &str) -> bool {
    let parts: Vec<_> = upid.split(':').collect();
    let hex = |at: usize| parts.get(at).is_some_and(|p| p.len() >= 8 && p.chars().all(|c| c.is_ascii_hexdigit()));
    parts.len() == 9 && parts.first() == Some(&"UPID") && (2..5).all(hex) && parts.last() == Some(&"")
}

/// `GET tasks/{upid}/status`.
///
/// # Errors
/// 400 for an unknown or malformed UPID.
pub fn status(context: &Context, params: &Params) -> Result<Reply, Reply> {
    let upid = params.get("upid").map_or("", String::as_str);
    if !well_formed(upid) {
        return Err(Reply::parameter("upid", "unable to parse worker upid"));
    }
    let inner = context.core.inner.lock().unwrap();
    let task = inner.tasks.iter().find(|t| t.upid == upid && t.node() == context.host);
    let task = task.ok_or_else(|| Reply::parameter("upid", "no such task"))?;
    Ok(Reply::data(task.status()))
}

/// `GET tasks/{upid}/log`.
pub fn log(context: &Context, params: &Params) -> Reply {
    let upid = params.get("upid").map_or("", String::as_str);
    let number = |name: &str, default: usize| params.get(name).and_then(|v| v.parse().ok()).unwrap_or(default);
    let (start, limit) = (number("start", 0), number("limit", 50));
    let inner = context.core.inner.lock().unwrap();
    let Some(task) = inner.tasks.iter().find(|t| t.upid == upid && t.node() == context.host) else {
        return Reply::envelope(json!({ "data": [{"n": 1, "t": "unable to open file - No such file or directory"}], "total": 1 }));
    };
    if task.lines.is_empty() {
        return Reply::envelope(json!({ "data": [{"n": 1, "t": "no content"}], "total": 1 }));
    }
    let most = if limit == 0 { usize::MAX } else { limit };
    let rows: Vec<_> = task.lines.iter().enumerate().skip(start).take(most).map(|(at, text)| json!({ "n": at + 1, "t": text })).collect();
    Reply::envelope(json!({ "data": rows, "total": task.lines.len() }))
}

/// `DELETE tasks/{upid}`.
pub fn abort(context: &Context, params: &Params) -> Reply {
    let inner = context.core.inner.lock().unwrap();
    if let Some(task) = inner.tasks.iter().find(|t| Some(&t.upid) == params.get("upid")) {
        task.aborted.store(true, Ordering::SeqCst);
    }
    Reply::data(Value::Null)
}

/// `GET tasks`, newest first.
pub fn list(context: &Context, params: &Params) -> Reply {
    let inner = context.core.inner.lock().unwrap();
    let wanted = |name: &str, value: &str| params.get(name).is_none_or(|p| p == value);
    let here = inner.tasks.iter().rev().filter(|t| t.node() == context.host);
    let rows = here.filter(|t| wanted("vmid", &t.id) && wanted("typefilter", &t.kind));
    let rows = rows.filter(|t| params.get("source").is_some_and(|s| s != "archive") || t.exit.is_some()).map(|t| {
        let mut row = t.status();
        if let Some(exit) = &t.exit {
            row["status"] = json!(exit);
            row["endtime"] = json!(t.endtime);
        }
        row
    });
    let rows: Vec<_> = rows.collect();
    Reply::envelope(json!({ "total": rows.len(), "data": rows }))
}
