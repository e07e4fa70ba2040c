//! WireGuard's timers, keeping NAT mappings open, and the deadlines of the probes.

use std::time::Duration;

use super::Shared;
use super::outbound::initiate;
use super::table::Peer;
use crate::time::{Time, Wall};
use crate::tunnel::{MIN_ROOM, Tick};

/// boringtun's timers are exact to this.
const PERIOD: Duration = Duration::from_millis(250);

fn tick(shared: &Shared, peer: &Peer, room: &mut [u8]) {
    let mut state = peer.lock();
    state.note_handshake(Wall::now());
    let now = shared.now();
    let keepalive = match state.tunnel.tick(room) {
        Tick::Initiation(length) => {
            initiate(shared, peer, &mut state, room.get(..length).unwrap_or_default());
            return;
        }
        Tick::Keepalive(length) => Some(length),
        Tick::Nothing if state.route.wants_keepalive(now, state.sent) => state.tunnel.keepalive(room),
        Tick::Nothing => None,
    };
    let ways = state.route.ways(now);
    if let Some(length) = keepalive.filter(|_| !ways.is_none()) {
        state.sent = now;
        shared.send_on(ways, &peer.key, room.get(..length).unwrap_or_default());
    }
}

/// The timer thread.
pub(super) fn run(shared: &Shared) {
    let mut room = [0; MIN_ROOM];
    let mut next = Time::default();
    while !shared.stopping() {
        let now = shared.now();
        if now >= next {
            next = now + PERIOD;
            shared.gate.tick();
            for peer in shared.table().peers() {
                tick(shared, peer, &mut room);
            }
        }
        shared.attend(|paths, now| paths.handle_timeout(now));
        shared.rest(next);
    }
}
