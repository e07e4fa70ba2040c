//! The outer packet and its box.

use std::fmt;

use crypto_box::aead::AeadInPlace as _;
use crypto_box::{Nonce, PublicKey, SalsaBox, SecretKey, Tag};

use super::{HEADER_LEN, MAGIC};
use crate::ident::{DiscoPrivate, DiscoPublic};

/// Bytes of a nonce. It is random and never used twice under one key; at 24 bytes chance sees to that.
pub const NONCE_LEN: usize = 24;
/// Bytes the box adds, in front of the ciphertext.
pub const TAG_LEN: usize = 16;
/// The longest packet that is looked into: pings padded for the largest MTU that is probed (9000) fit.
pub const MAX_DATAGRAM: usize = 9216;

/// Why a packet was not opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// The box is shorter than its tag.
    #[error("the box is cut short")]
    Short,
    /// Sealed with other keys, or altered.
    #[error("the box does not open")]
    Forged,
}

/// An outer packet, still sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Envelope<'a> {
    /// The key the sender claims. The box proves it, up to reflection.
    pub sender: DiscoPublic,
    nonce: &'a [u8; NONCE_LEN],
    sealed: &'a [u8],
}

impl<'a> Envelope<'a> {
    /// Reads the outer packet; `None` if it is none, or longer than any that makes sense.
    pub fn parse(datagram: &'a [u8]) -> Option<Self> {
        if datagram.len() > MAX_DATAGRAM {
            return None;
        }
        let rest = datagram.strip_prefix(&MAGIC)?;
        let (sender, rest) = rest.split_first_chunk()?;
        let (nonce, sealed) = rest.split_first_chunk()?;
        Some(Self { sender: DiscoPublic::from_bytes(*sender), nonce, sealed })
    }
}

/// What our private and one peer's public key make together. Costly to make, cheap to use: keep it.
pub struct SharedKey(SalsaBox);

impl fmt::Debug for SharedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SharedKey(..)")
    }
}

impl SharedKey {
    /// The key shared by the holder of `own` and the peer.
    pub fn new(own: &DiscoPrivate, peer: &DiscoPublic) -> Self {
        Self(SalsaBox::new(&PublicKey::from(*peer.as_bytes()), &SecretKey::from(*own.as_bytes())))
    }

    /// Opens a packet; the message in it.
    ///
    /// # Errors
    /// The box is too short, or was sealed with other keys or altered.
    pub fn open(&self, envelope: &Envelope<'_>) -> Result<Vec<u8>, OpenError> {
        let (tag, sealed) = envelope.sealed.split_first_chunk::<TAG_LEN>().ok_or(OpenError::Short)?;
        let mut message = sealed.to_vec();
        let opened = self.0.decrypt_in_place_detached(&Nonce::from(*envelope.nonce), &[], &mut message, &Tag::from(*tag));
        opened.map(|()| message).map_err(|_| OpenError::Forged)
    }

    /// The whole packet for a message; `sender` is the public half of our own key, `nonce` fresh randomness.
    pub fn seal(&self, sender: &DiscoPublic, nonce: [u8; NONCE_LEN], message: &[u8]) -> Vec<u8> {
        let mut packet = Vec::with_capacity(HEADER_LEN + TAG_LEN + message.len());
        packet.extend_from_slice(&MAGIC);
        packet.extend_from_slice(sender.as_bytes());
        packet.extend_from_slice(&nonce);
        packet.extend_from_slice(&[0; TAG_LEN]);
        packet.extend_from_slice(message);
        let Some((tag_room, body)) = packet.get_mut(HEADER_LEN..).and_then(<[u8]>::split_first_chunk_mut::<TAG_LEN>) else {
            return Vec::new();
        };
        // Fails only for messages of hundreds of gigabytes.
        match self.0.encrypt_in_place_detached(&Nonce::from(nonce), &[], body) {
            Ok(tag) => tag_room.copy_from_slice(&tag),
            Err(_) => packet.clear(),
        }
        packet
    }
}
