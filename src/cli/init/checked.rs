//! The options of `init`, checked all at once: every wrong one is named, not only the first.

use std::path::PathBuf;

use super::Init;
use crate::cli::{Exit, Failure};
use crate::pve::Fingerprint;
use crate::sys::config::Pve;
use crate::sys::pve::Https;

/// Options that can be tried.
#[derive(Debug)]
pub(super) struct Checked {
    /// The addresses given, the first one first; empty to keep, or ask for, them.
    pub(super) addresses: Vec<String>,
    pub(super) fingerprint: Option<Fingerprint>,
    pub(super) user: Option<String>,
    pub(super) ca_file: Option<PathBuf>,
    pub(super) password_file: Option<PathBuf>,
    pub(super) token_file: Option<PathBuf>,
}

impl Checked {
    pub(super) fn new(args: &Init, old: Option<&Pve>, interactive: bool) -> Result<Self, Failure> {
        let mut wrong: Vec<String> = Vec::new();
        if let Some(name) = &args.name
            && !is_name(name)
        {
            wrong.push("--name: 1 to 32 lower-case letters, digits and dashes, a letter first".to_owned());
        }
        let mut addresses = Vec::new();
        for text in &args.url {
            match Https::parse_url(text) {
                Ok(url) => addresses.push(url.to_string()),
                Err(error) => wrong.push(format!("--url: {error}")),
            }
        }
        if let Some(user) = args.user.as_deref().filter(|user| !is_user(user)) {
            let hint = if user.contains('!') { "; tokens go into --token-file" } else { "" };
            wrong.push(format!("--user: it is USER@REALM, as in root@pam{hint}"));
        }
        let fingerprint = args.fingerprint.as_deref().map(str::parse::<Fingerprint>).transpose().unwrap_or_else(|error| {
            wrong.push(format!("--fingerprint: {error}"));
            None
        });
        let ca_file = file(args.ca_file.as_ref(), "--ca-file", &mut wrong);
        let password_file = file(args.password_file.as_ref(), "--password-file", &mut wrong);
        let token_file = file(args.token_file.as_ref(), "--token-file", &mut wrong);
        if args.password_file.as_deref() == Some("-".as_ref()) && args.otp_file.as_deref() == Some("-".as_ref()) {
            wrong.push("--otp-file: standard input gives the password already".to_owned());
        }
        if !interactive && wrong.is_empty() {
            if addresses.is_empty() && old.is_none() {
                wrong.push("--url is missing and there is no terminal to ask on".to_owned());
            }
            let same_user = args.user.is_none() || args.user.as_ref() == old.and_then(|old| old.user.as_ref());
            let kept =
                old.is_some_and(|old| (old.token_file.is_some() && args.user.is_none()) || (old.password_file.is_some() && same_user));
            if password_file.is_none() && token_file.is_none() && !kept {
                wrong.push("--password-file (or --token-file) is missing and there is no terminal to ask on".to_owned());
            }
        }
        if wrong.is_empty() {
            Ok(Self { addresses, fingerprint, user: args.user.clone(), ca_file, password_file, token_file })
        } else {
            Err(Failure::new("set up the way to Proxmox", wrong.join("; "), "correct that; nothing was saved").exit(Exit::Usage))
        }
    }
}

/// An absolute path to a file that is there; `-` stays what it is.
fn file(given: Option<&PathBuf>, option: &str, wrong: &mut Vec<String>) -> Option<PathBuf> {
    let path = given?;
    if path.as_os_str() == "-" && option == "--password-file" {
        return Some(path.clone());
    }
    match std::path::absolute(path).and_then(|path| std::fs::metadata(&path).map(|_| path)) {
        Ok(path) => Some(path),
        Err(error) => {
            wrong.push(format!("{option}: {}: {error}", path.display()));
            None
        }
    }
}

/// Names stand in file names, options and lists.
fn is_name(name: &str) -> bool {
    name.len() <= 32
        && name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

/// `user@realm`, without a token's name.
pub(super) fn is_user(user: &str) -> bool {
    user.len() <= 64
        && !user.contains('!')
        && user.split_once('@').is_some_and(|(name, realm)| !name.is_empty() && !realm.is_empty())
        && user.bytes().all(|b| b.is_ascii_graphic())
}
