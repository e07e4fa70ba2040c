//! The appliance images on this machine: one that serves every guest, built once per version of the program, and personal ones.

use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use super::provision::Images;
use crate::sys::config::Store;
use crate::sys::image::{self, Image, ImageError};

/// The images of this program.
#[derive(Debug)]
pub struct Stock {
    binary: PathBuf,
    directory: PathBuf,
    shared: Image,
    /// The shared one was given and is not made from `binary`.
    is_given: bool,
}

impl Stock {
    /// The image `given`, else that of the running program; built unless an earlier run has done it.
    ///
    /// # Errors
    /// If the program is no static binary, or files cannot be read or written.
    pub fn prepare(store: &Store, given: Option<&Path>) -> Result<Self, ImageError> {
        let binary = image::own_binary()?;
        let directory = store.images();
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&directory);
        made.map_err(|error| ImageError::File { tried: "make", path: directory.clone(), error })?;
        Self::discard_orphans(store);
        if let Some(path) = given {
            check_is_gzip(path)?;
            let (size, sha256) = hash(path)?;
            return Ok(Self { binary, directory, shared: Image { path: path.to_owned(), size, sha256 }, is_given: true });
        }
        let (_, program) = hash(&binary)?;
        let path = directory.join(format!("{}.tar.gz", program.get(..16).unwrap_or(&program)));
        let shared = if path.exists() {
            let (size, sha256) = hash(&path)?;
            Image { path, size, sha256 }
        } else {
            discard_older(&directory);
            image::build(&binary, None, &path)?
        };
        Ok(Self { binary, directory, shared, is_given: false })
    }
}

impl Stock {
    /// Removes the personal images of runs that were killed: a join key is in each. A failure leaves a file that its owner alone can read.
    pub fn discard_orphans(store: &Store) {
        for entry in std::fs::read_dir(store.directory().join("images")).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let maker = name.to_str().and_then(|name| name.strip_prefix(PERSONAL)?.split('.').next()?.parse::<u32>().ok());
            if maker.is_some_and(|pid| !super::is_alive(pid)) {
                let _ = std::fs::remove_file(entry.path());
            }
        }
    }
}

/// How a personal image's name begins; the process that made it follows.
const PERSONAL: &str = "personal-";

impl Images for Stock {
    fn shared(&self) -> &Image {
        &self.shared
    }

    fn personal(&self, guest_toml: &str) -> Result<Image, ImageError> {
        let output = self.directory.join(format!("{PERSONAL}{}.tar.gz", std::process::id()));
        if self.is_given {
            image::personalise(&self.shared.path, guest_toml, &output)
        } else {
            image::build(&self.binary, Some(guest_toml), &output)
        }
    }
}

/// Removes the images of earlier versions of the program. A failure costs a few MB and nothing else.
fn discard_older(directory: &Path) {
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        let _ = std::fs::remove_file(entry.path());
    }
}

/// Proxmox would find out only after the upload.
fn check_is_gzip(path: &Path) -> Result<(), ImageError> {
    let failed = |error| ImageError::File { tried: "use as an image", path: path.to_owned(), error };
    let mut start = [0; 2];
    let mut file = std::fs::File::open(path).map_err(failed)?;
    io::Read::read_exact(&mut file, &mut start).map_err(failed)?;
    let is_gzip = start == [0x1f, 0x8b];
    if is_gzip { Ok(()) } else { Err(failed(io::Error::other("it is no .tar.gz"))) }
}

fn hash(path: &Path) -> Result<(u64, String), ImageError> {
    let mut digest = Sha256::new();
    let size = std::fs::File::open(path).and_then(|mut file| io::copy(&mut file, &mut digest)).map_err(|error| ImageError::File {
        tried: "read",
        path: path.to_owned(),
        error,
    })?;
    Ok((size, digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect()))
}
