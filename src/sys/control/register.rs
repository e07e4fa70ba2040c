//! Registration: with a join key, with the keys of an earlier one, or by a page the user visits; and logging out.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};

use super::{End, Event, Identity, Report, register_request};
use crate::coord::client::{Verdict, judge};
use crate::ident::NodePublic;
use crate::sys::dial::{ControlConnection, DialError, REPLY_LIMIT};
use crate::sys::entropy;
use crate::wire::control::{REGISTER_PATH, RegisterAuth, RegisterRequest, RegisterResponse};

/// How long the coordinator may hold a request while the user is visiting a page. It usually answers earlier, with another page.
const FOLLOWUP_LIMIT: Duration = Duration::from_secs(3600);
/// The expiry that means "log out" (1970-01-01T00:02:03Z, as stock clients send it).
const LOGOUT_SECOND: i64 = 123;

/// Registers until the node is in. On success the identity holds the node key that is valid now.
pub(super) async fn register(
    connection: &ControlConnection,
    identity: &mut Identity,
    report: &watch::Receiver<Report>,
    events: &mpsc::Sender<Event>,
) -> Result<(), End> {
    let (mut node, mut previous, mut fresh) = (Arc::clone(&identity.node), identity.previous, false);
    let mut followup = String::new();
    loop {
        let request = RegisterRequest {
            auth: identity.auth_key.clone().map(|auth_key| RegisterAuth { auth_key }),
            followup: followup.clone(),
            ..register_request(&node, previous, report.borrow().hostinfo.clone())
        };
        let limit = if followup.is_empty() { REPLY_LIMIT } else { FOLLOWUP_LIMIT };
        let connection = connection.clone().for_node(&node.public());
        let response: RegisterResponse = connection.post_json_within(limit, REGISTER_PATH, &request).await.map_err(explain)?;
        match judge(&response, fresh) {
            Verdict::Admitted { login } => {
                let new_key = fresh.then(|| Arc::clone(&node));
                (identity.node, identity.previous, identity.auth_key) = (node, previous, None);
                let _ = events.send(Event::Admitted { login, new_key }).await;
                return Ok(());
            }
            Verdict::NewKey => {
                previous = node.public();
                node = Arc::new(entropy::node_key().map_err(DialError::Entropy)?);
                fresh = true;
                followup.clear();
            }
            Verdict::Refused(text) => return Err(End::Refused(text)),
            Verdict::Visit(url) if url == followup => {
                // The coordinator gave the request back before the user was done; asking again at once would be a busy loop.
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            Verdict::Visit(url) => {
                let _ = events.send(Event::Visit(url.clone())).await;
                followup = url;
            }
        }
    }
}

/// An HTTP error to a registration is a refusal that carries its reason in the body.
fn explain(error: DialError) -> End {
    match &error {
        DialError::Status { status, .. } if (400..500).contains(status) && *status != 429 => End::Refused(error.to_string()),
        _ => End::Dial(error),
    }
}

/// Tells the coordinator that the node's key is no longer valid. The identity is of no use afterwards.
///
/// # Errors
/// The coordinator is not reached or refuses; the caller decides whether to forget the keys nevertheless.
pub async fn log_out(identity: &Identity, report: &Report) -> Result<(), String> {
    let Some(pin) = identity.pin else { return Ok(()) };
    let connection = ControlConnection::connect(&identity.url, &pin.key, &identity.machine).await.map_err(|e| e.to_string())?;
    let request = RegisterRequest {
        expiry: crate::time::Wall::from_second(LOGOUT_SECOND).ok(),
        ..register_request(&identity.node, NodePublic::ZERO, report.hostinfo.clone())
    };
    let connection = connection.for_node(&identity.node.public());
    let response: RegisterResponse = connection.post_json(REGISTER_PATH, &request).await.map_err(|e| e.to_string())?;
    // "Your key has expired" is what was asked for; only an error text is a failure.
    if response.error.is_empty() { Ok(()) } else { Err(response.error.chars().take(400).flat_map(char::escape_debug).collect()) }
}
