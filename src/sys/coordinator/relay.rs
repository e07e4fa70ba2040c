//! The relay in the coordinator: it serves the coordinator's own nodes, and the relay map names it.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;

use super::body::Body;
use super::hub::Hub;
use super::{OUTER_TIME, Options, Shared, StartError};
use crate::relay::region;
use crate::sys::gate::Place;
use crate::sys::relay::front::{self, Answer};
use crate::sys::relay::{self, Admission, Relay, Service, Tls};
use crate::wire::control::{DerpMap, DerpRegion};
use crate::wire::derp::http::FAST_START;

/// How soon a node that was removed or has expired loses its connection to the relay.
const LOOK: Duration = Duration::from_secs(2);
const HTTP_PORT: u16 = 80;
const HTTPS_PORT: u16 = 443;

/// The running relay and its entry in the relay map.
#[derive(Debug)]
pub(super) struct Embedded {
    relay: Arc<Relay>,
    told: Arc<Told>,
}

/// What the relay map is made of.
#[derive(Debug)]
struct Told {
    /// The map of the file, if there is one.
    given: Mutex<Option<DerpMap>>,
    region: Mutex<DerpRegion>,
    /// The coordinator's name has no domain, so that nodes may not be able to resolve it: the address is told with it.
    needs_address: bool,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Starts the relay if the settings want one, and puts it into the relay map. `tls`: the coordinator's own listener has a certificate, which
/// then serves for the relay, too; it needs no other port.
pub(super) async fn start(options: &Options, tls: bool, hub: &Arc<Hub>) -> Result<Option<Embedded>, StartError> {
    let wanted = &options.settings.relay;
    if !wanted.enabled {
        return Ok(None);
    }
    let uri: http::Uri =
        options.settings.url.parse().map_err(|e| StartError::Setting(format!("the address {}: {e}", options.settings.url)))?;
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
    let known = hub.clone();
    let relay = Relay::start(relay::Options {
        listen: (!tls).then_some(wanted.listen),
        tls: if tls { Tls::None } else { Tls::SelfSigned(host.clone()) },
        listen_http: None,
        stun: Some(wanted.stun),
        state_dir: options.state_dir.join("relay"),
        admission: Admission::Local(Arc::new(move |node| known.call(|server, at| server.admits(node, at.wall)).0)),
        mesh: None,
        rate: None,
    })
    .await?;
    // On the coordinator's own listener it is where clients are told that the coordinator is.
    let port = relay.address().map_or_else(|| uri.port_u16().unwrap_or(HTTPS_PORT), |address| address.port());
    let mut region = region::with_one_relay(wanted.region, &host, port, relay.stun_address().map(|address| address.port()), relay.pin());
    // Clients look for portals there, and only there; beside TLS the check is answered on the same host.
    let can_port80 = options.settings.front.listen_http.is_some_and(|address| address.port() == HTTP_PORT);
    region.nodes.iter_mut().for_each(|node| node.can_port80 = can_port80);
    let needs_address = !host.contains(['.', ':']);
    if needs_address && let Some(address) = lan_address() {
        region.nodes.iter_mut().for_each(|node| region::place_at(node, address));
    }
    let given = options.derp_map.as_deref().map(super::setup::read_derp_map).transpose()?;
    let told = Told { given: Mutex::new(given), region: Mutex::new(region), needs_address };
    let embedded = Embedded { relay: Arc::new(relay), told: Arc::new(told) };
    let _ = hub.call(|server, _| server.set_derp_map(Some(embedded.told.map())));
    Ok(Some(embedded))
}

/// The address with which this machine reaches others. Nothing is sent: the system is asked which way it would go.
fn lan_address() -> Option<IpAddr> {
    const ANYWHERE: (Ipv4Addr, u16) = (Ipv4Addr::new(192, 0, 2, 1), 9);
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    socket.connect(ANYWHERE).ok()?;
    socket.local_addr().ok().map(|address| address.ip()).filter(|ip| !ip.is_unspecified())
}

impl Told {
    /// The relay map with the relay in it; a map that has a region of that number keeps its own.
    fn map(&self) -> DerpMap {
        let region = locked(&self.region).clone();
        let mut map = locked(&self.given).clone().unwrap_or_default();
        map.regions.get_or_insert_with(BTreeMap::new).entry(region.region_id).or_insert_with(|| Some(region));
        map
    }

    /// Tells the address that this machine has now, if nodes need it; whether it is another one.
    fn has_moved(&self) -> bool {
        let Some(address) = lan_address().filter(|_| self.needs_address) else { return false };
        let mut region = locked(&self.region);
        let before = region.clone();
        region.nodes.iter_mut().for_each(|node| region::place_at(node, address));
        *region != before
    }
}

impl Embedded {
    pub(super) fn relay(&self) -> &Relay {
        &self.relay
    }

    /// The relay map with the relay in it, the file's being this one now.
    pub(super) fn complete(&self, given: DerpMap) -> DerpMap {
        *locked(&self.told.given) = Some(given);
        self.told.map()
    }

    pub(super) fn service(&self) -> Arc<Service> {
        self.relay.service()
    }

    /// Ends connections of nodes that are no longer members, and tells when this machine's address is another one, for ever.
    pub(super) fn keep_members(&self, hub: Arc<Hub>) -> impl Future<Output = ()> + Send + 'static {
        let (relay, told) = (Arc::downgrade(&self.relay), self.told.clone());
        async move {
            loop {
                tokio::time::sleep(LOOK).await;
                let Some(relay) = relay.upgrade() else { return };
                let _ = hub.call(|server, at| relay.keep_only(|node| server.admits(node, at.wall)));
                if told.has_moved() {
                    let _ = hub.call(|server, _| server.set_derp_map(Some(told.map())));
                }
            }
        }
    }

    pub(super) async fn stop(self) {
        if let Some(relay) = Arc::into_inner(self.relay) {
            relay.stop().await;
        }
    }
}

/// Answers a request that is the relay's; `None` if there is no relay or it is another's.
pub(super) fn respond(shared: &Arc<Shared>, place: &Arc<Place>, request: &mut Request<Incoming>) -> Option<Response<Body>> {
    let relay = shared.relay.clone().filter(|_| front::owns(request.uri().path()))?;
    // The listener's library answers every upgrade, and its certificate tells no relay's key: nobody can start without an answer here.
    request.headers_mut().remove(FAST_START);
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    match front::answer(&relay.key(), &method, &path, request.headers()) {
        Answer::Page(response) => Some(whole(response)),
        Answer::Upgrade(mut upgrade) => {
            let response = upgrade.response.take()?;
            let upgraded = hyper::upgrade::on(request);
            let place = place.clone();
            shared.clone().spawn(async move {
                let Ok(Ok(stream)) = tokio::time::timeout(OUTER_TIME, upgraded).await else { return };
                place.settle();
                relay.adopt(TokioIo::new(stream), upgrade, place);
            });
            Some(whole(response))
        }
    }
}

fn whole(response: Response<String>) -> Response<Body> {
    response.map(|text| Body::Whole((!text.is_empty()).then(|| text.into())))
}
