//! The decision as the packet threads keep it.

use std::net::SocketAddr;
use std::time::Duration;

use super::{Local, Path, Reach, canonical};
use crate::ident::RegionId;
use crate::time::Time;

/// How often an idle path through the internet carries a keepalive while there is a session: below the 30 s after which
/// common NATs forget a UDP mapping. It ends with the session, 3 minutes after the last data, so that idle peers cost nothing.
pub const KEEPALIVE: Duration = Duration::from_secs(25);
/// How often the core hears of what goes on as before. It must be well below the time in which silence raises a suspicion.
const REMIND: Duration = Duration::from_millis(200);

/// What the core has decided for one peer (see [`super::Paths::route`]).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Choice {
    /// The address in use.
    pub direct: Option<SocketAddr>,
    /// The socket it is talked to from.
    pub local: Local,
    /// Until when that address is enough alone; then packets go through the relay as well, if there is one. Absent: it is not now.
    pub alone: Option<Time>,
    /// The relay to use beside it or in its place.
    pub relay: Option<RegionId>,
    /// The peer is probed at all.
    pub probed: bool,
}

/// Where a packet goes at some moment: to each of these, for while an address is in doubt both are used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ways {
    /// UDP to this address.
    pub direct: Option<SocketAddr>,
    /// From this socket.
    pub local: Local,
    /// Through this relay.
    pub relay: Option<RegionId>,
}

impl Ways {
    /// Whether there is no way at all.
    pub fn is_none(&self) -> bool {
        self.direct.is_none() && self.relay.is_none()
    }
}

impl Choice {
    /// Where a packet goes.
    pub fn ways(&self, now: Time) -> Ways {
        match (self.direct, self.relay) {
            (Some(direct), Some(_)) if self.alone.is_some_and(|until| now <= until) => {
                Ways { direct: Some(direct), local: self.local, relay: None }
            }
            (direct, relay) => Ways { direct, local: self.local, relay },
        }
    }
}

/// Where a peer's packets go, and when the core has to hear of packets. Belongs under the peer's lock: looking costs nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Route {
    choice: Choice,
    sending: Option<Time>,
    heard: Option<(Path, Time)>,
}

fn is_due(last: Option<Time>, now: Time) -> bool {
    last.is_none_or(|at| now.since(at) >= REMIND)
}

impl Route {
    /// Takes over what the core has decided.
    pub fn set(&mut self, choice: Choice) {
        self.choice = choice;
    }

    /// Where a packet goes.
    pub fn ways(&self, now: Time) -> Ways {
        self.choice.ways(now)
    }

    /// The address in use, whatever is known of it at this moment.
    pub fn direct(&self) -> Option<SocketAddr> {
        self.choice.direct
    }

    /// Data is about to be sent. Whether the core must hear of it ([`super::Paths::sending`]): now and then.
    pub fn tell_sending(&mut self, now: Time) -> bool {
        let tell = self.choice.probed && is_due(self.sending, now);
        if tell {
            self.sending = Some(now);
        }
        tell
    }

    /// Something authentic came by this way. Whether the core must hear of it ([`super::Paths::heard`]): if it comes by another
    /// than before, and now and then.
    pub fn tell_heard(&mut self, now: Time, from: Path) -> bool {
        let from = match from {
            Path::Direct(address) => Path::Direct(canonical(address)),
            relay @ Path::Relay(_) => relay,
        };
        let last = self.heard.filter(|(path, _)| *path == from).map(|(_, at)| at);
        let tell = is_due(last, now);
        if tell {
            self.heard = Some((from, now));
        }
        tell
    }

    /// Whether something should be sent on the path in use, only to keep a NAT's mapping for it: nothing was for [`KEEPALIVE`],
    /// and the path is not within a local network.
    pub fn wants_keepalive(&self, now: Time, last_sent: Time) -> bool {
        let far = self.choice.direct.is_some_and(|address| !Reach::of(address.ip()).is_local());
        far && now.since(last_sent) >= KEEPALIVE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Time {
        Time::from_start(Duration::from_secs(seconds))
    }

    fn choice(text: &str) -> Choice {
        Choice { direct: Some(text.parse().unwrap()), probed: true, ..Choice::default() }
    }

    fn from(text: &str) -> Path {
        Path::Direct(text.parse().unwrap())
    }

    #[test]
    fn an_idle_path_is_kept_open_through_nats_only() {
        let mut route = Route::default();
        assert!(!route.wants_keepalive(at(100), at(0)), "there is no path yet");
        route.set(choice("203.0.113.5:41641"));
        assert!(!route.wants_keepalive(at(25), at(1)));
        assert!(route.wants_keepalive(at(26), at(1)));
        route.set(choice("192.168.1.5:41641"));
        assert!(!route.wants_keepalive(at(100), at(1)));
        route.set(Choice { relay: Some(RegionId(1)), ..Choice::default() });
        assert!(!route.wants_keepalive(at(100), at(1)), "the relay needs none");
    }

    #[test]
    fn packets_go_both_ways_when_trust_is_over_and_by_the_relay_alone_when_there_is_no_address() {
        let (address, relay) = ("203.0.113.5:1".parse().ok(), Some(RegionId(7)));
        let local = Local::from_number(3);
        let mut choice = Choice { direct: address, local, alone: Some(at(10)), relay, probed: true };
        assert_eq!(choice.ways(at(10)), Ways { direct: address, local, relay: None });
        assert_eq!(choice.ways(at(11)), Ways { direct: address, local, relay });
        choice.alone = None;
        assert_eq!(choice.ways(at(1)), Ways { direct: address, local, relay });
        choice.direct = None;
        assert_eq!(choice.ways(at(1)), Ways { direct: None, local, relay });
        choice.relay = None;
        assert!(choice.ways(at(1)).is_none());
        choice.direct = address;
        assert_eq!(choice.ways(at(99)), Ways { direct: address, local, relay: None }, "what else");
    }

    #[test]
    fn the_core_hears_of_the_same_thing_now_and_then_and_of_a_new_address_at_once() {
        let mut route = Route::default();
        assert!(!route.tell_sending(at(0)), "nothing is probed");
        route.set(Choice { probed: true, ..Choice::default() });
        assert!(route.tell_sending(at(0)));
        assert!(!route.tell_sending(at(0)));
        assert!(route.tell_sending(at(1)));
        let (a, b) = (from("192.0.2.1:1"), from("[::ffff:192.0.2.2]:1"));
        assert!(route.tell_heard(at(0), a));
        assert!(!route.tell_heard(at(0), a));
        assert!(route.tell_heard(at(0), b));
        assert!(!route.tell_heard(at(0), from("192.0.2.2:1")), "it is the same address");
        assert!(route.tell_heard(at(0), Path::Relay(RegionId(1))));
        assert!(!route.tell_heard(at(0), Path::Relay(RegionId(1))));
        assert!(route.tell_heard(at(0), a));
        assert!(route.tell_heard(at(1), a));
    }
}
