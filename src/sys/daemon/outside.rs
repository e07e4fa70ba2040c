//! What a running engine has around it: the check of the network, the connections to relays, and the port the router keeps for it.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::{mpsc, watch};

use crate::coord::client::NetMap;
use crate::ident::{NodePrivate, RegionId};
use crate::netcheck::regions;
use crate::portmap::Ports;
use crate::sys::engine::Engine;
use crate::sys::portmap::{PortMapper, Wish};
use crate::sys::relay_links::{LinkStates, RelayLinks};
use crate::sys::survey::{Outlook, Survey};

/// News of connections that wait for the check.
const NEWS: usize = 64;

/// All of it, for one engine. Dropping it ends them.
#[derive(Debug)]
pub(super) struct Outside {
    survey: Survey,
    links: RelayLinks,
    outlook: watch::Receiver<Outlook>,
    mapper: PortMapper,
    ports: watch::Receiver<Ports>,
}

impl Outside {
    pub(super) fn start(engine: &Engine, key: &NodePrivate) -> std::io::Result<Self> {
        let answers = engine.take_stun_answers().ok_or_else(|| std::io::Error::other("somebody else listens for STUN answers"))?;
        let (news, heard) = mpsc::channel(NEWS);
        let survey = Survey::start(engine.door(), answers, heard)?;
        let links = RelayLinks::start(engine.door(), key.clone(), survey.home(), news);
        let mapper = PortMapper::start();
        Ok(Self { outlook: survey.outlook(), survey, links, ports: mapper.ports(), mapper })
    }

    /// Takes the map's relays, and the authority the user trusts.
    pub(super) async fn set_map(&self, map: &NetMap, authority: Option<PathBuf>) {
        let regions = regions(&map.derp);
        self.links.set(|settings| {
            if *settings.regions != regions {
                settings.regions = Arc::new(regions.clone());
            }
            settings.authority.clone_from(&authority);
        });
        self.survey.set_regions(regions, authority).await;
    }

    /// Whether the coordinator is reached.
    pub(super) async fn set_told(&self, told: bool) {
        self.survey.set_told(told).await;
    }

    /// This machine has other addresses than before.
    pub(super) async fn network_changed(&self, addresses: &[IpAddr]) {
        self.set_addresses(addresses);
        self.survey.network_changed().await;
    }

    pub(super) fn set_addresses(&self, addresses: &[IpAddr]) {
        self.links.set(|settings| {
            settings.addresses = addresses.to_vec();
            settings.changes += 1;
        });
    }

    /// Has the router asked for a port, or not any more.
    pub(super) fn wish_for_port(&self, wish: Option<Wish>) {
        self.mapper.set(wish);
    }

    /// What the router offers and has given.
    pub(super) fn ports(&self) -> Ports {
        *self.ports.borrow()
    }

    /// Gives back what others keep for this node, and ends.
    pub(super) async fn stop(self) {
        self.mapper.stop().await;
    }

    /// Checks everything now; the receiver hears when that is done.
    pub(super) async fn check(&self) -> tokio::sync::oneshot::Receiver<()> {
        self.survey.check().await
    }

    /// What is known of the network.
    pub(super) fn outlook(&self) -> watch::Receiver<Outlook> {
        self.outlook.clone()
    }

    /// Waits until more is known.
    pub(super) async fn changed(&mut self) {
        let known = tokio::select! {
            known = self.outlook.changed() => known,
            known = self.ports.changed() => known,
        };
        if known.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// What was known when this was last asked, or changed since.
    pub(super) fn look(&mut self) -> Outlook {
        self.outlook.borrow_and_update().clone()
    }

    /// How the connections to relays are doing.
    pub(super) fn links(&self) -> LinkStates {
        self.links.states()
    }

    /// What the user should know of the network: a portal in the way, or what is wrong with the home relay.
    pub(super) fn health(&self) -> Option<String> {
        let outlook = self.outlook.borrow();
        if outlook.portal == Some(true) {
            return Some("this network answers every request itself: a portal stands in the way; log in there with a browser".to_owned());
        }
        let home: RegionId = outlook.home?;
        let code = outlook.regions.iter().find(|(id, ..)| *id == home).map_or_else(|| home.to_string(), |(_, code, _)| code.clone());
        let state = self.links.states().remove(&home)?;
        let reason = if state.trouble.is_empty() { state.health } else { state.trouble };
        (!reason.is_empty()).then(|| format!("the home relay {} is not right: {}", code.escape_debug(), reason.escape_debug()))
    }
}
