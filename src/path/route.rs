//! The decision as the packet threads keep it.

use std::net::SocketAddr;
use std::time::Duration;

use super::{Path, Reach, canonical};
use crate::time::Time;

/// How often an idle path through the internet carries a keepalive while there is a session: below the 30 s after which
/// common NATs forget a UDP mapping. It ends with the session, 3 minutes after the last data, so that idle peers cost nothing.
pub const KEEPALIVE: Duration = Duration::from_secs(25);
/// How often the core hears of what goes on as before. It must be well below the time in which an unanswered ping raises a doubt.
const REMIND: Duration = Duration::from_millis(500);

/// Where a peer's packets go, and when the core has to hear of packets. Belongs under the peer's lock: looking costs nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Route {
    best: Option<Path>,
    probed: bool,
    sending: Option<Time>,
    heard: Option<(SocketAddr, Time)>,
}

fn is_due(last: Option<Time>, now: Time) -> bool {
    last.is_none_or(|at| now.since(at) >= REMIND)
}

impl Route {
    /// Takes over what the core has decided (see [`super::Paths::route`]); `probed` says that it probes this peer at all.
    pub fn set(&mut self, best: Option<Path>, probed: bool) {
        self.best = best;
        self.probed = probed;
    }

    /// Where data goes.
    pub fn best(&self) -> Option<Path> {
        self.best
    }

    /// Data is about to be sent. Whether the core must hear of it ([`super::Paths::sending`]): now and then.
    pub fn tell_sending(&mut self, now: Time) -> bool {
        let tell = self.probed && is_due(self.sending, now);
        if tell {
            self.sending = Some(now);
        }
        tell
    }

    /// Something authentic came from this address. Whether the core must hear of it ([`super::Paths::heard`]): if it comes from
    /// elsewhere than before, and now and then.
    pub fn tell_heard(&mut self, now: Time, from: SocketAddr) -> bool {
        let from = canonical(from);
        let last = self.heard.filter(|(address, _)| *address == from).map(|(_, at)| at);
        let tell = is_due(last, now);
        if tell {
            self.heard = Some((from, now));
        }
        tell
    }

    /// Whether something should be sent on the path in use, only to keep a NAT's mapping for it: nothing was for [`KEEPALIVE`],
    /// and the path is not within a local network.
    pub fn wants_keepalive(&self, now: Time, last_sent: Time) -> bool {
        let far = match self.best {
            Some(Path::Direct(best)) => !Reach::of(best.ip()).is_local(),
            None => false,
        };
        far && now.since(last_sent) >= KEEPALIVE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Time {
        Time::from_start(Duration::from_secs(seconds))
    }

    fn path(text: &str) -> Option<Path> {
        Some(Path::Direct(text.parse().unwrap()))
    }

    #[test]
    fn an_idle_path_is_kept_open_through_nats_only() {
        let mut route = Route::default();
        assert!(!route.wants_keepalive(at(100), at(0)), "there is no path yet");
        route.set(path("203.0.113.5:41641"), true);
        assert!(!route.wants_keepalive(at(25), at(1)));
        assert!(route.wants_keepalive(at(26), at(1)));
        route.set(path("192.168.1.5:41641"), true);
        assert!(!route.wants_keepalive(at(100), at(1)));
    }

    #[test]
    fn the_core_hears_of_the_same_thing_now_and_then_and_of_a_new_address_at_once() {
        let mut route = Route::default();
        assert!(!route.tell_sending(at(0)), "nothing is probed");
        route.set(None, true);
        assert!(route.tell_sending(at(0)));
        assert!(!route.tell_sending(at(0)));
        assert!(route.tell_sending(at(1)));
        let (a, b) = ("192.0.2.1:1".parse().unwrap(), "[::ffff:192.0.2.2]:1".parse().unwrap());
        assert!(route.tell_heard(at(0), a));
        assert!(!route.tell_heard(at(0), a));
        assert!(route.tell_heard(at(0), b));
        assert!(!route.tell_heard(at(0), "192.0.2.2:1".parse().unwrap()), "it is the same address");
        assert!(route.tell_heard(at(0), a));
        assert!(route.tell_heard(at(1), a));
    }
}
