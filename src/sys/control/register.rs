//! Registration: with a join key, with the keys of an earlier one, or by a page the user visits; and logging out.

use std::time::Duration;

use tokio::sync::{mpsc, watch};

use super::{Client, End, Event, Identity, Report};
use crate::coord::client::{Registration, Step, logged_out, logout_request};
use crate::sys::dial::{ControlConnection, DialError, REPLY_LIMIT};
use crate::sys::{clock, entropy};
use crate::wire::control::{REGISTER_PATH, RegisterResponse};

/// How long the coordinator may hold a request while the user is visiting a page. It usually answers earlier, with another page.
const FOLLOWUP_LIMIT: Duration = Duration::from_secs(3600);

impl Client {
    /// Registers until the node is in. On success the identity holds the node key that is valid now.
    pub(super) async fn register(
        &mut self,
        connection: &ControlConnection,
        report: &watch::Receiver<Report>,
        events: &mpsc::Sender<Event>,
    ) -> Result<(), End> {
        let seed = entropy::seed().map_err(DialError::Entropy)?;
        loop {
            tokio::time::sleep(self.pace.registration_pause(clock::now())).await;
            let registration = self.registration.get_or_insert_with(|| Registration::new(self.identity.credentials(), seed));
            let request = registration.request(clock::now(), report.borrow().hostinfo.clone());
            let limit = if registration.may_be_held() { FOLLOWUP_LIMIT } else { REPLY_LIMIT };
            let connection = connection.clone().for_node(&registration.node());
            let response: RegisterResponse = connection.post_json_within(limit, REGISTER_PATH, &request).await.map_err(explain)?;
            // The place for the news first: from here on nothing waits, so that no wake-up can part what happened from its telling.
            let Ok(place) = events.reserve().await else { return Err(End::Renewed) };
            match registration.answered(clock::now(), &response) {
                Step::Admitted(admission) => {
                    let new_key = admission.renewed.then(|| admission.node.clone());
                    let identity = &mut self.identity;
                    (identity.node, identity.previous) = (admission.node, admission.previous);
                    (identity.registered, identity.renew) = (true, false);
                    identity.auth_key = identity.auth_key.take().filter(|_| !admission.key_shown);
                    self.registration = None;
                    self.let_in = true;
                    place.send(Event::Admitted { login: admission.login, new_key, key_shown: admission.key_shown });
                    return Ok(());
                }
                Step::Again => {}
                Step::Visit(url) => place.send(Event::Visit(url)),
                Step::Wait(time) => {
                    drop(place);
                    tokio::time::sleep(time).await;
                }
                Step::Refused(text) => {
                    // From the beginning next time: the old node key may be good again.
                    self.registration = None;
                    return Err(End::Refused(text));
                }
            }
        }
    }
}

/// An HTTP error to a registration is a refusal that carries its reason in the body.
fn explain(error: DialError) -> End {
    match error.status() {
        Some(400..=428 | 430..=499) => End::Refused(error.to_string()),
        _ => End::Dial(error),
    }
}

/// Tells the coordinator that the node's key is no longer valid. The identity is of no use afterwards.
///
/// # Errors
/// The coordinator is not reached or refuses; the caller decides whether to forget the keys nevertheless.
pub async fn log_out(identity: &Identity, report: &Report) -> Result<(), String> {
    let Some(pin) = identity.pin else { return Ok(()) };
    let connection = identity.dialer().open(&identity.url, &pin.key, &identity.machine).await.map_err(|e| e.to_string())?;
    let request = logout_request(&identity.credentials(), report.hostinfo.clone());
    let connection = connection.for_node(&identity.node.public());
    let response: RegisterResponse = connection.post_json(REGISTER_PATH, &request).await.map_err(|e| e.to_string())?;
    logged_out(&response)
}
