//! New keys for a node that is there already: it forgets its own and joins with a key that was put beside them, as a new node with the old
//! one's preferences. What was forgotten is kept until whoever asked says that the new one is in, or takes it back.

use std::path::{Path, PathBuf};

use super::DaemonError;
use super::state::{State, Store, write_private};
use crate::ident::Secret;

/// The join key that asks for it.
const ASKED: &str = "rejoin.key";
/// The state before.
const BEFORE: &str = "state.before.json";
const STATE: &str = "state.json";
/// A join key is far shorter.
const MAX_KEY: usize = 4096;

/// Asks the node in this directory to join anew with this key at its next start.
///
/// # Errors
/// The key is none, or the directory cannot be written.
pub fn ask(directory: &Path, key: &Secret) -> Result<(), DaemonError> {
    let path = directory.join(ASKED);
    if key.expose().is_empty() || key.expose().len() > MAX_KEY {
        return Err(DaemonError::Broken { path, reason: "it holds no join key".to_owned() });
    }
    let _ = std::fs::remove_file(directory.join(BEFORE));
    write_private(&path, key.expose().as_bytes())
}

/// The new node is in: the old one's keys are forgotten for good. True if there were any.
///
/// # Errors
/// They cannot be removed.
pub fn keep(directory: &Path) -> Result<bool, DaemonError> {
    remove(directory.join(BEFORE))
}

/// Takes it back: at its next start the node is the old one. True if it had become another.
///
/// # Errors
/// The files cannot be changed.
pub fn take_back(directory: &Path) -> Result<bool, DaemonError> {
    remove(directory.join(ASKED))?;
    let (before, state) = (directory.join(BEFORE), directory.join(STATE));
    match std::fs::rename(&before, state) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(source) => Err(DaemonError::File { tried: "put back", path: before, source }),
    }
}

fn remove(path: PathBuf) -> Result<bool, DaemonError> {
    match std::fs::remove_file(&path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(source) => Err(DaemonError::File { tried: "remove", path, source }),
    }
}

/// Does what was asked for, if it was, when a node starts.
pub(super) fn obey(store: &Store, directory: &Path, state: &mut State) -> Result<(), DaemonError> {
    let path = directory.join(ASKED);
    let key = match std::fs::read_to_string(&path) {
        Ok(text) => Secret::new(text.trim()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(DaemonError::File { tried: "read", path, source }),
    };
    let old = directory.join(STATE);
    let text = zeroize::Zeroizing::new(std::fs::read(&old).map_err(|source| DaemonError::File { tried: "read", path: old, source })?);
    write_private(&directory.join(BEFORE), &text)?;
    // Before the new state: a node killed here is the old one, and whoever asked sees no new one and takes it back.
    remove(path)?;
    state.discard_keys().map_err(DaemonError::Entropy)?;
    state.auth_key = Some(key);
    store.remove_map();
    store.save(state)?;
    tracing::info!("the node has forgotten its keys and joins as a new one");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_asked_to_has_other_keys_and_can_be_the_old_one_again() {
        let root = tempfile::tempdir().unwrap();
        let store = Store::open(root.path()).unwrap();
        let mut old = store.load().unwrap();
        old.registered = true;
        old.prefs.accept_routes = true;
        old.server_key = Some((old.machine.public(), true));
        store.save(&old).unwrap();
        let mut same = store.load().unwrap();
        obey(&store, root.path(), &mut same).unwrap();
        assert_eq!(same.node.public(), old.node.public());

        ask(root.path(), &Secret::new("join-key")).unwrap();
        let mut new = store.load().unwrap();
        obey(&store, root.path(), &mut new).unwrap();
        assert_ne!(new.machine.public(), old.machine.public());
        assert_ne!(new.node.public(), old.node.public());
        assert_eq!((new.registered, new.prefs.accept_routes, new.server_key), (false, true, old.server_key));
        assert_eq!(new.auth_key.as_ref().unwrap().expose(), "join-key");
        // Once only.
        let mut again = store.load().unwrap();
        obey(&store, root.path(), &mut again).unwrap();
        assert_eq!(again.node.public(), new.node.public());

        assert!(take_back(root.path()).unwrap());
        assert_eq!(store.load().unwrap().node.public(), old.node.public());
        assert!(!take_back(root.path()).unwrap());
        ask(root.path(), &Secret::new("join-key")).unwrap();
        obey(&store, root.path(), &mut store.load().unwrap()).unwrap();
        assert!(keep(root.path()).unwrap());
        assert!(!take_back(root.path()).unwrap());
        assert_ne!(store.load().unwrap().node.public(), old.node.public());
    }

    #[test]
    fn a_key_that_is_none_is_refused() {
        let root = tempfile::tempdir().unwrap();
        assert!(ask(root.path(), &Secret::new("")).is_err());
        assert!(ask(root.path(), &Secret::new("x".repeat(5000))).is_err());
    }
}
