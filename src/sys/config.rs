//! The admin's own files on the machine that runs the provisioner: configuration, credentials, the admin key, journals.
//!
//! They live in `$PVEMESH_CONFIG_DIR`; else, for root on a Proxmox host, in `/etc/pve/priv/pvemesh`, which is the same on every host of the
//! cluster; else in `/etc/pvemesh` for root and `~/.config/pvemesh` for others. Everything written here has mode 0600 and replaces its
//! predecessor in one rename.

mod ledger;
mod secret;
mod settings;
mod work;

use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use crate::ident::{MachinePrivate, Secret, Vmid};
use crate::plan::options::KnownCoordinator;
pub use ledger::SyncLock;
pub use secret::read_secret;
use secret::read_text;
pub use settings::{Config, Coordinator, Guests, JoinElsewhere, Pve};
pub use work::WorkLock;

/// Names the directory, before the usual places.
pub const DIRECTORY_VARIABLE: &str = "PVEMESH_CONFIG_DIR";
/// Kept by Proxmox on every host of the cluster, readable by root only. Files of up to 1 MiB: no images.
const CLUSTER_PRIVATE: &str = "/etc/pve/priv";
const CLUSTER: &str = "/etc/pve/priv/pvemesh";
const OF_ROOT: &str = "/etc/pvemesh";
/// Where images are kept when the directory is the cluster's.
const CACHE: &str = "/var/cache/pvemesh";

/// Why a file of ours could not be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is not what it should be.
    #[error("{}: {why}", path.display())]
    Content {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// It holds a secret that others can read.
    #[error("{path} holds a secret and others may read or change it (mode {mode:03o}); chmod 600 {path}", path = path.display())]
    Exposed {
        /// Which.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// There is no home directory to keep them in.
    #[error("no directory for the configuration: set {DIRECTORY_VARIABLE} or HOME")]
    NoDirectory,
    /// Another run brings the guests up to date.
    #[error("another pvemesh brings the guests up to date right now")]
    Syncing,
    /// Another run works on the same guest.
    #[error("another pvemesh is at work on guest {0}")]
    Busy(Vmid),
}

/// The directory of these files.
#[derive(Debug, Clone)]
pub struct Store {
    directory: PathBuf,
    /// The named host or cluster whose guests are meant: numbers are unique within one only.
    scope: Option<String>,
}

impl Store {
    /// The directory as the environment and the user say; nothing is made yet.
    ///
    /// # Errors
    /// If there is no home directory.
    pub fn open() -> Result<Self, ConfigError> {
        let named = std::env::var_os(DIRECTORY_VARIABLE).filter(|v| !v.is_empty()).map(PathBuf::from);
        let usual = || {
            if rustix::process::geteuid().is_root() {
                return Some(of_root(Path::new("/")));
            }
            let config = std::env::var_os("XDG_CONFIG_HOME").filter(|v| !v.is_empty()).map(PathBuf::from);
            config.or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".config"))).map(|dir| dir.join("pvemesh"))
        };
        named.or_else(usual).map(Self::at).ok_or(ConfigError::NoDirectory)
    }

    /// This directory.
    pub fn at(directory: PathBuf) -> Self {
        Self { directory, scope: None }
    }

    /// The same directory, for the guests of a named host or cluster: locks, journals and the coordinator's guest are told apart by it.
    #[must_use]
    pub fn scoped(&self, name: Option<&str>) -> Self {
        Self { directory: self.directory.clone(), scope: name.map(ToOwned::to_owned) }
    }

    /// The name of a guest's file: its number, behind the name of its host or cluster if that has one.
    fn guest_path(&self, vmid: Vmid, end: &str) -> PathBuf {
        match &self.scope {
            Some(name) => self.path(&format!("{name}-{vmid}.{end}")),
            None => self.path(&format!("{vmid}.{end}")),
        }
    }

    /// Where the directory is.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Where images are kept: each host of a cluster has its own, since the cluster's file system is for small files.
    pub fn images(&self) -> PathBuf {
        if self.directory.starts_with(CLUSTER_PRIVATE) { PathBuf::from(CACHE) } else { self.path("images") }
    }

    /// Reads the configuration; without a file, an empty one.
    ///
    /// # Errors
    /// If the file cannot be read or has something else in it.
    pub fn load(&self) -> Result<Config, ConfigError> {
        let path = self.path("config.toml");
        match read_text(&path)? {
            None => Ok(Config::default()),
            Some(text) => toml::from_str(&text).map_err(|e| ConfigError::Content { path, why: e.to_string().trim().replace('\n', " ") }),
        }
    }

    /// Writes the configuration.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn save(&self, config: &Config) -> Result<(), ConfigError> {
        let path = self.path("config.toml");
        let text = toml::to_string(config).map_err(|e| ConfigError::Content { path: path.clone(), why: e.to_string() })?;
        self.write(&path, text.as_bytes())
    }

    /// Keeps a coordinator as the known one.
    ///
    /// # Errors
    /// If the configuration cannot be read or written.
    pub fn remember(&self, coordinator: KnownCoordinator) -> Result<(), ConfigError> {
        let mut config = self.load()?;
        config.coordinator = Some(Coordinator { host: self.scope.clone(), ..coordinator.into() });
        self.save(&config)
    }

    /// Forgets the known coordinator if it is the one in this guest.
    ///
    /// # Errors
    /// If the configuration cannot be read or written.
    pub fn forget(&self, vmid: Vmid) -> Result<(), ConfigError> {
        let mut config = self.load()?;
        if config.coordinator.as_ref().is_some_and(|c| c.vmid == Some(vmid) && c.host == self.scope) {
            config.coordinator = None;
            self.save(&config)?;
        }
        Ok(())
    }

    /// Writes a secret of the admin's into a file of its own.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn save_secret(&self, name: &str, secret: &Secret) -> Result<PathBuf, ConfigError> {
        let path = self.path(name);
        self.write(&path, format!("{}\n", secret.expose()).as_bytes())?;
        Ok(path)
    }

    /// The key with which this machine administers the coordinator; made from `seed` if there is none yet.
    ///
    /// # Errors
    /// If its file cannot be read or written, or others may read it.
    pub fn admin_key(&self, seed: [u8; 32]) -> Result<MachinePrivate, ConfigError> {
        let path = self.path("admin.key");
        if path.exists() {
            let text = read_secret(&path)?;
            return text.expose().parse().map_err(|e| ConfigError::Content { path, why: format!("{e}") });
        }
        let key = MachinePrivate::from_seed(seed);
        self.write(&path, key.to_secret_text().as_bytes())?;
        Ok(key)
    }

    fn make_directory(&self) -> Result<(), ConfigError> {
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.directory);
        made.map_err(|source| ConfigError::Io { path: self.directory.clone(), source })
    }

    fn write(&self, path: &Path, content: &[u8]) -> Result<(), ConfigError> {
        self.make_directory()?;
        let io_error = |source| ConfigError::Io { path: path.to_owned(), source };
        let fresh = path.with_extension(format!("new{}", std::process::id()));
        let written = (|| {
            let mut file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
            file.write_all(content)?;
            file.sync_all()?;
            std::fs::rename(&fresh, path)?;
            std::fs::File::open(&self.directory)?.sync_all()
        })();
        if written.is_err() {
            let _ = std::fs::remove_file(&fresh);
        }
        written.map_err(io_error)
    }
}

/// The directory of root, below this root directory: the cluster's on a Proxmox host, unless an earlier version has one on this host alone.
fn of_root(root: &Path) -> PathBuf {
    let below = |path: &str| root.join(path.trim_start_matches('/'));
    let (cluster, own) = (below(CLUSTER), below(OF_ROOT));
    let on_host = below(CLUSTER_PRIVATE).is_dir();
    let older = own.join("config.toml").exists() && !cluster.join("config.toml").exists();
    if on_host && !older { cluster } else { own }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::ident::MachinePublic;

    fn store() -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::at(dir.path().join("deep/pvemesh"));
        (dir, store)
    }

    #[test]
    fn files_are_private_and_read_back() {
        let (_dir, store) = store();
        assert_eq!(store.load().unwrap(), Config::default());
        let pve = Pve { url: "https://pve:8006".to_owned(), ..Pve::default() };
        let office = Pve { name: Some("office".to_owned()), also: vec!["https://pve2".to_owned()], ..pve.clone() };
        let config = Config { pve: Some(pve), host: vec![office], ..Config::default() };
        store.save(&config).unwrap();
        assert_eq!(store.load().unwrap(), config);
        let mode = std::fs::metadata(store.path("config.toml")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(std::fs::metadata(store.directory()).unwrap().permissions().mode() & 0o777, 0o700);
    }

    #[test]
    fn a_cluster_has_one_directory_unless_this_host_has_an_older_one() {
        let root = tempfile::tempdir().unwrap();
        let of = |path: &str| root.path().join(path);
        assert_eq!(of_root(root.path()), of("etc/pvemesh"));
        std::fs::create_dir_all(of("etc/pve/priv")).unwrap();
        assert_eq!(of_root(root.path()), of("etc/pve/priv/pvemesh"));
        std::fs::create_dir_all(of("etc/pvemesh")).unwrap();
        std::fs::write(of("etc/pvemesh/config.toml"), "").unwrap();
        assert_eq!(of_root(root.path()), of("etc/pvemesh"));
        std::fs::create_dir_all(of("etc/pve/priv/pvemesh")).unwrap();
        std::fs::write(of("etc/pve/priv/pvemesh/config.toml"), "").unwrap();
        assert_eq!(of_root(root.path()), of("etc/pve/priv/pvemesh"));
        let images = |directory: &str| Store::at(PathBuf::from(directory)).images();
        assert_eq!((images(CLUSTER), images(OF_ROOT)), (PathBuf::from(CACHE), PathBuf::from("/etc/pvemesh/images")));
    }

    #[test]
    fn the_admin_key_is_made_once() {
        let (_dir, store) = store();
        let first = store.admin_key([1; 32]).unwrap().public();
        assert_eq!(store.admin_key([2; 32]).unwrap().public(), first);
        std::fs::set_permissions(store.path("admin.key"), std::fs::Permissions::from_mode(0o644)).unwrap();
        let error = store.admin_key([3; 32]).unwrap_err().to_string();
        assert!(error.contains("mode 644") && error.contains("chmod 600"), "{error}");
    }

    #[test]
    fn an_unknown_setting_is_named() {
        let (_dir, store) = store();
        store.save(&Config::default()).unwrap();
        std::fs::write(store.path("config.toml"), "[pve]\nurl = \"https://pve\"\npasword_file = \"x\"\n").unwrap();
        assert!(store.load().unwrap_err().to_string().contains("pasword_file"));
    }

    #[test]
    fn guests_of_two_clusters_with_one_number_are_told_apart() {
        let (_dir, store) = store();
        let vmid: Vmid = "101".parse().unwrap();
        let office = store.scoped(Some("office"));
        let held = store.lock(vmid).unwrap();
        assert!(office.lock(vmid).is_ok());
        drop(held);
        let known = KnownCoordinator {
            vmid: Some(vmid),
            lan_url: "http://x".to_owned(),
            url: "http://x".to_owned(),
            server_key: MachinePublic::from_bytes([1; 32]),
        };
        office.remember(known).unwrap();
        store.forget(vmid).unwrap();
        assert!(store.load().unwrap().coordinator.is_some());
        office.forget(vmid).unwrap();
        assert_eq!(store.load().unwrap().coordinator, None);
    }

    #[test]
    fn one_run_at_a_time_works_on_a_guest() {
        let (_dir, store) = store();
        let vmid = "101".parse().unwrap();
        let held = store.lock(vmid).unwrap();
        assert!(matches!(store.lock(vmid), Err(ConfigError::Busy(_))));
        assert!(store.lock("102".parse().unwrap()).is_ok());
        drop(held);
        assert!(store.lock(vmid).is_ok());
    }
}
