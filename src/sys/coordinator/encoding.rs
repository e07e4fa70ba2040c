//! Writing the messages of map streams: JSON, compression, framing.
//!
//! A message comes as pieces of text, some of them part of many streams' messages. Each piece becomes a zstd frame of its own, and the
//! frames are put one behind the other: a decoder gives their contents joined (RFC 8878, section 3: "one or more frames"). So what many
//! are sent is compressed once, by whoever needs it first, and shared as bytes.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use crate::coord::server::{Message, Piece, Shared};
use crate::wire::control::frame;

/// Speed over size, for what one stream is sent.
const OWN_LEVEL: i32 = 1;
/// What many are sent is compressed once and sealed and carried often.
const SHARED_LEVEL: i32 = 3;

/// Exactly these bytes: clients recognise them without decoding.
pub(super) const KEEPALIVE_JSON: &[u8] = b"{\"KeepAlive\":true}";

/// The bytes of a message, in order.
pub(super) type Frame = VecDeque<Bytes>;

/// How messages are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Encoding {
    Json,
    Zstd,
}

impl Encoding {
    /// What a request's `Compress` asks for.
    pub(super) fn asked(compress: &str) -> Self {
        if compress == "zstd" { Self::Zstd } else { Self::Json }
    }

    /// A message as the wire has it.
    pub(super) fn message(self, message: &Message) -> io::Result<Frame> {
        let pieces = message.pieces().iter().map(|piece| match piece {
            Piece::Own(own) => self.pack(&own.to_json()?, OWN_LEVEL).map(Bytes::from),
            Piece::Shared(shared) => self.shared(shared),
        });
        framed(pieces.collect::<io::Result<_>>()?)
    }

    /// The keepalive as the wire has it.
    pub(super) fn keepalive(self) -> io::Result<Frame> {
        framed(VecDeque::from([Bytes::from(self.pack(KEEPALIVE_JSON, OWN_LEVEL)?)]))
    }

    fn shared(self, shared: &Shared) -> io::Result<Bytes> {
        let made: Arc<[u8]> = shared.made(self as usize, |json| self.pack(json, SHARED_LEVEL).unwrap_or_default());
        // Nothing packs to nothing: it failed.
        if made.is_empty() { Err(io::Error::other("a shared piece cannot be compressed")) } else { Ok(Bytes::from_owner(made)) }
    }

    fn pack(self, json: &[u8], level: i32) -> io::Result<Vec<u8>> {
        match self {
            Self::Json => Ok(json.to_vec()),
            Self::Zstd => compress(json, level),
        }
    }
}

/// Puts the length in front.
fn framed(mut pieces: Frame) -> io::Result<Frame> {
    let length = frame::length(pieces.iter().map(Bytes::len).sum()).map_err(io::Error::other)?;
    let first = pieces.pop_front().unwrap_or_default();
    let mut start = BytesMut::with_capacity(length.len() + first.len());
    start.extend_from_slice(&length);
    start.extend_from_slice(&first);
    pieces.push_front(start.freeze());
    Ok(pieces)
}

thread_local! {
    /// A compressor's working memory is far larger than a message: one for each thread and level.
    static COMPRESSORS: RefCell<[Option<zstd::bulk::Compressor<'static>>; 2]> = const { RefCell::new([None, None]) };
}

fn compress(data: &[u8], level: i32) -> io::Result<Vec<u8>> {
    COMPRESSORS.with_borrow_mut(|[own, shared]| {
        let slot = if level == OWN_LEVEL { own } else { shared };
        let compressor = match slot {
            Some(compressor) => compressor,
            None => {
                let mut compressor = zstd::bulk::Compressor::new(level)?;
                // Go's decoder makes room for each frame's announced size anew, copying all it has: unannounced, its room doubles.
                compressor.include_contentsize(false)?;
                slot.insert(compressor)
            }
        };
        compressor.compress(data)
    })
}

#[cfg(test)]
#[allow(clippy::indexing_slicing, reason = "test code")]
mod tests {
    use std::io::Read as _;

    use super::*;

    fn joined(frame: Frame) -> Vec<u8> {
        frame.iter().flat_map(|bytes| bytes.iter().copied()).collect()
    }

    #[test]
    fn trap_02_the_length_is_little_endian_and_covers_the_message() {
        let plain = joined(Encoding::asked("").keepalive().unwrap());
        assert_eq!(&plain[..4], [18, 0, 0, 0]);
        assert_eq!(&plain[4..], KEEPALIVE_JSON);
        let packed = joined(Encoding::asked("zstd").keepalive().unwrap());
        assert_eq!(u32::from_le_bytes(packed[..4].try_into().unwrap()) as usize, packed.len() - 4);
        assert_eq!(zstd::bulk::decompress(&packed[4..], 100).unwrap(), KEEPALIVE_JSON);
    }

    #[test]
    fn frames_behind_each_other_are_one_message_to_decoders() {
        let (a, b) = (vec![b'a'; 100_000], b"{}".to_vec());
        let pieces = [&a, &b, &a].map(|piece| Bytes::from(compress(piece, OWN_LEVEL).unwrap()));
        let message = joined(framed(pieces.into_iter().collect()).unwrap());
        let whole = [a.as_slice(), &b, &a].concat();
        assert_eq!(zstd::bulk::decompress(&message[4..], whole.len()).unwrap(), whole);
        let mut streamed = Vec::new();
        zstd::stream::read::Decoder::new(&message[4..]).unwrap().read_to_end(&mut streamed).unwrap();
        assert_eq!(streamed, whole);
    }
}
