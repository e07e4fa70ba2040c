//! The directory of the coordinator's state, and its key.

use std::fs::{DirBuilder, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

use crate::ident::MachinePrivate;
use crate::sys::entropy;

/// Makes a directory with its parents, if it is missing.
pub(super) fn make_dir(path: &Path, mode: u32) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(mode).create(path)
}

/// Makes the directory of the state, for its owner only.
pub(super) fn make_state_dir(path: &Path) -> io::Result<()> {
    make_dir(path, 0o700)?;
    std::fs::set_permissions(path, Permissions::from_mode(0o700))
}

/// The key in a file; made, for its owner only, if there is none.
///
/// A file that does not read is an error and never replaced: clients have pinned the key, a new one would strand them all.
pub(super) fn machine_key(path: &Path) -> io::Result<MachinePrivate> {
    match std::fs::read_to_string(path) {
        Ok(text) => {
            let text = zeroize::Zeroizing::new(text);
            std::fs::set_permissions(path, Permissions::from_mode(0o600))?;
            text.trim().parse().map_err(|e| io::Error::other(format!("{e}; restore it from a backup, because clients have pinned it")))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let key = entropy::machine_key()?;
            write_whole(path, format!("{}\n", *key.to_secret_text()).as_bytes())?;
            Ok(key)
        }
        Err(error) => Err(error),
    }
}

/// Writes a file so that a crash leaves either none or all of it.
pub(super) fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
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

    #[test]
    fn trap_34_the_key_stays_the_same_and_a_damaged_one_is_not_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("noise.key");
        let first = machine_key(&path).unwrap();
        assert_eq!(machine_key(&path).unwrap().public(), first.public());
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        std::fs::write(&path, "privkey:12").unwrap();
        assert!(machine_key(&path).is_err());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "privkey:12");
    }
}
