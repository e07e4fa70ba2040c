//! The machine's `/etc/resolv.conf` (resolv.conf(5)): read for its servers, and pointed at our resolver while the node runs.
//!
//! The file that was there is kept beside it and put back at the end. Who writes a new one meanwhile (DHCP, Proxmox at a container's start)
//! is not fought: what he wrote is what is put back, and whom we ask, from then on. A file that the machine shares with a node in another
//! network, as in a network namespace beside the machine's own, is left alone.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use crate::ident::QUAD100_V4;
use crate::names::system::{ResolvConf as Contents, search_list};

/// Where the system's libraries look.
pub(super) const PATH: &str = "/etc/resolv.conf";
/// How our file begins.
const MARK: &str = "# Written by pvemesh";
/// What is kept of the file that was there.
const KEPT: &str = "resolv.conf.before-pvemesh";
/// Longer files are not read.
const MAX_FILE: u64 = 64 * 1024;
/// Where systemd-resolved says whom it asks itself.
const UPLINKS: &str = "/run/systemd/resolve/resolv.conf";

/// Our file: our resolver, the mesh's search domains in front of the machine's own.
fn ours(domains: &[String], base: &Contents) -> String {
    let search = search_list(domains, &base.search);
    let mut text =
        format!("{MARK}; `pvemesh node set --accept-dns=false` keeps it off. What was here is in {KEPT}.\nnameserver {QUAD100_V4}\n");
    if !search.is_empty() {
        text += &format!("search {}\n", search.join(" "));
    }
    if !base.options.is_empty() {
        text += &format!("options {}\n", base.options.join(" "));
    }
    text
}

/// Whether a file's text is of our making.
pub(super) fn is_ours(text: &str) -> bool {
    text.starts_with(MARK)
}

/// A file's text; none, if it cannot be read.
pub(super) fn read(path: &Path) -> Option<String> {
    let file = fs::File::open(path).ok()?;
    let mut text = String::new();
    io::Read::read_to_string(&mut io::Read::take(file, MAX_FILE), &mut text).ok()?;
    Some(text)
}

/// The file, and what is kept of the one before.
#[derive(Debug)]
pub(super) struct ResolvConf {
    path: PathBuf,
    kept: PathBuf,
}

impl ResolvConf {
    /// The file at this path; nothing is changed yet.
    pub(super) fn at(path: &Path) -> Self {
        Self { path: path.to_owned(), kept: path.with_file_name(KEPT) }
    }

    /// The file as it is without us.
    pub(super) fn base(&self) -> Contents {
        let current = read(&self.path).unwrap_or_default();
        let base = if is_ours(&current) { read(&self.kept).unwrap_or_default() } else { current };
        let mut contents = Contents::parse(&base);
        if contents.asks_resolved() {
            // systemd-resolved would ask us what we ask it: those whom it asks are ours to ask, too.
            contents.servers = Contents::parse(&read(Path::new(UPLINKS)).unwrap_or_default()).servers;
        }
        contents
    }

    /// Points the machine at our resolver. Says whether the file had to be changed.
    ///
    /// # Errors
    /// The file or its directory cannot be written.
    pub(super) fn take(&self, domains: &[String]) -> io::Result<bool> {
        let current = read(&self.path);
        let wanted = ours(domains, &self.base());
        if current.as_deref() == Some(wanted.as_str()) {
            return Ok(false);
        }
        if current.as_ref().is_some_and(|text| !is_ours(text)) {
            self.keep()?;
        }
        self.write(&wanted)?;
        Ok(true)
    }

    /// Keeps what is there: by its name if it can be moved, which keeps links, else by its contents.
    fn keep(&self) -> io::Result<()> {
        match fs::rename(&self.path, &self.kept) {
            Ok(()) => Ok(()),
            Err(_) => fs::copy(&self.path, &self.kept).map(drop),
        }
    }

    fn write(&self, text: &str) -> io::Result<()> {
        let new = self.path.with_file_name(".resolv.conf.pvemesh");
        let whole = || {
            let mut file = fs::File::create(&new)?;
            // Every user's programs read it, whatever this process gives its files otherwise.
            file.set_permissions(fs::Permissions::from_mode(0o644))?;
            file.write_all(text.as_bytes())?;
            fs::rename(&new, &self.path)
        };
        // A file that is mounted by itself, as container managers do, cannot be replaced, but written.
        whole().or_else(|_| {
            let _ = fs::remove_file(&new);
            fs::write(&self.path, text)
        })
    }

    /// Puts back what was there if ours is there now, left by a node that was killed.
    ///
    /// # Errors
    /// The file or its directory cannot be written.
    pub(super) fn clean(&self) -> io::Result<()> {
        if read(&self.path).is_some_and(|text| is_ours(&text)) { self.give_back().map(drop) } else { Ok(()) }
    }

    /// Puts back what was there, if ours is there now. Says whether it was.
    ///
    /// # Errors
    /// The file or its directory cannot be written.
    pub(super) fn give_back(&self) -> io::Result<bool> {
        if !read(&self.path).is_some_and(|text| is_ours(&text)) {
            // Somebody has written another one since, which stays.
            let _ = fs::remove_file(&self.kept);
            return Ok(false);
        }
        if fs::symlink_metadata(&self.kept).is_err() {
            fs::remove_file(&self.path).or_else(|_| fs::write(&self.path, ""))?;
            return Ok(true);
        }
        if fs::rename(&self.kept, &self.path).is_err() {
            fs::copy(&self.kept, &self.path)?;
            let _ = fs::remove_file(&self.kept);
        }
        Ok(true)
    }
}

/// Whether the file at this path is the whole machine's while this process is in another network: in a network namespace beside the
/// machine's own, whose other programs must not be sent to a resolver they cannot reach.
pub(super) fn is_another_networks(path: &Path) -> bool {
    let id = |path: &Path| fs::metadata(path).ok().map(|data| (data.dev(), data.ino()));
    let Some(machine) = first_process() else { return false };
    let differs = |kind: &str| id(&Path::new("/proc/self/ns").join(kind)) != id(&machine.join("ns").join(kind));
    if !differs("net") {
        return false;
    }
    if !differs("mnt") {
        return true;
    }
    // Other mounts may show the same file, also one that is not there yet.
    let theirs = machine.join("root").join(path.strip_prefix("/").unwrap_or(path));
    let same = || match (id(path), id(&theirs)) {
        (None, None) => path.parent().and_then(id) == theirs.parent().and_then(id),
        (own, machine) => own == machine,
    };
    // Looked at again, because it may be replaced between the two looks.
    (0..3).any(|_| same())
}

/// The directory of the process that stands for the machine: the first one, or where that may not be looked into, the eldest that may.
fn first_process() -> Option<PathBuf> {
    let directory = |id: u32| PathBuf::from(format!("/proc/{id}"));
    let looked_into = |id: &u32| fs::metadata(directory(*id).join("ns/net")).is_ok();
    let others =
        || fs::read_dir("/proc").ok()?.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).filter(looked_into).min();
    Some(1).filter(looked_into).or_else(others).map(directory)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEFORE: &str =
        "# made by DHCP\ndomain home.lan\nsearch home.lan lan\nnameserver 192.168.1.1\nnameserver fd00::1 # v6\noptions edns0\n";

    fn file(text: &str) -> (tempfile::TempDir, ResolvConf) {
        let dir = tempfile::tempdir().unwrap();
        let conf = ResolvConf::at(&dir.path().join("resolv.conf"));
        fs::write(&conf.path, text).unwrap();
        (dir, conf)
    }

    fn now(conf: &ResolvConf) -> String {
        fs::read_to_string(&conf.path).unwrap_or_default()
    }

    #[test]
    fn the_machine_is_pointed_at_our_resolver_and_gets_its_file_back() {
        let (dir, conf) = file(BEFORE);
        let servers: Vec<String> = conf.base().servers.iter().map(ToString::to_string).collect();
        assert_eq!(servers, ["192.168.1.1", "fd00::1"]);
        assert!(conf.take(&["mesh.test".to_owned()]).unwrap());
        let taken = Contents::parse(&now(&conf));
        assert!(now(&conf).contains("nameserver 100.100.100.100"));
        assert_eq!(
            (taken.search, taken.options),
            (vec!["mesh.test".to_owned(), "home.lan".to_owned(), "lan".to_owned()], vec!["edns0".to_owned()])
        );
        assert_eq!(conf.base().servers.len(), 2, "the servers of before are still known");
        assert!(!conf.take(&["mesh.test".to_owned()]).unwrap(), "nothing to do");
        assert!(conf.give_back().unwrap());
        assert_eq!(now(&conf), BEFORE);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left");
    }

    #[test]
    fn a_file_that_somebody_writes_meanwhile_is_what_is_put_back() {
        let (_dir, conf) = file(BEFORE);
        conf.take(&[]).unwrap();
        let other = "nameserver 10.0.0.1\n";
        fs::write(&conf.path, other).unwrap();
        assert!(conf.take(&[]).unwrap());
        assert_eq!(conf.base().servers.first().map(ToString::to_string).as_deref(), Some("10.0.0.1"));
        conf.give_back().unwrap();
        assert_eq!(now(&conf), other);
        conf.take(&[]).unwrap();
        fs::write(&conf.path, BEFORE).unwrap();
        assert!(!conf.give_back().unwrap());
        assert_eq!(now(&conf), BEFORE, "written after us, it stays");
    }

    #[test]
    fn a_link_is_a_link_again_and_a_missing_file_is_missing_again() {
        let (dir, conf) = file(BEFORE);
        let real = dir.path().join("stub");
        fs::rename(&conf.path, &real).unwrap();
        std::os::unix::fs::symlink("stub", &conf.path).unwrap();
        conf.take(&[]).unwrap();
        assert_eq!(fs::read_to_string(&real).unwrap(), BEFORE, "what the link leads to is not touched");
        conf.give_back().unwrap();
        assert_eq!(fs::read_link(&conf.path).unwrap(), Path::new("stub"));

        fs::remove_file(&conf.path).unwrap();
        conf.take(&[]).unwrap();
        conf.give_back().unwrap();
        assert!(!conf.path.exists());
    }
}
