//! The node's keys and the guest they belong to: looks, has `node::binding` decide, and does it.

use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use super::state::write_private;
use super::{DaemonError, guest};
use crate::ident::Mac;
use crate::node::binding::{Binding, Cause, Here, Verdict, judge};
use crate::settings::{RENEWAL_FILE, Renewal};

/// Files that make up an identity, in the state directory.
const KEYS: [&str; 4] = ["state.json", "state.new", "map.json", "map.new"];
/// Larger files are none of ours.
const MAX_FILE: u64 = 64 * 1024;

/// The keys of a node in a guest.
#[derive(Debug)]
pub(super) struct GuestKeys {
    state_dir: PathBuf,
    guest_config: PathBuf,
    binding: PathBuf,
    renewal: PathBuf,
}

impl GuestKeys {
    /// Those in this directory, for the guest with this configuration.
    pub(super) fn new(state_dir: &Path, guest_config: &Path) -> Self {
        let beside = state_dir.parent().unwrap_or(state_dir);
        let name = Path::new(RENEWAL_FILE).file_name().unwrap_or_default();
        Self {
            state_dir: state_dir.to_owned(),
            guest_config: guest_config.to_owned(),
            binding: beside.join("binding.toml"),
            renewal: beside.join(name),
        }
    }

    /// Whether the host has handed something over that was not taken yet.
    pub(super) fn is_renewed(&self) -> bool {
        self.renewal.exists()
    }

    /// Brings keys and guest together; false while the node has to wait for a join key.
    pub(super) fn settle(&self) -> Result<bool, DaemonError> {
        let kept = self.read_binding()?;
        let delivered = self.read_renewal()?;
        let settings = guest::read(&self.guest_config)?;
        let here = Here {
            mac: hardware_address(&settings.network.interface),
            vmid: settings.vmid,
            has_key: settings.node.as_ref().is_some_and(|node| node.auth_key.is_some()),
        };
        let ready = match judge(kept.as_ref(), &here, delivered.as_ref()) {
            Verdict::Keep => true,
            Verdict::Wait => false,
            Verdict::Bind(binding) => {
                self.write_binding(&binding)?;
                true
            }
            Verdict::Renew(binding, cause) => {
                if let Some(renewal) = delivered.as_ref().filter(|_| cause == Cause::Renewed) {
                    guest::renew(&self.guest_config, renewal)?;
                }
                self.discard(&cause)?;
                self.write_binding(&binding)?;
                true
            }
            Verdict::Discard(binding, cause) => {
                guest::drop_auth_key(&self.guest_config)?;
                if let Some(renewal) = delivered.as_ref().filter(|_| cause == Cause::Renewed) {
                    guest::renew(&self.guest_config, renewal)?;
                }
                self.discard(&cause)?;
                self.write_binding(&binding)?;
                tracing::warn!("this node waits for a join key: run `pvemesh sync` on its Proxmox host, which makes one");
                false
            }
        };
        // Last: killed before, the next start does all of it again.
        self.remove_renewal()?;
        Ok(ready)
    }

    fn discard(&self, cause: &Cause) -> Result<(), DaemonError> {
        match cause {
            Cause::Copied { was, is } => {
                tracing::warn!("this guest is a copy: its keys were made for hardware address {was}, and it has {is}; they are discarded");
            }
            Cause::OtherGuest { was } => tracing::warn!("these keys were made for guest {was}; they are discarded"),
            Cause::Renewed => tracing::info!("the host has given this guest a new identity"),
        }
        for name in KEYS {
            let path = self.state_dir.join(name);
            wipe(&path).map_err(|source| DaemonError::File { tried: "remove the keys in", path, source })?;
        }
        Ok(())
    }

    fn read_binding(&self) -> Result<Option<Binding>, DaemonError> {
        let Some(text) = read(&self.binding)? else { return Ok(None) };
        let broken = |e: toml::de::Error| DaemonError::Broken { path: self.binding.clone(), reason: e.message().to_owned() };
        toml::from_str(&text).map(Some).map_err(broken)
    }

    fn write_binding(&self, binding: &Binding) -> Result<(), DaemonError> {
        let failed =
            |e: toml::ser::Error| DaemonError::File { tried: "write", path: self.binding.clone(), source: std::io::Error::other(e) };
        write_private(&self.binding, toml::to_string(binding).map_err(failed)?.as_bytes())
    }

    /// What the host has handed over. A file that does not read is no reason to lose the keys: it is reported and taken away.
    fn read_renewal(&self) -> Result<Option<Renewal>, DaemonError> {
        let Some(text) = read(&self.renewal)? else { return Ok(None) };
        match Renewal::from_toml(&text) {
            Ok(renewal) => Ok(Some(renewal)),
            Err(error) => {
                tracing::error!("{}: {error}; it is passed over", self.renewal.display());
                Ok(None)
            }
        }
    }

    fn remove_renewal(&self) -> Result<(), DaemonError> {
        wipe(&self.renewal).map_err(|source| DaemonError::File { tried: "remove", path: self.renewal.clone(), source })
    }
}

fn read(path: &Path) -> Result<Option<Zeroizing<String>>, DaemonError> {
    let failed = |source| DaemonError::File { tried: "read", path: path.to_owned(), source };
    match std::fs::metadata(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(failed(e)),
        Ok(data) if data.len() > MAX_FILE => return Err(failed(std::io::ErrorKind::FileTooLarge.into())),
        Ok(_) => {}
    }
    std::fs::read_to_string(path).map(|text| Some(Zeroizing::new(text))).map_err(failed)
}

/// Removes a file with secrets. It is overwritten first, which helps on file systems that write in place and costs nothing elsewhere.
fn wipe(path: &Path) -> std::io::Result<()> {
    let file = match std::fs::OpenOptions::new().write(true).open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e),
    };
    let length = usize::try_from(file.metadata()?.len()).unwrap_or(0);
    let zeros = vec![0; length.min(4096)];
    let mut written = 0;
    while written < length && !zeros.is_empty() {
        written += std::os::unix::fs::FileExt::write_at(
            &file,
            zeros.get(..zeros.len().min(length - written)).unwrap_or_default(),
            written as u64,
        )?;
    }
    // A full disk may refuse; the file goes all the same.
    let _ = file.sync_all();
    std::fs::remove_file(path)
}

/// The hardware address of an interface, if there is one.
fn hardware_address(interface: &str) -> Option<Mac> {
    // A name with a slash in it would be another file.
    let plain = !interface.contains('/') && !interface.is_empty();
    let text = plain.then(|| std::fs::read_to_string(format!("/sys/class/net/{interface}/address")).ok()).flatten()?;
    text.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: &str =
        "vmid = 101\nhostname = \"exit-1\"\n[network]\ninterface = \"none-such\"\nipv4 = \"dhcp\"\n[node]\nlogin_server = \"http://c\"\n";

    struct Place {
        _dir: tempfile::TempDir,
        keys: GuestKeys,
    }

    fn place() -> Place {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("node");
        std::fs::create_dir_all(&state).unwrap();
        let config = dir.path().join("guest.toml");
        std::fs::write(&config, CONFIG).unwrap();
        std::fs::write(state.join("state.json"), "{\"machine_key\":\"old\"}").unwrap();
        let keys = GuestKeys::new(&state, &config);
        Place { _dir: dir, keys }
    }

    fn has_keys(keys: &GuestKeys) -> bool {
        keys.state_dir.join("state.json").exists()
    }

    #[test]
    fn a_renewal_replaces_the_keys_once_and_leaves_no_second_copy_of_the_join_key() {
        let Place { _dir, keys } = place();
        assert!(keys.settle().unwrap() && has_keys(&keys));
        std::fs::write(&keys.renewal, "vmid = 102\nhostname = \"exit-2\"\ngeneration = 1\nauth_key = \"joins\"\n").unwrap();
        assert!(keys.is_renewed());
        assert!(keys.settle().unwrap());
        assert!(!has_keys(&keys) && !keys.is_renewed());
        let settings = guest::read(&keys.guest_config).unwrap();
        assert_eq!((settings.vmid.to_string(), settings.hostname.as_str()), ("102".to_owned(), "exit-2"));
        assert_eq!(settings.node.unwrap().auth_key.unwrap().expose(), "joins");
        std::fs::write(keys.state_dir.join("state.json"), "{}").unwrap();
        assert!(keys.settle().unwrap() && has_keys(&keys), "the keys it has made since are its own");
    }

    #[test]
    fn without_a_join_key_it_waits_until_there_is_one() {
        let Place { _dir, keys } = place();
        assert!(keys.settle().unwrap());
        std::fs::write(&keys.renewal, "vmid = 102\nhostname = \"exit-2\"\ngeneration = 1\n").unwrap();
        assert!(!keys.settle().unwrap() && !has_keys(&keys));
        assert!(!keys.settle().unwrap());
        std::fs::write(&keys.renewal, "vmid = 102\nhostname = \"exit-2\"\ngeneration = 2\nauth_key = \"joins\"\n").unwrap();
        assert!(keys.settle().unwrap());
    }

    #[test]
    fn a_renewal_that_does_not_read_costs_no_keys() {
        let Place { _dir, keys } = place();
        assert!(keys.settle().unwrap());
        std::fs::write(&keys.renewal, "vmid = 1").unwrap();
        assert!(keys.settle().unwrap() && has_keys(&keys) && !keys.is_renewed());
    }

    #[test]
    fn a_file_is_overwritten_before_it_goes() {
        let dir = tempfile::tempdir().unwrap();
        let (path, other) = (dir.path().join("a"), dir.path().join("b"));
        std::fs::write(&path, vec![7; 10_000]).unwrap();
        std::fs::hard_link(&path, &other).unwrap();
        wipe(&path).unwrap();
        assert!(!path.exists());
        assert_eq!(std::fs::read(&other).unwrap(), vec![0; 10_000]);
        wipe(&path).unwrap();
    }
}
