//! Answers what the coordinator asks of the node.

use base64::Engine as _;

use crate::coord::client::{Answer, answer_ping};
use crate::sys::dial::{ControlConnection, Dialer};
use crate::wire::control::PingRequest;

/// The longest request read.
const MAX_PAYLOAD: usize = 64 * 1024;

/// Answers one request; failures are not told to anybody.
pub(super) async fn answer(connection: ControlConnection, dialer: Dialer, request: PingRequest) {
    if request.payload.len() > MAX_PAYLOAD {
        return;
    }
    let payload = base64::prelude::BASE64_STANDARD.decode(&request.payload).unwrap_or_default();
    let result = match answer_ping(&request, &payload, &connection.origin().to_string()) {
        None => return,
        Some(Answer::HeadOutside(url)) => dialer.head(&url).await.map(drop),
        Some(Answer::HeadInside(path)) => connection.head(&path).await.map(drop),
        Some(Answer::Post(path, bytes)) => connection.post_bytes(&path, bytes).await,
    };
    if let Err(error) = result {
        tracing::debug!(%error, "the coordinator's question was not answered");
    }
}
