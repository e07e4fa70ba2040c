//! `pvemesh image build`: what Proxmox asks of a template, and that a second build gives the same bytes.

use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use flate2::read::GzDecoder;
use sha2::{Digest as _, Sha256};

/// The program under test, also the `/sbin/init` of the images made here.
pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_pvemesh");

/// A member's name, type, mode, owner and size.
type Member = (String, tar::EntryType, u32, u64, u64);

fn members(image: &Path) -> Vec<Member> {
    let mut archive = tar::Archive::new(GzDecoder::new(std::fs::File::open(image).unwrap()));
    archive
        .entries()
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            let header = entry.header();
            let name = String::from_utf8(header.path_bytes().into_owned()).unwrap();
            assert_eq!((header.mtime().unwrap(), header.gid().unwrap()), (0, 0), "{name}");
            (name, header.entry_type(), header.mode().unwrap(), header.uid().unwrap(), header.size().unwrap())
        })
        .collect()
}

#[test]
fn an_image_is_what_proxmox_asks_for_and_a_second_build_is_identical() {
    let directory = tempfile::tempdir().unwrap();
    let build = |name: &str| {
        let path = directory.path().join(name);
        let out = Command::new(PROGRAM).args(["--json", "image", "build", "--output"]).arg(&path).output().unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        (path, serde_json::from_slice::<serde_json::Value>(&out.stdout).unwrap())
    };
    let ((one, report), (two, _)) = (build("one.tar.gz"), build("two.tar.gz"));
    let bytes = std::fs::read(&one).unwrap();
    assert!(bytes == std::fs::read(&two).unwrap(), "two builds differ");
    assert_eq!(report["size"], bytes.len());
    let sha256: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(report["sha256"], sha256);
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 2, "a partial file is left");

    let members = members(&one);
    let size = std::fs::metadata(PROGRAM).unwrap().len();
    assert!(members.contains(&("./sbin/init".to_owned(), tar::EntryType::Regular, 0o755, 0, size)));
    assert!(members.contains(&("./var/lib/pvemesh/".to_owned(), tar::EntryType::Directory, 0o700, 0, 0)));
    for (name, kind, _, owner, _) in &members {
        assert!(name.starts_with("./") && *owner == 0, "{name}");
        assert!(matches!(kind, tar::EntryType::Regular | tar::EntryType::Directory), "{name}");
    }
    for name in ["./dev/", "./etc/hosts", "./etc/passwd", "./etc/resolv.conf", "./proc/", "./run/", "./sys/", "./tmp/"] {
        assert!(members.iter().any(|(member, ..)| member == name), "{name}");
    }
    assert!(!members.iter().any(|(name, ..)| name.contains("os-release") || name.contains("guest.toml")));
}

#[test]
fn a_per_container_image_holds_its_configuration_for_its_owner_only() {
    let directory = tempfile::tempdir().unwrap();
    let (config, image) = (directory.path().join("guest.toml"), directory.path().join("ct.tar.gz"));
    let build =
        || Command::new(PROGRAM).args(["image", "build", "--output"]).arg(&image).arg("--guest-config").arg(&config).output().unwrap();
    std::fs::write(&config, "vmid = 5\nauth_key = \"hidden-key\"\n").unwrap();
    let out = build();
    assert_eq!(out.status.code(), Some(2));
    assert!(!String::from_utf8_lossy(&out.stderr).contains("hidden-key") && !image.exists());

    let text = "vmid = 101\nhostname = \"web\"\n[network]\nipv4 = \"dhcp\"\n";
    std::fs::write(&config, text).unwrap();
    let out = build();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    assert_eq!(std::fs::metadata(&image).unwrap().permissions().mode() & 0o777, 0o600);
    let mut archive = tar::Archive::new(GzDecoder::new(std::fs::File::open(&image).unwrap()));
    let mut found =
        archive.entries().unwrap().map(Result::unwrap).find(|entry| &*entry.path_bytes() == b"./etc/pvemesh/guest.toml").unwrap();
    assert_eq!(found.header().mode().unwrap(), 0o600);
    let mut content = String::new();
    found.read_to_string(&mut content).unwrap();
    assert_eq!(content, text);
}

#[test]
fn a_program_that_needs_a_loader_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let output = directory.path().join("x.tar.gz");
    let shell = std::fs::canonicalize("/bin/sh").unwrap();
    let error = pvemesh::sys::image::build(&shell, None, &output).unwrap_err();
    assert!(error.to_string().contains("needs the program loader /lib"), "{error}");
    assert!(!output.exists());
}
