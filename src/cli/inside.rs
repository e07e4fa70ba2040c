//! `pvemesh inside`: chores that the provisioner has this program do in a guest. Not for people, so it is in no list of commands; what it prints
//! is JSON.

use std::path::PathBuf;

use clap::Subcommand;

use super::{Exit, Failure, Output};
use crate::sys::chores::{self, ChoreError};

/// Chores in a guest.
#[derive(Debug, Subcommand)]
pub(super) enum Inside {
    /// The SHA-256 of a file.
    Sha256 {
        /// The file.
        path: PathBuf,
    },
    /// Write a file from standard input, whole or not at all.
    Write {
        /// The file.
        path: PathBuf,
        /// Its permission bits, octal.
        #[arg(long, value_parser = mode, default_value = "600")]
        mode: u32,
    },
    /// Put a file in another's place.
    Place {
        /// The new one.
        from: PathBuf,
        /// Its place.
        to: PathBuf,
        /// What was there is kept here.
        #[arg(long)]
        keep: Option<PathBuf>,
    },
    /// Remove files and directories, if they are there.
    Remove {
        /// Which.
        paths: Vec<PathBuf>,
    },
}

fn mode(text: &str) -> Result<u32, String> {
    u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o7777).ok_or_else(|| "permission bits are octal, as in 600".to_owned())
}

/// Does a chore.
pub(super) fn run(chore: Inside) -> Result<(), Failure> {
    let value = match chore {
        Inside::Sha256 { path } => chores::sha256(&path).map(|hash| serde_json::json!({ "sha256": hash })),
        Inside::Write { path, mode } => chores::write(&path, mode, std::io::stdin()).map(|()| serde_json::json!({})),
        Inside::Place { from, to, keep } => chores::place(&from, &to, keep.as_deref()).map(|()| serde_json::json!({})),
        Inside::Remove { paths } => chores::remove(&paths).map(|removed| serde_json::json!({ "removed": removed })),
    };
    print(&value.map_err(failure)?);
    Ok(())
}

/// The result, JSON whatever the options say: a program reads it.
fn print(value: &serde_json::Value) {
    let output = Output::new(&super::Global { json: true, verbose: 0 });
    output.result(value, "");
}

fn failure(error: ChoreError) -> Failure {
    Failure::new("do a chore in this guest", error, "look at the guest's disk and permissions").exit(Exit::Failed)
}
