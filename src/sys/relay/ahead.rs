//! Reading ahead of TLS: rustls takes 4 KiB at a time, which is three packets for one system call. Here the socket is read in large pieces,
//! which wait in memory that exists only while something waits in it.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What is read from the socket at once.
const PIECE: usize = 64 * 1024;

thread_local! {
    /// One for each thread: nothing stays in it between two calls.
    static SCRATCH: RefCell<Vec<u8>> = RefCell::new(vec![0; PIECE]);
}

/// A stream that is read in large pieces.
#[derive(Debug)]
pub(super) struct Ahead<T> {
    inner: T,
    waiting: Vec<u8>,
    taken: usize,
}

impl<T> Ahead<T> {
    pub(super) fn new(inner: T) -> Self {
        Self { inner, waiting: Vec::new(), taken: 0 }
    }

    pub(super) fn get_ref(&self) -> &T {
        &self.inner
    }

    /// Gives from what waits.
    fn give(&mut self, out: &mut ReadBuf<'_>) {
        let rest = self.waiting.get(self.taken..).unwrap_or_default();
        let count = rest.len().min(out.remaining());
        out.put_slice(rest.get(..count).unwrap_or_default());
        self.taken += count;
        if self.taken >= self.waiting.len() {
            (self.waiting, self.taken) = (Vec::new(), 0);
        }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Ahead<T> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.waiting.is_empty() {
            if out.remaining() >= PIECE / 2 {
                return Pin::new(&mut this.inner).poll_read(cx, out);
            }
            let polled = SCRATCH.with_borrow_mut(|scratch| {
                let mut read = ReadBuf::new(scratch);
                ready!(Pin::new(&mut this.inner).poll_read(cx, &mut read))?;
                let read = read.filled();
                let (now, later) = read.split_at(read.len().min(out.remaining()));
                out.put_slice(now);
                this.waiting.extend_from_slice(later);
                Poll::Ready(Ok(()))
            });
            return polled;
        }
        this.give(out);
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Ahead<T> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().inner).poll_write(cx, data)
    }

    fn poll_write_vectored(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().inner).poll_write_vectored(cx, data)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_shutdown(cx)
    }
}
