//! The map stream, and beside it the reports of changes. Neither waits for the other.

use std::convert::Infallible;
use std::io::Read as _;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use super::{End, Event, Identity, Report, map_request, ping};
use crate::coord::client::{Backoff, MapSession, Pace, Watchdog, is_bounded};
use crate::sys::dial::{ControlConnection, DialError, Dialer};
use crate::sys::{clock, entropy};
use crate::wire::control::frame::{Deframer, MAX_MESSAGE};
use crate::wire::control::{MAP_PATH, MapRequest, MapResponse, json};

/// Changes within this time go out as one report.
const SETTLE: Duration = Duration::from_millis(50);
/// Changes of the map within this time are told as one.
const SPACING: Duration = Duration::from_millis(50);
/// A longer message is read on a thread of its own.
const LARGE: usize = 128 * 1024;
/// Questions of the coordinator answered at once; further ones are not.
const ANSWERS: usize = 4;

/// A stream under way.
struct Stream<'a> {
    connection: &'a ControlConnection,
    dialer: &'a Dialer,
    events: &'a mpsc::Sender<Event>,
    session: MapSession,
    frames: Deframer,
    watchdog: Watchdog,
    answers: Arc<Semaphore>,
}

/// Follows the stream to its end.
pub(super) async fn follow(
    connection: &ControlConnection,
    dialer: &Dialer,
    identity: &Identity,
    report: watch::Receiver<Report>,
    events: &mpsc::Sender<Event>,
    pace: &mut Pace,
) -> End {
    let request = MapRequest { stream: true, compress: "zstd".to_owned(), ..map_request(identity, &report.borrow()) };
    let mut body = match connection.post_stream(MAP_PATH, &request).await {
        Ok(body) => body,
        // The coordinator does not know this node, or not with this key: a registration tells why.
        Err(error) if matches!(error.status(), Some(400..=404)) => return End::Unregistered(error.to_string()),
        Err(error) => return error.into(),
    };
    let mut stream = Stream {
        connection,
        dialer,
        events,
        session: MapSession::default(),
        frames: Deframer::default(),
        watchdog: Watchdog::new(clock::now()),
        answers: Arc::new(Semaphore::new(ANSWERS)),
    };
    // While whoever uses the map is busy, changes are merged, not queued: it gets the newest map, and nothing is held up here.
    let (mut untold, mut next) = (false, Instant::now());
    loop {
        let deadline = stream.watchdog.deadline();
        tokio::select! {
            place = async { sleep_until(next).await; events.reserve().await }, if untold => {
                let (Ok(place), Some(map)) = (place, stream.session.netmap()) else { return wrong("nobody listens") };
                pace.map_arrived(clock::now());
                place.send(Event::Map(Box::new(map.clone())));
                (untold, next) = (false, Instant::now() + SPACING);
            }
            read = timeout_at(clock::instant(deadline.at).into(), body.next()) => match read {
                Err(_) => return wrong(deadline.why),
                Ok(Err(error)) => return error.into(),
                Ok(Ok(None)) if stream.frames.is_midway() => return wrong("the stream was cut in a message"),
                Ok(Ok(None)) => return wrong("the coordinator ended the stream"),
                Ok(Ok(Some(bytes))) => match stream.read(&bytes).await {
                    Ok(changed) => untold |= changed,
                    Err(reason) => return wrong(reason),
                },
            },
        }
    }
}

fn wrong(reason: impl Into<String>) -> End {
    End::Dial(DialError::Protocol { tried: "follow the map stream".to_owned(), reason: reason.into() })
}

impl Stream<'_> {
    /// Takes in bytes as they came; says whether the map may have changed.
    async fn read(&mut self, bytes: &[u8]) -> Result<bool, String> {
        self.watchdog.heard_bytes(clock::now());
        self.frames.push(bytes);
        let mut changed = false;
        while let Some(message) = self.frames.next_message().map_err(|e| e.to_string())? {
            let message = if message.len() > LARGE {
                tokio::task::spawn_blocking(move || decode(&message)).await.unwrap_or_else(|e| Err(e.to_string()))?
            } else {
                decode(&message)?
            };
            let applied = self.session.apply(message, clock::wall()).map_err(|e| e.to_string())?;
            changed |= applied.changed;
            if let Some(request) = applied.ping
                && let Ok(place) = Arc::clone(&self.answers).try_acquire_owned()
            {
                let (connection, dialer, events) = (self.connection.clone(), self.dialer.clone(), self.events.clone());
                tokio::spawn(async move {
                    ping::answer(connection, dialer, events, request).await;
                    drop(place);
                });
            }
            self.watchdog.heard_message(clock::now());
        }
        Ok(changed)
    }
}

/// Unpacks and reads one message. What it unpacks to is bounded as the message itself is.
fn decode(message: &[u8]) -> Result<MapResponse, String> {
    // A coordinator that does not compress although asked to sends plain JSON.
    if message.first() == Some(&b'{') {
        return read(message);
    }
    let mut unpacked = Vec::new();
    let decoder = zstd::stream::read::Decoder::new(message).map_err(|e| format!("a map message does not unpack: {e}"))?;
    let limit = u64::try_from(MAX_MESSAGE).unwrap_or(u64::MAX);
    decoder.take(limit + 1).read_to_end(&mut unpacked).map_err(|e| format!("a map message does not unpack: {e}"))?;
    if unpacked.len() > MAX_MESSAGE {
        return Err(format!("a map message unpacks to more than {MAX_MESSAGE} bytes"));
    }
    read(&unpacked)
}

fn read(message: &[u8]) -> Result<MapResponse, String> {
    if !is_bounded(message) {
        return Err("a map message has more entries than any real network".to_owned());
    }
    json::from_slice(message).map_err(|e| format!("a map message is not what was expected: {e}"))
}

/// Reports the node's state at the beginning and after each change: always all of it, one report at a time, what changes meanwhile in
/// the next. A report that fails is tried again as it is then; that the connection has ended is the stream's to tell.
pub(super) async fn report_changes(
    connection: &ControlConnection,
    identity: &Identity,
    report: &mut watch::Receiver<Report>,
) -> Infallible {
    // Chance that others can guess does no harm here.
    let mut backoff = Backoff::new(entropy::seed().unwrap_or_default());
    loop {
        let request = MapRequest { omit_peers: true, ..map_request(identity, &report.borrow_and_update()) };
        match connection.post(MAP_PATH, &request).await {
            Ok(()) => {
                backoff.reset();
                if report.changed().await.is_err() {
                    // Whoever reports is gone; the stream goes on until it is dropped, too.
                    std::future::pending::<()>().await;
                }
                sleep(SETTLE).await;
            }
            Err(error) => {
                tracing::debug!(%error, "a report was not taken");
                sleep(backoff.next_pause()).await;
            }
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
