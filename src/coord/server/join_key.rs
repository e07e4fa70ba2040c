//! The text of join keys: `pvmkey-auth-<12 hex: name>-<64 hex: secret>`.
//!
//! The secret has 256 random bits, so a plain SHA-256 keeps it: there is nothing to guess that a slow hash would protect.

use std::fmt;

use rand_core::RngCore;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use crate::ident::Secret;

const START: &str = "pvmkey-auth-";
const PREFIX_DIGITS: usize = 12;
const SECRET_DIGITS: usize = 64;

/// SHA-256 of a join key's secret part.
#[derive(Clone, Copy, Eq)]
pub struct Digest([u8; 32]);

impl Digest {
    fn of(secret: &str) -> Self {
        Self(Sha256::digest(secret.as_bytes()).into())
    }
}

impl PartialEq for Digest {
    /// Takes the same time whatever differs.
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Digest(..)")
    }
}

impl Serialize for Digest {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&hex(&self.0))
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let mut bytes = [0; 32];
        let well_formed = text.len() == 64
            && text.is_ascii()
            && bytes.iter_mut().enumerate().all(|(at, byte)| {
                let pair = text.get(2 * at..2 * at + 2).and_then(|pair| u8::from_str_radix(pair, 16).ok());
                pair.map(|value| *byte = value).is_some()
            });
        if well_formed { Ok(Self(bytes)) } else { Err(serde::de::Error::custom("a digest is 64 hex digits")) }
    }
}

/// A key just made: what the user gets, and what is kept.
pub(super) struct Made {
    pub(super) text: Secret,
    pub(super) prefix: String,
    pub(super) digest: Digest,
}

/// Draws a new key.
pub(super) fn make(rng: &mut impl RngCore) -> Made {
    let (mut name, mut secret) = ([0; PREFIX_DIGITS / 2], [0; SECRET_DIGITS / 2]);
    rng.fill_bytes(&mut name);
    rng.fill_bytes(&mut secret);
    let (prefix, secret) = (hex(&name), zeroize::Zeroizing::new(hex(&secret)));
    let text = Secret::new(format!("{START}{prefix}-{}", *secret));
    Made { text, digest: Digest::of(&secret), prefix }
}

/// The naming part and the digest of the secret part; `None` if the text is no join key of ours.
pub(super) fn split(text: &str) -> Option<(&str, Digest)> {
    let (prefix, secret) = text.trim().strip_prefix(START)?.split_once('-')?;
    let well_formed = prefix.len() == PREFIX_DIGITS && secret.len() == SECRET_DIGITS && secret.bytes().all(|b| b.is_ascii_hexdigit());
    well_formed.then(|| (prefix, Digest::of(secret)))
}

/// How a key is named in lists: enough to recognise it, nothing secret.
pub(super) fn listed(prefix: &str) -> String {
    format!("{START}{prefix}")
}

/// Lower-case hex.
pub(super) fn hex(bytes: &[u8]) -> String {
    use fmt::Write as _;
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
#[allow(clippy::indexing_slicing, reason = "test code")]
mod tests {
    use super::*;
    use rand_core::SeedableRng as _;

    #[test]
    fn a_key_is_recognised_by_its_text_and_by_no_other() {
        let mut rng = rand_chacha::ChaCha20Rng::from_seed([7; 32]);
        let made = make(&mut rng);
        let text = made.text.expose().to_owned();
        assert_eq!(split(&format!(" {text}\n")), Some((&*made.prefix, made.digest)));
        let mut wrong = text.clone();
        wrong.replace_range(text.len() - 1.., if text.ends_with('0') { "1" } else { "0" });
        assert_ne!(split(&wrong).unwrap().1, made.digest);
        for broken in ["", "pvmkey-auth-", "hskey-auth-0123456789ab-00", &text[..text.len() - 1], &format!("{text}0")] {
            assert_eq!(split(broken), None, "{broken}");
        }
    }

    #[test]
    fn neither_digest_nor_secret_shows_in_debug_output() {
        let made = make(&mut rand_chacha::ChaCha20Rng::from_seed([7; 32]));
        let shown = format!("{:?} {:?}", made.text, made.digest);
        assert_eq!(shown, "Secret(..) Digest(..)");
        let back: Digest = serde_json::from_str(&serde_json::to_string(&made.digest).unwrap()).unwrap();
        assert_eq!(back, made.digest);
    }
}
