//! A map stream: takes from the core what its node has to be told, frames it, and shows every now and then that it lives.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::body::Body;
use super::hub::Hub;
use crate::coord::server::{Message, Next, SessionId};
use crate::sys::entropy;
use crate::wire::control::frame;

/// Silence after which a keepalive is sent; clients give up after 120 s. Up to [`KEEPALIVE_JITTER`] is added.
const KEEPALIVE: Duration = Duration::from_secs(50);
/// Spreads the keepalives of streams that were opened together.
const KEEPALIVE_JITTER: Duration = Duration::from_secs(10);
/// Changes that come within this time make one message.
const COALESCE: Duration = Duration::from_millis(20);
/// How long a message may wait for the client to read. Then the stream ends; a client that comes back gets a full map.
const STALL: Duration = Duration::from_secs(60);
/// Speed over size: maps are compressed once per viewer.
const LEVEL: i32 = 1;

/// Exactly these bytes: clients recognise them without decoding.
const KEEPALIVE_JSON: &[u8] = b"{\"KeepAlive\":true}";

/// How messages are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Encoding {
    Json,
    Zstd,
}

impl Encoding {
    /// What a request's `Compress` asks for.
    pub(super) fn asked(compress: &str) -> Self {
        if compress == "zstd" { Self::Zstd } else { Self::Json }
    }

    fn framed(self, json: &[u8]) -> std::io::Result<Bytes> {
        let framed = match self {
            Self::Json => frame::encode(json),
            Self::Zstd => frame::encode(&zstd::bulk::compress(json, LEVEL)?),
        };
        framed.map(Bytes::from).map_err(std::io::Error::other)
    }

    /// A message as the wire has it.
    pub(super) fn message(self, message: &Message) -> std::io::Result<Bytes> {
        self.framed(&message.to_json()?)
    }
}

/// Starts the stream of a session; its body ends when the session does, and the session when the body is dropped.
pub(super) fn start(hub: Arc<Hub>, session: SessionId, encoding: Encoding) -> Body {
    // One message under way, one in hand: what else changes meanwhile stays in the core, where it coalesces.
    let (sender, receiver) = mpsc::channel(1);
    let open = Open { hub, session };
    tokio::spawn(async move {
        let ended = drive(&open, encoding, &sender).await;
        tracing::debug!(?session, why = ended, "map stream ended");
    });
    Body::Stream(receiver)
}

/// Closes the session however its task ends.
struct Open {
    hub: Arc<Hub>,
    session: SessionId,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.hub.close_session(self.session);
    }
}

async fn drive(open: &Open, encoding: Encoding, sender: &mpsc::Sender<Bytes>) -> &'static str {
    let waker = open.hub.waker(open.session);
    let Ok(keepalive) = encoding.framed(KEEPALIVE_JSON) else { return "the keepalive cannot be encoded" };
    let period = KEEPALIVE + jitter();
    let mut due = Instant::now() + period;
    let mut first = true;
    loop {
        tokio::select! {
            () = waker.notified() => {
                if !std::mem::take(&mut first) {
                    tokio::time::sleep(COALESCE).await;
                }
                match tell(open, encoding, sender).await {
                    Ok(true) => {}
                    Ok(false) => continue,
                    Err(why) => return why,
                }
            }
            () = tokio::time::sleep_until(due) => {
                if let Err(why) = send(sender, keepalive.clone()).await {
                    return why;
                }
            }
            () = sender.closed() => return "the client closed it",
        }
        due = Instant::now() + period;
    }
}

/// Sends what there is to tell; says whether there was anything.
async fn tell(open: &Open, encoding: Encoding, sender: &mpsc::Sender<Bytes>) -> Result<bool, &'static str> {
    let encode = |message: &Message| {
        encoding.message(message).map_err(|error| {
            tracing::error!(%error, "a map message cannot be encoded");
            "a message cannot be encoded"
        })
    };
    let mut told = false;
    loop {
        match open.hub.next_message(open.session) {
            Next::End => return Err("the core ended it"),
            Next::Idle => return Ok(told),
            Next::Last(message) => {
                send(sender, encode(&message)?).await?;
                return Err("the core ended it");
            }
            Next::Message(message) => {
                send(sender, encode(&message)?).await?;
                told = true;
            }
        }
    }
}

async fn send(sender: &mpsc::Sender<Bytes>, bytes: Bytes) -> Result<(), &'static str> {
    match tokio::time::timeout(STALL, sender.send(bytes)).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) => Err("the client closed it"),
        Err(_) => Err("the client does not read"),
    }
}

fn jitter() -> Duration {
    let random = entropy::bytes::<2>().map_or(0, u16::from_be_bytes);
    KEEPALIVE_JITTER.mul_f64(f64::from(random) / f64::from(u16::MAX))
}

#[cfg(test)]
#[allow(clippy::indexing_slicing, reason = "test code")]
mod tests {
    use super::*;

    #[test]
    fn trap_02_the_length_is_little_endian_and_each_message_a_frame_of_its_own() {
        let plain = Encoding::asked("").framed(KEEPALIVE_JSON).unwrap();
        assert_eq!(&plain[..4], [18, 0, 0, 0]);
        assert_eq!(&plain[4..], b"{\"KeepAlive\":true}");
        let packed = Encoding::asked("zstd").framed(KEEPALIVE_JSON).unwrap();
        let length = u32::from_le_bytes(packed[..4].try_into().unwrap()) as usize;
        assert_eq!(zstd::bulk::decompress(&packed[4..4 + length], 100).unwrap(), KEEPALIVE_JSON);
    }

    #[test]
    fn trap_26_keepalives_come_well_within_the_clients_120_seconds() {
        assert!(KEEPALIVE + KEEPALIVE_JITTER <= Duration::from_secs(60));
        assert!(jitter() <= KEEPALIVE_JITTER);
    }
}
