//! Records: the byte stream after the handshake, cut into sealed pieces.
//!
//! The nonce is four zero bytes and a big-endian counter from zero. No associated data, no rekeying. Any failure is final for the
//! direction it happened in: the connection has to be closed.

use std::fmt;

use chacha20poly1305::aead::AeadInPlace as _;
use chacha20poly1305::{ChaCha20Poly1305, KeyInit as _, Nonce, Tag};

/// Bytes before each record's ciphertext.
pub const HEADER_LEN: usize = 3;
/// Bytes the cipher adds.
pub const TAG_LEN: usize = 16;
/// The longest ciphertext: frames are 4096 bytes with their header.
pub const MAX_CIPHERTEXT: usize = 4093;
/// The longest plaintext of one record.
pub const MAX_PLAINTEXT: usize = MAX_CIPHERTEXT - TAG_LEN;

const TYPE_RECORD: u8 = 4;

/// Why a record cannot be read or written. The connection is of no use afterwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// Not a record, or longer than 4093 bytes, or too short for its tag.
    #[error("malformed record header")]
    Malformed,
    /// It does not decrypt: altered, out of order, or repeated.
    #[error("a record does not decrypt")]
    Rejected,
    /// The counter has reached its end, or an earlier failure ended this direction.
    #[error("this direction of the connection has ended")]
    Ended,
}

/// The ciphertext length a record header announces.
///
/// # Errors
/// `Malformed` for another type or an impossible length.
pub fn record_len(header: [u8; HEADER_LEN]) -> Result<usize, RecordError> {
    let [kind, high, low] = header;
    let len = usize::from(u16::from_be_bytes([high, low]));
    if kind == TYPE_RECORD && (TAG_LEN..=MAX_CIPHERTEXT).contains(&len) { Ok(len) } else { Err(RecordError::Malformed) }
}

/// One direction's cipher and counter.
struct Direction {
    cipher: ChaCha20Poly1305,
    /// The next nonce; `None` once this direction has ended.
    next: Option<u64>,
}

impl Direction {
    fn new(key: &[u8; 32]) -> Self {
        Self { cipher: ChaCha20Poly1305::new(key.into()), next: Some(0) }
    }

    /// Takes the next nonce. The counter's last value is never used.
    fn nonce(&mut self) -> Result<Nonce, RecordError> {
        let counter = self.next.filter(|n| *n != u64::MAX).ok_or(RecordError::Ended)?;
        self.next = Some(counter + 1);
        let mut nonce = Nonce::default();
        if let Some(tail) = nonce.last_chunk_mut::<8>() {
            *tail = counter.to_be_bytes();
        }
        Ok(nonce)
    }
}

/// Seals the bytes one side sends.
pub struct Sealer(Direction);

impl fmt::Debug for Sealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sealer(..)")
    }
}

impl Sealer {
    pub(super) fn new(key: &[u8; 32]) -> Self {
        Self(Direction::new(key))
    }

    /// Appends `plaintext` to `out` as records of at most 4077 bytes of plaintext each; nothing for an empty one.
    ///
    /// # Errors
    /// `Ended` if the counter is used up or an earlier call failed.
    pub fn seal(&mut self, plaintext: &[u8], out: &mut Vec<u8>) -> Result<(), RecordError> {
        for piece in plaintext.chunks(MAX_PLAINTEXT) {
            let nonce = self.0.nonce()?;
            let [high, low] = u16::try_from(piece.len() + TAG_LEN).map_err(|_| RecordError::Malformed)?.to_be_bytes();
            out.extend([TYPE_RECORD, high, low]);
            let start = out.len();
            out.extend_from_slice(piece);
            let body = out.get_mut(start..).unwrap_or_default();
            let Ok(tag) = self.0.cipher.encrypt_in_place_detached(&nonce, &[], body) else {
                self.0.next = None;
                return Err(RecordError::Ended);
            };
            out.extend_from_slice(&tag);
        }
        Ok(())
    }
}

/// Opens the bytes one side receives.
pub struct Opener(Direction);

impl fmt::Debug for Opener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Opener(..)")
    }
}

impl Opener {
    pub(super) fn new(key: &[u8; 32]) -> Self {
        Self(Direction::new(key))
    }

    /// Decrypts one record's ciphertext (without its header) in place and gives the plaintext, which may be empty.
    ///
    /// # Errors
    /// `Malformed`, `Rejected`, or `Ended` after an earlier error.
    pub fn open<'a>(&mut self, ciphertext: &'a mut [u8]) -> Result<&'a [u8], RecordError> {
        let nonce = self.0.nonce()?;
        let opened = match ciphertext.split_last_chunk_mut::<TAG_LEN>() {
            None => Err(RecordError::Malformed),
            Some((body, tag)) => {
                let tag = Tag::from(*tag);
                let result = self.0.cipher.decrypt_in_place_detached(&nonce, &[], body, &tag);
                result.map(|()| &*body).map_err(|_| RecordError::Rejected)
            }
        };
        if opened.is_err() {
            self.0.next = None;
        }
        opened
    }
}

#[cfg(test)]
#[allow(clippy::indexing_slicing, reason = "test code")]
mod tests {
    use super::*;

    #[test]
    fn the_last_counter_value_is_never_used() {
        let mut direction = Direction::new(&[0; 32]);
        direction.next = Some(u64::MAX - 1);
        assert!(direction.nonce().is_ok());
        assert_eq!(direction.nonce().unwrap_err(), RecordError::Ended);
    }

    #[test]
    fn an_altered_record_ends_the_direction() {
        let (mut sealer, mut opener) = (Sealer::new(&[1; 32]), Opener::new(&[1; 32]));
        let mut bytes = Vec::new();
        sealer.seal(b"hello", &mut bytes).unwrap();
        let mut altered = bytes.split_off(HEADER_LEN);
        let mut good = altered.clone();
        altered[0] ^= 1;
        assert_eq!(opener.open(&mut altered), Err(RecordError::Rejected));
        assert_eq!(opener.open(&mut good), Err(RecordError::Ended));
    }

    #[test]
    fn long_writes_are_split_and_short_frames_refused() {
        let (mut sealer, mut opener) = (Sealer::new(&[1; 32]), Opener::new(&[1; 32]));
        let mut bytes = Vec::new();
        sealer.seal(&vec![7; MAX_PLAINTEXT + 1], &mut bytes).unwrap();
        assert_eq!(bytes.len(), MAX_PLAINTEXT + 1 + 2 * (HEADER_LEN + TAG_LEN));
        let len = record_len(bytes[..3].try_into().unwrap()).unwrap();
        assert_eq!(len, MAX_CIPHERTEXT);
        assert_eq!(opener.open(&mut bytes[3..3 + len]).unwrap().len(), MAX_PLAINTEXT);
        assert_eq!(record_len([4, 0x0f, 0xfe]), Err(RecordError::Malformed));
        assert_eq!(record_len([4, 0, 15]), Err(RecordError::Malformed));
        assert_eq!(record_len([2, 0, 48]), Err(RecordError::Malformed));
    }
}
