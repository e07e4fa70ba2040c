//! The guest's configuration in the appliance: read at each start, its join key dropped once it has served.

use std::path::Path;

use zeroize::Zeroizing;

use super::DaemonError;
use super::state::write_private;
use crate::settings::{Guest, Renewal};

/// Reads the configuration.
pub(super) fn read(path: &Path) -> Result<Guest, DaemonError> {
    let text = std::fs::read_to_string(path).map_err(|source| DaemonError::File { tried: "read", path: path.to_owned(), source })?;
    Guest::from_toml(&Zeroizing::new(text)).map_err(|source| DaemonError::Guest { path: path.to_owned(), source })
}

/// Writes the configuration again without the join key, if it has one.
pub(super) fn drop_auth_key(path: &Path) -> Result<(), DaemonError> {
    let mut guest = read(path)?;
    if guest.node.as_mut().and_then(|node| node.auth_key.take()).is_none() {
        return Ok(());
    }
    write(path, &guest)
}

/// Takes a new identity over: whom the configuration is for, and the join key.
pub(super) fn renew(path: &Path, renewal: &Renewal) -> Result<(), DaemonError> {
    let mut guest = read(path)?;
    guest.vmid = renewal.vmid;
    guest.hostname = renewal.hostname.clone();
    if let Some(node) = guest.node.as_mut() {
        node.auth_key = renewal.auth_key.clone();
    }
    write(path, &guest)
}

fn write(path: &Path, guest: &Guest) -> Result<(), DaemonError> {
    let failed = |e: toml::ser::Error| DaemonError::File { tried: "write", path: path.to_owned(), source: std::io::Error::other(e) };
    write_private(path, Zeroizing::new(toml::to_string(guest).map_err(failed)?).as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_join_key_goes_and_the_rest_stays() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("guest.toml");
        let text = "vmid = 101\nhostname = \"exit-1\"\n[network]\nipv4 = \"dhcp\"\n[node]\nlogin_server = \"http://c\"\nauth_key = \"hidden\"\nport = 7\n";
        std::fs::write(&path, text).unwrap();
        drop_auth_key(&path).unwrap();
        let left = std::fs::read_to_string(&path).unwrap();
        assert!(!left.contains("hidden"));
        let node = read(&path).unwrap().node.unwrap();
        assert_eq!((node.login_server.as_str(), node.port, node.auth_key), ("http://c", 7, None));
    }
}
