//! How long a connection may leave sent data unacknowledged before the system gives it up, changed while it is in use.
//!
//! A machine that loses its power says nothing: its connections look alive until the system has tried long enough to deliver something,
//! which takes a quarter of an hour unless told otherwise (`TCP_USER_TIMEOUT`, RFC 5482). Behind a reverse proxy the connection is the
//! proxy's, which goes on acknowledging whatever became of its client: there only the end of the proxy is noticed by this.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use rustix::net::sockopt;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// Sets the patience of a connection from afar. Clones are about the same connection.
#[derive(Debug, Clone, Default)]
pub(super) struct Patience(Arc<AtomicU32>);

impl Patience {
    /// From the next write on; `None` is the system's own.
    pub(super) fn set(&self, time: Option<Duration>) {
        let milliseconds = time.map_or(0, |time| u32::try_from(time.as_millis()).unwrap_or(u32::MAX));
        self.0.store(milliseconds, Ordering::Relaxed);
    }
}

/// A connection whose patience can be set.
#[derive(Debug)]
pub(super) struct Patient {
    stream: TcpStream,
    wanted: Patience,
    /// Milliseconds; 0 is the system's own.
    current: u32,
}

impl Patient {
    pub(super) fn new(stream: TcpStream) -> (Self, Patience) {
        let wanted = Patience::default();
        (Self { stream, wanted: wanted.clone(), current: 0 }, wanted)
    }

    fn adapt(&mut self) {
        let wanted = self.wanted.0.load(Ordering::Relaxed);
        if wanted == self.current {
            return;
        }
        self.current = wanted;
        if let Err(error) = sockopt::set_tcp_user_timeout(&self.stream, wanted) {
            tracing::debug!(%error, "the patience of a connection cannot be changed");
        }
    }
}

impl AsyncRead for Patient {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Patient {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.adapt();
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        self.adapt();
        Pin::new(&mut self.stream).poll_write_vectored(context, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
