//! One TCP connection of the mesh's, as a stream.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::Shared;
use crate::netstack::{Connection, Ends, Read, State};
use crate::time::Time;

/// A connection, and who waits for it.
#[derive(Debug)]
pub(super) struct Flow {
    pub(super) ends: Ends,
    state: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    connection: Connection,
    reader: Option<Waker>,
    writer: Option<Waker>,
    /// When the thread of timers looks at it, if it does.
    due: Option<Time>,
    /// It waits for room on the link, and the link knows.
    blocked: bool,
}

impl Inner {
    fn wake(&mut self) {
        [self.reader.take(), self.writer.take()].into_iter().flatten().for_each(Waker::wake);
    }
}

impl Flow {
    pub(super) fn new(ends: Ends, connection: Connection) -> Arc<Self> {
        let state = Inner { connection, reader: None, writer: None, due: None, blocked: false };
        Arc::new(Self { ends, state: Mutex::new(state) })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How far it is.
    pub(super) fn state(&self) -> State {
        self.lock().connection.state()
    }

    /// A packet of it has come.
    pub(super) fn arrive(self: &Arc<Self>, shared: &Shared, packet: &[u8]) {
        let mut inner = self.lock();
        inner.connection.arrive(shared.now(), packet, &|| shared.link.is_ready(), |departure| shared.link.depart(departure));
        inner.wake();
        self.settle(shared, inner);
    }

    /// The time has come that it asked for, or there is room again.
    pub(super) fn attend(self: &Arc<Self>, shared: &Shared, room: bool) {
        let mut inner = self.lock();
        if room {
            inner.blocked = false;
        } else {
            inner.due = None;
        }
        self.depart(shared, inner, true);
    }

    fn change(self: &Arc<Self>, shared: &Shared, act: impl FnOnce(&mut Connection)) {
        let mut inner = self.lock();
        act(&mut inner.connection);
        self.depart(shared, inner, true);
    }

    fn depart(self: &Arc<Self>, shared: &Shared, mut inner: MutexGuard<'_, Inner>, wake: bool) {
        inner.connection.depart(shared.now(), &|| shared.link.is_ready(), |departure| shared.link.depart(departure));
        if wake {
            inner.wake();
        }
        self.settle(shared, inner);
    }

    /// Has itself looked at when it is to be.
    fn settle(self: &Arc<Self>, shared: &Shared, mut inner: MutexGuard<'_, Inner>) {
        if inner.connection.state() == State::Over {
            drop(inner);
            shared.forget(self);
            return;
        }
        if !shared.link.is_ready() {
            // The deadline is now, and of no use until there is room.
            if !std::mem::replace(&mut inner.blocked, true) {
                drop(inner);
                shared.block(Arc::clone(self));
            }
            return;
        }
        let deadline = inner.connection.deadline(shared.now());
        if let Some(at) = deadline
            && inner.due.is_none_or(|due| at < due)
        {
            inner.due = Some(at);
            drop(inner);
            shared.call_at(at, self.ends);
        }
    }

    /// Lets the peer in that has asked.
    pub(super) fn admit(self: &Arc<Self>, shared: &Shared) {
        self.change(shared, Connection::admit);
    }

    /// Breaks it off.
    pub(super) fn reset(self: &Arc<Self>, shared: &Shared) {
        self.change(shared, Connection::reset);
    }
}

/// A connection as a stream. Dropping it closes it.
pub(in crate::sys) struct MeshStream {
    pub(super) flow: Arc<Flow>,
    pub(super) shared: Arc<Shared>,
}

impl std::fmt::Debug for MeshStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MeshStream").field("ends", &self.flow.ends).finish_non_exhaustive()
    }
}

impl MeshStream {
    /// Its ends.
    pub(in crate::sys) fn ends(&self) -> Ends {
        self.flow.ends
    }

    /// Waits until the peer has answered.
    pub(super) async fn opened(&self) -> io::Result<()> {
        std::future::poll_fn(|context| {
            let mut inner = self.flow.lock();
            match inner.connection.state() {
                State::Opening => {
                    inner.writer = Some(context.waker().clone());
                    Poll::Pending
                }
                State::Open => Poll::Ready(Ok(())),
                State::Waiting | State::Over => Poll::Ready(Err(io::ErrorKind::ConnectionRefused.into())),
            }
        })
        .await
    }
}

impl Drop for MeshStream {
    fn drop(&mut self) {
        self.flow.change(&self.shared, Connection::abandon);
    }
}

impl AsyncRead for MeshStream {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut inner = self.flow.lock();
        match inner.connection.read(buffer.initialize_unfilled()) {
            Read::Data(length) => {
                buffer.advance(length);
                // There is room for more: the peer may have to hear it.
                self.flow.depart(&self.shared, inner, false);
                Poll::Ready(Ok(()))
            }
            Read::Nothing => {
                inner.reader = Some(context.waker().clone());
                Poll::Pending
            }
            Read::End => Poll::Ready(Ok(())),
            Read::Broken => Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
        }
    }
}

impl AsyncWrite for MeshStream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let mut inner = self.flow.lock();
        match inner.connection.write(data) {
            Some(0) if !data.is_empty() => {
                inner.writer = Some(context.waker().clone());
                Poll::Pending
            }
            Some(length) => {
                self.flow.depart(&self.shared, inner, false);
                Poll::Ready(Ok(length))
            }
            None => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // What was written is on its way.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.flow.change(&self.shared, Connection::close);
        Poll::Ready(Ok(()))
    }
}
