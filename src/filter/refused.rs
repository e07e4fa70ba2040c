//! What other nodes say they have not let in.

use std::collections::VecDeque;
use std::net::SocketAddr;

use crate::time::Time;
use crate::wire::tsmp::{Message, Packet, Reason};

/// So many are remembered of one peer.
const MAX: usize = 4;

/// Packets of one kind that a peer has refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RefusedFlow {
    /// IP protocol number.
    pub protocol: u8,
    /// Where they were to go.
    pub to: SocketAddr,
    /// Why they were refused.
    pub reason: Reason,
    /// When it was said last.
    pub at: Time,
    /// How often it was said.
    pub times: u32,
}

/// What one peer has refused last. Bounded: the one said longest ago is forgotten.
#[derive(Debug, Default)]
pub struct Refused(VecDeque<RefusedFlow>);

impl Refused {
    /// A peer has said this; anything but a refusal is passed over. Whoever calls knows that the peer is the refused packet's destination, or
    /// the router to it, and that the packet's source is here.
    pub fn note(&mut self, now: Time, packet: &Packet) {
        let Message::Reject(reject) = packet.message else { return };
        let to = SocketAddr::new(packet.from, reject.port);
        let is_it = |known: &RefusedFlow| (known.protocol, known.to) == (reject.protocol, to);
        let times = self.0.iter().find(|known| is_it(known)).map_or(0, |known| known.times);
        self.0.retain(|known| !is_it(known));
        if self.0.len() >= MAX {
            self.0.pop_front();
        }
        self.0.push_back(RefusedFlow { protocol: reject.protocol, to, reason: reject.reason, at: now, times: times.saturating_add(1) });
    }

    /// All of them, the latest last.
    pub fn flows(&self) -> impl Iterator<Item = &RefusedFlow> {
        self.0.iter()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::wire::tsmp::Reject;

    fn reject(port: u16, reason: Reason) -> Packet {
        let message = Message::Reject(Reject { protocol: 6, reason, source_port: 40_000, port, maybe_broken: false });
        Packet { from: "100.64.0.2".parse().unwrap(), to: "100.64.0.1".parse().unwrap(), message }
    }

    #[test]
    fn the_last_few_are_remembered_and_the_same_is_counted() {
        let mut refused = Refused::default();
        let at = |seconds| Time::from_start(Duration::from_secs(seconds));
        refused.note(at(1), &reject(22, Reason::Policy));
        refused.note(at(2), &reject(80, Reason::Policy));
        refused.note(at(3), &reject(22, Reason::ShieldsUp));
        refused.note(at(4), &Packet { message: Message::Ping([0; 8]), ..reject(1, Reason::Policy) });
        let shown: Vec<_> = refused.flows().map(|flow| (flow.to.port(), flow.reason, flow.at, flow.times)).collect();
        assert_eq!(shown, [(80, Reason::Policy, at(2), 1), (22, Reason::ShieldsUp, at(3), 2)]);
        for port in 1000..2000 {
            refused.note(at(5), &reject(port, Reason::Policy));
        }
        assert_eq!(refused.flows().map(|flow| flow.to.port()).collect::<Vec<_>>(), [1996, 1997, 1998, 1999]);
    }
}
