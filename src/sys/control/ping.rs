//! Answers what the coordinator asks of the node.

use std::net::IpAddr;

use base64::Engine as _;
use tokio::sync::{mpsc, oneshot};

use super::Event;
use crate::coord::client::{Answer, ReplyTo, answer_ping};
use crate::sys::dial::{ControlConnection, DialError, Dialer};
use crate::wire::control::{PingKind, PingRequest};

/// The longest request read.
const MAX_PAYLOAD: usize = 64 * 1024;

/// Answers one request; failures are not told to anybody.
pub(super) async fn answer(connection: ControlConnection, dialer: Dialer, events: mpsc::Sender<Event>, request: PingRequest) {
    if request.payload.len() > MAX_PAYLOAD {
        return;
    }
    let payload = base64::prelude::BASE64_STANDARD.decode(&request.payload).unwrap_or_default();
    let result = match answer_ping(&request, &payload, &connection.origin().to_string()) {
        None => return,
        Some(Answer::HeadOutside(url)) => dialer.head(&url).await.map(drop),
        Some(Answer::HeadInside(path)) => connection.head(&path).await.map(drop),
        Some(Answer::Post(path, bytes)) => connection.post_bytes(&path, bytes).await,
        Some(Answer::Pings(kinds, address, to)) => pings(&connection, &dialer, &events, kinds, address, to).await,
    };
    if let Err(error) = result {
        tracing::debug!(%error, "the coordinator's question was not answered");
    }
}

/// Has the node ping, one kind after the other, and tells what came of each.
async fn pings(
    connection: &ControlConnection,
    dialer: &Dialer,
    events: &mpsc::Sender<Event>,
    kinds: Vec<PingKind>,
    address: IpAddr,
    to: ReplyTo,
) -> Result<(), DialError> {
    for kind in kinds {
        let (answer, response) = oneshot::channel();
        if events.send(Event::Ping { kind, address, answer }).await.is_err() {
            return Ok(());
        }
        let Ok(response) = response.await else { continue };
        match &to {
            ReplyTo::Inside(path) => connection.post(path, &response).await?,
            ReplyTo::Outside(url) => drop(dialer.post(url, serde_json::to_vec(&response).unwrap_or_default()).await?),
        }
    }
    Ok(())
}
