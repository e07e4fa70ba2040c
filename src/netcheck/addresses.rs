//! Where others see us, as far as STUN servers have told lately.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::time::Time;

/// How long an address counts after it was last seen. Longer than two full checks are apart: one that fails must not take
/// away what peers are using.
const LIFETIME: Duration = Duration::from_secs(310);
/// Addresses kept that differ in the port only; a NAT that gives each destination another port makes many.
const MAX_PER_IP: usize = 6;
/// Addresses kept in all.
const MAX: usize = 24;

/// The addresses, the one seen last at the front.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OwnAddresses(Vec<(SocketAddr, Time)>);

impl OwnAddresses {
    /// A server has seen us at this address.
    pub fn note(&mut self, now: Time, address: SocketAddr) {
        self.0.retain(|(known, _)| *known != address);
        self.0.insert(0, (address, now));
        let mut seen: Vec<IpAddr> = Vec::new();
        self.0.retain(|(known, _)| {
            seen.push(known.ip());
            seen.iter().filter(|ip| **ip == known.ip()).count() <= MAX_PER_IP
        });
        self.0.truncate(MAX);
    }

    /// Those that count now, the newest first.
    pub fn current(&self, now: Time) -> Vec<SocketAddr> {
        self.0.iter().filter(|(_, at)| now.since(*at) < LIFETIME).map(|(address, _)| *address).collect()
    }

    /// This machine is in another network: nothing of it holds any more.
    pub fn clear(&mut self) {
        self.0.clear();
    }
}
