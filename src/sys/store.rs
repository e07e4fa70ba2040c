//! The coordinator's database: SQLite in one file, written by one thread.
//!
//! The core's state is the truth while the process runs; the file is what a restart finds. Writes arrive in the order the core made
//! them; those that wait are put into one transaction. A write that fails is kept and tried again with the next ones, so that a disk
//! that was full for a while loses nothing; whoever waited for it is told. The file is opened exclusively: a second coordinator on the
//! same state is refused.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use rusqlite::{Connection, params};
use serde::de::DeserializeOwned;
use tokio::sync::oneshot;

use crate::coord::server::{Snapshot, Write};

/// The statements that lead from one version of the database to the next. Only ever appended to.
const MIGRATIONS: [&str; 2] = [
    "
    CREATE TABLE counters (id INTEGER PRIMARY KEY CHECK (id = 1), record TEXT NOT NULL) STRICT;
    CREATE TABLE users (
        id INTEGER PRIMARY KEY, record TEXT NOT NULL,
        name TEXT GENERATED ALWAYS AS (record ->> '$.name') VIRTUAL
    ) STRICT;
    CREATE TABLE join_keys (
        id INTEGER PRIMARY KEY, record TEXT NOT NULL,
        prefix TEXT GENERATED ALWAYS AS (record ->> '$.prefix') VIRTUAL
    ) STRICT;
    CREATE TABLE nodes (
        id INTEGER PRIMARY KEY, record TEXT NOT NULL,
        name TEXT GENERATED ALWAYS AS (record ->> '$.name') VIRTUAL,
        machine TEXT GENERATED ALWAYS AS (record ->> '$.machine') VIRTUAL,
        v4 TEXT GENERATED ALWAYS AS (record ->> '$.v4') VIRTUAL
    ) STRICT;
    ",
    "
    CREATE TABLE dns (id INTEGER PRIMARY KEY CHECK (id = 1), record TEXT NOT NULL) STRICT;
    CREATE TABLE policy (id INTEGER PRIMARY KEY CHECK (id = 1), record TEXT NOT NULL) STRICT;
    ",
];

/// How long a failed write waits before it is tried again without a new one coming.
const RETRY: Duration = Duration::from_secs(5);

/// Why the database cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A record does not read.
    #[error("record {id} of table {table} in {path} does not read ({source}): restore the database from a backup")]
    Corrupt {
        /// The database.
        path: PathBuf,
        /// The table.
        table: &'static str,
        /// The record's number.
        id: i64,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// Another process has it.
    #[error("{0} is in use by another process: stop the other coordinator, or use another state directory")]
    InUse(PathBuf),
    /// The file could not be made or opened.
    #[error("cannot open {path}: {source}")]
    Io {
        /// The database.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A newer program made it.
    #[error("{path} has version {found}, this program knows {known}: use the program that made it, or a newer one")]
    Newer {
        /// The database.
        path: PathBuf,
        /// Its version.
        found: i64,
        /// The newest version known.
        known: i64,
    },
    /// SQLite refuses.
    #[error("cannot use {path}: {source}")]
    Sqlite {
        /// The database.
        path: PathBuf,
        /// What it said.
        source: rusqlite::Error,
    },
}

/// A write could not be stored (yet).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the coordinator could not store the change: {0}")]
pub struct NotStored(String);

struct Job {
    writes: Vec<Write>,
    done: Option<oneshot::Sender<Result<(), NotStored>>>,
}

/// The open database.
#[derive(Debug)]
pub struct Store {
    jobs: Mutex<Option<mpsc::Sender<Job>>>,
    writer: Mutex<Option<JoinHandle<()>>>,
}

impl Store {
    /// Opens the database, making it (mode 0600) or bringing it to the newest version as needed, and reads everything in it.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub fn open(path: &Path) -> Result<(Self, Snapshot), StoreError> {
        let io_error = |source| StoreError::Io { path: path.to_owned(), source };
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path).map_err(io_error)?;
        file.set_permissions(std::fs::Permissions::from_mode(0o600)).map_err(io_error)?;
        drop(file);
        let sqlite = |source: rusqlite::Error| match source.sqlite_error_code() {
            Some(rusqlite::ErrorCode::DatabaseBusy | rusqlite::ErrorCode::DatabaseLocked) => StoreError::InUse(path.to_owned()),
            _ => StoreError::Sqlite { path: path.to_owned(), source },
        };
        let mut connection = Connection::open(path).map_err(sqlite)?;
        connection.busy_timeout(Duration::ZERO).map_err(sqlite)?;
        prepare(&mut connection, path, &sqlite)?;
        let snapshot = read_all(&connection, path, &sqlite)?;
        let (jobs, queue) = mpsc::channel();
        let writer =
            std::thread::Builder::new().name("store".to_owned()).spawn(move || write_jobs(&mut connection, &queue)).map_err(io_error)?;
        Ok((Self { jobs: Mutex::new(Some(jobs)), writer: Mutex::new(Some(writer)) }, snapshot))
    }

    /// Hands over writes. The receiver resolves when they are on disk; it need not be waited for.
    pub fn write(&self, writes: Vec<Write>) -> oneshot::Receiver<Result<(), NotStored>> {
        let (done, wait) = oneshot::channel();
        let jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        // After `close` the job is dropped, and with it `done`: the waiting side sees that nothing was stored.
        if let Some(jobs) = &*jobs {
            let _ = jobs.send(Job { writes, done: Some(done) });
        }
        wait
    }

    /// Writes what is waiting and closes the file. Blocks until it is done.
    pub fn close(&self) {
        drop(self.jobs.lock().unwrap_or_else(PoisonError::into_inner).take());
        if let Some(writer) = self.writer.lock().unwrap_or_else(PoisonError::into_inner).take() {
            let _ = writer.join();
        }
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.close();
    }
}

/// Waits for a write handed over with [`Store::write`].
///
/// # Errors
/// It is not on disk; it will be tried again.
pub async fn stored(wait: oneshot::Receiver<Result<(), NotStored>>) -> Result<(), NotStored> {
    wait.await.unwrap_or_else(|_| Err(NotStored("it is shutting down".to_owned())))
}

fn prepare(connection: &mut Connection, path: &Path, sqlite: &impl Fn(rusqlite::Error) -> StoreError) -> Result<(), StoreError> {
    // Exclusive before WAL: then no shared memory file is needed, and a second process is refused at once.
    connection
        .execute_batch("PRAGMA locking_mode = EXCLUSIVE; PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON;")
        .map_err(sqlite)?;
    let change = connection.transaction_with_behavior(rusqlite::TransactionBehavior::Exclusive).map_err(sqlite)?;
    change
        .execute_batch("CREATE TABLE IF NOT EXISTS migrations (version INTEGER PRIMARY KEY, applied TEXT NOT NULL) STRICT")
        .map_err(sqlite)?;
    let found: i64 = change.query_row("SELECT coalesce(max(version), 0) FROM migrations", [], |row| row.get(0)).map_err(sqlite)?;
    let known = i64::try_from(MIGRATIONS.len()).unwrap_or(i64::MAX);
    if found > known {
        return Err(StoreError::Newer { path: path.to_owned(), found, known });
    }
    for (version, statements) in (1..).zip(MIGRATIONS).skip(usize::try_from(found).unwrap_or(0)) {
        change.execute_batch(statements).map_err(sqlite)?;
        change.execute("INSERT INTO migrations VALUES (?1, datetime('now'))", params![version]).map_err(sqlite)?;
    }
    change.commit().map_err(sqlite)
}

fn read_all(connection: &Connection, path: &Path, sqlite: &impl Fn(rusqlite::Error) -> StoreError) -> Result<Snapshot, StoreError> {
    Ok(Snapshot {
        users: read_table(connection, path, "users", sqlite)?,
        keys: read_table(connection, path, "join_keys", sqlite)?,
        nodes: read_table(connection, path, "nodes", sqlite)?,
        counters: read_table(connection, path, "counters", sqlite)?.pop().unwrap_or_default(),
        dns: read_table(connection, path, "dns", sqlite)?.pop().unwrap_or_default(),
    })
}

fn read_table<T: DeserializeOwned>(
    connection: &Connection,
    path: &Path,
    table: &'static str,
    sqlite: &impl Fn(rusqlite::Error) -> StoreError,
) -> Result<Vec<T>, StoreError> {
    let mut query = connection.prepare(&format!("SELECT id, record FROM {table} ORDER BY id")).map_err(sqlite)?;
    let rows = query.query_map([], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, String>(1)?))).map_err(sqlite)?;
    let mut records = Vec::new();
    for row in rows {
        let (id, text) = row.map_err(sqlite)?;
        records.push(serde_json::from_str(&text).map_err(|source| corrupt(path, table, id, source))?);
    }
    Ok(records)
}

fn corrupt(path: &Path, table: &'static str, id: i64, source: serde_json::Error) -> StoreError {
    StoreError::Corrupt { path: path.to_owned(), table, id, source }
}

/// What one write does to one table.
struct Row {
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
            Write::RemoveKey(id) => row("join_keys", *id, None),
            Write::RemoveNode(id) => row("nodes", id.0, None),
            Write::RemoveUser(id) => row("users", id.0, None),
            Write::User(user) => row("users", user.id.0, Some(serde_json::to_string(user))),
        }
    }
}

fn write_jobs(connection: &mut Connection, queue: &mpsc::Receiver<Job>) {
    // Newest row of each record that is not on disk yet.
    let mut unsaved: BTreeMap<(&'static str, i64), Row> = BTreeMap::new();
    loop {
        let first =
            if unsaved.is_empty() { queue.recv().map_err(|_| mpsc::RecvTimeoutError::Disconnected) } else { queue.recv_timeout(RETRY) };
        let closed = matches!(first, Err(mpsc::RecvTimeoutError::Disconnected));
        let mut waiting = Vec::new();
        for job in first.into_iter().chain(queue.try_iter()) {
            for row in job.writes.iter().map(Row::of) {
                unsaved.insert((row.table, row.id), row);
            }
            waiting.extend(job.done);
        }
        let result = if unsaved.is_empty() { Ok(()) } else { commit(connection, unsaved.values()) };
        match &result {
            Ok(()) => unsaved.clear(),
            Err(error) => tracing::error!(%error, "the database cannot be written: free space or check the disk; it is tried again"),
        }
        for done in waiting {
            let _ = done.send(result.clone());
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
