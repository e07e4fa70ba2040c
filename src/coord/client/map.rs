//! The messages of one map stream, one after the other.
//!
//! One [`MapSession`] per stream: the first message is complete, later ones say what changed, and nothing carries over to the next
//! stream. What a message changes is in [`super::merge`].

use super::NetMap;
use super::merge::merge;
use crate::time::Wall;
use crate::wire::control::{MAX_LIST, MapResponse, PingRequest};

/// More peers than this are not kept, nor more user profiles, filters, relays or messages; far above any network of this kind.
const MAX_ENTRIES: usize = MAX_LIST;
/// More values than this in one message are not read. Unpacked they take far more room than their text.
const MAX_VALUES: usize = 4_000_000;
/// A coordinator's clock from before this is not believed (2023-01-10).
const EARLIEST_SECOND: i64 = 1_673_308_800;
/// A smaller difference of the clocks is none.
const LEAST_SKEW_SECS: i64 = 60;

/// Why a stream cannot be followed. The stream has to be given up.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MapError {
    /// The first message lacks the node itself.
    #[error("the first map message does not describe this node")]
    NoNode,
    /// The map has grown past every bound.
    #[error("the map has more entries than any real network")]
    TooLarge,
}

/// What a message was.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Applied {
    /// The map may have changed.
    pub changed: bool,
    /// The coordinator asks something. One with the address of the one before is the same one again, and not given.
    pub ping: Option<PingRequest>,
}

/// The state of one map stream.
#[derive(Debug, Clone, Default)]
pub struct MapSession {
    map: Option<NetMap>,
    last_ping: String,
}

impl MapSession {
    /// The map so far; `None` before the first message.
    pub fn netmap(&self) -> Option<&NetMap> {
        self.map.as_ref()
    }

    /// Merges a message. `now` stands for "seen just now", and is what the coordinator's clock is compared with.
    ///
    /// # Errors
    /// The first message is not complete, or the map grows past its bounds.
    pub fn apply(&mut self, mut message: MapResponse, now: Wall) -> Result<Applied, MapError> {
        let ping = message.ping_request.take().filter(|ping| ping.url != self.last_ping);
        if let Some(ping) = &ping {
            self.last_ping.clone_from(&ping.url);
        }
        let skew = message.control_time.and_then(|time| skew(time, now));
        let page = std::mem::take(&mut message.pop_browser_url);
        let mut changed = false;
        if !message.keep_alive {
            let map = match (&mut self.map, &message.node) {
                (Some(map), _) => map,
                (map @ None, Some(_)) => map.insert(NetMap::default()),
                (None, None) => return Err(MapError::NoNode),
            };
            merge(map, message, now);
            changed = true;
        }
        let Some(map) = &mut self.map else { return Ok(Applied { changed, ping }) };
        // Both count in a keep-alive, too, of which nothing else does.
        if let Some(skew) = skew {
            changed |= (skew - map.clock_skew_secs).abs() >= LEAST_SKEW_SECS;
            map.clock_skew_secs = skew;
        }
        if !page.is_empty() {
            changed |= map.page != page;
            map.page = page;
        }
        let relays = map.derp.regions.as_ref().map_or(0, std::collections::BTreeMap::len);
        let entries = [map.peers.len(), map.users.len(), map.filters.len(), map.messages.len(), map.health.len(), relays];
        if entries.into_iter().max() > Some(MAX_ENTRIES) {
            return Err(MapError::TooLarge);
        }
        Ok(Applied { changed, ping })
    }
}

/// How far the coordinator's clock is ahead of ours, in seconds; `None` if it is not to be believed.
fn skew(control: Wall, now: Wall) -> Option<i64> {
    let skew = control.as_second().saturating_sub(now.as_second());
    (control.as_second() >= EARLIEST_SECOND).then_some(if skew.abs() < LEAST_SKEW_SECS { 0 } else { skew })
}

/// Whether the text of a message holds no more values than one may. To be asked before it is read: an empty object in a list is three
/// bytes of text, and many times that in memory. (The long lists of nodes have their bound in their types.)
pub fn is_bounded(json: &[u8]) -> bool {
    json.len() / 2 < MAX_VALUES || json.iter().filter(|b| matches!(b, b',' | b'[' | b'{')).count() < MAX_VALUES
}

#[cfg(test)]
#[path = "map_tests.rs"]
mod tests;
