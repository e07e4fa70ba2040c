//! Bodies of answers, and the bounded reading of those of requests.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::body::{Body as _, Frame as HttpFrame, Incoming, SizeHint};
use hyper::{Response, StatusCode, header};
use tokio::sync::{Semaphore, mpsc};

use super::encoding::Frame;

/// The longest request body: what stock coordinators take.
const MAX_BODY: usize = 1024 * 1024;
/// The longest of someone who is not a member yet: a registration has a few KiB.
const MAX_STRANGER_BODY: usize = 64 * 1024;
/// What members may send without waiting for a turn: nearly all requests are shorter.
const SHORT_BODY: usize = 16 * 1024;
/// How long a request's body may take, waiting for its turn included.
const BODY_TIME: Duration = Duration::from_secs(10);

/// The body of an answer.
#[derive(Debug)]
pub(super) enum Body {
    /// All of it.
    Whole(Option<Bytes>),
    /// Message by message, until the sender is dropped.
    Stream {
        /// What is left of the message under way.
        current: Frame,
        /// The messages to come.
        messages: mpsc::Receiver<Frame>,
    },
}

impl Body {
    /// A body of messages as they come.
    pub(super) fn stream(messages: mpsc::Receiver<Frame>) -> Self {
        Self::Stream { current: Frame::new(), messages }
    }
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<HttpFrame<Bytes>, Infallible>>> {
        match self.get_mut() {
            Self::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(HttpFrame::data(bytes)))),
            Self::Stream { current, messages } => loop {
                if let Some(piece) = current.pop_front() {
                    return Poll::Ready(Some(Ok(HttpFrame::data(piece))));
                }
                match ready!(messages.poll_recv(cx)) {
                    Some(next) => *current = next,
                    None => return Poll::Ready(None),
                }
            },
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Whole(None))
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Self::Stream { .. } => SizeHint::default(),
        }
    }
}

/// An answer with a status and a body.
pub(super) fn answer(status: StatusCode, kind: &'static str, bytes: impl Into<Bytes>) -> Response<Body> {
    let bytes = bytes.into();
    let mut response = Response::new(Body::Whole((!bytes.is_empty()).then_some(bytes)));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
    response
}

/// An answer in plain text.
pub(super) fn text(status: StatusCode, text: impl Into<String>) -> Response<Body> {
    answer(status, "text/plain; charset=utf-8", text.into())
}

/// An answer in JSON.
pub(super) fn json(status: StatusCode, value: &impl serde::Serialize) -> Response<Body> {
    match serde_json::to_vec(value) {
        Ok(bytes) => answer(status, "application/json", bytes),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
}

/// How much of a body may come, and what it has to wait for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Allowance<'a> {
    /// Longest body.
    pub(super) limit: usize,
    /// What may come before a turn is needed. Whoever sends more, and slowly, holds up only others that do the same.
    pub(super) free: usize,
    /// The turns of long bodies.
    pub(super) turns: &'a Semaphore,
}

impl<'a> Allowance<'a> {
    /// A member's.
    pub(super) fn member(turns: &'a Semaphore) -> Self {
        Self { limit: MAX_BODY, free: SHORT_BODY, turns }
    }

    /// A stranger's, who has nothing long to say; `turns` are those of its own connection.
    pub(super) fn stranger(turns: &'a Semaphore) -> Self {
        Self { limit: MAX_STRANGER_BODY, free: 0, turns }
    }
}

/// Reads a request's body, within the limits of size, time, and of how many are read at once.
///
/// # Errors
/// The answer to give instead.
pub(super) async fn read(body: Incoming, allowance: Allowance<'_>) -> Result<Bytes, Response<Body>> {
    if body.size_hint().lower() > allowance.limit as u64 {
        return Err(too_long(allowance.limit));
    }
    match tokio::time::timeout(BODY_TIME, gather(body, allowance)).await {
        Ok(read) => read,
        Err(_) => Err(text(StatusCode::REQUEST_TIMEOUT, "the request body took too long")),
    }
}

async fn gather(mut body: Incoming, allowance: Allowance<'_>) -> Result<Bytes, Response<Body>> {
    let (mut whole, mut turn) = (Vec::new(), None);
    loop {
        if turn.is_none() && whole.len() >= allowance.free {
            turn = allowance.turns.acquire().await.ok();
        }
        match body.frame().await {
            None => return Ok(whole.into()),
            Some(Err(_)) => return Err(text(StatusCode::BAD_REQUEST, "the request body broke off")),
            Some(Ok(frame)) => {
                let Ok(bytes) = frame.into_data() else { continue };
                if whole.len() + bytes.len() > allowance.limit {
                    return Err(too_long(allowance.limit));
                }
                whole.extend_from_slice(&bytes);
            }
        }
    }
}

fn too_long(limit: usize) -> Response<Body> {
    text(StatusCode::PAYLOAD_TOO_LARGE, format!("this request's body has at most {limit} bytes"))
}
