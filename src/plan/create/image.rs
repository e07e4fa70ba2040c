//! The appliance image as a file on a storage.

use crate::pve::call::Arch;

/// The appliance image that would be uploaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Its file name, which holds a hash of its content: the same name is the same image.
    pub file: String,
    /// The architecture of the program in it.
    pub arch: Arch,
    /// The version of the program in it.
    pub version: String,
}

impl Image {
    /// The image of a version with this content.
    pub fn new(version: &str, sha256_hex: &str, arch: Arch) -> Self {
        let file = format!("{IMAGE_STEM}{version}-{}{IMAGE_END}", sha256_hex.get(..12).unwrap_or(sha256_hex));
        Self { file, arch, version: version.to_owned() }
    }

    /// The digits of the content's hash in the file's name.
    pub fn digits(&self) -> &str {
        let stem = self.file.strip_suffix(IMAGE_END).unwrap_or(&self.file);
        stem.rsplit_once('-').map_or(stem, |(_, digits)| digits)
    }

    /// Whether a template of ours has one guest's configuration in it.
    pub fn is_personal(file: &str) -> bool {
        let number = |part: &str| part.strip_prefix("ct").is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()));
        Self::is_ours(file) && file.split('-').any(number)
    }

    /// Whether a template is one of ours that serves every guest, and not the personal one of a guest (`-ctID-RUN` in its name).
    pub fn is_shared(file: &str) -> bool {
        Self::is_ours(file) && !Self::is_personal(file)
    }

    /// Whether a template was uploaded by us.
    pub fn is_ours(file: &str) -> bool {
        file.starts_with(IMAGE_STEM) && file.ends_with(IMAGE_END)
    }
}

pub(super) const IMAGE_STEM: &str = "pvemesh-";
pub(super) const IMAGE_END: &str = ".tar.gz";
