//! The JSON messages, with the field names of the Go programs.
//!
//! Read them with [`super::json::from_slice`], which takes any case and `null`. Writing leaves out what is empty wherever a reader
//! could stumble over `null` or read `[]` as "remove all"; fields where empty means something are `Option`s. Times before the year
//! 2 are Go's "no time" and read as absent.

mod hostinfo;
mod map;
mod network;
mod node;
mod register;

pub use hostinfo::{Hostinfo, NetInfo, Service};
pub use map::{Debug, DisplayMessage, MapRequest, MapResponse, MessageAction, PingKind, PingRequest, PingResponse, UserProfile};
pub use network::{
    CapGrant, DerpMap, DerpNode, DerpRegion, DnsConfig, DnsRecord, FilterRule, HomeParams, NetPortRange, PortRange, Resolver,
};
pub use node::{Node, PeerChange};
pub use register::{Login, RegisterAuth, RegisterRequest, RegisterResponse, RegisterUser, ServerKeys};

use serde::{Deserialize, Deserializer, Serializer};

use crate::time::Wall;

/// The longest list of nodes, of changes of nodes, or of users read in one message.
pub const MAX_LIST: usize = 100_000;

/// Go's zero time, `0001-01-01T00:00:00Z`, in seconds of the Unix era.
const GO_ZERO_SECOND: i64 = -62_135_596_800;

/// Reads a time; Go's zero time and `null` are none.
fn time_or_none<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Wall>, D::Error> {
    let time = Option::<Wall>::deserialize(deserializer)?;
    Ok(time.filter(|t| t.as_second() > GO_ZERO_SECOND + 366 * 86_400))
}

/// Writes a time; none is Go's zero time.
fn time_or_zero<S: Serializer>(time: &Option<Wall>, serializer: S) -> Result<S::Ok, S::Error> {
    match time {
        Some(time) => serializer.collect_str(time),
        None => serializer.serialize_str("0001-01-01T00:00:00Z"),
    }
}

/// Reads a list of at most [`MAX_LIST`] values. An empty object in it is three bytes of text, and many times that in memory.
fn bounded<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Vec<T>, D::Error> {
    struct Bounded<T>(std::marker::PhantomData<T>);
    impl<'de, T: Deserialize<'de>> serde::de::Visitor<'de> for Bounded<T> {
        type Value = Vec<T>;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            write!(f, "a list of at most {MAX_LIST} values")
        }

        fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut seq: A) -> Result<Vec<T>, A::Error> {
            let mut list = Vec::new();
            while let Some(value) = seq.next_element()? {
                if list.len() == MAX_LIST {
                    return Err(serde::de::Error::invalid_length(MAX_LIST + 1, &self));
                }
                list.push(value);
            }
            Ok(list)
        }
    }
    deserializer.deserialize_seq(Bounded(std::marker::PhantomData))
}

/// Reads a value that may be `null`, which is its default.
fn or_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(deserializer: D) -> Result<T, D::Error> {
    Option::<T>::deserialize(deserializer).map(Option::unwrap_or_default)
}

/// Reads a list of texts and keeps those that parse: one strange address does not cost the whole map.
fn parsed<'de, D: Deserializer<'de>, T: std::str::FromStr>(deserializer: D) -> Result<Vec<T>, D::Error> {
    let texts = Vec::<String>::deserialize(deserializer)?;
    Ok(texts.iter().filter_map(|text| text.parse().ok()).collect())
}

/// As [`parsed`], with `null` as none.
fn parsed_option<'de, D: Deserializer<'de>, T: std::str::FromStr>(deserializer: D) -> Result<Option<Vec<T>>, D::Error> {
    let texts = Option::<Vec<String>>::deserialize(deserializer)?;
    Ok(texts.map(|texts| texts.iter().filter_map(|text| text.parse().ok()).collect()))
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands out references")]
fn is_false(value: &bool) -> bool {
    !value
}

fn is_zero<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}
