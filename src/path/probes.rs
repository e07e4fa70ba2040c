//! Pings on their way.

use std::time::Duration;

use super::{PING_LOST, Path};
use crate::ident::RegionId;
use crate::time::Time;
use crate::wire::disco::TxId;

/// Pings of one peer that may be on their way at once: rounds to all candidates, some time apart.
const MAX_PINGS: usize = 128;

/// A ping that has not been answered yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ping {
    tx: TxId,
    pub(super) to: Path,
    pub(super) sent: Time,
    /// Who asked for it, if somebody did.
    pub(super) token: Option<u64>,
}

/// The pings of one peer, oldest first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Probes(Vec<Ping>);

impl Probes {
    pub(super) fn add(&mut self, tx: TxId, to: Path, sent: Time, token: Option<u64>) {
        if self.0.len() >= MAX_PINGS {
            self.0.remove(0);
        }
        self.0.push(Ping { tx, to, sent, token });
    }

    /// Takes out the ping with this id, if its answer came the way it went itself (directly, or through the same relay), and earlier ones
    /// of ours to the same address: they are lost, and it does not matter.
    pub(super) fn answered(&mut self, tx: TxId, via: Option<RegionId>) -> Option<Ping> {
        let at = self.0.iter().position(|ping| ping.tx == tx && ping.to.region() == via)?;
        let ping = self.0.remove(at);
        self.0.retain(|other| other.to != ping.to || other.sent > ping.sent || other.token.is_some());
        Some(ping)
    }

    /// Whoever asked has an answer.
    pub(super) fn settle(&mut self, token: u64) {
        self.0.retain(|ping| ping.token != Some(token));
    }

    /// Whether a ping to this address is lost.
    pub(super) fn has_lost(&self, now: Time, to: Path) -> bool {
        self.0.iter().any(|ping| ping.to == to && now.since(ping.sent) >= PING_LOST)
    }

    /// Drops those that are lost; the tokens nobody will answer any more.
    pub(super) fn expire(&mut self, now: Time) -> Vec<u64> {
        let lost = |ping: &Ping| now.since(ping.sent) >= PING_LOST;
        let mut tokens: Vec<u64> = self.0.iter().filter(|ping| lost(ping)).filter_map(|ping| ping.token).collect();
        self.0.retain(|ping| !lost(ping));
        tokens.sort_unstable();
        tokens.dedup();
        tokens.retain(|token| !self.0.iter().any(|ping| ping.token == Some(*token)));
        tokens
    }

    /// When the oldest is lost.
    pub(super) fn deadline(&self) -> Option<Time> {
        self.0.iter().map(|ping| ping.sent).min().map(|sent| sent + PING_LOST)
    }

    /// When the oldest and the newest ping to this address were sent, of those that are ours and wait.
    pub(super) fn waiting(&self, to: Path) -> Option<(Time, Time)> {
        let sent = || self.0.iter().filter(|ping| ping.to == to && ping.token.is_none()).map(|ping| ping.sent);
        sent().min().zip(sent().max())
    }

    /// Forgets all; the tokens nobody will answer any more.
    pub(super) fn clear(&mut self) -> Vec<u64> {
        let mut tokens: Vec<u64> = self.0.drain(..).filter_map(|ping| ping.token).collect();
        tokens.sort_unstable();
        tokens.dedup();
        tokens
    }
}

/// How long an answer may take on a way whose answers took `latency`: twice that, and what a busy machine needs.
pub(super) fn patience(latency: Duration) -> Duration {
    latency * 2 + Duration::from_millis(20)
}
