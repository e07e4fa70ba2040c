//! Who asks, and which certificate answers.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Whom Proxmox takes us for; decides what it will refuse.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Principal {
    /// Root on a Proxmox host, through its own tools: may do everything.
    RootHost,
    /// `root@pam` with a ticket (password login): may do everything.
    RootTicket,
    /// An API token, even one of `root@pam`: never counts as `root@pam` itself.
    Token(String),
    /// Another user with a ticket.
    User(String),
}

impl Principal {
    /// The identity of a ticket for `user`.
    pub fn of_user(user: &str) -> Self {
        if user == "root@pam" { Self::RootTicket } else { Self::User(user.to_owned()) }
    }

    /// Whether calls that only the literal id `root@pam` may make are allowed (`dev[n]`, hookscripts).
    pub fn is_root(&self) -> bool {
        matches!(self, Self::RootHost | Self::RootTicket)
    }
}

impl fmt::Display for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RootHost => f.write_str("root on this host"),
            Self::RootTicket => f.write_str("root@pam"),
            Self::Token(id) => write!(f, "the API token {id}"),
            Self::User(user) => f.write_str(user),
        }
    }
}

/// The SHA-256 of a certificate's DER form, written as Proxmox does: upper-case hex with colons.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Fingerprint([u8; 32]);

/// A text that is not a fingerprint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a certificate fingerprint is 32 bytes in hex, with or without colons, as shown by `pvenode cert info`")]
pub struct FingerprintError;

impl Fingerprint {
    /// Wraps the 32 bytes.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

impl FromStr for Fingerprint {
    type Err = FingerprintError;

    fn from_str(text: &str) -> Result<Self, FingerprintError> {
        let digits: Vec<u32> = match text.len() {
            95 if text.split(':').all(|pair| pair.len() == 2) => text.chars().filter(|c| *c != ':').map(|c| c.to_digit(16)).collect(),
            64 => text.chars().map(|c| c.to_digit(16)).collect(),
            _ => None,
        }
        .ok_or(FingerprintError)?;
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            let [high, low] = *pair else { return Err(FingerprintError) };
            *byte = u8::try_from(high << 4 | low).map_err(|_| FingerprintError)?;
        }
        Ok(Self(bytes))
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, byte) in self.0.iter().enumerate() {
            write!(f, "{}{byte:02X}", if i == 0 { "" } else { ":" })?;
        }
        Ok(())
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fingerprint({self})")
    }
}

impl TryFrom<String> for Fingerprint {
    type Error = FingerprintError;

    fn try_from(text: String) -> Result<Self, FingerprintError> {
        text.parse()
    }
}

impl From<Fingerprint> for String {
    fn from(fingerprint: Fingerprint) -> Self {
        fingerprint.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_literal_root_counts_as_root() {
        assert!(Principal::of_user("root@pam").is_root() && Principal::RootHost.is_root());
        assert!(!Principal::of_user("root@pve").is_root() && !Principal::Token("root@pam!x".to_owned()).is_root());
    }

    #[test]
    fn fingerprints_are_read_with_and_without_colons() {
        let shown = Fingerprint::from_bytes([0xab; 32]).to_string();
        assert_eq!(shown.len(), 95);
        assert_eq!(shown.parse::<Fingerprint>().unwrap(), Fingerprint::from_bytes([0xab; 32]));
        assert_eq!("ab".repeat(32).parse::<Fingerprint>().unwrap().to_string(), shown);
        for bad in ["", "AB", &"xy".repeat(32), &":".repeat(95), &shown[..94]] {
            assert!(bad.parse::<Fingerprint>().is_err(), "{bad:?}");
        }
    }
}
