//! Which of two proven addresses is the better one.

use std::net::SocketAddr;
use std::time::Duration;

use super::Reach;

/// Smaller differences of latency are noise: the machine was busy, not the way long.
const NOISE: Duration = Duration::from_millis(1);

/// A proven address: where it leads, and how long an answer took.
pub(super) type Standing = (SocketAddr, Duration);

/// Points for the kind of address: a local network is taken even if it is somewhat slower, IPv6 meets fewer NATs.
fn kind(address: SocketAddr) -> u64 {
    let reach = match Reach::of(address.ip()) {
        Reach::Loopback => 50,
        Reach::Link => 30,
        Reach::Local => 20,
        Reach::Global => 0,
    };
    reach + if address.is_ipv6() { 10 } else { 0 }
}

/// Points for being faster than the other: the saved share of the time, in percent.
fn speed(own: Duration, other: Duration) -> u64 {
    if own >= other || other - own < NOISE {
        return 0;
    }
    let share = own.as_nanos() * 100 / other.as_nanos().max(1);
    100_u64.saturating_sub(u64::try_from(share).unwrap_or(100))
}

/// Whether to leave `current` for `other`. One point is not worth it, so that two equal ways do not take turns.
///
/// The points are those of stock clients (magicsock's `betterAddr`), so that both ends mostly settle on the same way.
pub fn is_better(other: (SocketAddr, Duration), current: (SocketAddr, Duration)) -> bool {
    let of = |a: Standing, b: Standing| kind(a.0) + speed(a.1, b.1);
    let (gain, loss) = (of(other, current), of(current, other));
    if gain <= 1 && loss == 0 { false } else { gain > loss }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn standing(address: &str, milliseconds: f64) -> Standing {
        (SocketAddr::new(address.parse().unwrap(), 41641), Duration::from_secs_f64(milliseconds / 1000.0))
    }

    #[test]
    fn the_recorded_comparisons_come_out_as_recorded() {
        for (other, current, better) in [
            (("192.168.1.5", 2.0), ("203.0.113.9", 1.0), false),
            (("192.168.1.5", 1.2), ("203.0.113.9", 1.0), true),
            (("2001:db8::5", 21.0), ("203.0.113.9", 20.0), true),
            (("2001:db8::5", 25.0), ("203.0.113.9", 20.0), false),
            (("203.0.113.9", 99.0), ("198.51.100.2", 100.0), false),
            (("203.0.113.9", 97.0), ("198.51.100.2", 100.0), true),
            (("fe80::1", 2.0), ("192.168.1.5", 2.0), true),
        ] {
            let (a, b) = (standing(other.0, other.1), standing(current.0, current.1));
            assert_eq!(is_better(a, b), better, "{other:?} over {current:?}");
        }
    }

    #[test]
    fn two_addresses_are_never_both_better_than_the_other() {
        let addresses = ["127.0.0.1", "169.254.1.1", "192.168.1.5", "203.0.113.9", "2001:db8::5", "fd00::5", "fe80::1"];
        let times = [0.0, 0.1, 0.9, 1.0, 1.9, 2.0, 20.0, 20.5, 21.0, 97.0, 99.0, 100.0, 5000.0];
        let all: Vec<_> = addresses.iter().flat_map(|a| times.map(|t| standing(a, t))).collect();
        for a in &all {
            for b in &all {
                assert!(!(is_better(*a, *b) && is_better(*b, *a)), "{a:?} {b:?}");
            }
        }
    }

    #[test]
    fn less_than_a_millisecond_makes_no_difference() {
        assert!(!is_better(standing("10.0.0.1", 0.1), standing("10.0.0.2", 1.0)));
        assert!(is_better(standing("10.0.0.1", 0.1), standing("10.0.0.2", 1.1)));
    }
}
