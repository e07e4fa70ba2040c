//! Networks of sites behind this node ("4via6"): peers' packets turned to IPv4 on their way to the TUN, the answers to IPv6 on their way
//! from it.

use std::net::Ipv4Addr;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use super::Shared;
use super::counters::add;
use super::opening::write_one;
use crate::tunnel::VirtioHeader;
use crate::tunnel::translate::{
    Flow, Flows, Identifications, Origin, ROOM, Refusal, Sites, SitesConfig, Turned, to_v4, to_v6, to_v6_in_place, too_big,
};

/// What is translated, and which answers are.
pub(super) struct Translation {
    sites: RwLock<Option<Arc<Sites>>>,
    flows: Mutex<Flows>,
    ids: Identifications,
    mtu: u16,
}

/// The conversation that a run of packets last belonged to, and where it came from; nowhere, in plain IPv4.
#[derive(Debug, Default)]
pub(super) struct Spoken(Option<(Flow, Option<Origin>)>);

/// What becomes of what the TUN brought.
pub(super) enum Leaving {
    /// It is sent as it lies, from there on.
    From(usize),
    /// Each packet in it is turned for itself.
    Singly(Origin, Arc<Sites>),
}

/// Where packets are made that cannot be turned where they lie. Takes memory once there is one.
#[derive(Debug, Default)]
pub(super) struct Answering(Vec<u8>);

impl Translation {
    /// For a tunnel of this MTU; nothing is translated yet.
    pub(super) fn new(mtu: u16) -> Self {
        Self { sites: RwLock::default(), flows: Mutex::default(), ids: Identifications::default(), mtu }
    }

    pub(super) fn set(&self, config: &SitesConfig) {
        let sites = Sites::new(config, self.mtu).map(Arc::new);
        if sites.is_none() {
            *self.flows() = Flows::default();
        }
        *self.sites.write().unwrap_or_else(PoisonError::into_inner) = sites;
    }

    /// The sites behind this node, if there are any.
    pub(super) fn sites(&self) -> Option<Arc<Sites>> {
        self.sites.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// May be locked while a peer is.
    fn flows(&self) -> MutexGuard<'_, Flows> {
        self.flows.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A packet from a peer with this IPv4 address, let in by the filter: where in its bytes the packet for the TUN lies. `None` if it is
    /// for a site and cannot be turned.
    pub(super) fn arriving(
        &self,
        shared: &Shared,
        sites: Option<&Sites>,
        packet: &mut [u8],
        peer: Option<Ipv4Addr>,
        spoken: &mut Spoken,
    ) -> Option<Range<usize>> {
        let whole = 0..packet.len();
        let Some(sites) = sites else { return Some(whole) };
        let Some(destination) = sites.destination(packet) else {
            if let Some(flow) = Flow::of_peer(packet)
                && spoken.0 != Some((flow, None))
            {
                self.flows().spoken_plainly(&flow);
                spoken.0 = Some((flow, None));
            }
            return Some(whole);
        };
        let turned = peer.ok_or(Refusal::Forbidden).and_then(|peer| to_v4(packet, peer, sites, &self.ids));
        let Turned { range, flow } = turned.inspect_err(|refusal| tracing::trace!(?refusal, %destination, "not translated")).ok()?;
        if let Some((flow, origin)) = flow
            && spoken.0 != Some((flow, Some(origin)))
        {
            self.flows().spoken(shared.now(), flow, origin);
            spoken.0 = Some((flow, Some(origin)));
        }
        Some(range)
    }

    /// What the TUN brought lies from `start` of the buffer on, and its virtio-net header apart.
    pub(super) fn leaving(&self, shared: &Shared, header: &mut VirtioHeader, buffer: &mut [u8], start: usize) -> Leaving {
        let packet = buffer.get(start..).unwrap_or_default();
        let Some(sites) = self.sites() else { return Leaving::From(start) };
        let Some(origin) = self.flows().answered(shared.now(), packet) else { return Leaving::From(start) };
        match to_v6_in_place(header, buffer, start, &origin, &sites) {
            Some(start) => Leaving::From(start),
            None => Leaving::Singly(origin, sites),
        }
    }
}

impl Answering {
    /// Turns one whole packet and emits what it becomes. Where that is too long its sender is told, and `true` returned: once is enough for
    /// all of a super-packet.
    pub(super) fn singly(&mut self, shared: &Shared, packet: &[u8], origin: &Origin, sites: &Sites, emit: impl FnMut(&mut [u8])) -> bool {
        self.0.resize(ROOM, 0);
        let Err(refusal) = to_v6(packet, origin, sites, &mut self.0, emit) else { return false };
        add(&shared.counters.untranslated, 1);
        let error = match refusal {
            Refusal::TooBig => too_big(packet, sites, &mut self.0).and_then(|length| self.0.get(..length)),
            _ => None,
        };
        if let Some(error) = error {
            write_one(shared, error);
        }
        error.is_some()
    }
}
