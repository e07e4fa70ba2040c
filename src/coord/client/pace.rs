//! How often a coordinator is bothered.
//!
//! Three rules, whatever it answers: pauses between connections grow until a stream has lasted; after a refusal they grow longer,
//! because something has to change first; and registrations come out of a bucket, so that no combination of answers makes a busy loop.
//! The chance in the pauses is the machine key's, so that no two machines share it.

use std::time::Duration;

use rand_chacha::ChaCha8Rng;
use rand_core::SeedableRng as _;
use sha2::{Digest as _, Sha256};

use super::backoff::{Backoff, Bucket, LOSSES, REFUSALS, part};
use crate::ident::MachinePublic;
use crate::time::{Time, Wall};

/// A stream that has brought a map and lived this long was a good one. One that ends sooner counts as one more failure: a coordinator
/// that sends a map and hangs up is not better than one that only hangs up.
pub const GOOD_STREAM: Duration = Duration::from_secs(20);
/// Registrations at once, and how often one more may follow.
const REGISTRATIONS: (u32, Duration) = (8, Duration::from_secs(20));
/// A longer `Retry-After` is not believed.
const LONGEST_RETRY: Duration = Duration::from_secs(3600);

/// How a connection or an attempt at one ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// It failed, or was closed.
    Lost,
    /// The coordinator does not let the node in.
    Refused,
    /// The coordinator wants to be left alone for a while.
    Throttled(Duration),
    /// We ended it ourselves, because the network or the user gave reason to: nothing to wait for.
    Renewed,
}

/// When to connect and when to register again.
#[derive(Debug, Clone)]
pub struct Pace {
    losses: Backoff,
    refusals: Backoff,
    registrations: Bucket,
    rng: ChaCha8Rng,
    /// Since when the stream under way has had a map.
    map_since: Option<Time>,
}

impl Pace {
    /// The pace of one machine.
    pub fn new(machine: &MachinePublic) -> Self {
        let seed = |what: &str| -> [u8; 32] { Sha256::new().chain_update(what).chain_update(machine.as_bytes()).finalize().into() };
        let (burst, every) = REGISTRATIONS;
        Self {
            losses: Backoff::with(LOSSES, seed("losses")),
            refusals: Backoff::with(REFUSALS, seed("refusals")),
            registrations: Bucket::new(burst, every),
            rng: ChaCha8Rng::from_seed(seed("retry")),
            map_since: None,
        }
    }

    /// A map has arrived.
    pub fn map_arrived(&mut self, now: Time) {
        self.map_since.get_or_insert(now);
    }

    /// A connection ended; tells how long to wait before the next.
    pub fn pause(&mut self, now: Time, ended: Ended) -> Duration {
        if self.map_since.take().is_some_and(|since| now.since(since) >= GOOD_STREAM) {
            self.losses.reset();
            self.refusals.reset();
        }
        match ended {
            Ended::Lost => self.losses.next_pause(),
            Ended::Refused => self.refusals.next_pause(),
            // Everybody was told the same number; they should not all come back in that second.
            Ended::Throttled(time) => time + part(&mut self.rng, time / 4 + Duration::from_secs(1)),
            Ended::Renewed => Duration::ZERO,
        }
    }

    /// A registration is due; tells how long to wait before it is sent.
    pub fn registration_pause(&mut self, now: Time) -> Duration {
        self.registrations.take(now)
    }

    /// Reads a `Retry-After` header: seconds or a date (RFC 9110, section 10.2.3). What is no use, absent or beyond an hour becomes a
    /// random time of 5 to 10 seconds, as in the stock client.
    pub fn retry_after(&mut self, header: Option<&str>, wall: Wall) -> Duration {
        let text = header.unwrap_or_default().trim();
        let told = match text.parse::<u64>() {
            Ok(seconds) => Some(Duration::from_secs(seconds)),
            Err(_) => jiff::fmt::rfc2822::DateTimeParser::new()
                .parse_timestamp(text)
                .ok()
                .and_then(|date| Duration::try_from(date.duration_since(wall)).ok()),
        };
        told.filter(|time| !time.is_zero() && *time <= LONGEST_RETRY)
            .unwrap_or_else(|| Duration::from_secs(5) + part(&mut self.rng, Duration::from_secs(5)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pace(seed: u8) -> Pace {
        Pace::new(&MachinePublic::from_bytes([seed; 32]))
    }

    /// Connections within a day if each lasts `life` and has brought a map or not.
    fn connections_in_a_day(map: bool, life: Duration, ended: Ended) -> u32 {
        let (mut pace, mut now, mut count) = (pace(1), Time::default(), 0);
        let end = now + Duration::from_secs(86_400);
        while now < end {
            count += 1;
            if map {
                pace.map_arrived(now);
            }
            now = now + life;
            now = now + pace.pause(now, ended);
        }
        count
    }

    #[test]
    fn a_stream_that_brings_a_map_and_ends_is_no_reason_to_hurry() {
        let quick = Duration::from_millis(5);
        // The growing pauses, then one in about 22 seconds.
        assert!(connections_in_a_day(true, quick, Ended::Lost) < 4_000);
        assert!(connections_in_a_day(false, quick, Ended::Lost) < 4_000);
        assert!(connections_in_a_day(true, quick, Ended::Refused) < 430);
        // Good streams start again within the second.
        let good = connections_in_a_day(true, GOOD_STREAM, Ended::Lost);
        assert!((4_000..4_320).contains(&good), "{good}");
    }

    #[test]
    fn a_thousand_nodes_of_a_restarted_coordinator_are_spread_over_a_second() {
        let mut slots = [0u32; 10];
        for n in 0..1000u16 {
            let [a, b] = n.to_be_bytes();
            let mut key = [7; 32];
            (key[0], key[1]) = (a, b);
            let mut pace = Pace::new(&MachinePublic::from_bytes(key));
            pace.map_arrived(Time::default());
            let pause = pace.pause(Time::from_start(Duration::from_secs(1000)), Ended::Lost);
            let slot = usize::try_from(pause.as_millis() / 101).unwrap();
            *slots.get_mut(slot).unwrap() += 1;
        }
        assert!(slots.iter().all(|count| (50..200).contains(count)), "{slots:?}");
    }

    #[test]
    fn what_we_end_ourselves_costs_no_pause() {
        let mut pace = pace(1);
        for _ in 0..10 {
            pace.pause(Time::default(), Ended::Lost);
        }
        assert_eq!(pace.pause(Time::default(), Ended::Renewed), Duration::ZERO);
    }

    #[test]
    fn a_retry_after_is_read_in_both_forms_and_nonsense_is_replaced() {
        let mut pace = pace(1);
        let wall: Wall = "2026-05-01T12:00:00Z".parse().unwrap();
        assert_eq!(pace.retry_after(Some("7"), wall), Duration::from_secs(7));
        assert_eq!(pace.retry_after(Some(" 3600 "), wall), Duration::from_secs(3600));
        assert_eq!(pace.retry_after(Some("Fri, 01 May 2026 12:01:00 GMT"), wall), Duration::from_secs(60));
        for nonsense in [None, Some(""), Some("0"), Some("-5"), Some("soon"), Some("3601"), Some("Fri, 01 May 2026 11:00:00 GMT")] {
            let time = pace.retry_after(nonsense, wall);
            assert!(time >= Duration::from_secs(5) && time <= Duration::from_secs(10), "{nonsense:?}: {time:?}");
        }
        for n in 0..100u32 {
            let told = Duration::from_secs(u64::from(n));
            let pause = pace.pause(Time::default(), Ended::Throttled(told));
            assert!(pause >= told && pause <= told.mul_f64(1.25) + Duration::from_secs(1), "{told:?}: {pause:?}");
        }
    }
}
