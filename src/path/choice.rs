//! The choice itself.

use std::net::SocketAddr;
use std::time::Duration;

use super::{Path, Reach, is_usable};
use crate::time::Time;

/// How long after an authentic packet a path counts as working. Twice this and a dead local network delays roaming by as
/// much; half, and a quiet second makes the path flap. (6.5 s in stock clients, which probe every 3 s.)
pub const TRUST: Duration = Duration::from_millis(6500);
/// How long a handshake may stay unanswered before all candidates are tried: WireGuard's own REKEY_TIMEOUT.
pub const UNANSWERED: Duration = Duration::from_secs(5);
/// Candidates kept for a peer. A handshake goes to all of them, so this bounds what one initiation can cause.
pub const MAX_CANDIDATES: usize = 16;

/// How often an idle path through the internet carries a keepalive while there is a session: below the 30 s after which
/// common NATs forget a UDP mapping. It ends with the session, 3 minutes after the last data, so that idle peers cost nothing.
pub const KEEPALIVE: Duration = Duration::from_secs(25);

/// How we know of a candidate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Origin {
    /// An administrator named it; it stays.
    Explicit,
    /// The coordinator's network map lists it; it goes when the map no longer does.
    Map,
    /// An authentic packet came from it; it goes when room is needed or another path has taken over for good.
    Learned,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Candidate {
    address: SocketAddr,
    origin: Origin,
    heard: Option<Time>,
}

/// One peer's candidates and the path in use.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Chooser {
    candidates: Vec<Candidate>,
    best: Option<SocketAddr>,
    /// When the oldest unanswered handshake was started.
    asked: Option<Time>,
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

impl Chooser {
    /// A chooser that knows no candidate yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Replaces the candidates of the network map. Those learned and named explicitly stay; the path in use stays too, even if it
    /// is listed no more: it works, and the next unanswered handshake ends it if it does not.
    pub fn set_map(&mut self, addresses: &[SocketAddr]) {
        let best = self.best;
        for candidate in &mut self.candidates {
            if candidate.origin == Origin::Map && Some(candidate.address) == best {
                candidate.origin = Origin::Learned;
            }
        }
        self.candidates.retain(|c| c.origin != Origin::Map);
        for address in addresses {
            self.add(*address, Origin::Map);
        }
    }

    /// Adds a candidate, or strengthens where it is known from. Unusable addresses (no port, multicast ...) are passed over.
    pub fn add(&mut self, address: SocketAddr, origin: Origin) {
        let address = canonical(address);
        if !is_usable(address) {
            return;
        }
        if let Some(known) = self.candidates.iter_mut().find(|c| c.address == address) {
            known.origin = known.origin.min(origin);
            return;
        }
        if self.candidates.len() >= MAX_CANDIDATES {
            // The learned one heard longest ago makes room; the map's entries do not push each other out.
            let stale = |c: &&Candidate| c.origin == Origin::Learned && Some(c.address) != self.best;
            let Some(victim) = self.candidates.iter().filter(stale).min_by_key(|c| c.heard).map(|c| c.address) else { return };
            self.candidates.retain(|c| c.address != victim);
        }
        self.candidates.push(Candidate { address, origin, heard: None });
    }

    /// An authentic packet came from this address: the way there works, at least in this direction.
    ///
    /// The path follows the sender (roaming), unless a better kind of way was heard from within [`TRUST`].
    pub fn heard(&mut self, now: Time, from: SocketAddr) {
        let from = canonical(from);
        self.add(from, Origin::Learned);
        let Some(candidate) = self.candidates.iter_mut().find(|c| c.address == from) else { return };
        candidate.heard = Some(now);
        if self.best == Some(from) {
            return;
        }
        let keep = self.best.is_some_and(|best| Reach::of(best.ip()) < Reach::of(from.ip()) && self.trusted(now, best));
        if !keep {
            self.best = Some(from);
        }
    }

    /// A handshake we started was answered from this address.
    pub fn answered(&mut self, now: Time, from: SocketAddr) {
        self.asked = None;
        self.heard(now, from);
    }

    fn trusted(&self, now: Time, address: SocketAddr) -> bool {
        let heard = self.candidates.iter().find(|c| c.address == address).and_then(|c| c.heard);
        heard.is_some_and(|at| now.since(at) <= TRUST)
    }

    /// Where a handshake initiation goes that is sent now: the path in use if it works as far as we know, else every candidate,
    /// local ones first.
    pub fn ask(&mut self, now: Time) -> Vec<Path> {
        let first = self.asked.is_none();
        let asked = *self.asked.get_or_insert(now);
        match self.best {
            Some(best) if first || now.since(asked) < UNANSWERED => vec![Path::Direct(best)],
            _ => {
                let mut all: Vec<_> = self.candidates.iter().map(|c| c.address).collect();
                all.sort_by_key(|a| Reach::of(a.ip()));
                all.into_iter().map(Path::Direct).collect()
            }
        }
    }

    /// Where data goes.
    pub fn best(&self) -> Option<Path> {
        self.best.map(Path::Direct)
    }

    /// Whether something should be sent on the path in use, only to keep a NAT's mapping for it: nothing was for [`KEEPALIVE`],
    /// and the path is not within a local network.
    pub fn wants_keepalive(&self, now: Time, last_sent: Time) -> bool {
        self.best.is_some_and(|best| !Reach::of(best.ip()).is_local()) && now.since(last_sent) >= KEEPALIVE
    }

    /// The address in use, for status.
    pub fn endpoint(&self) -> Option<SocketAddr> {
        self.best
    }

    /// Whether an address is among the candidates.
    pub fn knows(&self, address: SocketAddr) -> bool {
        let address = canonical(address);
        self.candidates.iter().any(|c| c.address == address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAN: &str = "192.168.1.5:41641";
    const WAN: &str = "203.0.113.5:41641";
    const CAFE: &str = "198.51.100.9:1024";

    fn at(seconds: u64) -> Time {
        Time::from_start(Duration::from_secs(seconds))
    }

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn direct(text: &str) -> Path {
        Path::Direct(address(text))
    }

    fn chooser(candidates: &[&str]) -> Chooser {
        let mut chooser = Chooser::new();
        chooser.set_map(&candidates.iter().map(|a| address(a)).collect::<Vec<_>>());
        chooser
    }

    #[test]
    fn the_first_handshake_goes_to_all_candidates_local_ones_first() {
        let mut chooser = chooser(&[WAN, LAN]);
        assert_eq!(chooser.best(), None);
        assert_eq!(chooser.ask(at(0)), [direct(LAN), direct(WAN)]);
    }

    #[test]
    fn the_candidate_that_answers_is_taken_and_asked_alone_next_time() {
        let mut chooser = chooser(&[WAN, LAN]);
        chooser.ask(at(0));
        chooser.answered(at(1), address(WAN));
        assert_eq!(chooser.best(), Some(direct(WAN)));
        assert_eq!(chooser.ask(at(120)), [direct(WAN)]);
    }

    #[test]
    fn a_handshake_unanswered_for_five_seconds_goes_to_all_again() {
        let mut chooser = chooser(&[WAN, LAN]);
        chooser.answered(at(1), address(WAN));
        assert_eq!(chooser.ask(at(120)), [direct(WAN)]);
        assert_eq!(chooser.ask(at(124)), [direct(WAN)]);
        assert_eq!(chooser.ask(at(125)), [direct(LAN), direct(WAN)]);
        assert_eq!(chooser.best(), Some(direct(WAN)), "there is nowhere better yet");
        chooser.answered(at(126), address(LAN));
        assert_eq!(chooser.best(), Some(direct(LAN)));
        assert_eq!(chooser.ask(at(240)), [direct(LAN)]);
    }

    #[test]
    fn the_path_follows_a_peer_that_moves() {
        let mut chooser = chooser(&[WAN]);
        chooser.answered(at(1), address(WAN));
        chooser.heard(at(2), address(CAFE));
        assert_eq!(chooser.best(), Some(direct(CAFE)));
    }

    #[test]
    fn a_local_path_that_works_is_not_left_for_a_global_one() {
        let mut chooser = chooser(&[WAN, LAN]);
        chooser.answered(at(1), address(LAN));
        chooser.heard(at(2), address(WAN));
        assert_eq!(chooser.best(), Some(direct(LAN)));
        chooser.heard(at(8), address(WAN));
        assert_eq!(chooser.best(), Some(direct(WAN)), "the local one fell silent");
        chooser.heard(at(9), address(LAN));
        assert_eq!(chooser.best(), Some(direct(LAN)));
    }

    #[test]
    fn the_map_takes_back_its_candidates_but_not_the_path_in_use() {
        let mut chooser = chooser(&[WAN, LAN]);
        chooser.answered(at(1), address(WAN));
        chooser.set_map(&[address(CAFE)]);
        assert_eq!(chooser.best(), Some(direct(WAN)));
        assert!(chooser.knows(address(WAN)) && chooser.knows(address(CAFE)) && !chooser.knows(address(LAN)));
    }

    #[test]
    fn candidates_are_bounded_and_the_staleest_learned_one_makes_room() {
        let mut chooser = chooser(&[WAN]);
        for n in 0..1000 {
            chooser.heard(at(n), SocketAddr::from(([198, 51, 100, 1], 1024 + u16::try_from(n).unwrap())));
        }
        assert_eq!(chooser.ask(at(2000)).len(), 1);
        assert_eq!(chooser.ask(at(2006)).len(), MAX_CANDIDATES);
        assert!(chooser.knows(address(WAN)) && chooser.knows(SocketAddr::from(([198, 51, 100, 1], 2023))));
    }

    #[test]
    fn an_idle_path_is_kept_open_through_nats_only() {
        let mut chooser = chooser(&[WAN, LAN]);
        assert!(!chooser.wants_keepalive(at(100), at(0)), "there is no path yet");
        chooser.answered(at(1), address(WAN));
        assert!(!chooser.wants_keepalive(at(25), at(1)));
        assert!(chooser.wants_keepalive(at(26), at(1)));
        chooser.heard(at(30), address(LAN));
        assert!(!chooser.wants_keepalive(at(100), at(1)));
    }

    #[test]
    fn unusable_addresses_are_passed_over() {
        let mut chooser = chooser(&["0.0.0.0:1", "1.2.3.4:0", "224.0.0.1:5", "255.255.255.255:5", "[ff02::1]:5", "[::]:1"]);
        assert_eq!(chooser.ask(at(0)), []);
        chooser.add(address("[::ffff:1.2.3.4]:5"), Origin::Explicit);
        assert_eq!(chooser.ask(at(0)), [direct("1.2.3.4:5")]);
    }
}
