//! Task ids: `UPID:NODE:PID:PSTART:TIME:TYPE:ID:USER:` (PVE::UPID).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::HostName;
use super::name::shown;

/// A task's id. Parsed strictly: it becomes part of a path, and its host says where to ask about the task.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Upid {
    text: String,
    host: HostName,
    kind: String,
    id: String,
    user: String,
}

/// A text that is not a task id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a task id (UPID)")]
pub struct UpidError(String);

impl Upid {
    /// The host the task runs on; ask this one.
    pub fn host(&self) -> &HostName {
        &self.host
    }

    /// The task's type, as in `vzcreate`.
    pub fn kind(&self) -> &str {
        &self.kind
    }

    /// What it works on, often a VMID; may be empty.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Who started it, as in `root@pam` or `root@pam!token`.
    pub fn user(&self) -> &str {
        &self.user
    }

    /// The whole id.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl FromStr for Upid {
    type Err = UpidError;

    fn from_str(text: &str) -> Result<Self, UpidError> {
        let invalid = || UpidError(shown(text));
        if text.len() > 300 {
            return Err(invalid());
        }
        let parts: Vec<&str> = text.split(':').collect();
        let ["UPID", host, pid, pstart, time, kind, id, user, ""] = *parts.as_slice() else { return Err(invalid()) };
        let hex =
            |part: &str, lengths: &[usize]| lengths.contains(&part.len()) && part.bytes().all(|b| matches!(b, b'0'..=b'9' | b'A'..=b'F'));
        let word = |part: &str| part.bytes().all(|b| b.is_ascii_graphic() && !b"/?#%\\\"'<>".contains(&b));
        let valid = hex(pid, &[8])
            && hex(pstart, &[8, 9])
            && hex(time, &[8])
            && !kind.is_empty()
            && !user.is_empty()
            && [kind, id, user].into_iter().all(word);
        if !valid {
            return Err(invalid());
        }
        let host = host.parse().map_err(|_| invalid())?;
        Ok(Self { text: text.to_owned(), host, kind: kind.to_owned(), id: id.to_owned(), user: user.to_owned() })
    }
}

impl TryFrom<String> for Upid {
    type Error = UpidError;

    fn try_from(text: String) -> Result<Self, UpidError> {
        text.parse()
    }
}

impl From<Upid> for String {
    fn from(upid: Upid) -> Self {
        upid.text
    }
}

impl fmt::Display for Upid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.text.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recorded_ids_are_read() {
        let upid: Upid = "UPID:vm:00003B61:00050BD6:6B02A9D3:vzcreate:190:root@pam!tb:".parse().unwrap();
        assert_eq!((upid.host().as_str(), upid.kind(), upid.id(), upid.user()), ("vm", "vzcreate", "190", "root@pam!tb"));
        let empty_id: Upid = "UPID:vm:00003B61:000000050:6B02A9D3:imgcopy::root@pam:".parse().unwrap();
        assert_eq!(empty_id.id(), "");
    }

    #[test]
    fn anything_else_is_refused() {
        for text in [
            "",
            "UPID:foo",
            "UPID:vm:00003B61:00050BD6:6B02A9D3:vzcreate:190:root@pam",
            "UPID:vm:00003b61:00050BD6:6B02A9D3:vzcreate:190:root@pam:",
            "UPID:../x:00003B61:00050BD6:6B02A9D3:vzcreate:190:root@pam:",
            "UPID:vm:00003B61:00050BD6:6B02A9D3:vz/create:190:root@pam:",
            "UPID:vm:00003B61:00050BD6:6B02A9D3:vzcreate:1\n90:root@pam:",
            "UPID:vm:00003B61:00050BD6:6B02A9D3:vzcreate:190:root@pam:x:",
        ] {
            assert!(text.parse::<Upid>().is_err(), "{text:?}");
        }
    }
}
