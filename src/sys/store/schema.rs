//! The tables, how an older database is brought to them, and the reading of everything.
//!
//! Records are JSON with the fields of their type: a field that is new needs a default and no new version.

use std::path::Path;

use rusqlite::{Connection, params};
use serde::de::DeserializeOwned;

use super::StoreError;
use crate::coord::server::Snapshot;

/// The statements that lead from one version of the database to the next. Only ever appended to.
const MIGRATIONS: [&str; 3] = [
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
    "
    CREATE TABLE relays (id INTEGER PRIMARY KEY, record TEXT NOT NULL) STRICT;
    ",
];

/// The newest version known.
pub(super) const VERSION: i64 = MIGRATIONS.len() as i64;

pub(super) fn prepare(connection: &mut Connection, path: &Path, sqlite: &impl Fn(rusqlite::Error) -> StoreError) -> Result<(), StoreError> {
    // Exclusive before WAL: then no shared memory file is needed, and a second process is refused at once.
    connection
        .execute_batch("PRAGMA locking_mode = EXCLUSIVE; PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON;")
        .map_err(sqlite)?;
    let change = connection.transaction_with_behavior(rusqlite::TransactionBehavior::Exclusive).map_err(sqlite)?;
    change
        .execute_batch("CREATE TABLE IF NOT EXISTS migrations (version INTEGER PRIMARY KEY, applied TEXT NOT NULL) STRICT")
        .map_err(sqlite)?;
    let found: i64 = change.query_row("SELECT coalesce(max(version), 0) FROM migrations", [], |row| row.get(0)).map_err(sqlite)?;
    if found > VERSION {
        return Err(StoreError::Newer { path: path.to_owned(), found, known: VERSION });
    }
    for (version, statements) in (1..).zip(MIGRATIONS).skip(usize::try_from(found).unwrap_or(0)) {
        change.execute_batch(statements).map_err(sqlite)?;
        change.execute("INSERT INTO migrations VALUES (?1, datetime('now'))", params![version]).map_err(sqlite)?;
    }
    change.commit().map_err(sqlite)
}

pub(super) fn read_all(
    connection: &Connection,
    path: &Path,
    sqlite: &impl Fn(rusqlite::Error) -> StoreError,
) -> Result<Snapshot, StoreError> {
    Ok(Snapshot {
        users: read_table(connection, path, "users", sqlite)?,
        keys: read_table(connection, path, "join_keys", sqlite)?,
        nodes: read_table(connection, path, "nodes", sqlite)?,
        counters: read_table(connection, path, "counters", sqlite)?.pop().unwrap_or_default(),
        dns: read_table(connection, path, "dns", sqlite)?.pop().unwrap_or_default(),
        relays: read_table(connection, path, "relays", sqlite)?,
        policy: read_table(connection, path, "policy", sqlite)?.pop(),
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
