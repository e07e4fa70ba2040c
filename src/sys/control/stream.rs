//! The map stream, and beside it the reports of changes.

use std::io::Read as _;
use std::time::Duration;

use tokio::sync::{mpsc, watch};

use super::{End, Event, Identity, Report, map_request, ping};
use crate::coord::client::{Backoff, MapSession, Watchdog};
use crate::sys::dial::{ControlConnection, DialError};
use crate::sys::{clock, entropy};
use crate::wire::control::frame::{Deframer, MAX_MESSAGE};
use crate::wire::control::{MAP_PATH, MapRequest, MapResponse, json};

/// Changes within this time go out as one report.
const SETTLE: Duration = Duration::from_millis(50);

/// Follows the stream to its end. The first message resets the back-off.
pub(super) async fn follow(
    connection: &ControlConnection,
    identity: &Identity,
    report: watch::Receiver<Report>,
    events: &mpsc::Sender<Event>,
    backoff: &mut Backoff,
) -> End {
    let request = MapRequest { stream: true, compress: "zstd".to_owned(), ..map_request(identity, &report.borrow()) };
    let mut body = match connection.post_stream(MAP_PATH, &request).await {
        Ok(body) => body,
        // The coordinator does not know this node, or not with this key: a registration tells why.
        Err(error) if matches!(error.status(), Some(400..=404)) => return End::Unregistered(error.to_string()),
        Err(error) => return error.into(),
    };
    let mut session = MapSession::default();
    let mut frames = Deframer::default();
    let mut answered = String::new();
    let mut watchdog = Watchdog::new(clock::now());
    loop {
        let deadline = watchdog.deadline();
        let wrong = |reason: String| End::Dial(DialError::Protocol { tried: "follow the map stream".to_owned(), reason });
        let bytes = match tokio::time::timeout_at(clock::instant(deadline.at).into(), body.next()).await {
            Err(_) => return wrong(deadline.why.to_owned()),
            Ok(Err(error)) => return error.into(),
            Ok(Ok(None)) => {
                return wrong(
                    if frames.is_midway() { "the stream was cut in a message" } else { "the coordinator ended the stream" }.to_owned(),
                );
            }
            Ok(Ok(Some(bytes))) => bytes,
        };
        frames.push(&bytes);
        loop {
            let message = match frames.next_message() {
                Ok(Some(message)) => message,
                Ok(None) => break,
                Err(error) => return wrong(error.to_string()),
            };
            watchdog.heard(clock::now());
            let message = match decode(&message) {
                Ok(message) => message,
                Err(reason) => return wrong(reason),
            };
            if let Some(request) = message.ping_request.clone().filter(|request| request.url != answered) {
                answered.clone_from(&request.url);
                tokio::spawn(ping::answer(connection.clone(), request));
            }
            match session.apply(message, clock::wall()) {
                Ok(true) => {
                    backoff.reset();
                    if let Some(map) = session.netmap()
                        && events.send(Event::Map(Box::new(map.clone()))).await.is_err()
                    {
                        return wrong("nobody listens".to_owned());
                    }
                }
                Ok(false) => {}
                Err(error) => return wrong(error.to_string()),
            }
        }
    }
}

/// Unpacks and reads one message. What it unpacks to is bounded as the message itself is.
fn decode(message: &[u8]) -> Result<MapResponse, String> {
    // A coordinator that does not compress although asked to sends plain JSON.
    if message.first() == Some(&b'{') {
        return json::from_slice(message).map_err(|e| format!("a map message is not what was expected: {e}"));
    }
    let mut unpacked = Vec::new();
    let decoder = zstd::stream::read::Decoder::new(message).map_err(|e| format!("a map message does not unpack: {e}"))?;
    let limit = u64::try_from(MAX_MESSAGE).unwrap_or(u64::MAX);
    decoder.take(limit + 1).read_to_end(&mut unpacked).map_err(|e| format!("a map message does not unpack: {e}"))?;
    if unpacked.len() > MAX_MESSAGE {
        return Err(format!("a map message unpacks to more than {MAX_MESSAGE} bytes"));
    }
    json::from_slice(&unpacked).map_err(|e| format!("a map message is not what was expected: {e}"))
}

/// Reports the node's state at the beginning and after each change, one report at a time. Ends only with the connection.
pub(super) async fn report_changes(connection: &ControlConnection, identity: &Identity, report: &mut watch::Receiver<Report>) -> End {
    let mut backoff = match entropy::seed() {
        Ok(seed) => Backoff::new(seed),
        Err(error) => return DialError::Entropy(error).into(),
    };
    loop {
        let request = MapRequest { omit_peers: true, ..map_request(identity, &report.borrow_and_update()) };
        match connection.post(MAP_PATH, &request).await {
            Ok(()) => {
                backoff.reset();
                if report.changed().await.is_err() {
                    // Whoever reports is gone; the stream goes on until it is dropped, too.
                    std::future::pending::<()>().await;
                }
                tokio::time::sleep(SETTLE).await;
            }
            Err(error) if error.status().is_some() => {
                tracing::debug!(%error, "a report was refused");
                tokio::time::sleep(backoff.next_pause()).await;
            }
            Err(error) => return error.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packed(bytes: &[u8]) -> Vec<u8> {
        zstd::stream::encode_all(bytes, 1).unwrap()
    }

    #[test]
    fn messages_are_read_packed_and_plain() {
        for message in [packed(br#"{"KeepAlive":true}"#), br#"{"KeepAlive":true}"#.to_vec()] {
            assert!(decode(&message).unwrap().keep_alive);
        }
    }

    #[test]
    fn a_small_message_cannot_unpack_to_gigabytes() {
        let bomb = packed(&vec![b' '; MAX_MESSAGE + 10]);
        assert!(bomb.len() < 100_000);
        assert!(decode(&bomb).unwrap_err().contains("more than"));
    }

    #[test]
    fn garbage_is_refused() {
        let mut cut = packed(br#"{"Domain":"example"}"#);
        cut.truncate(cut.len() - 3);
        for message in [&b"\x28\xb5\x2f\xfd"[..], b"garbage", b"{", &cut, &packed(b"[]x")] {
            assert!(decode(message).is_err(), "{message:?}");
        }
    }
}
