//! A byte stream through Noise records, over any other byte stream.
//!
//! Reading decrypts record by record, writing seals; both keep at most a few records in memory, and none while the stream is idle, which
//! map streams are nearly always. The first record that does not decrypt ends the stream with an error, as does an end of the inner
//! stream in the middle of a record.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::wire::control::noise::{HEADER_LEN, Keys, MAX_CIPHERTEXT, MAX_PLAINTEXT, Opener, RecordError, Sealer, TAG_LEN, record_len};

/// How many records one write seals at most before they are handed to the inner stream.
const RECORDS_PER_WRITE: usize = 16;
/// Room for several records, so that one read of the inner stream brings more than one.
const READ_BUFFER: usize = 4 * (HEADER_LEN + MAX_CIPHERTEXT);

/// A Noise connection after its handshake.
#[derive(Debug)]
pub struct NoiseStream<T> {
    inner: T,
    sealer: Sealer,
    opener: Opener,
    reading: Reading,
    /// Sealed bytes that the inner stream has not taken yet, and how many of them it has.
    sealed: Vec<u8>,
    taken: usize,
}

/// The receiving half's buffer: opened bytes not yet given out, then bytes as they came.
#[derive(Debug)]
struct Reading {
    buffer: Vec<u8>,
    opened: std::ops::Range<usize>,
    raw: std::ops::Range<usize>,
}

impl<T> NoiseStream<T> {
    /// Wraps a stream whose handshake is done. `received` are bytes that came behind the handshake and were read already.
    pub fn new(inner: T, keys: Keys, received: &[u8]) -> Self {
        let reading = Reading { buffer: received.to_vec(), opened: 0..0, raw: 0..received.len() };
        Self { inner, sealer: keys.sealer, opener: keys.opener, reading, sealed: Vec::new(), taken: 0 }
    }

    /// The wrapped stream.
    pub fn inner(&self) -> &T {
        &self.inner
    }

    /// The wrapped stream. What is written to it directly stands between records and breaks the connection.
    pub fn inner_mut(&mut self) -> &mut T {
        &mut self.inner
    }

    /// The same session over another stream, and the one it was over.
    pub fn replaced<U>(self, inner: U) -> (NoiseStream<U>, T) {
        let Self { inner: before, sealer, opener, reading, sealed, taken } = self;
        (NoiseStream { inner, sealer, opener, reading, sealed, taken }, before)
    }
}

impl Reading {
    /// Opens the next record if it is here as a whole. False: more bytes are needed.
    fn open_next(&mut self, opener: &mut Opener) -> Result<bool, RecordError> {
        let Some((header, rest)) = self.buffer.get_mut(self.raw.clone()).and_then(|raw| raw.split_first_chunk_mut::<HEADER_LEN>()) else {
            return Ok(false);
        };
        let length = record_len(*header)?;
        let Some(ciphertext) = rest.get_mut(..length) else { return Ok(false) };
        let opened = opener.open(ciphertext)?.len();
        let start = self.raw.start + HEADER_LEN;
        self.opened = start..start + opened;
        self.raw.start = start + length;
        Ok(true)
    }

    /// Makes room for more raw bytes. Only to be called while nothing opened is left.
    fn room(&mut self) -> &mut [u8] {
        if self.buffer.len() < READ_BUFFER {
            self.buffer.resize(READ_BUFFER, 0);
        }
        self.buffer.copy_within(self.raw.clone(), 0);
        self.raw = 0..self.raw.len();
        self.opened = 0..0;
        self.buffer.get_mut(self.raw.end..).unwrap_or_default()
    }
}

fn broken(error: RecordError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

impl<T: AsyncRead + Unpin> AsyncRead for NoiseStream<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Self { inner, opener, reading, .. } = &mut *self;
        loop {
            if !reading.opened.is_empty() {
                let opened = reading.buffer.get(reading.opened.clone()).unwrap_or_default();
                let count = opened.len().min(out.remaining());
                out.put_slice(opened.get(..count).unwrap_or_default());
                reading.opened.start += count;
                return Poll::Ready(Ok(()));
            }
            if reading.open_next(opener).map_err(broken)? {
                continue;
            }
            let mut room = ReadBuf::new(reading.room());
            let Poll::Ready(result) = Pin::new(&mut *inner).poll_read(cx, &mut room) else {
                if reading.raw.is_empty() {
                    reading.buffer = Vec::new();
                    reading.raw = 0..0;
                }
                return Poll::Pending;
            };
            result?;
            let count = room.filled().len();
            if count == 0 {
                return Poll::Ready(if reading.raw.is_empty() { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) });
            }
            reading.raw.end += count;
        }
    }
}

impl<T: AsyncWrite + Unpin> NoiseStream<T> {
    /// Hands sealed bytes to the inner stream until it has them all.
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(rest) = self.sealed.get(self.taken..).filter(|rest| !rest.is_empty()) {
            let count = ready!(Pin::new(&mut self.inner).poll_write(cx, rest))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.taken += count;
        }
        self.sealed = Vec::new();
        self.taken = 0;
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for NoiseStream<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_drain(cx))?;
        let data = data.get(..RECORDS_PER_WRITE * MAX_PLAINTEXT).unwrap_or(data);
        let Self { sealer, sealed, .. } = &mut *self;
        sealed.reserve(data.len() + data.len().div_ceil(MAX_PLAINTEXT) * (HEADER_LEN + TAG_LEN));
        sealer.seal(data, sealed).map_err(broken)?;
        // The bytes are ours now; if the inner stream is busy, the next write or flush goes on with them.
        match self.poll_drain(cx) {
            Poll::Ready(Err(e)) => Poll::Ready(Err(e)),
            _ => Poll::Ready(Ok(data.len())),
        }
    }

    /// HTTP/2 writes a frame's head and its payload apart: together they are one record and one packet.
    fn poll_write_vectored(self: Pin<&mut Self>, cx: &mut Context<'_>, parts: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        if let [one] = parts {
            return self.poll_write(cx, one);
        }
        let mut data = Vec::with_capacity(parts.iter().map(|part| part.len()).sum::<usize>().min(RECORDS_PER_WRITE * MAX_PLAINTEXT));
        for part in parts {
            let room = RECORDS_PER_WRITE * MAX_PLAINTEXT - data.len();
            data.extend_from_slice(part.get(..room).unwrap_or(part));
        }
        self.poll_write(cx, &data)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_drain(cx))?;
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_drain(cx))?;
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}
