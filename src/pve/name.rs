//! Names as Proxmox accepts them, checked once, so that none of them can break out of a path or a property string.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A text that is not a name of the wanted kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} is {rule}, not `{text}`")]
pub struct InvalidName {
    what: &'static str,
    rule: &'static str,
    text: String,
}

impl InvalidName {
    fn new(what: &'static str, rule: &'static str, text: &str) -> Self {
        Self { what, rule, text: shown(text) }
    }
}

/// A text made fit for a message: escaped and cut short.
pub(super) fn shown(text: &str) -> String {
    const MAX: usize = 60;
    let mut out: String = text.chars().take(MAX).flat_map(char::escape_default).collect();
    if text.chars().nth(MAX).is_some() {
        out.push_str("...");
    }
    out
}

macro_rules! checked_name {
    ($(#[$doc:meta])* $name:ident, $what:literal, $rule:literal, $check:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = InvalidName;

            fn from_str(text: &str) -> Result<Self, InvalidName> {
                let check: fn(&str) -> bool = $check;
                if check(text) { Ok(Self(text.to_owned())) } else { Err(InvalidName::new($what, $rule, text)) }
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidName;

            fn try_from(text: String) -> Result<Self, InvalidName> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

checked_name!(
    /// The name of a machine of the cluster (schema format `pve-node`: one DNS label).
    HostName,
    "a Proxmox node name",
    "1 to 63 letters, digits and inner hyphens",
    |text| (1..=63).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        && !text.starts_with('-')
        && !text.ends_with('-')
);

checked_name!(
    /// A storage (schema format `pve-storage-id`).
    StorageId,
    "a storage name",
    "2 to 100 letters, digits, `-`, `_` and `.`, starting with a letter and ending with a letter or digit",
    |text| (2..=100).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
        && text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.ends_with(|c: char| c.is_ascii_alphanumeric())
);

checked_name!(
    /// A bridge or an SDN network that a guest's interface is plugged into (an interface name, so at most 15 bytes in Linux).
    BridgeName,
    "a bridge name",
    "1 to 15 letters, digits, `-`, `_` and `.`, starting with a letter",
    |text| (1..=15).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
        && text.starts_with(|c: char| c.is_ascii_alphabetic())
);

checked_name!(
    /// A guest tag (schema format `pve-tag`), lower case because Proxmox lower-cases tags unless told otherwise.
    Tag,
    "a tag",
    "1 to 60 lower-case letters, digits, `_`, `-`, `+` and `.`, not starting with `-`, `+` or `.`",
    |text| (1..=60).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"_-+.".contains(&b))
        && !text.starts_with(['-', '+', '.'])
);

/// A volume on a storage, `STORAGE:NAME`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct VolumeId {
    storage: StorageId,
    name: String,
}

impl VolumeId {
    /// A container template `file` on `storage`.
    ///
    /// # Errors
    /// If the file name has characters that Proxmox would replace when it stores the upload.
    pub fn template(storage: &StorageId, file: &str) -> Result<Self, InvalidName> {
        format!("{storage}:vztmpl/{file}").parse()
    }

    /// The storage.
    pub fn storage(&self) -> &StorageId {
        &self.storage
    }

    /// The last part of the volume's name: the file's name where the storage holds files.
    pub fn file_name(&self) -> &str {
        self.name.rsplit('/').next().unwrap_or_default()
    }
}

impl FromStr for VolumeId {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let invalid = || InvalidName::new("a volume", "STORAGE:NAME with a name of letters, digits, `-`, `_`, `.`, `+` and `/`", text);
        let (storage, name) = text.split_once(':').ok_or_else(invalid)?;
        let clean = (1..=200).contains(&name.len())
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.+/".contains(&b))
            && name.split('/').all(|part| !part.is_empty() && part != "." && part != "..");
        if clean { Ok(Self { storage: storage.parse()?, name: name.to_owned() }) } else { Err(invalid()) }
    }
}

impl TryFrom<String> for VolumeId {
    type Error = InvalidName;

    fn try_from(text: String) -> Result<Self, InvalidName> {
        text.parse()
    }
}

impl From<VolumeId> for String {
    fn from(volume: VolumeId) -> Self {
        volume.to_string()
    }
}

impl fmt::Display for VolumeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.storage, self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_leave_their_place_are_refused() {
        let long = "x".repeat(10_000);
        for text in ["", "a,b", "a;b", "a=b", "a/b", "../a", "a\n", "é", "a b", "a?b", "a%2fb", &long] {
            assert!(text.parse::<HostName>().is_err(), "host {text:?}");
            assert!(text.parse::<StorageId>().is_err(), "storage {text:?}");
            assert!(text.parse::<BridgeName>().is_err(), "bridge {text:?}");
            assert!(text.parse::<Tag>().is_err(), "tag {text:?}");
            assert!(text.parse::<VolumeId>().is_err(), "volume {text:?}");
        }
        assert!("local:vztmpl/../x".parse::<VolumeId>().is_err());
    }

    #[test]
    fn refused_text_is_shown_escaped_and_cut() {
        let message = "a\u{1b}[31m".parse::<StorageId>().unwrap_err().to_string();
        assert!(message.contains("\\u{1b}"), "{message}");
        assert!("x".repeat(10_000).parse::<HostName>().unwrap_err().to_string().len() < 200);
    }

    #[test]
    fn a_volume_knows_its_storage_and_file() {
        let volume: VolumeId = "local:vztmpl/pvemesh-0.1.0-abc.tar.gz".parse().unwrap();
        assert_eq!((volume.storage().as_str(), volume.file_name()), ("local", "pvemesh-0.1.0-abc.tar.gz"));
        assert_eq!(volume.to_string(), "local:vztmpl/pvemesh-0.1.0-abc.tar.gz");
        assert!("local:102/vm-102-disk-0.raw".parse::<VolumeId>().is_ok());
    }
}
