//! When the node key is changed for a new one.

use jiff::SignedDuration;

use crate::coord::client::NetMap;
use crate::time::Wall;

/// How long before its end a key is changed where that needs nobody's help.
const EARLY: SignedDuration = SignedDuration::from_hours(1);

/// What is to be done about the node key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Renewal {
    /// Nothing.
    NotDue,
    /// It is changed now, with the join key at hand.
    ByJoinKey,
    /// The user has to log in again; until then the node takes no part.
    ByUser,
}

/// Judges the key's age. A coordinator may still give an expired key a new life, so the user is not asked before it has ended, and
/// nothing is given up by waiting.
pub fn renewal(map: &NetMap, has_join_key: bool, now: Wall) -> Renewal {
    let near = map.node.key_expiry.is_some_and(|expiry| expiry.duration_since(map.control_time(now)) <= EARLY);
    if has_join_key && (near || map.node.expired) {
        Renewal::ByJoinKey
    } else if map.has_expired(now) {
        Renewal::ByUser
    } else {
        Renewal::NotDue
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_renewed_early_by_a_join_key_and_late_by_the_user() {
        let now: Wall = "2026-05-01T12:00:00Z".parse().unwrap();
        let judge = |expiry: Option<&str>, join_key| {
            let mut map = NetMap::default();
            map.node.key_expiry = expiry.map(|e| e.parse().unwrap());
            renewal(&map, join_key, now)
        };
        assert_eq!([judge(None, true), judge(Some("2026-05-01T14:00:00Z"), true)], [Renewal::NotDue; 2]);
        assert_eq!(judge(Some("2026-05-01T12:30:00Z"), true), Renewal::ByJoinKey);
        assert_eq!(judge(Some("2026-05-01T12:30:00Z"), false), Renewal::NotDue);
        assert_eq!(judge(Some("2026-05-01T12:00:00Z"), false), Renewal::ByUser);
        assert_eq!(judge(Some("2026-05-01T11:00:00Z"), true), Renewal::ByJoinKey);
        let mut removed = NetMap::default();
        removed.node.expired = true;
        assert_eq!([renewal(&removed, false, now), renewal(&removed, true, now)], [Renewal::ByUser, Renewal::ByJoinKey]);
    }
}
