//! Files read whole, and those that hold a secret.

use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use super::ConfigError;
use crate::ident::Secret;

/// Larger files than this are none of ours.
const MAX_FILE: u64 = 1 << 20;

/// Reads a secret from a file that only its owner may read; the last line break is not part of it.
///
/// # Errors
/// If it cannot be read, is empty, or others may read or change it.
pub fn read_secret(path: &Path) -> Result<Secret, ConfigError> {
    let io_error = |source| ConfigError::Io { path: path.to_owned(), source };
    let metadata = std::fs::metadata(path).map_err(io_error)?;
    let mode = metadata.permissions().mode() & 0o777;
    // A pipe (`--password-file /dev/stdin`, process substitution) has no readers to be wary of.
    if metadata.is_file() && mode & 0o027 != 0 {
        return Err(ConfigError::Exposed { path: path.to_owned(), mode });
    }
    let text = read_text(path)?.unwrap_or_default();
    let secret = text.trim_end_matches(['\n', '\r']);
    if secret.is_empty() || secret.contains('\n') {
        return Err(ConfigError::Content { path: path.to_owned(), why: "it should hold one line, the secret".to_owned() });
    }
    Ok(Secret::new(secret))
}

/// A file's text; `None` if there is no such file.
pub(super) fn read_text(path: &Path) -> Result<Option<String>, ConfigError> {
    let io_error = |source| ConfigError::Io { path: path.to_owned(), source };
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(io_error(e)),
    };
    let mut text = String::new();
    io::Read::read_to_string(&mut io::Read::take(file, MAX_FILE), &mut text).map_err(io_error)?;
    Ok(Some(text))
}
