//! The stand-in for the Proxmox API answers as a real host was recorded to answer.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    clippy::disallowed_types,
    clippy::print_stdout,
    reason = "test code"
)]
#![allow(missing_docs, unreachable_pub, reason = "test code")]

mod access;
mod behaviour;
mod client;
mod cluster;
mod containers;
mod recorded;
mod standin;

use standin::access::{ALL, DATASTORE_USER, VM_ADMIN};
use standin::{Options, Standin, Storage};

/// The secret of every token here.
pub const TOKEN_SECRET: &str = "8f6e1d0c-5b7a-4c39-9e2d-1f0a3b5c7d9e";

/// The setting of the recordings: node `vm`, one directory storage, and the callers they name.
fn recorded_host(dir: &std::path::Path) -> Standin {
    let content = "images,rootdir,snippets,vztmpl,backup,iso".to_owned();
    let options = Options {
        node: "vm".to_owned(),
        bridges: vec![("vmbr0".to_owned(), "10.99.0.1/24".to_owned())],
        storages: vec![Storage { name: "local".to_owned(), kind: "dir".to_owned(), content }],
        ..Options::new(dir)
    };
    let standin = Standin::start(options).unwrap();
    standin.access(|access| {
        for (token, separated) in [("root@pam!tb", false), ("root@pam!padm", true), ("root@pam!priv", true)] {
            access.add_token(token, TOKEN_SECRET, separated);
        }
        for user in ["vmadm@pve", "vmadm2@pve", "test@pve"] {
            access.add_token(&format!("{user}!tok"), TOKEN_SECRET, false);
        }
        access.grant("/", "root@pam!padm", ALL);
        access.grant("/vms", "vmadm@pve", VM_ADMIN);
        access.grant("/vms", "vmadm2@pve", VM_ADMIN);
        access.grant("/storage/local", "vmadm2@pve", DATASTORE_USER);
    });
    std::fs::write(standin.storage_dir("local").join("template/cache/busybox-tiny_1.0_amd64.tar.gz"), "not unpacked here").unwrap();
    standin
}
