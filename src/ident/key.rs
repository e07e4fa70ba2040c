//! X25519 key pairs of the three kinds a node owns, and their text forms.
//!
//! Text is a prefix and 64 lower-case hex digits (`mkey:`, `nodekey:`, `discokey:`; private keys `privkey:`); parsers take
//! either case. The all-zero public key is a legal value on the wire ("none") and is written out as zeros.
//! Private keys are wiped when dropped and show nothing in `Debug`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use subtle::ConstantTimeEq as _;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

/// Why a key's text was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The text does not start with the prefix of the wanted kind.
    #[error("a key of this kind starts with `{0}`")]
    Prefix(&'static str),
    /// After the prefix there must be exactly 64 hex digits.
    #[error("a key has 64 hex digits after its prefix")]
    Digits,
}

const PRIVATE_PREFIX: &str = "privkey:";

fn hex_digit(byte: u8) -> Option<u8> {
    match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        b'A'..=b'F' => Some(byte - b'A' + 10),
        _ => None,
    }
}

fn parse(text: &str, prefix: &'static str) -> Result<[u8; 32], KeyError> {
    let digits = text.strip_prefix(prefix).ok_or(KeyError::Prefix(prefix))?.as_bytes();
    if digits.len() != 64 {
        return Err(KeyError::Digits);
    }
    let mut key = [0; 32];
    for (byte, pair) in key.iter_mut().zip(digits.chunks_exact(2)) {
        let [high, low] = *pair else { return Err(KeyError::Digits) };
        *byte = hex_digit(high).ok_or(KeyError::Digits)? << 4 | hex_digit(low).ok_or(KeyError::Digits)?;
    }
    Ok(key)
}

fn write_hex(f: &mut impl fmt::Write, bytes: &[u8]) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
}

macro_rules! key_pair {
    ($public:ident, $private:ident, $prefix:literal, $what:literal) => {
        #[doc = concat!("The public half of ", $what, ". The default is the \"no key\" value.")]
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $public([u8; 32]);

        impl $public {
            /// The "no key" value, all zeros.
            pub const ZERO: Self = Self([0; 32]);

            /// Wraps the 32 raw bytes.
            pub const fn from_bytes(bytes: [u8; 32]) -> Self {
                Self(bytes)
            }

            /// The 32 raw bytes.
            pub const fn as_bytes(&self) -> &[u8; 32] {
                &self.0
            }

            /// Whether this is the "no key" value.
            pub fn is_zero(&self) -> bool {
                *self == Self::ZERO
            }
        }

        impl fmt::Display for $public {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str($prefix)?;
                write_hex(f, &self.0)
            }
        }

        impl fmt::Debug for $public {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str($prefix)?;
                write_hex(f, &self.0[..4])?;
                f.write_str("..")
            }
        }

        impl FromStr for $public {
            type Err = KeyError;

            fn from_str(text: &str) -> Result<Self, KeyError> {
                parse(text, $prefix).map(Self)
            }
        }

        impl Serialize for $public {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $public {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
                text.parse().map_err(de::Error::custom)
            }
        }

        #[doc = concat!("The private half of ", $what, ". Wiped on drop; never shown by `Debug`.")]
        #[derive(Clone, Zeroize, ZeroizeOnDrop)]
        pub struct $private([u8; 32]);

        impl $private {
            /// Makes a key from 32 random bytes, clamped as X25519 asks (RFC 7748, section 5).
            pub fn from_seed(mut seed: [u8; 32]) -> Self {
                seed[0] &= 248;
                seed[31] = seed[31] & 127 | 64;
                let key = Self(seed);
                seed.zeroize();
                key
            }

            /// The raw bytes, for handing to a cipher. Do not store or print them.
            pub const fn as_bytes(&self) -> &[u8; 32] {
                &self.0
            }

            /// The matching public key.
            pub fn public(&self) -> $public {
                let secret = x25519_dalek::StaticSecret::from(self.0);
                $public(*x25519_dalek::PublicKey::from(&secret).as_bytes())
            }

            /// The text form for a state file that only its owner can read.
            pub fn to_secret_text(&self) -> Zeroizing<String> {
                let mut text = Zeroizing::new(String::with_capacity(PRIVATE_PREFIX.len() + 64));
                text.push_str(PRIVATE_PREFIX);
                let written = write_hex(&mut *text, &self.0);
                debug_assert!(written.is_ok(), "writing to a String cannot fail");
                text
            }
        }

        impl fmt::Debug for $private {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(concat!(stringify!($private), "(..)"))
            }
        }

        impl FromStr for $private {
            type Err = KeyError;

            fn from_str(text: &str) -> Result<Self, KeyError> {
                parse(text, PRIVATE_PREFIX).map(Self)
            }
        }
    };
}

key_pair!(MachinePublic, MachinePrivate, "mkey:", "a machine key: one per installation, authenticates the control connection");
key_pair!(NodePublic, NodePrivate, "nodekey:", "a node key: the WireGuard and relay identity");
key_pair!(DiscoPublic, DiscoPrivate, "discokey:", "a disco key: one per process, seals path probes");
// The text is the one that stands in the certificate by which a relay tells its key.
key_pair!(RelayPublic, RelayPrivate, "derpkey", "a relay's key: opens what clients say of themselves");

/// What the relays of one region know and nobody else: who shows it may watch a relay's clients and hand packets over.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct MeshKey([u8; 32]);

impl MeshKey {
    /// Wraps the 32 raw bytes.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// 64 hex digits, as in files and in the handshake.
    pub fn to_secret_text(&self) -> Zeroizing<String> {
        let mut text = Zeroizing::new(String::with_capacity(64));
        let written = write_hex(&mut *text, &self.0);
        debug_assert!(written.is_ok(), "writing to a String cannot fail");
        text
    }
}

impl PartialEq for MeshKey {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for MeshKey {}

impl fmt::Debug for MeshKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MeshKey(..)")
    }
}

impl FromStr for MeshKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        parse(text, "").map(Self)
    }
}

/// A secret text, such as a join key: wiped on drop, never shown by `Debug`, written out only on purpose.
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop)]
pub struct Secret(String);

impl Secret {
    /// Wraps a secret text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The secret itself, for the one place that needs it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn public_key_matches_the_recorded_vector() {
        let private: MachinePrivate = "privkey:0002030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f60".parse().unwrap();
        assert_eq!(private.public().to_string(), "mkey:07a37cbc142093c8b755dc1b10e86cb426374ad16aa853ed0bdfc0b2b86d1c7c");
    }

    #[test]
    fn text_round_trips_and_either_case_is_read() {
        let key = NodePrivate::from_seed([7; 32]);
        let text = key.public().to_string();
        assert_eq!(text.parse::<NodePublic>().unwrap(), key.public());
        let upper = format!("nodekey:{}", text["nodekey:".len()..].to_uppercase());
        assert_eq!(upper.parse::<NodePublic>().unwrap(), key.public());
        assert_eq!(key.to_secret_text().parse::<NodePrivate>().unwrap().public(), key.public());
    }

    #[test]
    fn wrong_prefix_length_and_digits_are_refused() {
        assert_eq!("mkey:00".parse::<NodePublic>(), Err(KeyError::Prefix("nodekey:")));
        assert_eq!("nodekey:00".parse::<NodePublic>(), Err(KeyError::Digits));
        assert_eq!(format!("nodekey:{}", "zz".repeat(32)).parse::<NodePublic>(), Err(KeyError::Digits));
        assert_eq!("".parse::<NodePublic>(), Err(KeyError::Prefix("nodekey:")));
    }

    #[test]
    fn debug_shows_no_secret() {
        let key = NodePrivate::from_seed([0xab; 32]);
        assert_eq!(format!("{key:?} {:?}", Secret::new("hunter2")), "NodePrivate(..) Secret(..)");
    }
}
