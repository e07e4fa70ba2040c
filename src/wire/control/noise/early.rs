//! The early payload: JSON that a server may send before its first HTTP/2 frame.
//!
//! Its header is as long as an HTTP/2 frame header, so a client reads nine bytes and either skips the payload or gives those bytes to
//! its HTTP/2 codec. Nothing in the payload is used today.

use serde::{Deserialize, Serialize};

/// Bytes of the header: magic and length.
pub const EARLY_HEADER_LEN: usize = 9;
/// The longest payload read. Servers keep below 1024, the limit of one known client.
pub const MAX_EARLY_LEN: usize = 64 * 1024;

const MAGIC: [u8; 5] = *b"\xff\xff\xffTS";

/// What the payload says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EarlyPayload {
    /// `chalpub:` and 64 hex digits: a challenge that nothing answers yet.
    pub node_key_challenge: String,
}

/// The announced payload is longer than any honest one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an early payload of {0} bytes is announced, at most {MAX_EARLY_LEN} are read")]
pub struct EarlyError(u32);

/// The payload with its header.
///
/// # Errors
/// Only if the value cannot be written as JSON, which a string always can.
pub fn encode_early(payload: &EarlyPayload) -> Result<Vec<u8>, serde_json::Error> {
    let json = serde_json::to_vec(payload)?;
    let mut bytes = MAGIC.to_vec();
    bytes.extend(u32::try_from(json.len()).unwrap_or(u32::MAX).to_be_bytes());
    bytes.extend(json);
    Ok(bytes)
}

/// Reads the first nine bytes from the server: the length of the payload that follows, or `None` if they are HTTP/2 already.
///
/// # Errors
/// The payload is too long.
pub fn parse_early_header(header: [u8; EARLY_HEADER_LEN]) -> Result<Option<usize>, EarlyError> {
    let [m0, m1, m2, m3, m4, length @ ..] = header;
    if [m0, m1, m2, m3, m4] != MAGIC {
        return Ok(None);
    }
    let announced = u32::from_be_bytes(length);
    usize::try_from(announced).ok().filter(|n| *n <= MAX_EARLY_LEN).map(Some).ok_or(EarlyError(announced))
}
