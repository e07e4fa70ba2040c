//! A map stream: takes from the core what its node has to be told, frames it, and shows every now and then that it lives.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;

use super::body::Body;
use super::encoding::{Encoding, Frame};
use super::hub::Hub;
use super::patience::Patience;
use crate::coord::server::{Message, Next, SessionId};
use crate::sys::entropy;

/// Silence after which a keepalive is sent; clients give up after 120 s. Up to [`KEEPALIVE_JITTER`] is added.
const KEEPALIVE: Duration = Duration::from_secs(50);
/// Spreads the keepalives of streams that were opened together.
const KEEPALIVE_JITTER: Duration = Duration::from_secs(10);
/// How long a message may wait for the client to read. Then the stream ends; a client that comes back gets a full map.
const STALL: Duration = Duration::from_secs(60);
/// A router that another one can replace hears something this often, so that its silent death shows ...
const WATCH: Duration = Duration::from_millis(300);
/// ... when the system has had no acknowledgement for this long. With the wait before a handover that is less than two seconds.
const WATCH_PATIENCE: Duration = Duration::from_millis(800);

/// Starts the stream of a session; its body ends when the session does, and the session when the body is dropped.
pub(super) fn start(hub: Arc<Hub>, session: SessionId, encoding: Encoding, patience: Patience) -> Body {
    // One message under way, one in hand: what else changes meanwhile stays in the core, where it coalesces.
    let (sender, receiver) = mpsc::channel(1);
    let open = Open { hub, session };
    tokio::spawn(async move {
        let ended = drive(&open, encoding, &sender, &patience).await;
        // The connection may go on to carry another stream, of which the same need not be wished.
        patience.set(None);
        tracing::debug!(?session, why = ended, "map stream ended");
    });
    Body::stream(receiver)
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

async fn drive(open: &Open, encoding: Encoding, sender: &mpsc::Sender<Frame>, patience: &Patience) -> &'static str {
    let waker = open.hub.waker(open.session);
    let Ok(keepalive) = encoding.keepalive() else { return "the keepalive cannot be encoded" };
    let ordinary = KEEPALIVE + jitter();
    let mut period = ordinary;
    let mut due = Instant::now() + period;
    loop {
        let told = tokio::select! {
            () = waker.notified() => match tell(open, encoding, sender).await {
                Ok(told) => told,
                Err(why) => return why,
            },
            () = tokio::time::sleep_until(due) => match send(sender, keepalive.clone()).await {
                Ok(()) => true,
                Err(why) => return why,
            },
            () = sender.closed() => return "the client closed it",
        };
        let watched = open.hub.is_watched(open.session);
        patience.set(watched.then_some(WATCH_PATIENCE));
        let before = std::mem::replace(&mut period, if watched { WATCH } else { ordinary });
        if told || period != before {
            due = Instant::now() + period;
        }
    }
}

/// Sends what there is to tell; says whether there was anything.
async fn tell(open: &Open, encoding: Encoding, sender: &mpsc::Sender<Frame>) -> Result<bool, &'static str> {
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

async fn send(sender: &mpsc::Sender<Frame>, message: Frame) -> Result<(), &'static str> {
    match tokio::time::timeout(STALL, sender.send(message)).await {
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
mod tests {
    use super::*;

    #[test]
    fn trap_26_keepalives_come_well_within_the_clients_120_seconds() {
        assert!(KEEPALIVE + KEEPALIVE_JITTER <= Duration::from_secs(60));
        assert!(jitter() <= KEEPALIVE_JITTER);
    }
}
