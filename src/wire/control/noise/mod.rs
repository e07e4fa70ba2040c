//! The Noise layer of the control protocol: handshake, records, early payload.
//!
//! The handshake is `Noise_IK_25519_ChaChaPoly_BLAKE2s` with the prologue `Tailscale Control Protocol v<n>`. Everything after it is a
//! byte stream cut into records; record boundaries mean nothing. Records number their nonces **big-endian**, unlike the Noise
//! specification, so the transport half is written here on the bare AEAD.
//!
//! ```text
//! initiation  u16 version | 1 | u16 96  | 32 ephemeral | 48 sealed static key | 16 tag       101 bytes, client to server
//! response                  2 | u16 48  | 32 ephemeral | 16 tag                               51 bytes, server to client
//! error                     3 | u16 n   | text, not authenticated
//! record                    4 | u16 n   | ciphertext with its 16-byte tag, n at most 4093
//! ```

mod early;
mod handshake;
mod record;

pub use early::{EARLY_HEADER_LEN, EarlyError, EarlyPayload, MAX_EARLY_LEN, encode_early, parse_early_header};
pub use handshake::{
    Accepted, HandshakeError, INITIATION_LEN, Initiator, Keys, RESPONSE_HEADER_LEN, RESPONSE_LEN, Responder, response_len,
};
pub use record::{HEADER_LEN, MAX_CIPHERTEXT, MAX_PLAINTEXT, Opener, RecordError, Sealer, TAG_LEN, record_len};
