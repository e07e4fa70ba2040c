//! HTTP/1.1 as far as a relay needs it. An HTTP library cannot leave out the answer to an upgrade, which is what a fast start asks for; so
//! heads are read here (by the crate httparse), and requests with bodies are refused.

use std::fmt::Write as _;
use std::io;

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Response};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

/// The longest head of a request.
const MAX_HEAD: usize = 16 * 1024;
const MAX_HEADERS: usize = 64;

/// A request's head.
#[derive(Debug)]
pub(super) struct Head {
    pub(super) method: Method,
    pub(super) path: String,
    pub(super) headers: HeaderMap,
    /// The client means to ask again on this connection.
    pub(super) keep_alive: bool,
}

/// A connection before any upgrade.
#[derive(Debug)]
pub(super) struct Http<T> {
    stream: T,
    buffer: Vec<u8>,
}

fn invalid(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

impl<T: AsyncRead + AsyncWrite + Unpin> Http<T> {
    pub(super) fn new(stream: T) -> Self {
        Self { stream, buffer: Vec::new() }
    }

    /// The next request; `None` at the end.
    ///
    /// # Errors
    /// The connection broke, or what came is no request that is read here.
    pub(super) async fn next(&mut self) -> io::Result<Option<Head>> {
        loop {
            if let Some((head, length)) = parse(&self.buffer)? {
                self.buffer.drain(..length);
                return Ok(Some(head));
            }
            if self.buffer.len() >= MAX_HEAD {
                return Err(invalid("the request's head does not end"));
            }
            let mut piece = [0; 2048];
            let count = self.stream.read(&mut piece).await?;
            if count == 0 {
                return if self.buffer.is_empty() { Ok(None) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
            }
            self.buffer.extend_from_slice(piece.get(..count).unwrap_or_default());
        }
    }

    /// Sends an answer.
    ///
    /// # Errors
    /// The connection broke.
    pub(super) async fn respond(&mut self, response: &Response<String>, head: &Head) -> io::Result<()> {
        let mut text = format!("HTTP/1.1 {}\r\n", response.status());
        for (name, value) in response.headers() {
            let _ = write!(text, "{name}: {}\r\n", value.to_str().unwrap_or_default());
        }
        let switching = response.status().is_informational();
        if !switching && response.status() != http::StatusCode::NO_CONTENT {
            let _ = write!(text, "content-length: {}\r\n", response.body().len());
        }
        if !switching && !head.keep_alive {
            text.push_str("connection: close\r\n");
        }
        text.push_str("\r\n");
        if head.method != Method::HEAD {
            text.push_str(response.body());
        }
        self.stream.write_all(text.as_bytes()).await?;
        self.stream.flush().await
    }

    /// The stream, and what of it was read already.
    pub(super) fn into_parts(self) -> (T, Vec<u8>) {
        (self.stream, self.buffer)
    }
}

/// A head and its length; `None` while it is not there completely.
fn parse(bytes: &[u8]) -> io::Result<Option<(Head, usize)>> {
    let mut room = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut request = httparse::Request::new(&mut room);
    let httparse::Status::Complete(length) = request.parse(bytes).map_err(|_| invalid("no HTTP request"))? else { return Ok(None) };
    let method = Method::from_bytes(request.method.unwrap_or_default().as_bytes()).map_err(|_| invalid("no HTTP method"))?;
    let target = request.path.unwrap_or_default();
    let mut headers = HeaderMap::with_capacity(request.headers.len());
    for field in &*request.headers {
        let name = HeaderName::from_bytes(field.name.as_bytes()).map_err(|_| invalid("no header name"))?;
        headers.append(name, HeaderValue::from_bytes(field.value).map_err(|_| invalid("no header value"))?);
    }
    let has_body =
        headers.contains_key(header::TRANSFER_ENCODING) || headers.get(header::CONTENT_LENGTH).is_some_and(|length| length != "0");
    if has_body {
        return Err(invalid("a request with a body"));
    }
    let closes = headers.get_all(header::CONNECTION).iter().any(|value| value.as_bytes().eq_ignore_ascii_case(b"close"));
    let keep_alive = request.version == Some(1) && !closes;
    let path = target.split('?').next().unwrap_or_default().to_owned();
    Ok(Some((Head { method, path, headers, keep_alive }, length)))
}

#[cfg(test)]
#[allow(clippy::indexing_slicing, reason = "test code")]
mod tests {
    use super::*;

    #[test]
    fn heads_are_read_when_they_are_complete_and_what_follows_is_left() {
        let bytes = b"GET /derp?x=1 HTTP/1.1\r\nHost: a\r\nUpgrade: DERP\r\n\r\nrest";
        for length in 0..bytes.len() - 4 {
            assert!(parse(&bytes[..length]).unwrap().is_none());
        }
        let (head, length) = parse(bytes).unwrap().unwrap();
        assert_eq!((head.method, head.path.as_str(), &bytes[length..]), (Method::GET, "/derp", &b"rest"[..]));
        assert!(head.keep_alive && head.headers["upgrade"] == "DERP");
        assert!(!parse(b"GET / HTTP/1.0\r\n\r\n").unwrap().unwrap().0.keep_alive);
        assert!(!parse(b"GET / HTTP/1.1\r\nConnection: Close\r\n\r\n").unwrap().unwrap().0.keep_alive);
    }

    #[test]
    fn what_is_no_request_or_has_a_body_is_refused() {
        for bytes in [
            &b"\x16\x03\x01\x00"[..],
            b"GET / HTTP/1.1\r\nContent-Length: 5\r\n\r\n",
            b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n",
        ] {
            assert!(parse(bytes).is_err());
        }
    }
}
