//! One connection's task: it moves bytes between the stream and the core, both ways at once, and holds memory only while bytes are under way.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

use crate::ident::NodePublic;
use crate::relay::server::{Closed, Connection, Progress};
use crate::sys::clock;
use crate::time::Time;

/// What is read before other tasks get their turn. It is less than a mailbox holds in packets of the usual size, so that who receives can
/// keep up.
const READ: usize = 32 * 1024;
/// What is written at once.
const WRITTEN: usize = 64 * 1024;

thread_local! {
    /// One for each thread: nothing stays in it between two calls.
    static SCRATCH: RefCell<Vec<u8>> = RefCell::new(vec![0; READ]);
}

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum Ended {
    /// The core says so.
    #[error(transparent)]
    Closed(#[from] Closed),
    /// The other side closed, or the network did.
    #[error("the connection broke: {0}")]
    Io(#[from] io::Error),
}

/// The state of the task.
struct Session<T> {
    stream: T,
    connection: Connection,
    /// Bytes that came behind the one frame after which somebody must be asked.
    unread: Vec<u8>,
    frames: Vec<Vec<u8>>,
    out: Vec<u8>,
    written: usize,
    frames_in_out: usize,
    needs_flush: bool,
    timer: Pin<Box<Sleep>>,
    /// Runs while a write waits.
    stuck: Option<Pin<Box<Sleep>>>,
    pause: Option<Pin<Box<Sleep>>>,
}

/// Serves a connection until it ends. `first`: bytes of the stream that were read with the request. `ask`: whether a node is served.
pub(super) async fn serve<T, F>(stream: T, connection: Connection, first: Vec<u8>, ask: impl Fn(NodePublic) -> F) -> Ended
where
    T: AsyncRead + AsyncWrite + Unpin,
    F: Future<Output = bool>,
{
    let timer = Box::pin(tokio::time::sleep_until(instant(connection.poll_timeout().at)));
    let mut session = Session {
        stream,
        connection,
        unread: first,
        frames: Vec::new(),
        out: Vec::new(),
        written: 0,
        frames_in_out: 0,
        needs_flush: false,
        timer,
        stuck: None,
        pause: None,
    };
    let ended = loop {
        match poll_fn(|cx| session.poll(cx)).await {
            Ok(key) => {
                let served = ask(key).await;
                if let Err(closed) = session.connection.admit(clock::now(), served) {
                    break closed.into();
                }
            }
            Err(ended) => break ended,
        }
    };
    session.connection.lost(session.frames.len() + session.frames_in_out);
    ended
}

fn instant(time: Time) -> Instant {
    clock::instant(time).into()
}

impl<T: AsyncRead + AsyncWrite + Unpin> Session<T> {
    /// Ready when somebody must be asked about a node, or at the end.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<NodePublic, Ended>> {
        while self.timer.as_mut().poll(cx).is_ready() {
            if let Err(closed) = self.connection.handle_timeout(clock::now()) {
                return Poll::Ready(Err(closed.into()));
            }
            self.timer.as_mut().reset(instant(self.connection.poll_timeout().at));
            self.release();
        }
        match self.poll_read(cx) {
            Ok(Progress::Drained) => {}
            Ok(Progress::Ask(key)) => return Poll::Ready(Ok(key)),
            Err(ended) => return Poll::Ready(Err(ended)),
        }
        match self.poll_write(cx) {
            Ok(()) => Poll::Pending,
            Err(ended) => Poll::Ready(Err(ended)),
        }
    }

    /// Gives back memory that a busy moment needed.
    fn release(&mut self) {
        if self.out.is_empty() {
            (self.out, self.frames) = (Vec::new(), Vec::new());
        }
    }

    fn poll_read(&mut self, cx: &mut Context<'_>) -> Result<Progress, Ended> {
        if let Some(pause) = &mut self.pause {
            if pause.as_mut().poll(cx).is_pending() {
                return Ok(Progress::Drained);
            }
            self.pause = None;
        }
        if !self.unread.is_empty() {
            let unread = std::mem::take(&mut self.unread);
            return self.take(cx, &unread);
        }
        SCRATCH.with_borrow_mut(|scratch| {
            let mut read = ReadBuf::new(scratch);
            // What is there is gathered first: who receives it is woken once.
            let mut ended = None;
            while read.remaining() > 0 {
                let before = read.filled().len();
                match Pin::new(&mut self.stream).poll_read(cx, &mut read) {
                    Poll::Pending => break,
                    Poll::Ready(Ok(())) if read.filled().len() > before => {}
                    Poll::Ready(Ok(())) => ended = Some(io::ErrorKind::UnexpectedEof.into()),
                    Poll::Ready(Err(error)) => ended = Some(error),
                }
                if ended.is_some() {
                    break;
                }
            }
            let full = read.remaining() == 0;
            let progress = self.take(cx, read.filled())?;
            match ended {
                Some(error) => Err(Ended::Io(error)),
                None => {
                    if full {
                        // There may be more, but who receives has its turn first.
                        cx.waker().wake_by_ref();
                    }
                    Ok(progress)
                }
            }
        })
    }

    fn take(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Result<Progress, Ended> {
        let (mut rest, now) = (bytes, clock::now());
        let progress = self.connection.handle_bytes(now, &mut rest)?;
        if !rest.is_empty() {
            self.unread = rest.to_vec();
        }
        if let Some(until) = self.connection.pause(now) {
            let mut pause = Box::pin(tokio::time::sleep_until(instant(until)));
            if pause.as_mut().poll(cx).is_pending() {
                self.pause = Some(pause);
            }
        }
        if self.timer.deadline() > instant(self.connection.poll_timeout().at) || self.connection.key().is_none() {
            self.timer.as_mut().reset(instant(self.connection.poll_timeout().at));
            let _ = self.timer.as_mut().poll(cx);
        }
        Ok(progress)
    }

    fn poll_write(&mut self, cx: &mut Context<'_>) -> Result<(), Ended> {
        loop {
            if self.out.is_empty() {
                if self.frames.is_empty() {
                    self.connection.poll_transmit(&mut self.frames, cx.waker())?;
                }
                if self.frames.is_empty() {
                    return self.poll_flush(cx);
                }
                self.fill();
            }
            let rest = self.out.get(self.written..).unwrap_or_default();
            match Pin::new(&mut self.stream).poll_write(cx, rest) {
                Poll::Ready(Ok(0)) => return Err(Ended::Io(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(count)) => {
                    self.needs_flush = true;
                    self.stuck = None;
                    self.written += count;
                    if self.written >= self.out.len() {
                        self.out.clear();
                        (self.written, self.frames_in_out) = (0, 0);
                    }
                }
                Poll::Ready(Err(error)) => return Err(Ended::Io(error)),
                Poll::Pending => return self.wait_for_room(cx),
            }
        }
    }

    /// Joins frames into one write: one system call, and few and large TLS records, for what waited together.
    fn fill(&mut self) {
        let mut bytes = 0;
        let count = self.frames.iter().take_while(|frame| {
            let first = bytes == 0;
            bytes += frame.len();
            first || bytes <= WRITTEN
        });
        let count = count.count();
        for frame in self.frames.drain(..count) {
            self.out.extend_from_slice(&frame);
        }
        self.frames_in_out = count;
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Result<(), Ended> {
        if !self.needs_flush {
            return Ok(());
        }
        match Pin::new(&mut self.stream).poll_flush(cx) {
            Poll::Ready(Ok(())) => {
                self.needs_flush = false;
                self.stuck = None;
                Ok(())
            }
            Poll::Ready(Err(error)) => Err(Ended::Io(error)),
            Poll::Pending => self.wait_for_room(cx),
        }
    }

    /// The other side takes nothing now; it has so long to take something.
    fn wait_for_room(&mut self, cx: &mut Context<'_>) -> Result<(), Ended> {
        let limit = self.connection.write_limit();
        let stuck = self.stuck.get_or_insert_with(|| Box::pin(tokio::time::sleep(limit)));
        match stuck.as_mut().poll(cx) {
            Poll::Ready(()) => Err(Ended::Closed(Closed::Slow)),
            Poll::Pending => Ok(()),
        }
    }
}
