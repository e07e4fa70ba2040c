//! Where a guest's configuration comes from, and where it is kept.
//!
//! 1. the environment variable `PVEMESH_CONFIG`, base64 of the TOML (Proxmox 9.1 on gives it to PID 1 alone);
//! 2. `/etc/pvemesh/guest.toml`, in a per-container image or pushed into the container; taken away once stored, since it holds the join key;
//! 3. `/var/lib/pvemesh/guest.toml`, stored at an earlier start.
//!
//! The variable is there at every start. It is stored only when it differs from what was delivered last, or else a join key that the node
//! has dropped from the stored file after use would come back.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest as _, Sha256};

use crate::settings::{Guest, GuestError, RENEWAL_FILE, RENEWAL_VARIABLE, Renewal};
use crate::sys::image::GUEST_CONFIG;

/// The environment variable.
pub const VARIABLE: &str = "PVEMESH_CONFIG";
/// The stored configuration, below the root.
pub const STORED: &str = "/var/lib/pvemesh/guest.toml";
/// The hash of what was delivered last.
const DELIVERED: &str = "/var/lib/pvemesh/guest.delivered";
/// A configuration has some hundred bytes.
const MAX_TEXT: usize = 64 * 1024;

/// Why there is no configuration. Nothing of its text is quoted.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Neither delivered nor stored.
    #[error("no configuration: {VARIABLE} is not set, and neither {GUEST_CONFIG} nor {STORED} exists")]
    Missing,
    /// The variable is not base64 of a text.
    #[error("{VARIABLE} is not base64 of a TOML text")]
    Encoding,
    /// The text is too long.
    #[error("{0} is longer than {MAX_TEXT} bytes")]
    TooLong(&'static str),
    /// The text was refused.
    #[error("{place}: {error}")]
    Refused {
        /// Where the text came from.
        place: &'static str,
        /// What is wrong with it.
        error: GuestError,
    },
    /// A file could not be read or written.
    #[error("{tried} {path}: {error}")]
    File {
        /// What was tried.
        tried: &'static str,
        /// The file.
        path: PathBuf,
        /// What happened.
        error: io::Error,
    },
}

fn below(root: &Path, path: &str) -> PathBuf {
    root.join(path.trim_start_matches('/'))
}

/// Reads the guest's configuration and stores what was newly delivered. `root` is `/`, `variable` the value of [`VARIABLE`].
///
/// # Errors
///
/// When there is none, or it is refused, or cannot be stored. A refused delivery does not fall back to the stored one: whoever changed
/// the configuration should see that the change is wrong.
pub fn read(root: &Path, variable: Option<&str>) -> Result<Guest, ConfigError> {
    let file = below(root, GUEST_CONFIG);
    let stored = below(root, STORED);
    let mark = below(root, DELIVERED);
    let (place, text) = match variable {
        Some(variable) => (VARIABLE, Some(decode(variable)?)),
        None => (GUEST_CONFIG, read_text(&file, GUEST_CONFIG)?),
    };
    let Some(text) = text else {
        let text = read_text(&stored, STORED)?.ok_or(ConfigError::Missing)?;
        return parse(STORED, &text);
    };
    let hash = format!("{:x}\n", Sha256::digest(&text));
    if variable.is_some() && stored.exists() && read_text(&mark, DELIVERED)?.as_ref() == Some(&hash) {
        let text = read_text(&stored, STORED)?.ok_or(ConfigError::Missing)?;
        return parse(STORED, &text);
    }
    let guest = parse(place, &text)?;
    private_directory(stored.parent().unwrap_or(root))?;
    write_private(&stored, text.as_bytes())?;
    write_private(&mark, hash.as_bytes())?;
    if variable.is_none()
        && let Err(error) = std::fs::remove_file(&file)
    {
        tracing::warn!(%error, "{GUEST_CONFIG} stays, with what it holds");
    }
    Ok(guest)
}

/// Puts a new identity that came by the environment where the node takes it from. The variable may be there at later starts, too; the
/// node passes over what it has taken once.
///
/// # Errors
///
/// When it does not read, or cannot be stored.
pub(super) fn take_renewal(root: &Path, variable: &str) -> Result<(), ConfigError> {
    let text = decode(variable)?;
    Renewal::from_toml(&text).map_err(|error| ConfigError::Refused { place: RENEWAL_VARIABLE, error })?;
    let path = below(root, RENEWAL_FILE);
    private_directory(path.parent().unwrap_or(root))?;
    write_private(&path, text.as_bytes())
}

fn parse(place: &'static str, text: &str) -> Result<Guest, ConfigError> {
    Guest::from_toml(text).map_err(|error| ConfigError::Refused { place, error })
}

fn decode(variable: &str) -> Result<String, ConfigError> {
    if variable.len() > MAX_TEXT / 3 * 4 {
        return Err(ConfigError::TooLong(VARIABLE));
    }
    let bytes = STANDARD.decode(variable.trim()).map_err(|_| ConfigError::Encoding)?;
    String::from_utf8(bytes).map_err(|_| ConfigError::Encoding)
}

fn read_text(path: &Path, place: &'static str) -> Result<Option<String>, ConfigError> {
    let failed = |error| ConfigError::File { tried: "read", path: path.to_owned(), error };
    match std::fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed(error)),
        Ok(metadata) if metadata.len() > MAX_TEXT as u64 => Err(ConfigError::TooLong(place)),
        Ok(_) => std::fs::read_to_string(path).map(Some).map_err(failed),
    }
}

/// Makes a directory that only its owner can enter, or makes it so.
///
/// # Errors
///
/// When the file system refuses.
pub(super) fn private_directory(path: &Path) -> Result<(), ConfigError> {
    let failed = |error| ConfigError::File { tried: "make", path: path.to_owned(), error };
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700)).map_err(failed)
}

/// Writes a file that only its owner can read, whole or not at all, also when the power fails.
fn write_private(path: &Path, bytes: &[u8]) -> Result<(), ConfigError> {
    let fresh = path.with_extension("new");
    let write = || -> io::Result<()> {
        let _ = std::fs::remove_file(&fresh);
        let mut file = File::options().write(true).create_new(true).mode(0o600).open(&fresh)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&fresh, path)?;
        path.parent().map_or(Ok(()), |parent| File::open(parent)?.sync_all())
    };
    write().map_err(|error| ConfigError::File { tried: "store", path: path.to_owned(), error })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str =
        "vmid = 101\nhostname = \"exit-1\"\n[network]\nipv4 = \"dhcp\"\n[node]\nlogin_server = \"http://c\"\nauth_key = \"hidden-key\"\n";

    #[test]
    fn a_variable_is_stored_once_and_a_dropped_key_does_not_come_back() {
        let root = tempfile::tempdir().unwrap();
        let variable = STANDARD.encode(TEXT);
        let guest = read(root.path(), Some(&variable)).unwrap();
        assert!(guest.node.unwrap().auth_key.is_some());
        let stored = below(root.path(), STORED);
        assert_eq!(std::fs::metadata(&stored).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::metadata(stored.parent().unwrap()).unwrap().permissions().mode() & 0o777, 0o700);
        std::fs::write(&stored, TEXT.replace("auth_key = \"hidden-key\"\n", "")).unwrap();
        assert_eq!(read(root.path(), Some(&variable)).unwrap().node.unwrap().auth_key, None);
        assert_eq!(read(root.path(), None).unwrap().node.unwrap().auth_key, None);
        let changed = STANDARD.encode(TEXT.replace("exit-1", "exit-2"));
        assert_eq!(read(root.path(), Some(&changed)).unwrap().hostname.as_str(), "exit-2");
    }

    #[test]
    fn a_file_in_the_image_is_stored_and_taken_away() {
        let root = tempfile::tempdir().unwrap();
        let file = below(root.path(), GUEST_CONFIG);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(&file, TEXT).unwrap();
        let guest = read(root.path(), None).unwrap();
        assert!(!file.exists());
        assert_eq!(read(root.path(), None).unwrap(), guest);
    }

    #[test]
    fn a_new_identity_is_put_where_the_node_takes_it_from() {
        let root = tempfile::tempdir().unwrap();
        let text = "vmid = 102\nhostname = \"exit-2\"\ngeneration = 1\nauth_key = \"hidden-key\"\n";
        take_renewal(root.path(), &STANDARD.encode(text)).unwrap();
        let path = below(root.path(), RENEWAL_FILE);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let error = take_renewal(root.path(), &STANDARD.encode(text.replace("vmid", "wmid"))).unwrap_err();
        assert!(!format!("{error} {error:?}").contains("hidden-key"), "{error}");
    }

    #[test]
    fn bad_configurations_are_told_without_their_text() {
        let root = tempfile::tempdir().unwrap();
        assert!(matches!(read(root.path(), None), Err(ConfigError::Missing)));
        for (text, encode) in [(TEXT.replace("vmid", "wmid"), true), ("hidden-key=".to_owned(), false), ("x".repeat(1 << 20), false)] {
            let variable = if encode { STANDARD.encode(text) } else { text };
            let error = read(root.path(), Some(&variable)).unwrap_err();
            assert!(!format!("{error} {error:?}").contains("hidden-key"), "{error}");
        }
        assert!(!below(root.path(), STORED).exists());
    }
}
