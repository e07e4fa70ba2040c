//! DERP: the protocol between a node and a relay, and between relays of one region.
//!
//! A connection is an HTTP/1.1 upgrade ([`http`]) and then a stream of [`Frame`]s: a type, a length, a payload. The relay tells its
//! key, the client answers with its node key and a sealed [`ClientInfo`], which proves that it holds the private half; from then on
//! packets go by node key. [`Decoder`] reads the stream as it arrives.
//!
//! Pure and bounded: a frame is held only up to the limit of its type, frames of unknown types are passed over without being held.

mod decoder;
mod frame;
mod handshake;
pub mod http;

pub use decoder::{Decoder, Raw, StreamError};
pub use frame::{Frame, FrameError, GoneReason, PresentFlags, packet_frame};
pub use handshake::{ClientInfo, HandshakeError, NONCE_LEN, ServerInfo, SharedKey, TAG_LEN};

/// The version of the protocol; the only one spoken.
pub const VERSION: u32 = 2;
/// How a relay's first frame starts: "DERP🔑" in UTF-8.
pub const MAGIC: [u8; 8] = [0x44, 0x45, 0x52, 0x50, 0xf0, 0x9f, 0x94, 0x91];
/// Type and length.
pub const HEADER_LEN: usize = 5;
/// Bytes of a key.
pub const KEY_LEN: usize = 32;
/// The longest packet relayed.
pub const MAX_PACKET: usize = 64 * 1024;
/// The longest payload of any frame. What is longer ends the connection.
pub const MAX_PAYLOAD: usize = 1024 * 1024;

/// Reads bytes as a relay's or a client's stream as far as it goes without a second party: what a fuzzer calls. Returns how many
/// frames of known types were in it.
pub fn read_anything(bytes: &[u8], piece: usize, key: &SharedKey) -> usize {
    let mut decoder = Decoder::default();
    let mut frames = 0;
    for mut piece in bytes.chunks(piece.max(1)) {
        while let Ok(Some(raw)) = decoder.next(&mut piece) {
            match raw.frame() {
                Ok(Some(Frame::ClientInfo { sealed, .. })) => frames += usize::from(key.open::<ClientInfo>(sealed).is_ok()),
                Ok(Some(Frame::ServerInfo { sealed })) => frames += usize::from(key.open::<ServerInfo>(sealed).is_ok()),
                Ok(Some(_)) => frames += 1,
                Ok(None) | Err(_) => {}
            }
        }
    }
    let _ = (http::Reply::parse(bytes), http::metacert_key(bytes));
    frames
}
