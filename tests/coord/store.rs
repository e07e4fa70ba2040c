//! The database.

use std::path::Path;

use pvemesh::coord::server::{Snapshot, Write};
use pvemesh::sys::store::{Store, StoreError, stored};

use crate::world::World;

fn filled() -> (World, Vec<Write>) {
    let mut world = World::new();
    world.join_with(1, "exit", |k| k.approve_routes = vec!["0.0.0.0/0".parse().unwrap()]);
    world.join(2, "alpha");
    world.settled(2);
    world.drain();
    let writes = world.writes.clone();
    (world, writes)
}

fn read(path: &Path) -> Snapshot {
    Store::open(path).unwrap().1
}

#[tokio::test]
async fn what_is_written_is_found_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("c.sqlite");
    let (world, writes) = filled();
    let (store, empty) = Store::open(&path).unwrap();
    assert_eq!(empty, Snapshot::default());
    for write in writes {
        stored(store.write(vec![write])).await.unwrap();
    }
    drop(store);
    assert_eq!(read(&path), world.stored);
    let (store, found) = Store::open(&path).unwrap();
    let gone = found.nodes[0].id;
    // Not waited for: closing writes what is on its way.
    drop(store.write(vec![Write::RemoveNode(gone), Write::RemoveKey(1)]));
    store.close();
    let after = read(&path);
    assert_eq!((after.nodes.len(), after.keys.len(), after.counters), (1, 1, found.counters));
}

#[tokio::test]
async fn a_write_after_the_end_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(&dir.path().join("c.sqlite")).unwrap();
    store.close();
    assert!(stored(store.write(filled().1)).await.is_err());
}

#[tokio::test]
async fn a_write_that_fails_is_told_and_kept_until_it_succeeds() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("c.sqlite");
    drop(Store::open(&path).unwrap());
    let raw = rusqlite::Connection::open(&path).unwrap();
    // One record is refused by the database itself, once: as if the disk was full for a moment.
    raw.execute_batch(
        "CREATE TABLE tries (n INTEGER);
         CREATE TRIGGER refuse BEFORE INSERT ON users WHEN (SELECT count(*) FROM tries) = 0 BEGIN SELECT raise(ABORT, 'disk is full'); END;
         CREATE TRIGGER heal AFTER INSERT ON join_keys BEGIN INSERT INTO tries VALUES (1); END;",
    )
    .unwrap();
    drop(raw);
    let (world, writes) = filled();
    let (store, _) = Store::open(&path).unwrap();
    let (users, others): (Vec<_>, Vec<_>) = writes.into_iter().partition(|write| matches!(write, Write::User(_)));
    let error = stored(store.write(users)).await.unwrap_err();
    assert!(error.to_string().contains("disk is full"), "{error}");
    // The keys come before the users in the next transaction, and lift the refusal.
    stored(store.write(others)).await.unwrap();
    drop(store);
    assert_eq!(read(&path).users, world.stored.users);
}

#[test]
fn a_newer_database_and_a_damaged_record_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("c.sqlite");
    drop(Store::open(&path).unwrap());
    let raw = rusqlite::Connection::open(&path).unwrap();
    raw.execute("INSERT INTO users (id, record) VALUES (7, '{}')", []).unwrap();
    drop(raw);
    assert!(matches!(Store::open(&path), Err(StoreError::Corrupt { table: "users", id: 7, .. })));
    let raw = rusqlite::Connection::open(&path).unwrap();
    raw.execute("INSERT INTO migrations VALUES (99, 'later')", []).unwrap();
    drop(raw);
    assert!(matches!(Store::open(&path), Err(StoreError::Newer { found: 99, known: 2, .. })));
    std::fs::write(&path, vec![0x55; 8192]).unwrap();
    assert!(matches!(Store::open(&path), Err(StoreError::Sqlite { .. })));
}
