//! Files of a guest: written, hashed, put in another's place, removed.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, Read, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

/// Larger files than this are not written by us through standard input.
const MAX_WRITTEN: u64 = 1 << 20;

/// Why a chore was not done.
#[derive(Debug, thiserror::Error)]
#[error("{tried} {}: {source}", path.display())]
pub struct ChoreError {
    tried: &'static str,
    path: PathBuf,
    source: io::Error,
}

impl ChoreError {
    pub(super) fn new(tried: &'static str, path: &Path, source: io::Error) -> Self {
        Self { tried, path: path.to_owned(), source }
    }
}

/// The SHA-256 of a file in hex.
///
/// # Errors
/// It cannot be read.
pub fn sha256(path: &Path) -> Result<String, ChoreError> {
    let mut digest = Sha256::new();
    File::open(path).and_then(|mut file| io::copy(&mut file, &mut digest)).map_err(|e| ChoreError::new("read", path, e))?;
    Ok(digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Writes a file from a stream, whole or not at all, with these permission bits from the first moment on. Its directory is made, for root
/// alone, if it does not exist.
///
/// # Errors
/// It cannot be written; the old one is still there then.
pub fn write(path: &Path, mode: u32, content: impl Read) -> Result<(), ChoreError> {
    let failed = |error| ChoreError::new("write", path, error);
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("/"));
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(parent).map_err(|e| ChoreError::new("make the directory", parent, e))?;
    let fresh = beside(path, "new");
    let written = (|| {
        let _ = std::fs::remove_file(&fresh);
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&fresh)?;
        let count = io::copy(&mut content.take(MAX_WRITTEN + 1), &mut file)?;
        if count > MAX_WRITTEN {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        file.flush()?;
        file.set_permissions(Permissions::from_mode(mode))?;
        file.sync_all()?;
        std::fs::rename(&fresh, path)?;
        File::open(parent)?.sync_all()
    })();
    written.map_err(|error| {
        let _ = std::fs::remove_file(&fresh);
        failed(error)
    })
}

/// Puts a file in another's place by a rename, so that there is the old one or the new one at every moment; what was there is kept as `keep`.
///
/// # Errors
/// It cannot be done; the old one is still in its place then.
pub fn place(from: &Path, to: &Path, keep: Option<&Path>) -> Result<(), ChoreError> {
    File::open(from).and_then(|file| file.sync_all()).map_err(|e| ChoreError::new("store", from, e))?;
    if let Some(keep) = keep.filter(|_| to.exists()) {
        let failed = |error| ChoreError::new("keep the old one as", keep, error);
        let fresh = beside(keep, "new");
        let _ = std::fs::remove_file(&fresh);
        // A second name for the same file; where the file system has none (some network ones), a copy.
        std::fs::hard_link(to, &fresh).or_else(|_| std::fs::copy(to, &fresh).map(drop)).map_err(failed)?;
        std::fs::rename(&fresh, keep).map_err(failed)?;
    }
    std::fs::rename(from, to).map_err(|e| ChoreError::new("put into its place", to, e))?;
    let parent = to.parent().unwrap_or(Path::new("/"));
    File::open(parent).and_then(|directory| directory.sync_all()).map_err(|e| ChoreError::new("store", parent, e))
}

/// Removes files and directories of ours; gives those that were there.
///
/// # Errors
/// At the first that is there and cannot be removed.
pub fn remove(paths: &[PathBuf]) -> Result<Vec<PathBuf>, ChoreError> {
    let mut removed = Vec::new();
    for path in paths {
        let Ok(meta) = std::fs::symlink_metadata(path) else { continue };
        let gone = if meta.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) };
        gone.map_err(|e| ChoreError::new("remove", path, e))?;
        removed.push(path.clone());
    }
    Ok(removed)
}

/// A name in the same directory, for what is not finished.
fn beside(path: &Path, end: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".");
    name.push(end);
    path.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_written_whole_with_its_mode_and_its_directory() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("etc/pvemesh/guest.toml");
        write(&path, 0o600, &b"first"[..]).unwrap();
        write(&path, 0o640, &b"second"[..]).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "second");
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o640, 0o700));
        assert!(write(&path, 0o600, io::repeat(7)).is_err());
        assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "second");
    }

    #[test]
    fn the_old_program_is_kept_and_the_new_one_is_in_its_place() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        std::fs::write(at("program"), "old").unwrap();
        std::fs::write(at("fresh"), "new").unwrap();
        place(&at("fresh"), &at("program"), Some(&at("program.before"))).unwrap();
        let text = |name: &str| std::fs::read_to_string(at(name)).unwrap();
        assert_eq!((text("program"), text("program.before")), ("new".to_owned(), "old".to_owned()));
        assert!(!at("fresh").exists());
        // Nothing to put there: what is there stays.
        assert!(place(&at("fresh"), &at("program"), Some(&at("program.before"))).is_err());
        assert_eq!(text("program"), "new");
    }

    #[test]
    fn what_is_not_there_need_not_be_removed() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("x/y");
        write(&path, 0o600, &b"z"[..]).unwrap();
        assert_eq!(remove(&[path.clone(), root.path().join("none"), root.path().join("x")]).unwrap().len(), 2);
        assert!(!root.path().join("x").exists());
    }
}
