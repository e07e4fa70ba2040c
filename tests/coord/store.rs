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
    assert!(matches!(Store::open(&path), Err(StoreError::Newer { found: 99, known: 3, .. })));
    std::fs::write(&path, vec![0x55; 8192]).unwrap();
    assert!(matches!(Store::open(&path), Err(StoreError::Sqlite { .. })));
}

/// What the first version of the program made.
const VERSION_1: &str = r#"
    CREATE TABLE migrations (version INTEGER PRIMARY KEY, applied TEXT NOT NULL) STRICT;
    CREATE TABLE counters (id INTEGER PRIMARY KEY CHECK (id = 1), record TEXT NOT NULL) STRICT;
    CREATE TABLE users (id INTEGER PRIMARY KEY, record TEXT NOT NULL, name TEXT GENERATED ALWAYS AS (record ->> '$.name') VIRTUAL) STRICT;
    CREATE TABLE join_keys (
        id INTEGER PRIMARY KEY, record TEXT NOT NULL, prefix TEXT GENERATED ALWAYS AS (record ->> '$.prefix') VIRTUAL
    ) STRICT;
    CREATE TABLE nodes (
        id INTEGER PRIMARY KEY, record TEXT NOT NULL, name TEXT GENERATED ALWAYS AS (record ->> '$.name') VIRTUAL,
        machine TEXT GENERATED ALWAYS AS (record ->> '$.machine') VIRTUAL, v4 TEXT GENERATED ALWAYS AS (record ->> '$.v4') VIRTUAL
    ) STRICT;
    INSERT INTO migrations VALUES (1, '2026-08-01 12:00:00');
    INSERT INTO counters VALUES (1, '{"user":1,"key":1,"node":3,"slot":3}');
    INSERT INTO users (id, record) VALUES (1, '{"id":1,"name":"alice","created":"2026-08-01T12:00:00Z"}');
    INSERT INTO join_keys (id, record) VALUES (1, '{"id":1,"prefix":"0123456789ab","digest":"#;

#[tokio::test]
async fn a_database_of_the_first_version_is_brought_up_to_date_and_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("c.sqlite");
    let (hex, mkey, nodekey) = ("ab".repeat(32), "11".repeat(32), "22".repeat(32));
    let old = rusqlite::Connection::open(&path).unwrap();
    old.execute_batch(&format!(
        r#"{VERSION_1}"{hex}","user":1,"reusable":true,"ephemeral":false,"used":true,"revoked":false,"tags":[],
           "approve_routes":[],"only_for":null,"created":"2026-08-01T12:00:00Z","expires":"2027-08-01T12:00:00Z"}}');
           INSERT INTO nodes (id, record) VALUES (3, '{{"id":3,"stable_id":"n0000000000000003","machine":"mkey:{mkey}",
           "key":"nodekey:{nodekey}","disco":"discokey:{zero}","user":1,"name":"exit","renamed":true,"v4":"100.64.0.3",
           "v6":"fd7a:115c:a1e0::3","endpoints":["192.0.2.1:41641"],"version":130,"home_derp":0,"hostinfo":{{"Hostname":"exit"}},
           "advertised":["0.0.0.0/0"],"approved":["0.0.0.0/0","::/0"],"tags":["tag:exit-node"],"ephemeral":false,
           "created":"2026-08-01T12:00:00Z","last_seen":null,"key_expiry":null,"connected":true}}');"#,
        zero = "0".repeat(64)
    ))
    .unwrap();
    drop(old);
    let (store, found) = Store::open(&path).unwrap();
    assert_eq!((found.users[0].name.as_str(), found.counters.node, found.keys[0].address), ("alice", 3, None));
    let node = &found.nodes[0];
    assert!(node.renamed && !node.tags_chosen && !node.never_expires && node.connected && node.approved.len() == 2);
    assert_eq!(found.dns, pvemesh::wire::admin::DnsSettings::default());
    // What is new can be stored, and is there the next time.
    let dns = pvemesh::wire::admin::DnsSettings { search: vec!["home.lan".to_owned()], ..Default::default() };
    stored(store.write(vec![Write::Dns(Box::new(dns.clone()))])).await.unwrap();
    drop(store);
    let again = read(&path);
    assert_eq!((again.dns, &again.nodes, &again.keys), (dns, &found.nodes, &found.keys));
    let world = World::new();
    pvemesh::coord::server::Server::new(crate::world::settings(), [1; 32], read(&path), world.at).unwrap();
}
