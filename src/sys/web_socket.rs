//! A byte stream in the binary messages of a WebSocket (RFC 6455). Where one message ends and the next begins means nothing; pings are
//! answered on the way; a close is the end of the stream. Messages longer than any of ours end it with an error.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes};
use futures_util::{Sink as _, Stream as _};
use http::HeaderValue;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::error::Error;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Message, Role, WebSocketConfig};

/// The longest message read: several records, which is what a client writes at once.
const MAX_MESSAGE: usize = 64 * 1024;
/// The longest message written: below the limit of 32 KiB that browsers' libraries start with.
const MAX_WRITTEN: usize = 16 * 1024;
const BUFFER: usize = 8 * 1024;
/// A WebSocket key is 16 random bytes in base64.
const KEY_LEN: usize = 24;

/// A WebSocket as a byte stream.
#[derive(Debug)]
pub struct WebSocket<T> {
    socket: WebSocketStream<T>,
    /// What came and has not been read.
    received: Bytes,
}

/// The value of `Sec-WebSocket-Accept` for a request's key; `None` if it is none.
pub fn confirmation(key: &[u8]) -> Option<HeaderValue> {
    (key.len() == KEY_LEN).then(|| HeaderValue::try_from(derive_accept_key(key)).ok()).flatten()
}

impl<T: AsyncRead + AsyncWrite + Unpin> WebSocket<T> {
    /// The server's side of a connection whose HTTP upgrade is done.
    pub async fn server(stream: T) -> Self {
        let config = WebSocketConfig::default()
            .read_buffer_size(BUFFER)
            .write_buffer_size(BUFFER)
            .max_write_buffer_size(BUFFER + 2 * MAX_WRITTEN)
            .max_message_size(Some(MAX_MESSAGE))
            .max_frame_size(Some(MAX_MESSAGE));
        Self::over(WebSocketStream::from_raw_socket(stream, Role::Server, Some(config)).await)
    }

    /// Either side of an open WebSocket.
    pub fn over(socket: WebSocketStream<T>) -> Self {
        Self { socket, received: Bytes::new() }
    }
}

fn failed(error: Error) -> io::Error {
    match error {
        Error::Io(error) => error,
        Error::ConnectionClosed | Error::AlreadyClosed => io::ErrorKind::BrokenPipe.into(),
        other => io::Error::new(io::ErrorKind::InvalidData, other),
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncRead for WebSocket<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        while self.received.is_empty() {
            match ready!(Pin::new(&mut self.socket).poll_next(cx)) {
                Some(Ok(Message::Binary(bytes))) => self.received = bytes,
                Some(Ok(Message::Text(_))) => return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, "a text message"))),
                Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {}
                Some(Ok(Message::Close(_)) | Err(Error::ConnectionClosed)) | None => return Poll::Ready(Ok(())),
                Some(Err(error)) => return Poll::Ready(Err(failed(error))),
            }
        }
        let count = self.received.len().min(out.remaining());
        out.put_slice(self.received.get(..count).unwrap_or_default());
        self.received.advance(count);
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncWrite for WebSocket<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        ready!(Pin::new(&mut self.socket).poll_ready(cx)).map_err(failed)?;
        let data = data.get(..MAX_WRITTEN).unwrap_or(data);
        Pin::new(&mut self.socket).start_send(Message::Binary(Bytes::copy_from_slice(data))).map_err(failed)?;
        Poll::Ready(Ok(data.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx).map_err(failed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_close(cx).map_err(failed)
    }
}
