//! The packet filter: what this node lets in from the mesh, by the rules the coordinator sends.
//!
//! [`Filter`] is made of a [`FilterConfig`] whenever that changes and never changed itself. Packets from a peer go through
//! [`Filter::admit`] after the tunnel has shown that their source is the peer's own. What this node sends is never held back; of its UDP and
//! SCTP packets the [`Flow`] is remembered in [`Flows`], so that answers come in whatever the rules say.
//!
//! It judges as stock clients do, so that a policy means the same on all nodes:
//! * a destination that is not this node's (an own address, a network it carries, the internet if it is an exit node) is refused;
//! * a TCP packet that opens no connection passes, one that opens one needs a rule, as do UDP and SCTP without a flow;
//! * ICMP answers and errors pass; an echo request and other questions need any rule from that source to that destination;
//! * a TCP connection to a door of this node's own ([`FilterConfig::doors`]) passes;
//! * another protocol needs a rule that names it, for all ports;
//! * a fragment after the first passes: without the first it is worth nothing. Too small a first fragment is refused.
//!
//! Two things differ from stock clients. They let in later fragments whatever their destination; here it must be this node's. They take an IPv6
//! extension header for the protocol; here it is passed over, so that fragments of IPv6 packets are judged as those of IPv4 are.

mod config;
mod flows;
mod networks;
mod packet;
mod refused;
mod rules;
mod scope;
#[cfg(test)]
mod tests;

pub use config::{FilterConfig, Forwards};
pub use flows::{Departure, Flow, Flows};
pub use refused::{Refused, RefusedFlow};

use std::net::{IpAddr, SocketAddr};

use packet::{Kind, Packet, SCTP};
use rules::Rules;
use scope::Scope;

use crate::wire::tsmp::{self, Reason, Reject};

/// Why a packet is not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// It is no IP packet that can be judged: cut short, or fragmented so that its ports cannot be seen.
    Malformed,
    /// Its destination is nothing of this node's.
    NotHere,
    /// No rule allows it, and nothing that was sent asks for it.
    NotAllowed,
    /// It is for a network behind this node, which does not forward packets.
    NotForwarded,
}

/// The last packet that was let in: its like follow, and need no second look.
#[derive(Debug, Default)]
pub struct Last(Option<Packet>);

/// The rules in force.
#[derive(Debug)]
pub struct Filter {
    rules: Rules,
    /// `None` judges nothing: for measurements, and where there is no mesh.
    scope: Option<Scope>,
    doors: Vec<SocketAddr>,
    shields_up: bool,
}

impl Default for Filter {
    /// Nothing is let in but answers; so it is before there is a network map.
    fn default() -> Self {
        Self::new(&FilterConfig::default())
    }
}

impl Filter {
    /// The filter for these rules and circumstances.
    pub fn new(config: &FilterConfig) -> Self {
        let (rules, doors) = if config.shields_up { Default::default() } else { (Rules::new(config), config.doors.clone()) };
        Self { rules, scope: Some(Scope::new(config)), doors, shields_up: config.shields_up }
    }

    /// A filter that lets in whatever the tunnel opens.
    pub fn open() -> Self {
        Self { rules: Rules::default(), scope: None, doors: Vec::new(), shields_up: false }
    }

    /// Entries of the rules that were left out, because they do not read.
    pub fn unread(&self) -> usize {
        self.rules.unread()
    }

    /// Judges a packet from a peer. `answers` says whether this is the flow of something that was sent (see [`Flows::answers`]); it is asked
    /// only if that matters.
    ///
    /// # Errors
    /// The packet is to be dropped, for this reason.
    pub fn admit(&self, bytes: &[u8], last: &mut Last, answers: impl FnOnce(&Flow) -> bool) -> Result<(), Refusal> {
        let Some(scope) = &self.scope else { return Ok(()) };
        let packet = Packet::parse(bytes).ok_or(Refusal::Malformed)?;
        if last.0 == Some(packet) {
            return Ok(());
        }
        if !scope.contains(packet.destination) {
            return Err(Refusal::NotHere);
        }
        let allowed = match packet.kind {
            Kind::LaterFragment | Kind::Tcp { opens: false, .. } | Kind::Icmp { asks: false } => true,
            // Between mesh programs; whoever reads them has done so before, and they never reach the system.
            Kind::Tsmp => false,
            Kind::Tcp { port, opens: true, .. } => {
                self.rules.allow(&packet, packet::TCP, port) || self.doors.contains(&SocketAddr::new(packet.destination, port))
            }
            Kind::Datagram { protocol, source_port, port } => {
                self.rules.allow(&packet, protocol, port)
                    || answers(&Flow { protocol, own: (packet.destination, port), other: (packet.source, source_port) })
            }
            Kind::Icmp { asks: true } => self.rules.allow_any(&packet),
            Kind::Other(protocol) => self.rules.allow_all_ports(&packet, protocol),
        };
        if !allowed {
            return Err(Refusal::NotAllowed);
        }
        if !scope.leads_to(packet.destination) {
            return Err(Refusal::NotForwarded);
        }
        last.0 = Some(packet);
        Ok(())
    }

    /// Whether a rule lets this source send UDP to this port of this destination, be it this node's or not.
    pub fn allows_datagram(&self, source: IpAddr, destination: IpAddr, port: u16) -> bool {
        let kind = Kind::Datagram { protocol: packet::UDP, source_port: 0, port };
        self.rules.allow(&Packet { source, destination, kind }, packet::UDP, port)
    }

    /// What the peer is told whose packet was refused: that of a new TCP connection alone, as stock clients do. Whoever waits for an answer
    /// learns from it that there is none to come, and why.
    pub fn objection(&self, bytes: &[u8], refusal: Refusal) -> Option<tsmp::Packet> {
        let Packet { source, destination, kind } = Packet::parse(bytes)?;
        let Kind::Tcp { source_port, port, opens: true } = kind else { return None };
        let reason = match refusal {
            Refusal::Malformed => return None,
            Refusal::NotForwarded => Reason::NotForwarded,
            Refusal::NotHere | Refusal::NotAllowed if self.shields_up => Reason::ShieldsUp,
            Refusal::NotHere | Refusal::NotAllowed => Reason::Policy,
        };
        let reject = Reject { protocol: packet::TCP, reason, source_port, port, maybe_broken: false };
        Some(tsmp::Packet { from: destination, to: source, message: tsmp::Message::Reject(reject) })
    }

    /// Whether an address is this node's, or of a network that it carries.
    pub fn is_here(&self, address: IpAddr) -> bool {
        self.scope.as_ref().is_none_or(|scope| scope.contains(address))
    }

    /// The port of the door at this address, if there is one.
    pub fn door_at(&self, address: IpAddr) -> Option<u16> {
        self.doors.iter().find(|door| door.ip() == address).map(SocketAddr::port)
    }

    /// What becomes of a packet that this machine sends into the mesh.
    pub fn departure(&self, bytes: &[u8]) -> Departure {
        let Some(packet) = self.scope.as_ref().and_then(|_| Packet::parse(bytes)) else { return Departure::Plain };
        match packet.kind {
            // The machine's programs do not speak for its mesh program.
            Kind::Tsmp => Departure::Held,
            // A rule that allows everything does not name SCTP.
            Kind::Datagram { protocol, source_port, port } if protocol == SCTP || !self.rules.allow_everything() => {
                Departure::Flow(Flow { protocol, own: (packet.source, source_port), other: (packet.destination, port) })
            }
            _ => Departure::Plain,
        }
    }
}
