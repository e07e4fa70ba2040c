//! Framing of the map stream: a little-endian u32 length, then that many bytes (one zstd frame or plain JSON).

/// The longest message read: far above the largest real network map, far below what would hurt.
pub const MAX_MESSAGE: usize = 64 * 1024 * 1024;
/// Bytes of the length.
pub const LENGTH_LEN: usize = 4;

/// Why a stream of frames cannot be read on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The length is zero, which no message has.
    #[error("a map message of length zero")]
    Empty,
    /// The length is above the limit.
    #[error("a map message of {0} bytes is announced, at most {MAX_MESSAGE} are read")]
    TooLong(u32),
}

/// Gathers the bytes of a stream into messages. Holds at most one message's length plus what the caller pushed last; it never
/// reserves memory by what a length field claims.
#[derive(Debug, Default)]
pub struct Deframer {
    buffer: Vec<u8>,
}

impl Deframer {
    /// Adds bytes as they arrived.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole message, if it has arrived.
    ///
    /// # Errors
    /// An impossible length; the stream cannot be read on.
    pub fn next_message(&mut self) -> Result<Option<Vec<u8>>, FrameError> {
        let Some((length, rest)) = self.buffer.split_first_chunk::<LENGTH_LEN>() else { return Ok(None) };
        let announced = u32::from_le_bytes(*length);
        let length = match usize::try_from(announced) {
            Ok(0) => return Err(FrameError::Empty),
            Ok(length) if length <= MAX_MESSAGE => length,
            _ => return Err(FrameError::TooLong(announced)),
        };
        let Some(message) = rest.get(..length).map(<[u8]>::to_vec) else { return Ok(None) };
        self.buffer.drain(..LENGTH_LEN + length);
        Ok(Some(message))
    }

    /// Whether a message has begun and not ended: a stream that ends here was cut.
    pub fn is_midway(&self) -> bool {
        !self.buffer.is_empty()
    }
}

/// What stands in front of a message of some length.
///
/// # Errors
/// `TooLong` above the limit, `Empty` for no bytes.
pub fn length(message: usize) -> Result<[u8; LENGTH_LEN], FrameError> {
    let length = u32::try_from(message).unwrap_or(u32::MAX);
    match message {
        0 => Err(FrameError::Empty),
        n if n > MAX_MESSAGE => Err(FrameError::TooLong(length)),
        _ => Ok(length.to_le_bytes()),
    }
}

/// A message with its length in front.
///
/// # Errors
/// As [`length`].
pub fn encode(message: &[u8]) -> Result<Vec<u8>, FrameError> {
    let mut frame = length(message.len())?.to_vec();
    frame.extend_from_slice(message);
    Ok(frame)
}
