//! Work on guests: who may do it, and what a run has begun.

use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;

use super::{ConfigError, Store, read_text};
use crate::ident::Vmid;
use crate::plan::journal::Journal;

impl Store {
    /// Takes the right to work on a guest; held until the returned value is dropped.
    ///
    /// # Errors
    /// If another process holds it, or its file cannot be made.
    pub fn lock(&self, vmid: Vmid) -> Result<WorkLock, ConfigError> {
        let path = self.guest_path(vmid, "lock");
        self.make_directory()?;
        let io_error = |source| ConfigError::Io { path: path.clone(), source };
        let file = std::fs::OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path).map_err(io_error)?;
        match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(WorkLock { _file: file, path }),
            Err(rustix::io::Errno::WOULDBLOCK) => Err(ConfigError::Busy(vmid)),
            Err(e) => Err(io_error(e.into())),
        }
    }

    fn journal_path(&self, vmid: Vmid) -> PathBuf {
        self.guest_path(vmid, "journal")
    }

    /// The journal that an earlier run left for this guest.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn journal(&self, vmid: Vmid) -> Result<Option<Journal>, ConfigError> {
        let path = self.journal_path(vmid);
        read_text(&path)?.map(|text| serde_json::from_str(&text).map_err(|e| ConfigError::Content { path, why: e.to_string() })).transpose()
    }

    /// The guests that have a journal, by number.
    ///
    /// # Errors
    /// If the directory is there and cannot be read.
    pub fn journals(&self) -> Result<Vec<Vmid>, ConfigError> {
        let io_error = |source| ConfigError::Io { path: self.directory.clone(), source };
        let entries = match std::fs::read_dir(&self.directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(io_error)?,
        };
        let mut found = Vec::new();
        for entry in entries {
            let name = entry.map_err(io_error)?.file_name();
            found.extend(name.to_str().and_then(|name| name.strip_suffix(".journal")).and_then(|id| id.parse::<Vmid>().ok()));
        }
        found.sort_unstable();
        Ok(found)
    }

    /// Writes the journal; it is on the disk when this returns.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn save_journal(&self, journal: &Journal) -> Result<(), ConfigError> {
        let path = self.journal_path(journal.vmid);
        let text = serde_json::to_string(journal).map_err(|e| ConfigError::Content { path: path.clone(), why: e.to_string() })?;
        self.write(&path, text.as_bytes())
    }

    /// Removes the journal.
    ///
    /// # Errors
    /// If it is there and cannot be removed.
    pub fn drop_journal(&self, vmid: Vmid) -> Result<(), ConfigError> {
        let path = self.journal_path(vmid);
        match std::fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(ConfigError::Io { path, source }),
            _ => Ok(()),
        }
    }
}

/// The right to work on a guest.
#[derive(Debug)]
pub struct WorkLock {
    _file: std::fs::File,
    path: PathBuf,
}

impl Drop for WorkLock {
    fn drop(&mut self) {
        // Removed while still locked; whoever opened it meanwhile holds a lock on a file that nobody finds any more, which at worst
        // lets two runs meet at Proxmox's own lock of the VMID.
        let _ = std::fs::remove_file(&self.path);
    }
}
