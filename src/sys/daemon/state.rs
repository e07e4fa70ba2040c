//! What a node keeps on disk: `state.json` (keys, preferences) and `map.json` (the last network map), both 0600, in a 0700 directory.
//!
//! Files are replaced as a whole: written beside, synced, renamed. A node killed at any moment finds the old file or the new one.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::DaemonError;
use crate::coord::client::NetMap;
use crate::ident::{MachinePrivate, MachinePublic, NodePrivate, NodePublic, Secret};
use crate::node::Prefs;
use crate::sys::entropy;

/// What a node needs on disk at least: keys, preferences, and a log that says why it does not start.
const ROOM: usize = 32 * 1024;

/// Larger files than this are not ours.
const MAX_FILE: u64 = 64 * 1024 * 1024;

/// The state file.
#[derive(Debug, Clone)]
pub struct State {
    /// The machine key: who this installation is.
    pub machine: MachinePrivate,
    /// The node key.
    pub node: NodePrivate,
    /// The node key before it; zero if there was none.
    pub previous: NodePublic,
    /// The coordinator's key and whether another one is refused whatever vouches for it.
    pub server_key: Option<(MachinePublic, bool)>,
    /// The coordinator has let the node in with this key.
    pub registered: bool,
    /// Whose node it is, as the coordinator said.
    pub login: String,
    /// The join key, until it has served.
    pub auth_key: Option<Secret>,
    /// What the user wants.
    pub prefs: Prefs,
    /// Own addresses, for the reader of the file.
    pub addresses: Vec<IpNet>,
    /// Where the coordinator was reached last, for when its name does not resolve.
    pub coordinator: Option<IpAddr>,
}

/// How [`State`] is written.
#[derive(Serialize, Deserialize)]
struct Written {
    machine_key: Secret,
    node_key: Secret,
    #[serde(default)]
    previous_node_key: NodePublic,
    #[serde(default)]
    server_key: Option<(MachinePublic, bool)>,
    #[serde(default)]
    registered: bool,
    #[serde(default)]
    login: String,
    #[serde(default)]
    auth_key: Option<Secret>,
    prefs: Prefs,
    #[serde(default)]
    addresses: Vec<IpNet>,
    #[serde(default)]
    coordinator: Option<IpAddr>,
}

impl State {
    /// A new identity.
    fn fresh() -> io::Result<Self> {
        Ok(Self {
            machine: entropy::machine_key()?,
            node: entropy::node_key()?,
            previous: NodePublic::ZERO,
            server_key: None,
            registered: false,
            login: String::new(),
            auth_key: None,
            prefs: Prefs::default(),
            addresses: Vec::new(),
            coordinator: None,
        })
    }

    /// Forgets every key and the coordinator's knowledge of them; which coordinator it is, and its key, stay.
    ///
    /// # Errors
    /// The system has no randomness.
    pub fn discard_keys(&mut self) -> io::Result<()> {
        let pinned = self.server_key;
        self.leave()?;
        self.machine = entropy::machine_key()?;
        self.server_key = pinned;
        Ok(())
    }

    /// Forgets what belongs to the coordinator: another one gets another node key, and neither pin nor registration carries over.
    ///
    /// # Errors
    /// The system has no randomness.
    pub fn leave(&mut self) -> io::Result<()> {
        self.node = entropy::node_key()?;
        self.previous = NodePublic::ZERO;
        self.server_key = None;
        self.registered = false;
        self.login.clear();
        self.auth_key = None;
        self.addresses.clear();
        self.coordinator = None;
        Ok(())
    }
}

/// The directory with a node's files.
#[derive(Debug, Clone)]
pub struct Store {
    directory: PathBuf,
}

impl Store {
    /// Opens the directory, made if it does not exist.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn open(directory: &Path) -> Result<Self, DaemonError> {
        private_directory(directory)?;
        Ok(Self { directory: directory.to_owned() })
    }

    /// Where it is.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Takes the lock that keeps a second node off these files. It lasts as long as the file is open.
    ///
    /// # Errors
    /// Another process has it.
    pub fn lock(&self) -> Result<File, DaemonError> {
        let path = self.directory.join("lock");
        let file =
            OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path).map_err(|source| DaemonError::File {
                tried: "open",
                path: path.clone(),
                source,
            })?;
        file.try_lock().map_err(|_| DaemonError::Running(self.directory.clone()))?;
        Ok(file)
    }

    /// Reads the state, or makes a new identity and stores it.
    ///
    /// # Errors
    /// The file exists and cannot be read. It is not replaced then: it may hold the only copy of the node's identity.
    pub fn load(&self) -> Result<State, DaemonError> {
        let path = self.directory.join("state.json");
        let Some(text) = read(&path)? else {
            let state = State::fresh().map_err(DaemonError::Entropy)?;
            self.save(&state)?;
            return Ok(state);
        };
        let broken = |reason: String| DaemonError::Broken { path: path.clone(), reason };
        let written: Written = serde_json::from_slice(&text).map_err(|e| broken(format!("line {}, column {}", e.line(), e.column())))?;
        Ok(State {
            machine: written.machine_key.expose().parse().map_err(|_| broken("machine_key is not a key".to_owned()))?,
            node: written.node_key.expose().parse().map_err(|_| broken("node_key is not a key".to_owned()))?,
            previous: written.previous_node_key,
            server_key: written.server_key,
            registered: written.registered,
            login: written.login,
            auth_key: written.auth_key,
            prefs: written.prefs,
            addresses: written.addresses,
            coordinator: written.coordinator,
        })
    }

    /// Writes the state.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn save(&self, state: &State) -> Result<(), DaemonError> {
        let written = Written {
            machine_key: Secret::new(state.machine.to_secret_text().as_str()),
            node_key: Secret::new(state.node.to_secret_text().as_str()),
            previous_node_key: state.previous,
            server_key: state.server_key,
            registered: state.registered,
            login: state.login.clone(),
            auth_key: state.auth_key.clone(),
            prefs: state.prefs.clone(),
            addresses: state.addresses.clone(),
            coordinator: state.coordinator,
        };
        let text = Zeroizing::new(serde_json::to_vec_pretty(&written).map_err(|e| self.unwritable("state.json", e))?);
        write_private(&self.directory.join("state.json"), &text)
    }

    /// Reads the last map; `None` if there is none, or none that can be used.
    pub fn load_map(&self) -> Option<NetMap> {
        let text = read(&self.directory.join("map.json")).ok().flatten()?;
        serde_json::from_slice(&text).ok()
    }

    /// Keeps a map for the next start.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn save_map(&self, map: &NetMap) -> Result<(), DaemonError> {
        let text = serde_json::to_vec(map).map_err(|e| self.unwritable("map.json", e))?;
        write_private(&self.directory.join("map.json"), &text)
    }

    /// Forgets the map.
    pub fn remove_map(&self) {
        let _ = std::fs::remove_file(self.directory.join("map.json"));
    }

    fn unwritable(&self, name: &str, error: serde_json::Error) -> DaemonError {
        DaemonError::File { tried: "write", path: self.directory.join(name), source: error.into() }
    }
}

/// Makes a directory that only its owner can enter; an existing one stays as it is.
///
/// # Errors
/// It cannot be made.
pub fn private_directory(path: &Path) -> Result<(), DaemonError> {
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(|source| DaemonError::File { tried: "make the directory", path: path.to_owned(), source })
}

fn read(path: &Path) -> Result<Option<Zeroizing<Vec<u8>>>, DaemonError> {
    let failed = |source| DaemonError::File { tried: "read", path: path.to_owned(), source };
    match std::fs::metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(failed(e)),
        Ok(meta) if meta.len() > MAX_FILE => return Err(failed(io::ErrorKind::FileTooLarge.into())),
        Ok(_) => {}
    }
    std::fs::read(path).map(|text| Some(Zeroizing::new(text))).map_err(failed)
}

/// Replaces a file by a rename; only its owner can read it, also while it is being written.
///
/// # Errors
/// The disk refuses; the old file is still there then.
pub fn write_private(path: &Path, bytes: &[u8]) -> Result<(), DaemonError> {
    let fresh = path.with_extension("new");
    let write = || -> io::Result<()> {
        let _ = std::fs::remove_file(&fresh);
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&fresh)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&fresh, path)
    };
    write().map_err(|source| {
        // A full disk has no use for half a file.
        let _ = std::fs::remove_file(&fresh);
        DaemonError::File { tried: "write", path: path.to_owned(), source }
    })
}

/// Checks that a state directory, made if it does not exist, takes files of the size that a node keeps there.
///
/// # Errors
/// It does not, and why.
pub fn check_directory(path: &Path) -> Result<(), DaemonError> {
    private_directory(path)?;
    let probe = path.join("probe");
    write_private(&probe, &[0; ROOM])?;
    let _ = std::fs::remove_file(&probe);
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn an_identity_is_made_once_and_kept_private() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(&directory.path().join("node")).unwrap();
        let mut first = store.load().unwrap();
        first.auth_key = Some(Secret::new("k"));
        first.prefs.exit_node = "home".to_owned();
        store.save(&first).unwrap();
        let again = store.load().unwrap();
        assert_eq!((again.machine.public(), again.node.public()), (first.machine.public(), first.node.public()));
        assert_eq!((again.auth_key.unwrap().expose(), again.prefs.exit_node.as_str()), ("k", "home"));
        let mode = |name: &str| std::fs::metadata(directory.path().join(name)).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode("node"), mode("node/state.json")), (0o700, 0o600));
    }

    #[test]
    fn a_broken_file_is_not_replaced_by_a_new_identity() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        std::fs::write(directory.path().join("state.json"), "{\"machine_key\":\"privkey:secret").unwrap();
        let error = store.load().unwrap_err().to_string();
        assert!(error.contains("state.json") && !error.contains("secret"), "{error}");
        assert!(std::fs::read_to_string(directory.path().join("state.json")).unwrap().contains("secret"));
    }

    #[test]
    fn a_second_process_is_kept_off() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let lock = store.lock().unwrap();
        assert!(matches!(store.lock(), Err(DaemonError::Running(_))));
        drop(lock);
        assert!(store.lock().is_ok());
    }

    #[test]
    fn no_key_is_shown_by_debug() {
        let state = State::fresh().unwrap();
        let shown = format!("{state:?}");
        let secret = state.machine.to_secret_text();
        assert!(!shown.contains(secret.trim_start_matches("privkey:")), "{shown}");
    }
}
