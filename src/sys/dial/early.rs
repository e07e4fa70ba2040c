//! Skips the early payload, if the server sends one.
//!
//! Reading only: an HTTP/2 server may wait for the client's preface before it says anything, so nothing here may hold back writes.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::wire::control::noise::{EARLY_HEADER_LEN, parse_early_header};

/// A stream whose first bytes may be an early payload, which its reader does not see.
#[derive(Debug)]
pub(super) struct SkipEarly<S> {
    inner: S,
    state: State,
}

#[derive(Debug)]
enum State {
    /// Reading the nine bytes that decide.
    Header { bytes: [u8; EARLY_HEADER_LEN], have: usize },
    /// Discarding the payload.
    Payload { left: usize },
    /// The nine bytes belong to the reader.
    Replay { bytes: [u8; EARLY_HEADER_LEN], given: usize },
    /// Nothing to do any more.
    Through,
}

impl<S> SkipEarly<S> {
    pub(super) fn new(inner: S) -> Self {
        Self { inner, state: State::Header { bytes: [0; EARLY_HEADER_LEN], have: 0 } }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for SkipEarly<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Self { inner, state } = &mut *self;
        loop {
            match state {
                State::Header { bytes, have } => {
                    let mut rest = ReadBuf::new(bytes.get_mut(*have..).unwrap_or_default());
                    ready!(Pin::new(&mut *inner).poll_read(cx, &mut rest))?;
                    let count = rest.filled().len();
                    if count == 0 {
                        return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
                    }
                    *have += count;
                    if *have == EARLY_HEADER_LEN {
                        let payload = parse_early_header(*bytes).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
                        *state = payload.map_or(State::Replay { bytes: *bytes, given: 0 }, |left| State::Payload { left });
                    }
                }
                State::Payload { left: 0 } => *state = State::Through,
                State::Payload { left } => {
                    let mut scratch = [0; 1024];
                    let size = scratch.len().min(*left);
                    let mut piece = ReadBuf::new(scratch.get_mut(..size).unwrap_or_default());
                    ready!(Pin::new(&mut *inner).poll_read(cx, &mut piece))?;
                    if piece.filled().is_empty() {
                        return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
                    }
                    *left -= piece.filled().len();
                }
                State::Replay { bytes, given } => {
                    let rest = bytes.get(*given..).unwrap_or_default();
                    let count = rest.len().min(out.remaining());
                    out.put_slice(rest.get(..count).unwrap_or_default());
                    *given += count;
                    if *given == EARLY_HEADER_LEN {
                        *state = State::Through;
                    }
                    return Poll::Ready(Ok(()));
                }
                State::Through => return Pin::new(&mut *inner).poll_read(cx, out),
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for SkipEarly<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}
