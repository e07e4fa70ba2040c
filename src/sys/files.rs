//! Directories of a server's state, and the keys in them.

use std::fs::{DirBuilder, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;
use std::str::FromStr;

use zeroize::Zeroizing;

use crate::ident::{KeyError, MachinePrivate, RelayPrivate};

/// Makes a directory with its parents, if it is missing.
pub(in crate::sys) fn make_dir(path: &Path, mode: u32) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(mode).create(path)
}

/// Makes the directory of the state, for its owner only.
pub(in crate::sys) fn make_state_dir(path: &Path) -> io::Result<()> {
    make_dir(path, 0o700)?;
    std::fs::set_permissions(path, Permissions::from_mode(0o700))
}

/// A private key that a file holds.
pub(in crate::sys) trait PrivateKey: FromStr<Err = KeyError> {
    /// What is written into the file.
    fn text(&self) -> Zeroizing<String>;
}

impl PrivateKey for MachinePrivate {
    fn text(&self) -> Zeroizing<String> {
        self.to_secret_text()
    }
}

impl PrivateKey for RelayPrivate {
    fn text(&self) -> Zeroizing<String> {
        self.to_secret_text()
    }
}

/// The key in a file; made, for its owner only, if there is none.
///
/// A file that does not read is an error and never replaced: clients have pinned the key, a new one would strand them all.
pub(in crate::sys) fn key<K: PrivateKey>(path: &Path, make: impl FnOnce() -> io::Result<K>) -> io::Result<K> {
    match std::fs::read_to_string(path) {
        Ok(text) => {
            let text = Zeroizing::new(text);
            std::fs::set_permissions(path, Permissions::from_mode(0o600))?;
            text.trim()
                .parse()
                .map_err(|e: KeyError| io::Error::other(format!("{e}; restore it from a backup, because clients have pinned it")))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let key = make()?;
            write_whole(path, format!("{}\n", *key.text()).as_bytes())?;
            Ok(key)
        }
        Err(error) => Err(error),
    }
}

/// Writes a file so that a crash leaves either none or all of it.
pub(in crate::sys) fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let partial = path.with_extension("partial");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&partial)?;
    file.set_permissions(Permissions::from_mode(0o600))?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&partial, path)?;
    match path.parent() {
        Some(directory) => std::fs::File::open(directory)?.sync_all(),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::entropy;

    #[test]
    fn trap_34_the_key_stays_the_same_and_a_damaged_one_is_not_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("noise.key");
        let first = key(&path, entropy::machine_key).unwrap();
        assert_eq!(key(&path, entropy::machine_key).unwrap().public(), first.public());
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        std::fs::write(&path, "privkey:12").unwrap();
        assert!(key(&path, entropy::machine_key).is_err());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "privkey:12");
    }
}
