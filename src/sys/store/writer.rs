//! The thread that writes.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::mpsc;
use std::time::Duration;

use rusqlite::{Connection, params};
use tokio::sync::oneshot;

use super::{NotStored, StoreError, backup};
use crate::coord::server::Write;

/// How long a failed write waits before it is tried again without a new one coming.
const RETRY: Duration = Duration::from_secs(5);

/// What the thread is asked for.
pub(super) enum Job {
    /// To store changes.
    Write { writes: Vec<Write>, done: oneshot::Sender<Result<(), NotStored>> },
    /// To copy the database, as it is after all changes handed over before, to a new file.
    Copy { to: PathBuf, done: oneshot::Sender<Result<(), StoreError>> },
}

/// What one write does to one table.
pub(super) struct Row {
    table: &'static str,
    id: i64,
    /// `None` deletes.
    record: Option<Result<String, serde_json::Error>>,
}

impl Row {
    fn of(write: &Write) -> Self {
        let row = |table, id, record| Self { table, id, record };
        match write {
            Write::Counters(counters) => row("counters", 1, Some(serde_json::to_string(counters))),
            Write::Dns(dns) => row("dns", 1, Some(serde_json::to_string(dns))),
            Write::Key(key) => row("join_keys", key.id, Some(serde_json::to_string(key))),
            Write::Node(node) => row("nodes", node.id.0, Some(serde_json::to_string(node))),
            Write::Policy(policy) => row("policy", 1, policy.as_ref().map(serde_json::to_string)),
            Write::Relay(region) => row("relays", region.region_id.into(), Some(serde_json::to_string(region))),
            Write::RemoveRelay(number) => row("relays", i64::from(*number), None),
            Write::RemoveKey(id) => row("join_keys", *id, None),
            Write::RemoveNode(id) => row("nodes", id.0, None),
            Write::RemoveUser(id) => row("users", id.0, None),
            Write::User(user) => row("users", user.id.0, Some(serde_json::to_string(user))),
        }
    }
}

pub(super) fn write_jobs(connection: &mut Connection, queue: &mpsc::Receiver<Job>) {
    // Newest row of each record that is not on disk yet.
    let mut unsaved: BTreeMap<(&'static str, i64), Row> = BTreeMap::new();
    loop {
        let first =
            if unsaved.is_empty() { queue.recv().map_err(|_| mpsc::RecvTimeoutError::Disconnected) } else { queue.recv_timeout(RETRY) };
        let closed = matches!(first, Err(mpsc::RecvTimeoutError::Disconnected));
        let (mut waiting, mut copies) = (Vec::new(), Vec::new());
        for job in first.into_iter().chain(queue.try_iter()) {
            match job {
                Job::Write { writes, done } => {
                    for row in writes.iter().map(Row::of) {
                        unsaved.insert((row.table, row.id), row);
                    }
                    waiting.push(done);
                }
                Job::Copy { to, done } => copies.push((to, done)),
            }
        }
        let result = if unsaved.is_empty() { Ok(()) } else { commit(connection, unsaved.values()) };
        match &result {
            Ok(()) => unsaved.clear(),
            Err(error) => tracing::error!(%error, "the database cannot be written: free space or check the disk; it is tried again"),
        }
        for done in waiting {
            let _ = done.send(result.clone());
        }
        for (to, done) in copies {
            let _ = done.send(backup::copy(connection, &to));
        }
        if closed {
            return;
        }
    }
}

fn commit<'a>(connection: &mut Connection, rows: impl Iterator<Item = &'a Row>) -> Result<(), NotStored> {
    let failed = |e: rusqlite::Error| NotStored(e.to_string());
    let change = connection.transaction().map_err(failed)?;
    for row in rows {
        let table = row.table;
        match &row.record {
            Some(Ok(record)) => change
                .prepare_cached(&format!(
                    "INSERT INTO {table} (id, record) VALUES (?1, ?2) ON CONFLICT (id) DO UPDATE SET record = excluded.record"
                ))
                .and_then(|mut statement| statement.execute(params![row.id, record])),
            Some(Err(error)) => return Err(NotStored(error.to_string())),
            None => change.prepare_cached(&format!("DELETE FROM {table} WHERE id = ?1")).and_then(|mut s| s.execute(params![row.id])),
        }
        .map_err(failed)?;
    }
    change.commit().map_err(failed)
}
