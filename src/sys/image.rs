//! The appliance image: an empty root with this very binary as `/sbin/init`, as a `.tar.gz` that Proxmox takes as a container template.
//!
//! What Proxmox asks of it (pve-container, `LXC/Create.pm`): members named `./...`, or its exclusion of `./dev/*` does not match; numeric
//! owners; no device nodes, which an unprivileged container cannot make. No `os-release`: one that Proxmox does not know makes
//! its detection fail, where none makes the container `unmanaged`.
//!
//! The same binary and configuration give the same bytes: fixed order, times and owners. CA certificates are compiled into the binary.

use std::fs::File;
use std::io::{self, BufWriter, Read as _, Write};
use std::path::{Path, PathBuf};

use flate2::{Compression, GzBuilder};
use sha2::{Digest as _, Sha256};
use tar::{EntryType, Header};

/// Where a per-container image holds the guest's configuration.
pub const GUEST_CONFIG: &str = "/etc/pvemesh/guest.toml";

const PASSWD: &str = "root:x:0:0:root:/:/sbin/init\nnobody:x:65534:65534:nobody:/:/sbin/nologin\n";
const GROUP: &str = "root:x:0:\nnogroup:x:65534:\n";
const HOSTS: &str = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n";
const HOSTNAME: &str = "pvemesh\n";

/// A static release binary is some 15 MB; more than this is not one of ours.
const MAX_BINARY: u64 = 1 << 30;

/// Why an image was not made.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The binary would not run in an empty root.
    #[error(
        "{path} needs the program loader {loader}, so it cannot run in an empty root; build it statically (`-C target-feature=+crt-static`)"
    )]
    NotStatic {
        /// The binary.
        path: PathBuf,
        /// The loader it names.
        loader: String,
    },
    /// The file is not a program for this kind of machine.
    #[error("{0} is not a 64-bit little-endian ELF program")]
    NotElf(PathBuf),
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

/// A finished image.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Image {
    /// Where it is.
    pub path: PathBuf,
    /// Its size in bytes.
    pub size: u64,
    /// Its SHA-256 in hex, as Proxmox's upload takes it.
    pub sha256: String,
}

/// Makes the image at `output` from `binary`. With `guest_config` (TOML) it is for one container and, like its file, secret: it is then
/// readable by its owner only.
///
/// # Errors
///
/// When the binary is not static or a file cannot be read or written; `output` is then untouched.
pub fn build(binary: &Path, guest_config: Option<&str>, output: &Path) -> Result<Image, ImageError> {
    let program = read_program(binary)?;
    let fresh = output.with_extension("partial");
    finish(write_image(&fresh, &program, guest_config), &fresh, output, "write", output)
}

/// Makes the image at `output` from another one, with `guest_config` (TOML) added: it is for one container and readable by its owner only.
///
/// # Errors
///
/// When a file cannot be read or written, or `image` is no `.tar.gz`; `output` is then untouched.
pub fn personalise(image: &Path, guest_config: &str, output: &Path) -> Result<Image, ImageError> {
    let fresh = output.with_extension("partial");
    let source = File::open(image).map_err(|error| ImageError::File { tried: "read", path: image.to_owned(), error })?;
    let written = write_archive(&fresh, true, |archive| {
        let mut from = tar::Archive::new(flate2::read::MultiGzDecoder::new(io::BufReader::new(source)));
        for entry in from.entries()?.raw(true) {
            let entry = entry?;
            archive.append(&entry.header().clone(), entry)?;
        }
        add_config(archive, guest_config)
    });
    finish(written, &fresh, output, "use as an image", image)
}

/// Moves a finished image into its place; a failure names the file that `tried` is about.
fn finish(written: io::Result<(u64, String)>, fresh: &Path, output: &Path, tried: &'static str, about: &Path) -> Result<Image, ImageError> {
    let (size, sha256) = written.and_then(|done| std::fs::rename(fresh, output).map(|()| done)).map_err(|error| {
        let _ = std::fs::remove_file(fresh);
        ImageError::File { tried, path: about.to_owned(), error }
    })?;
    Ok(Image { path: output.to_owned(), size, sha256 })
}

/// The running program's own file, which is what goes into the image.
///
/// # Errors
///
/// When the system does not say which file that is.
pub fn own_binary() -> Result<PathBuf, ImageError> {
    std::env::current_exe().map_err(|error| ImageError::File { tried: "find", path: "/proc/self/exe".into(), error })
}

/// The machine a static program is for, as the kernel names it.
///
/// # Errors
///
/// When it is no static program, or for another kind of machine.
pub fn machine(path: &Path) -> Result<&'static str, ImageError> {
    let program = read_program(path)?;
    // `e_machine` (System V ABI, chapter 4).
    match program.get(18..20) {
        Some([62, 0]) => Ok("x86_64"),
        Some([183, 0]) => Ok("aarch64"),
        _ => Err(ImageError::NotElf(path.to_owned())),
    }
}

fn read_program(path: &Path) -> Result<Vec<u8>, ImageError> {
    let failed = |error| ImageError::File { tried: "read", path: path.to_owned(), error };
    let mut program = Vec::new();
    File::open(path).and_then(|file| file.take(MAX_BINARY).read_to_end(&mut program)).map_err(failed)?;
    match loader(&program) {
        None => Err(ImageError::NotElf(path.to_owned())),
        Some(None) => Ok(program),
        Some(Some(loader)) => Err(ImageError::NotStatic { path: path.to_owned(), loader }),
    }
}

/// The program loader a 64-bit little-endian ELF file asks for (`PT_INTERP`): `None` if it is no such file, `Some(None)` if it asks for
/// none, so is static. Offsets are those of the System V ABI, chapter 4 and 5.
fn loader(file: &[u8]) -> Option<Option<String>> {
    const PT_INTERP: u64 = 3;
    let number = |at: usize, size: usize| -> Option<u64> {
        let bytes = file.get(at..at.checked_add(size)?)?;
        Some(bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte)))
    };
    if !file.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let (table, entry, count) = (usize::try_from(number(32, 8)?).ok()?, usize::try_from(number(54, 2)?).ok()?, number(56, 2)?);
    for index in 0..usize::try_from(count).ok()? {
        let header = table.checked_add(index.checked_mul(entry)?)?;
        if number(header, 4)? == PT_INTERP {
            let start = usize::try_from(number(header.checked_add(8)?, 8)?).ok()?;
            let length = usize::try_from(number(header.checked_add(32)?, 8)?).ok()?.min(256);
            let name = file.get(start..start.checked_add(length)?)?;
            return Some(Some(String::from_utf8_lossy(name).trim_end_matches('\0').escape_default().to_string()));
        }
    }
    Some(None)
}

/// Counts and hashes what passes through.
struct Measured<W> {
    inner: W,
    size: u64,
    hash: Sha256,
}

impl<W: Write> Write for Measured<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.hash.update(bytes.get(..written).unwrap_or_default());
        self.size += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

type Archive = tar::Builder<flate2::write::GzEncoder<Measured<BufWriter<File>>>>;

/// Writes a `.tar.gz`; gives its size and hash.
fn write_archive(path: &Path, private: bool, fill: impl FnOnce(&mut Archive) -> io::Result<()>) -> io::Result<(u64, String)> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let mode = if private { 0o600 } else { 0o644 };
    let _ = std::fs::remove_file(path);
    let file = File::options().write(true).create_new(true).mode(mode).open(path)?;
    let measured = Measured { inner: BufWriter::new(file), size: 0, hash: Sha256::new() };
    let mut archive = tar::Builder::new(GzBuilder::new().mtime(0).write(measured, Compression::default()));
    fill(&mut archive)?;
    let mut measured = archive.into_inner()?.finish()?;
    measured.flush()?;
    measured.inner.get_ref().sync_all()?;
    Ok((measured.size, measured.hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()))
}

fn add_config(archive: &mut Archive, guest_config: &str) -> io::Result<()> {
    member(archive, "./etc/pvemesh/", EntryType::Directory, 0o700, &[])?;
    member(archive, &format!(".{GUEST_CONFIG}"), EntryType::Regular, 0o600, guest_config.as_bytes())
}

fn write_image(path: &Path, program: &[u8], guest_config: Option<&str>) -> io::Result<(u64, String)> {
    write_archive(path, guest_config.is_some(), |archive| fill_image(archive, program, guest_config))
}

fn fill_image(archive: &mut Archive, program: &[u8], guest_config: Option<&str>) -> io::Result<()> {
    for (name, mode) in [
        ("./", 0o755),
        ("./dev/", 0o755),
        ("./etc/", 0o755),
        ("./proc/", 0o555),
        ("./run/", 0o755),
        ("./sbin/", 0o755),
        ("./sys/", 0o555),
        ("./tmp/", 0o1777),
        ("./var/", 0o755),
        ("./var/lib/", 0o755),
        ("./var/lib/pvemesh/", 0o700),
    ] {
        member(archive, name, EntryType::Directory, mode, &[])?;
    }
    for (name, text) in
        [("./etc/group", GROUP), ("./etc/hostname", HOSTNAME), ("./etc/hosts", HOSTS), ("./etc/passwd", PASSWD), ("./etc/resolv.conf", "")]
    {
        member(archive, name, EntryType::Regular, 0o644, text.as_bytes())?;
    }
    if let Some(text) = guest_config {
        add_config(archive, text)?;
    }
    member(archive, "./sbin/init", EntryType::Regular, 0o755, program)
}

fn member(archive: &mut tar::Builder<impl Write>, name: &str, kind: EntryType, mode: u32, content: &[u8]) -> io::Result<()> {
    let mut header = Header::new_gnu();
    // The crate's own setter drops the leading `./` that Proxmox needs.
    let place = &mut header.as_old_mut().name;
    let bytes = name.as_bytes();
    match place.get_mut(..bytes.len()) {
        Some(place) => place.copy_from_slice(bytes),
        None => return Err(io::Error::new(io::ErrorKind::InvalidInput, "a member's name is too long")),
    }
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(content.len() as u64);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_cksum();
    archive.append(&header, content)
}

#[cfg(test)]
#[allow(clippy::indexing_slicing, reason = "test code")]
mod tests {
    use super::*;

    /// A minimal 64-bit file with one program header of this type, naming `/lib/ld`.
    fn elf(kind: u8) -> Vec<u8> {
        let mut file = vec![0; 64 + 56];
        file[..6].copy_from_slice(b"\x7fELF\x02\x01");
        file[32] = 64;
        file[54] = 56;
        file[56] = 1;
        file[64] = kind;
        file[64 + 8] = 120;
        file[64 + 32] = 8;
        file.extend_from_slice(b"/lib/ld\0");
        file
    }

    #[test]
    fn a_personal_image_is_the_given_one_with_the_configuration_added() {
        let dir = tempfile::tempdir().unwrap();
        let (given, personal) = (dir.path().join("given.tar.gz"), dir.path().join("personal.tar.gz"));
        write_archive(&given, false, |archive| member(archive, "./sbin/init", EntryType::Regular, 0o755, b"another program")).unwrap();
        let made = personalise(&given, "vmid = 101\n", &personal).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&personal).unwrap().permissions());
        assert_eq!((made.size, mode & 0o777), (std::fs::metadata(&personal).unwrap().len(), 0o600));
        let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(File::open(&personal).unwrap()));
        let mut members = Vec::new();
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let mut text = String::new();
            entry.read_to_string(&mut text).unwrap();
            members.push((String::from_utf8_lossy(&entry.path_bytes()).into_owned(), text));
        }
        let expected = [("./sbin/init", "another program"), ("./etc/pvemesh/", ""), ("./etc/pvemesh/guest.toml", "vmid = 101\n")];
        assert_eq!(members, expected.map(|(name, text)| (name.to_owned(), text.to_owned())));
        std::fs::write(&given, "no archive").unwrap();
        assert!(personalise(&given, "", &dir.path().join("none")).is_err());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2, "a failure leaves nothing");
    }

    #[test]
    fn a_program_with_a_loader_is_told_from_a_static_one() {
        assert_eq!(loader(&elf(1)), Some(None));
        assert_eq!(loader(&elf(3)), Some(Some("/lib/ld".to_owned())));
        assert_eq!(loader(b"#!/bin/sh\n"), None);
        for cut in 0..elf(3).len() {
            let _ = loader(&elf(3)[..cut]);
        }
        let mut far = elf(3);
        far[32..40].fill(0xff);
        assert_eq!(loader(&far), None);
    }
}
