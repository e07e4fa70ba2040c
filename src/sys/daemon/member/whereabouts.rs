//! Where the node may be reached, as peers and coordinator are told.

use std::net::SocketAddr;

use super::Member;
use crate::node::{Endpoint, Whereabouts, endpoints, hostinfo, worth_telling};
use crate::path;
use crate::portmap::Services;
use crate::sys::control::Report;
use crate::wire::control::NetInfo;

impl Member {
    /// Tells peers and coordinator where the node may be reached now, and which relay is its home.
    pub(super) fn on_outlook(&mut self) {
        let outlook = self.effect.outlook();
        let home = outlook.home.map_or(0, |home| home.0.into());
        self.nat = outlook.report.as_ref().and_then(|report| match report.v4 {
            Some(SocketAddr::V4(seen)) => Some(path::Outside { seen, varies: report.mapping_varies }),
            _ => None,
        });
        self.tell_nat();
        let report = outlook.report.map(|report| report.net_info()).unwrap_or_default();
        let services = self.outside().and_then(|outside| outside.ports().services);
        let speaks = |which: fn(&Services) -> bool| services.as_ref().map(which);
        let (pmp, pcp, upnp) = (speaks(|s| s.pmp), speaks(|s| s.pcp), speaks(|s| s.upnp));
        self.network = worth_telling(std::mem::take(&mut self.network), NetInfo { preferred_derp: home, pmp, pcp, upnp, ..report });
        self.seen = outlook.seen;
        if let Some(engine) = self.effect.engine() {
            engine.set_endpoints(self.endpoints().into_iter().map(|endpoint| endpoint.address).collect());
        }
        self.publish();
    }

    /// Tells the engine of the NAT in front of it, if ports may be guessed.
    pub(super) fn tell_nat(&self) {
        if let Some(engine) = self.effect.engine() {
            engine.set_outside(self.nat.filter(|_| self.membership.prefs().port_guessing));
        }
    }

    fn endpoints(&self) -> Vec<Endpoint> {
        endpoints(Whereabouts {
            explicit: &self.membership.prefs().endpoints,
            seen: &self.seen,
            mapped: self.outside().and_then(|outside| outside.ports().mapping).map(|mapping| mapping.external.into()),
            hard_nat: self.network.mapping_varies_by_dest_ip == Some(true),
            local: &self.effect.surroundings().addresses,
            port: self.effect.port(),
        })
    }

    pub(super) fn report(&self) -> Report {
        let prefs = self.membership.prefs();
        Report { hostinfo: hostinfo(prefs, &self.machine, self.network.clone(), self.effect.peer_api()), endpoints: self.endpoints() }
    }

    pub(super) fn publish(&self) {
        self.session.publish(self.report());
    }
}
