//! What an error reply means.
//!
//! The text of an error may stand in the JSON `message`, in the HTTP reason phrase only (every 401, CSRF failures, refused uploads, and
//! everything before PVE 8.4), or in a plain text body; which parameter was wrong stands in the `errors` map. Perl's `die` always gives
//! status 500, so the kind of failure is read from the text, as recorded from PVE 9.1.9.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;

/// Longest text kept of an error, in characters; a failed `tar` or `mkfs` can say much more.
const MAX_TEXT: usize = 2000;
/// What Proxmox says of a storage that is there but cannot be used.
const UNUSABLE: [&str; 4] = ["does not support", "is disabled", "is not available", "is not online"];

/// An error reply of the API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiError {
    /// The HTTP status; 595 and 596 are Proxmox's own for "the other host cannot be reached" and "it did not answer".
    pub status: u16,
    /// The text, on one line; never empty.
    pub message: String,
    /// What was wrong with which parameter.
    pub errors: BTreeMap<String, String>,
}

/// What a failure means, as far as its text tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// The guest is running where it must not be.
    AlreadyRunning,
    /// The ticket or token was refused, missing or has expired.
    Authentication,
    /// Another operation holds the guest's configuration lock; it passes by itself.
    Busy,
    /// The CSRF token was missing or has expired.
    Csrf,
    /// The credentials are good but their rights are not enough.
    Denied,
    /// The host is known but cannot be reached from the one that was asked.
    HostUnreachable,
    /// User, password or second factor is wrong.
    Login,
    /// The guest carries a lock (backup, create, migrate ...).
    Locked,
    /// The configuration changed since it was read.
    Modified,
    /// The cluster has no quorum, so nothing can be changed.
    NoQuorum,
    /// No such bridge on the host.
    NoSuchBridge,
    /// No such device on the host.
    NoSuchDevice,
    /// No such guest on this host.
    NoSuchGuest,
    /// No such host in the cluster.
    NoSuchHost,
    /// No such script for a hook.
    NoSuchScript,
    /// No such storage.
    NoSuchStorage,
    /// No such task (any more, or not yet).
    NoSuchTask,
    /// No such volume on its storage.
    NoSuchVolume,
    /// The guest is not running.
    NotRunning,
    /// This Proxmox VE does not have the call or takes no such body.
    NotSupported,
    /// A parameter was refused; the `errors` map says which.
    Parameter,
    /// Only an id that is literally `root@pam` may do this; no token can.
    RootOnly,
    /// The storage is there but not for this.
    StorageUnusable,
    /// The host did not answer in time.
    Timeout,
    /// A guest with this VMID exists.
    VmidInUse,
    /// None of the others.
    Other,
}

#[derive(Deserialize)]
struct Envelope {
    #[serde(default)]
    message: Option<String>,
    #[serde(default)]
    errors: Option<serde_json::Value>,
}

impl ApiError {
    /// Reads an error reply: status, reason phrase as received (`None` if it was not readable) and body.
    pub fn read(status: u16, reason: Option<&str>, body: &[u8]) -> Self {
        let envelope: Option<Envelope> = serde_json::from_slice(body).ok();
        let mut errors = BTreeMap::new();
        if let Some(serde_json::Value::Object(map)) = envelope.as_ref().and_then(|e| e.errors.clone()) {
            for (name, why) in map.into_iter().take(50) {
                let why = why.as_str().map_or_else(|| why.to_string(), ToOwned::to_owned);
                errors.insert(one_line(&name), one_line(&why));
            }
        }
        let from_json = envelope.as_ref().and_then(|e| e.message.as_deref()).map(one_line);
        let from_reason = reason.map(one_line);
        let from_text = if envelope.is_none() { std::str::from_utf8(body).ok().map(one_line) } else { None };
        let message = [from_json, from_reason, from_text]
            .into_iter()
            .flatten()
            .find(|text| !text.is_empty())
            .unwrap_or_else(|| format!("status {status} without a text"));
        Self { status, message, errors }
    }

    /// An error from a text alone, as host tools and tasks give it.
    pub fn from_text(text: &str) -> Self {
        Self { status: 500, message: one_line(text), errors: BTreeMap::new() }
    }

    /// What it means.
    pub fn kind(&self) -> ErrorKind {
        match self.status {
            595 => return ErrorKind::HostUnreachable,
            596 => return ErrorKind::Timeout,
            _ => {}
        }
        for why in self.errors.values() {
            let kind = ErrorKind::of(why);
            if kind != ErrorKind::Other {
                return kind;
            }
        }
        if !self.errors.is_empty() {
            return ErrorKind::Parameter;
        }
        match (ErrorKind::of(&self.message), self.status) {
            (ErrorKind::Other, 400) => ErrorKind::Parameter,
            (ErrorKind::Other, 401) => ErrorKind::Authentication,
            (ErrorKind::Other, 403) => ErrorKind::Denied,
            (ErrorKind::Other, 501 | 506) => ErrorKind::NotSupported,
            (kind, _) => kind,
        }
    }
}

impl ErrorKind {
    /// What the text of an error, or of a task's end, means.
    pub fn of(text: &str) -> Self {
        let has = |part: &str| text.contains(part);
        if has("already exists on node") || (has("VM ") && has(" already exists")) {
            Self::VmidInUse
        } else if has("only allowed for root@pam") || has("Only root can ") || has("Only root may ") || has("user != root@pam") {
            Self::RootOnly
        } else if has("invalid csrf token") {
            Self::Csrf
        } else if has("authentication failure") {
            Self::Login
        } else if has("Authentication failed!") || has("No ticket") {
            Self::Authentication
        } else if has("Permission check failed") || has("not available with API token") {
            Self::Denied
        } else if has("Configuration file") && has("does not exist") {
            Self::NoSuchGuest
        } else if has("is locked (") {
            Self::Locked
        } else if has("can't lock file") {
            Self::Busy
        } else if has("already running") || has("container is running") {
            Self::AlreadyRunning
        } else if has(" not running") {
            Self::NotRunning
        } else if has("detected modified configuration") {
            Self::Modified
        } else if has("handler defined for") {
            // As pvesh says it.
            Self::NotSupported
        } else if has("no quorum") || (has("/etc/pve/") && has("Permission denied")) {
            Self::NoQuorum
        } else if has("hostname lookup") || has("no such cluster node") {
            Self::NoSuchHost
        } else {
            Self::of_missing(text)
        }
    }

    fn of_missing(text: &str) -> Self {
        let has = |part: &str| text.contains(part);
        let missing = has("does not exist") || has("not exist");
        if has("No such storage") || (has("storage '") && missing && !has("volume '")) {
            Self::NoSuchStorage
        } else if has("bridge '") && missing {
            Self::NoSuchBridge
        } else if has("volume '") && missing {
            Self::NoSuchVolume
        } else if has("script '") && (missing || has("is not executable")) {
            Self::NoSuchScript
        } else if has("Device /dev/") && missing {
            Self::NoSuchDevice
        } else if has("no such task") || has("unable to parse worker upid") {
            Self::NoSuchTask
        } else if has("content type needs to be") || (has("storage '") && UNUSABLE.into_iter().any(has)) {
            Self::StorageUnusable
        } else {
            Self::Other
        }
    }
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        let mut separator = ": ";
        for (name, why) in &self.errors {
            write!(f, "{separator}{name}: {why}")?;
            separator = "; ";
        }
        write!(f, " (status {})", self.status)
    }
}

impl std::error::Error for ApiError {}

/// The text on one line without control characters, trimmed and cut to [`MAX_TEXT`].
fn one_line(text: &str) -> String {
    let mut line = String::new();
    for word in text.split(|c: char| c.is_whitespace() || c.is_control()).filter(|word| !word.is_empty()) {
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
        if line.chars().count() > MAX_TEXT {
            let mut cut: String = line.chars().take(MAX_TEXT).collect();
            cut.push_str("...");
            return cut;
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_is_found_where_it_stands() {
        let json = ApiError::read(
            500,
            Some("CT 101 already exists on node 'vm'"),
            br#"{"data":null,"message":"CT 101 already exists on node 'vm'\n"}"#,
        );
        assert_eq!((json.message.as_str(), json.kind()), ("CT 101 already exists on node 'vm'", ErrorKind::VmidInUse));
        let reason_only = ApiError::read(401, Some("No ticket"), b"");
        assert_eq!(reason_only.kind(), ErrorKind::Authentication);
        let before_8_4 = ApiError::read(500, Some("storage 'nosuch' does not exist"), br#"{"data":null}"#);
        assert_eq!(before_8_4.kind(), ErrorKind::NoSuchStorage);
        let text_body = ApiError::read(501, None, b"chunked transfer encoding not supported");
        assert_eq!((text_body.message.as_str(), text_body.kind()), ("chunked transfer encoding not supported", ErrorKind::NotSupported));
        let nothing = ApiError::read(500, None, b"\xff\xfe");
        assert_eq!((nothing.message.as_str(), nothing.kind()), ("status 500 without a text", ErrorKind::Other));
        assert_eq!(ApiError::read(595, Some(""), b"").kind(), ErrorKind::HostUnreachable);
        assert_eq!(ApiError::read(596, Some("Connection timed out"), b"").kind(), ErrorKind::Timeout);
    }

    #[test]
    fn wrong_parameters_are_named() {
        let body = br#"{"message":"Parameter verification failed.\n","data":null,"errors":{"net0":"invalid format - format error\nnet0.name: property is missing and it is not optional\n"}}"#;
        let error = ApiError::read(400, Some("Parameter verification failed."), body);
        assert_eq!(error.kind(), ErrorKind::Parameter);
        assert_eq!(
            error.to_string(),
            "Parameter verification failed.: net0: invalid format - format error net0.name: property is missing and it is not optional (status 400)"
        );
    }

    #[test]
    fn hostile_texts_stay_on_one_bounded_line() {
        let error = ApiError::read(500, Some("x"), format!("{{\"message\":\"{}\\u001b[31m\\n\\u0000y\"}}", "a ".repeat(9000)).as_bytes());
        assert!(error.message.chars().count() <= MAX_TEXT + 3);
        assert!(!error.message.chars().any(char::is_control));
    }
}
