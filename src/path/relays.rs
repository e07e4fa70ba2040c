//! Which relay carries a peer's packets.

use std::collections::BTreeMap;

use crate::ident::RegionId;

/// How our connection to a region's relay is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RelayState {
    /// It is open.
    Up,
    /// It cannot be had at this moment.
    Down,
    /// There is none; the first packet opens one.
    Idle,
}

/// The state of each region; what is not in it is idle.
pub(super) type Relays = BTreeMap<RegionId, RelayState>;

/// The relay to use for a peer whose home is one region and which was last heard through another.
///
/// An open connection comes first, and of two the one to the peer's home, where the peer always listens. One that has to be opened is
/// opened to the home. What is down is no way at all.
pub(super) fn relay_for(relays: &Relays, home: Option<RegionId>, heard: Option<RegionId>) -> Option<RegionId> {
    let state = |region: &RegionId| relays.get(region).copied().unwrap_or(RelayState::Idle);
    let both = || [home, heard].into_iter().flatten();
    both().find(|region| state(region) == RelayState::Up).or_else(|| both().find(|region| state(region) != RelayState::Down))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peers_home_comes_first_unless_only_the_other_one_is_open() {
        use RelayState::{Down, Idle, Up};
        let (home, other) = (Some(RegionId(1)), Some(RegionId(2)));
        for (at_home, at_other, taken) in [
            (Up, Up, home),
            (Idle, Up, other),
            (Idle, Idle, home),
            (Down, Idle, other),
            (Down, Up, other),
            (Up, Down, home),
            (Down, Down, None),
        ] {
            let relays = Relays::from([(RegionId(1), at_home), (RegionId(2), at_other)]);
            assert_eq!(relay_for(&relays, home, other), taken, "{at_home:?} {at_other:?}");
        }
        assert_eq!(relay_for(&Relays::new(), None, other), other, "its home is not known");
        assert_eq!(relay_for(&Relays::new(), home, None), home);
        assert_eq!(relay_for(&Relays::new(), None, None), None);
    }
}
