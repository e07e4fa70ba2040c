//! Backups: the whole state of a coordinator in one file.
//!
//! A backup is a copy of the database with one more table, which holds the server's key: without the key every client would refuse the
//! restored coordinator, so the two are never apart. It is as secret as the state itself: mode 0600, and never overwritten.

use std::fs::OpenOptions;
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, params};
use zeroize::Zeroizing;

use super::StoreError;
use crate::ident::{MachinePrivate, MachinePublic};

/// The database's name in the directory of the state.
pub const DATABASE: &str = "coordinator.sqlite";
/// The server key's.
pub const KEY: &str = "noise.key";
/// What every SQLite file begins with.
const MAGIC: &[u8] = b"SQLite format 3\0";

/// Why a backup could not be made or restored.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The file is no backup, or damaged.
    #[error("{path} is not a usable backup: {why}")]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// There is state already.
    #[error("there already is a coordinator's state in {0}")]
    Occupied(PathBuf),
    /// There is no state to back up.
    #[error("there is no coordinator's state in {0}")]
    Nothing(PathBuf),
    /// A file cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The database cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What a backup holds.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Contents {
    /// The key that clients have pinned.
    pub server_key: MachinePublic,
    /// How many users.
    pub users: usize,
    /// How many nodes.
    pub nodes: usize,
}

/// Copies an open database to a new file.
pub(super) fn copy(connection: &Connection, to: &Path) -> Result<(), StoreError> {
    let text = to.to_string_lossy();
    connection.execute("VACUUM INTO ?1", params![text]).map(drop).map_err(|source| StoreError::of(to, source))
}

/// Puts the server's key into a copy of the database, which makes it a backup.
pub(super) fn seal(copy: &Path, key: &MachinePrivate) -> Result<(), StoreError> {
    let sealed = (|| {
        let connection = Connection::open(copy)?;
        connection.execute_batch(
            "PRAGMA journal_mode = DELETE; CREATE TABLE backup (id INTEGER PRIMARY KEY CHECK (id = 1), key TEXT NOT NULL) STRICT;",
        )?;
        connection.execute("INSERT INTO backup VALUES (1, ?1)", params![key.to_secret_text().as_str()]).map(drop)
    })();
    sealed.map_err(|source| StoreError::of(copy, source))
}

/// Writes a backup to where the admin wants it.
///
/// # Errors
/// The file exists, or cannot be written; then nothing is left of it.
pub fn save(bytes: &[u8], file: &Path) -> Result<(), BackupError> {
    let io_error = |source| BackupError::Io { path: file.to_owned(), source };
    let mut open = OpenOptions::new().write(true).create_new(true).mode(0o600).open(file).map_err(io_error)?;
    let written = open.write_all(bytes).and_then(|()| open.sync_all());
    if written.is_err() {
        let _ = std::fs::remove_file(file);
    }
    written.map_err(io_error)
}

/// The backup of a coordinator that does not run.
///
/// # Errors
/// See [`BackupError`]; that it runs after all is [`StoreError::InUse`].
pub fn of_directory(state_dir: &Path) -> Result<Zeroizing<Vec<u8>>, BackupError> {
    let database = state_dir.join(DATABASE);
    if !database.is_file() {
        return Err(BackupError::Nothing(state_dir.to_owned()));
    }
    let key = read_key(&state_dir.join(KEY))?;
    let connection = exclusively(&database)?;
    let copied = state_dir.join("backup.partial");
    let _ = std::fs::remove_file(&copied);
    let taken = copy(&connection, &copied).and_then(|()| seal(&copied, &key)).map_err(BackupError::from).and_then(|()| read(&copied));
    let _ = std::fs::remove_file(&copied);
    taken
}

/// Puts a backup in place as the state of a coordinator that does not run. State that is there is refused, or with `replace` kept beside
/// it under names ending in `.old`.
///
/// # Errors
/// See [`BackupError`]. Nothing has changed then, unless the disk failed midway.
pub fn restore(file: &Path, state_dir: &Path, replace: bool) -> Result<Contents, BackupError> {
    let io_error = |path: &Path| {
        let path = path.to_owned();
        move |source| BackupError::Io { path, source }
    };
    let bytes = read(file)?;
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(state_dir);
    made.map_err(io_error(state_dir))?;
    let (database, key_file) = (state_dir.join(DATABASE), state_dir.join(KEY));
    if database.exists() {
        // A coordinator that runs holds it. Closing it tidies its journal away.
        drop(exclusively(&database)?);
    }
    let occupied = database.exists() || key_file.exists();
    if occupied && !replace {
        return Err(BackupError::Occupied(state_dir.to_owned()));
    }
    let (new_database, new_key) = (state_dir.join("coordinator.restored"), state_dir.join("noise.restored"));
    let prepared = (|| {
        write(&new_database, &bytes)?;
        let (contents, key) = open_backup(&new_database, file)?;
        write(&new_key, key.as_bytes())?;
        Ok(contents)
    })();
    let contents = match prepared {
        Ok(contents) => contents,
        Err(error) => {
            let _ = std::fs::remove_file(&new_database);
            let _ = std::fs::remove_file(&new_key);
            return Err(error);
        }
    };
    for path in [&database, &key_file].into_iter().filter(|path| path.exists()) {
        let mut old = path.clone().into_os_string();
        old.push(".old");
        std::fs::rename(path, &old).map_err(io_error(path))?;
    }
    std::fs::rename(&new_key, &key_file).map_err(io_error(&key_file))?;
    std::fs::rename(&new_database, &database).map_err(io_error(&database))?;
    std::fs::File::open(state_dir).and_then(|directory| directory.sync_all()).map_err(io_error(state_dir))?;
    Ok(contents)
}

/// Checks a copied backup and takes the key out of it, so that a plain database is left.
fn open_backup(copied: &Path, original: &Path) -> Result<(Contents, Zeroizing<String>), BackupError> {
    let unusable = |why: String| BackupError::Unusable { path: original.to_owned(), why };
    let sqlite = |source: rusqlite::Error| BackupError::Unusable { path: original.to_owned(), why: source.to_string() };
    let connection = Connection::open(copied).map_err(sqlite)?;
    let found: String = connection.query_row("PRAGMA integrity_check(1)", [], |row| row.get(0)).map_err(sqlite)?;
    if found != "ok" {
        return Err(unusable(format!("it is damaged ({found})")));
    }
    let key: Zeroizing<String> = connection
        .query_row("SELECT key FROM backup", [], |row| row.get(0).map(Zeroizing::new))
        .map_err(|_| unusable("it holds no server key: was it made by `pvemesh coordinator backup`?".to_owned()))?;
    let parsed: MachinePrivate = key.parse().map_err(|e| unusable(format!("the server key in it does not read ({e})")))?;
    // The rows of a dropped table stay in the file until it is written anew.
    connection.execute_batch("PRAGMA secure_delete = ON; DROP TABLE backup; VACUUM;").map_err(sqlite)?;
    drop(connection);
    let (store, snapshot) = super::Store::open(copied)?;
    store.close();
    let contents = Contents { server_key: parsed.public(), users: snapshot.users.len(), nodes: snapshot.nodes.len() };
    Ok((contents, Zeroizing::new(format!("{}\n", key.as_str()))))
}

/// Opens a database that nobody else may have open.
fn exclusively(database: &Path) -> Result<Connection, BackupError> {
    let opened = (|| {
        let connection = Connection::open_with_flags(database, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
        connection.busy_timeout(Duration::ZERO)?;
        connection.execute_batch("PRAGMA locking_mode = EXCLUSIVE; BEGIN EXCLUSIVE; COMMIT;")?;
        Ok(connection)
    })();
    opened.map_err(|source| StoreError::of(database, source).into())
}

fn read_key(path: &Path) -> Result<MachinePrivate, BackupError> {
    let text = std::fs::read_to_string(path).map(Zeroizing::new);
    let text = text.map_err(|source| BackupError::Io { path: path.to_owned(), source })?;
    text.trim().parse().map_err(|e| BackupError::Io { path: path.to_owned(), source: io::Error::other(format!("{e}")) })
}

pub(super) fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, BackupError> {
    let mut bytes = Zeroizing::new(Vec::new());
    let read = std::fs::File::open(path).and_then(|mut file| file.read_to_end(&mut bytes));
    read.map_err(|source| BackupError::Io { path: path.to_owned(), source })?;
    if !bytes.starts_with(MAGIC) {
        return Err(BackupError::Unusable { path: path.to_owned(), why: "it is no SQLite file".to_owned() });
    }
    Ok(bytes)
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), BackupError> {
    let _ = std::fs::remove_file(path);
    save(bytes, path)
}
