//! The coordinator's database: SQLite in one file, written by one thread.
//!
//! The core's state is the truth while the process runs; the file is what a restart finds. Writes arrive in the order the core made
//! them; those that wait are put into one transaction. A write that fails is kept and tried again with the next ones, so that a disk
//! that was full for a while loses nothing; whoever waited for it is told. The file is opened exclusively: a second coordinator on the
//! same state is refused.

pub mod backup;
mod schema;
mod writer;

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use rusqlite::Connection;
use tokio::sync::oneshot;
use zeroize::Zeroizing;

use crate::coord::server::{Snapshot, Write};
use crate::ident::MachinePrivate;
use backup::BackupError;
use schema::{prepare, read_all};
use writer::{Job, write_jobs};

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

impl StoreError {
    fn of(path: &Path, source: rusqlite::Error) -> Self {
        match source.sqlite_error_code() {
            Some(rusqlite::ErrorCode::DatabaseBusy | rusqlite::ErrorCode::DatabaseLocked) => Self::InUse(path.to_owned()),
            _ => Self::Sqlite { path: path.to_owned(), source },
        }
    }
}

/// A write could not be stored (yet).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the coordinator could not store the change: {0}")]
pub struct NotStored(String);

/// The open database.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    copying: tokio::sync::Mutex<()>,
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
        let sqlite = |source| StoreError::of(path, source);
        let mut connection = Connection::open(path).map_err(sqlite)?;
        connection.busy_timeout(Duration::ZERO).map_err(sqlite)?;
        prepare(&mut connection, path, &sqlite)?;
        let snapshot = read_all(&connection, path, &sqlite)?;
        let (jobs, queue) = mpsc::channel();
        let writer =
            std::thread::Builder::new().name("store".to_owned()).spawn(move || write_jobs(&mut connection, &queue)).map_err(io_error)?;
        let store = Self {
            path: path.to_owned(),
            copying: tokio::sync::Mutex::default(),
            jobs: Mutex::new(Some(jobs)),
            writer: Mutex::new(Some(writer)),
        };
        Ok((store, snapshot))
    }

    /// Hands over writes. The receiver resolves when they are on disk; it need not be waited for.
    pub fn write(&self, writes: Vec<Write>) -> oneshot::Receiver<Result<(), NotStored>> {
        let (done, wait) = oneshot::channel();
        let jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        // After `close` the job is dropped, and with it `done`: the waiting side sees that nothing was stored.
        if let Some(jobs) = &*jobs {
            let _ = jobs.send(Job::Write { writes, done });
        }
        wait
    }

    /// A backup of the database with everything handed over before, and of the server's key.
    ///
    /// # Errors
    /// See [`BackupError`].
    pub async fn backup(&self, key: &MachinePrivate) -> Result<Zeroizing<Vec<u8>>, BackupError> {
        let _one_at_a_time = self.copying.lock().await;
        let copied = self.path.with_file_name("backup.partial");
        let _ = std::fs::remove_file(&copied);
        let (done, wait) = oneshot::channel();
        if let Some(jobs) = &*self.jobs.lock().unwrap_or_else(PoisonError::into_inner) {
            let _ = jobs.send(Job::Copy { to: copied.clone(), done });
        }
        let closed = || StoreError::Io { path: self.path.clone(), source: io::Error::other("the database is closed") };
        let result = match wait.await.unwrap_or_else(|_| Err(closed())) {
            Ok(()) => backup::seal(&copied, key).map_err(BackupError::from).and_then(|()| backup::read(&copied)),
            Err(error) => Err(error.into()),
        };
        let _ = std::fs::remove_file(&copied);
        result
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
