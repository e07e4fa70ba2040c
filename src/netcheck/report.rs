//! What came of a check.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use super::Family;
use crate::ident::RegionId;
use crate::time::Time;
use crate::wire::control::NetInfo;

/// How far a region is, by each way that was measured.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Latency {
    /// STUN over IPv4.
    pub v4: Option<Duration>,
    /// STUN over IPv6.
    pub v6: Option<Duration>,
    /// An HTTPS round trip, where STUN is not answered.
    pub https: Option<Duration>,
}

impl Latency {
    /// The shortest.
    pub fn best(&self) -> Option<Duration> {
        [self.v4, self.v6, self.https].into_iter().flatten().min()
    }

    pub(super) fn note(&mut self, family: Family, latency: Duration) {
        let known = match family {
            Family::V4 => &mut self.v4,
            Family::V6 => &mut self.v6,
        };
        *known = Some(known.map_or(latency, |known| known.min(latency)));
    }
}

/// An answer: which server, and where it has seen us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) server: (RegionId, usize),
    pub(super) observed: SocketAddr,
}

/// What the network is like.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// When the check ended.
    pub at: Time,
    /// Every region was asked.
    pub full: bool,
    /// UDP passes: some STUN server has answered.
    pub udp: bool,
    /// Where we are seen in IPv4.
    pub v4: Option<SocketAddr>,
    /// Where we are seen in IPv6.
    pub v6: Option<SocketAddr>,
    /// Further addresses that were seen more than once.
    pub further: Vec<SocketAddr>,
    /// The NAT gives each destination another port, which makes direct ways hard to find. Unknown until two servers have answered.
    pub mapping_varies: Option<bool>,
    /// This machine has IPv6 at all.
    pub os_has_v6: bool,
    /// How far the regions are that answered.
    pub latencies: BTreeMap<RegionId, Latency>,
    /// The home after this check.
    pub home: Option<RegionId>,
}

/// Whether IPv4 answers of different servers name different addresses. One answer says nothing, and neither does IPv6, which is not
/// translated; the same server twice does not count.
pub(super) fn mapping_varies(answers: &[Answer]) -> Option<bool> {
    let mut seen: Vec<Answer> = Vec::new();
    for answer in answers.iter().filter(|answer| Family::of(answer.observed.ip()) == Family::V4) {
        if seen.iter().all(|known| known.server != answer.server) {
            seen.push(*answer);
        }
    }
    let first = seen.first()?;
    (seen.len() > 1).then(|| seen.iter().any(|other| other.observed != first.observed))
}

impl Report {
    pub(super) fn take_answers(&mut self, answers: &[Answer]) {
        let of = |family| answers.iter().map(|a| a.observed).filter(move |address| Family::of(address.ip()) == family);
        self.udp = !answers.is_empty();
        self.v4 = of(Family::V4).next();
        self.v6 = of(Family::V6).next();
        self.mapping_varies = mapping_varies(answers);
        for address in answers.iter().map(|a| a.observed) {
            let twice = answers.iter().filter(|other| other.observed == address).count() > 1;
            if twice && Some(address) != self.v4 && Some(address) != self.v6 && !self.further.contains(&address) {
                self.further.push(address);
            }
        }
    }

    /// The same for the coordinator, and through it for the peers.
    pub fn net_info(&self) -> NetInfo {
        let mut latencies = BTreeMap::new();
        for (id, latency) in &self.latencies {
            let both = [("v4", latency.v4.or(latency.https)), ("v6", latency.v6)];
            latencies.extend(both.into_iter().filter_map(|(family, l)| Some((format!("{id}-{family}"), l?.as_secs_f64()))));
        }
        NetInfo {
            mapping_varies_by_dest_ip: self.mapping_varies,
            working_ipv6: Some(self.v6.is_some()),
            os_has_ipv6: Some(self.os_has_v6),
            working_udp: Some(self.udp),
            preferred_derp: self.home.map_or(0, |id| id.0.into()),
            derp_latency: latencies,
            ..NetInfo::default()
        }
    }
}
