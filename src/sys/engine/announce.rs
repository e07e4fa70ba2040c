//! Telling peers our disco key inside the tunnel.

use std::sync::atomic::Ordering;

use super::Shared;
use super::inbound::Origin;
use super::table::{Peer, State};
use crate::tunnel::Sealed;
use crate::wire::tsmp::{Message, Packet};

/// Something authentic has come from a peer in the session with this receiver. If it is a new one, our disco key is the first thing we say in it:
/// one of us may have been restarted while the coordinator was away, and then the peer knows an old one and drops our probes. It goes back
/// where that came from, for no way is proven yet. Stock clients do the same; those before capability version 144 do not use it.
pub(super) fn announce(shared: &Shared, peer: &Peer, state: &mut State, receiver: u32, from: Origin, room: &mut [u8]) {
    if !state.tunnel.begins(receiver) {
        return;
    }
    let message = Message::DiscoKey(*shared.probing.disco());
    let packet = state.ends.and_then(|(from, to)| Packet { from, to, message }.write());
    let Some(packet) = packet else { return };
    if let Sealed::Data(length) = state.tunnel.seal(&packet, room) {
        state.sent = shared.now();
        from.reply(shared, room.get(..length).unwrap_or_default());
        peer.tx_bytes.fetch_add(packet.len() as u64, Ordering::Relaxed);
    }
}
