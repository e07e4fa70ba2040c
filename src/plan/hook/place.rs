//! Where the hook script lies, so that Proxmox finds it.

use std::path::PathBuf;

use crate::pve::machine::StorageDefinition;
use crate::pve::{StorageId, VolumeId};

/// The script's file name.
pub const HOOK_FILE: &str = "pvemesh-hook";

/// A place for the script.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// As Proxmox names it in a guest's configuration.
    pub volume: VolumeId,
    /// The directory of the host's that it is in.
    pub directory: PathBuf,
    /// All hosts see this file. Else each needs a copy of its own: a guest whose script is missing does not start there.
    pub everywhere: bool,
    /// Why there.
    pub why: &'static str,
}

/// Chooses a storage for the script. `hosts` is how many hosts the cluster has, `wanted` what the admin named.
///
/// # Errors
/// If there is none; the reason in words.
pub fn place(storages: &[StorageDefinition], hosts: usize, wanted: Option<&StorageId>) -> Result<Place, String> {
    let directory = |s: &&StorageDefinition| s.enabled && s.path.is_some();
    let snippets = |s: &&StorageDefinition| s.content.iter().any(|content| content == "snippets");
    let whole = |s: &StorageDefinition| hosts <= 1 || (s.shared && !s.limited);
    let made = |storage: &StorageDefinition, why| {
        let volume = format!("{}:snippets/{HOOK_FILE}", storage.name).parse().map_err(|e| format!("{e}"))?;
        let directory = storage.path.clone().unwrap_or_default().join("snippets");
        Ok(Place { volume, directory, everywhere: whole(storage), why })
    };
    if let Some(wanted) = wanted {
        let named = storages.iter().filter(directory).find(|s| s.name == *wanted);
        let storage = named.ok_or_else(|| format!("storage {wanted} is not there, not in use, or no directory"))?;
        return made(storage, "given with --storage");
    }
    let fit = || storages.iter().filter(directory);
    if let Some(storage) = fit().filter(snippets).find(|s| whole(s)) {
        return made(storage, if hosts > 1 { "all hosts share it" } else { "it holds snippets" });
    }
    // Proxmox looks at the file only, not at what the storage is said to hold.
    if let Some(storage) = fit().find(|s| s.name.as_str() == "local").or_else(|| fit().find(|s| !s.shared)) {
        return made(storage, if hosts > 1 { "no storage with snippets is shared by all hosts" } else { "every host has it" });
    }
    Err("no storage is a directory of this host".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn storage(name: &str, content: &str, shared: bool, limited: bool) -> StorageDefinition {
        StorageDefinition {
            name: name.parse().unwrap(),
            kind: "dir".to_owned(),
            path: Some(format!("/mnt/{name}").into()),
            content: content.split(',').map(ToOwned::to_owned).collect(),
            shared,
            limited,
            enabled: true,
        }
    }

    #[test]
    fn a_single_host_uses_what_holds_snippets_and_else_local() {
        let local = storage("local", "iso,vztmpl", false, false);
        let single = |storages: &[StorageDefinition]| place(storages, 1, None).unwrap();
        let found = single(std::slice::from_ref(&local));
        assert_eq!((found.volume.to_string(), found.everywhere), ("local:snippets/pvemesh-hook".to_owned(), true));
        assert_eq!(found.directory, PathBuf::from("/mnt/local/snippets"));
        assert_eq!(single(&[local, storage("extra", "snippets", false, true)]).volume.storage().as_str(), "extra");
    }

    #[test]
    fn a_cluster_needs_a_storage_that_all_hosts_share() {
        let local = storage("local", "snippets", false, false);
        let found = place(&[local.clone(), storage("some", "snippets", true, true)], 3, None).unwrap();
        assert_eq!((found.volume.storage().as_str(), found.everywhere), ("local", false));
        let found = place(&[local, storage("nas", "snippets", true, false)], 3, None).unwrap();
        assert_eq!((found.volume.storage().as_str(), found.everywhere), ("nas", true));
    }

    #[test]
    fn a_named_storage_is_taken_or_refused() {
        let off = StorageDefinition { enabled: false, ..storage("off", "snippets", true, false) };
        let storages = [storage("local", "iso", false, false), off];
        assert!(place(&storages, 2, Some(&"local".parse().unwrap())).is_ok());
        for wrong in ["off", "none"] {
            assert!(place(&storages, 2, Some(&wrong.parse().unwrap())).is_err(), "{wrong}");
        }
        assert!(place(&[], 1, None).is_err());
    }
}
