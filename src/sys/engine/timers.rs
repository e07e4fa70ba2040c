//! WireGuard's timers, and keeping NAT mappings open.

use std::time::Duration;

use rustix::event::Timespec;

use super::Shared;
use super::outbound::initiate;
use super::table::Peer;
use crate::path::{Path, Reach};
use crate::time::Wall;
use crate::tunnel::{MIN_ROOM, Tick};

/// boringtun's timers are exact to this.
const PERIOD: Timespec = Timespec { tv_sec: 0, tv_nsec: 250_000_000 };
/// How often an idle path through the internet carries a keepalive while there is a session: below the 30 s after which
/// common NATs forget a UDP mapping. It ends with the session, 3 minutes after the last data, so that idle peers cost nothing.
const KEEPALIVE: Duration = Duration::from_secs(25);

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
        Tick::Nothing => {
            let idle = now.since(state.sent) >= KEEPALIVE;
            let natted = state.chooser.endpoint().is_some_and(|to| !Reach::of(to.ip()).is_local());
            if idle && natted { state.tunnel.keepalive(room) } else { None }
        }
    };
    if let (Some(length), Some(Path::Direct(to))) = (keepalive, state.chooser.best()) {
        state.sent = now;
        shared.socket.send_now(shared, to, room.get(..length).unwrap_or_default());
    }
}

/// The timer thread.
pub(super) fn run(shared: &Shared) {
    let mut room = [0; MIN_ROOM];
    while !shared.stopping() {
        shared.gate.tick();
        for peer in shared.table().peers() {
            tick(shared, peer, &mut room);
        }
        shared.wait(None, Some(PERIOD));
    }
}
