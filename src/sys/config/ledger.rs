//! What is remembered of guests, `guests.json`, and the right to bring guests up to date.

use std::os::unix::fs::OpenOptionsExt as _;
use std::time::{Duration, Instant};

use super::{ConfigError, Store, read_text};
use crate::plan::ledger::Ledger;

/// Pause between two tries for the right.
const PAUSE: Duration = Duration::from_millis(100);

/// The right to bring guests up to date; only who has it writes the ledger.
#[derive(Debug)]
pub struct SyncLock {
    _file: std::fs::File,
}

impl Store {
    /// What is remembered of guests; nothing, without a file.
    ///
    /// # Errors
    /// If the file cannot be read or has something else in it.
    pub fn ledger(&self) -> Result<Ledger, ConfigError> {
        let path = self.path("guests.json");
        let Some(text) = read_text(&path)? else { return Ok(Ledger::default()) };
        serde_json::from_str(&text).map_err(|e| ConfigError::Content { path, why: e.to_string() })
    }

    /// Writes what is remembered; an empty ledger is no file.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn save_ledger(&self, ledger: &Ledger, _right: &SyncLock) -> Result<(), ConfigError> {
        let path = self.path("guests.json");
        if *ledger == Ledger::default() {
            return match std::fs::remove_file(&path) {
                Err(source) if source.kind() != std::io::ErrorKind::NotFound => Err(ConfigError::Io { path, source }),
                _ => Ok(()),
            };
        }
        let text = serde_json::to_string_pretty(ledger).map_err(|e| ConfigError::Content { path: path.clone(), why: e.to_string() })?;
        self.write(&path, text.as_bytes())
    }

    /// Takes the right to bring guests up to date, waiting for it at most so long.
    ///
    /// # Errors
    /// If another process keeps it, or its file cannot be made.
    pub fn sync_lock(&self, patience: Duration) -> Result<SyncLock, ConfigError> {
        self.make_directory()?;
        let path = self.path("sync.lock");
        let io_error = |source| ConfigError::Io { path: path.clone(), source };
        let file = std::fs::OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path).map_err(io_error)?;
        let begun = Instant::now();
        loop {
            match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(SyncLock { _file: file }),
                Err(rustix::io::Errno::WOULDBLOCK) if begun.elapsed() < patience => std::thread::sleep(PAUSE),
                Err(rustix::io::Errno::WOULDBLOCK) => return Err(ConfigError::Syncing),
                Err(e) => return Err(io_error(e.into())),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::ledger::Attached;

    #[test]
    fn the_ledger_is_kept_and_an_empty_one_leaves_no_file() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::at(dir.path().to_owned());
        let right = store.sync_lock(Duration::ZERO).unwrap();
        assert!(matches!(store.sync_lock(Duration::ZERO), Err(ConfigError::Syncing)));
        assert_eq!(store.ledger().unwrap(), Ledger::default());
        let attached = Attached {
            name: "nas".parse().unwrap(),
            container: false,
            macs: vec!["BC:24:11:00:00:01".parse().unwrap()],
            route: true,
            record: Some("nas.mesh.internal".to_owned()),
            addresses: vec!["192.168.50.20".parse().unwrap()],
            approved: vec![(crate::ident::NodeId(3), "192.168.50.20/32".parse().unwrap())],
        };
        let ledger = Ledger { attached: [("200".parse().unwrap(), attached)].into(), ..Ledger::default() };
        store.save_ledger(&ledger, &right).unwrap();
        assert_eq!(store.ledger().unwrap(), ledger);
        store.save_ledger(&Ledger::default(), &right).unwrap();
        assert!(!store.path("guests.json").exists());
        drop(right);
        assert!(store.sync_lock(Duration::ZERO).is_ok());
    }
}
