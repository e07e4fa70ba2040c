//! Disco: the messages by which two nodes find out which addresses work between them.
//!
//! [`Envelope`] is the outer packet: a magic, the sender's disco key in clear, a nonce, and a NaCl box (X25519, XSalsa20-Poly1305).
//! [`SharedKey`] opens and seals it; one key serves both directions between two nodes, so a box says who two have it, not which of the
//! two made it: a packet reflected at its sender opens there. [`Message`] is what lies in the box.
//!
//! Pure and bounded: nothing here allocates more than a datagram holds, draws randomness or keeps state. What a message is
//! worth (who may send it, and by which way) is decided in `path`. Messages of the peer relay (types 4 to 9) are not read.

mod envelope;
mod message;

pub use envelope::{Envelope, MAX_DATAGRAM, NONCE_LEN, OpenError, SharedKey, TAG_LEN};
pub use message::{MAX_ENDPOINTS, Message, MessageError, TxId};

/// How every disco packet starts: "TS💬" in UTF-8.
pub const MAGIC: [u8; 6] = [0x54, 0x53, 0xf0, 0x9f, 0x92, 0xac];
/// Magic, sender's key and nonce.
pub const HEADER_LEN: usize = 6 + 32 + NONCE_LEN;

/// Whether a datagram looks like a disco packet. Nothing of it is authenticated then.
pub fn looks_like(datagram: &[u8]) -> bool {
    datagram.len() >= HEADER_LEN && datagram.starts_with(&MAGIC)
}

/// Reads a datagram as far as it goes without a second party: what a fuzzer calls. Returns whether it held a message.
pub fn read_anything(datagram: &[u8], key: &SharedKey) -> bool {
    let Some(envelope) = Envelope::parse(datagram) else { return Message::decode(datagram).is_ok() };
    key.open(&envelope).is_ok_and(|message| Message::decode(&message).is_ok())
}
