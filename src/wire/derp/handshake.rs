//! What client and relay say of themselves, and the box around it.

use std::fmt;

use crypto_box::aead::AeadInPlace as _;
use crypto_box::{Nonce, PublicKey, SalsaBox, SecretKey, Tag};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::{Frame, VERSION};
use crate::ident::{MeshKey, NodePrivate, NodePublic, RelayPrivate, RelayPublic};
use crate::wire::control::json;

/// Bytes of a nonce: random, in front of the box.
pub const NONCE_LEN: usize = 24;
/// Bytes the box adds.
pub const TAG_LEN: usize = 16;
/// Values in what is read from a stranger; there are six fields.
const MAX_VALUES: usize = 256;

/// Why a handshake was not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HandshakeError {
    /// Shorter than nonce and tag.
    #[error("the box is cut short")]
    Short,
    /// Sealed with other keys, or altered.
    #[error("the box does not open")]
    Forged,
    /// No JSON of this kind inside.
    #[error("the box holds something else")]
    Content,
}

/// What a client says of itself.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ClientInfo {
    /// The mesh key in hex, if the client is a relay of the same region.
    #[serde(rename = "meshKey", skip_serializing_if = "String::is_empty")]
    mesh_key: Zeroizing<String>,
    /// The protocol's version.
    pub version: u32,
    /// It answers pings.
    #[serde(rename = "CanAckPings")]
    pub can_ack_pings: bool,
    /// It is a monitoring program.
    #[serde(rename = "IsProber", skip_serializing_if = "std::ops::Not::not")]
    pub is_prober: bool,
    /// What the program calls itself.
    #[serde(rename = "AppName", skip_serializing_if = "String::is_empty")]
    pub app_name: String,
}

impl ClientInfo {
    /// A node's, or with a mesh key another relay's.
    pub fn new(mesh_key: Option<&MeshKey>) -> Self {
        let mesh_key = mesh_key.map(MeshKey::to_secret_text).unwrap_or_default();
        Self { mesh_key, version: VERSION, can_ack_pings: true, is_prober: false, app_name: String::new() }
    }

    /// The mesh key it shows; none, or one that is no key, is `None`.
    pub fn mesh_key(&self) -> Option<MeshKey> {
        self.mesh_key.parse().ok()
    }
}

impl fmt::Debug for ClientInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientInfo").field("version", &self.version).field("app_name", &self.app_name).finish_non_exhaustive()
    }
}

/// What the relay says to a client it lets in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ServerInfo {
    /// The protocol's version.
    pub version: u32,
    /// How many bytes a second the client may send; 0: no limit.
    #[serde(rename = "TokenBucketBytesPerSecond", skip_serializing_if = "is_zero")]
    pub bytes_per_second: u64,
    /// How many bytes it may send at once.
    #[serde(rename = "TokenBucketBytesBurst", skip_serializing_if = "is_zero")]
    pub bytes_burst: u64,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(value: &u64) -> bool {
    *value == 0
}

/// What a node key and a relay's key make together.
pub struct SharedKey(SalsaBox);

impl fmt::Debug for SharedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SharedKey(..)")
    }
}

impl SharedKey {
    /// On the client's side.
    pub fn of_client(own: &NodePrivate, relay: &RelayPublic) -> Self {
        Self(SalsaBox::new(&PublicKey::from(*relay.as_bytes()), &SecretKey::from(*own.as_bytes())))
    }

    /// On the relay's side.
    pub fn of_relay(own: &RelayPrivate, client: &NodePublic) -> Self {
        Self(SalsaBox::new(&PublicKey::from(*client.as_bytes()), &SecretKey::from(*own.as_bytes())))
    }

    /// Opens nonce and box.
    ///
    /// # Errors
    /// Too short, sealed with other keys, or with something else inside.
    pub fn open<T: DeserializeOwned>(&self, sealed: &[u8]) -> Result<T, HandshakeError> {
        let (nonce, rest) = sealed.split_first_chunk::<NONCE_LEN>().ok_or(HandshakeError::Short)?;
        let (tag, rest) = rest.split_first_chunk::<TAG_LEN>().ok_or(HandshakeError::Short)?;
        let mut message = Zeroizing::new(rest.to_vec());
        let opened = self.0.decrypt_in_place_detached(&Nonce::from(*nonce), &[], &mut message, &Tag::from(*tag));
        opened.map_err(|_| HandshakeError::Forged)?;
        json::from_slice_within(MAX_VALUES, &message).map_err(|_| HandshakeError::Content)
    }

    /// Nonce and box around a value; `nonce` is fresh randomness.
    pub fn seal<T: Serialize>(&self, nonce: [u8; NONCE_LEN], value: &T) -> Vec<u8> {
        let mut message = Zeroizing::new(serde_json::to_vec(value).unwrap_or_default());
        let Ok(tag) = self.0.encrypt_in_place_detached(&Nonce::from(nonce), &[], &mut message) else { return Vec::new() };
        [nonce.as_slice(), tag.as_slice(), message.as_slice()].concat()
    }

    /// The whole frame a client answers the relay's key with.
    pub fn client_info(&self, key: NodePublic, nonce: [u8; NONCE_LEN], info: &ClientInfo) -> Vec<u8> {
        Frame::ClientInfo { key, sealed: &self.seal(nonce, info) }.to_bytes()
    }

    /// The whole frame by which a relay lets a client in.
    pub fn server_info(&self, nonce: [u8; NONCE_LEN], info: &ServerInfo) -> Vec<u8> {
        Frame::ServerInfo { sealed: &self.seal(nonce, info) }.to_bytes()
    }
}
