//! The stream of frames as it arrives.

use super::frame::held;
use super::{Frame, FrameError, HEADER_LEN, MAX_PAYLOAD};

/// A partial frame's buffer that grew beyond this is given back after use: most connections are idle most of the time.
const KEPT_CAPACITY: usize = 4096;

/// Why a stream cannot be read on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum StreamError {
    /// The length is above the limit of the type.
    #[error("a frame of type {kind:#04x} with {length} bytes is announced")]
    TooLong {
        /// The frame's type.
        kind: u8,
        /// What it claims.
        length: u32,
    },
}

/// A whole frame, not yet looked into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Raw<'a> {
    /// Its type.
    pub kind: u8,
    /// Its payload.
    pub payload: &'a [u8],
}

impl<'a> Raw<'a> {
    /// Looks into it, see [`Frame::decode`].
    ///
    /// # Errors
    /// As [`Frame::decode`].
    pub fn frame(&self) -> Result<Option<Frame<'a>>, FrameError> {
        Frame::decode(self.kind, self.payload)
    }
}

/// Cuts a stream into frames. A frame that lies whole in the bytes that arrived is not copied; of one that does not, at most the limit
/// of its type is held, and memory follows what has arrived, not what a length claims.
#[derive(Debug, Default)]
pub struct Decoder {
    /// The beginning of a frame.
    partial: Vec<u8>,
    /// The frame in `partial` was handed out.
    done: bool,
    /// Bytes of an unknown frame still to be passed over.
    skip: usize,
}

/// Type, payload length, and whether the payload is wanted.
fn header(bytes: &[u8]) -> Result<Option<(u8, usize, bool)>, StreamError> {
    let Some((&[kind, a, b, c, d], _)) = bytes.split_first_chunk::<HEADER_LEN>() else { return Ok(None) };
    let length = u32::from_be_bytes([a, b, c, d]);
    let wanted = held(kind);
    let payload = usize::try_from(length).unwrap_or(usize::MAX);
    if payload > wanted.unwrap_or(MAX_PAYLOAD) {
        return Err(StreamError::TooLong { kind, length });
    }
    Ok(Some((kind, payload, wanted.is_some())))
}

impl Decoder {
    /// Whether a frame has begun and not ended: a stream that ends here was cut.
    pub fn is_midway(&self) -> bool {
        self.skip > 0 || (!self.done && !self.partial.is_empty())
    }

    /// Takes bytes off the front of `input` up to the end of the next frame of a known type; `None` once `input` is used up.
    ///
    /// # Errors
    /// An impossible length; the stream cannot be read on.
    pub fn next<'a, 'b: 'a>(&'a mut self, input: &mut &'b [u8]) -> Result<Option<Raw<'a>>, StreamError> {
        if self.done {
            self.done = false;
            self.partial.clear();
            if self.partial.capacity() > KEPT_CAPACITY {
                self.partial = Vec::new();
            }
        }
        loop {
            let skipped = self.skip.min(input.len());
            *input = input.get(skipped..).unwrap_or_default();
            self.skip -= skipped;
            if input.is_empty() {
                return Ok(None);
            }
            if !self.partial.is_empty() {
                return self.continue_partial(input);
            }
            let Some((kind, length, wanted)) = header(input)? else {
                self.partial.extend_from_slice(input);
                *input = &[];
                return Ok(None);
            };
            let whole: &'b [u8] = input;
            let rest = whole.get(HEADER_LEN..).unwrap_or_default();
            if !wanted {
                *input = rest;
                self.skip = length;
                continue;
            }
            let Some((payload, rest)) = rest.split_at_checked(length) else {
                self.partial.extend_from_slice(whole);
                *input = &[];
                return Ok(None);
            };
            *input = rest;
            return Ok(Some(Raw { kind, payload }));
        }
    }

    fn fill(&mut self, input: &mut &[u8], until: usize) -> bool {
        let wanted = until.saturating_sub(self.partial.len());
        let (taken, rest) = input.split_at_checked(wanted).unwrap_or((input, &[]));
        self.partial.extend_from_slice(taken);
        *input = rest;
        self.partial.len() >= until
    }

    fn continue_partial<'a, 'b: 'a>(&'a mut self, input: &mut &'b [u8]) -> Result<Option<Raw<'a>>, StreamError> {
        if !self.fill(input, HEADER_LEN) {
            return Ok(None);
        }
        let Some((kind, length, wanted)) = header(&self.partial)? else { return Ok(None) };
        if !wanted {
            self.partial.clear();
            self.skip = length;
            return self.next(input);
        }
        if !self.fill(input, HEADER_LEN + length) {
            return Ok(None);
        }
        self.done = true;
        Ok(Some(Raw { kind, payload: self.partial.get(HEADER_LEN..).unwrap_or_default() }))
    }
}
