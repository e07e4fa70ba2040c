//! The relay in the coordinator: it serves the coordinator's own nodes, and the relay map names it.

use std::collections::BTreeMap;
use std::sync::Arc;
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
const HTTPS_PORT: u16 = 443;

/// The running relay and its entry in the relay map.
#[derive(Debug)]
pub(super) struct Embedded {
    relay: Arc<Relay>,
    region: DerpRegion,
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
        mesh_key: None,
        rate: None,
    })
    .await?;
    // On the coordinator's own listener it is where clients are told that the coordinator is.
    let port = relay.address().map_or_else(|| uri.port_u16().unwrap_or(HTTPS_PORT), |address| address.port());
    let region = region::with_one_relay(wanted.region, &host, port, relay.stun_address().map(|address| address.port()), relay.pin());
    let embedded = Embedded { relay: Arc::new(relay), region };
    let map = options.derp_map.as_deref().map(super::setup::read_derp_map).transpose()?;
    let map = complete(map, Some(&embedded));
    let _ = hub.call(|server, _| server.set_derp_map(map));
    Ok(Some(embedded))
}

/// The relay map with the relay in it; a map that has a region of that number keeps its own.
pub(super) fn complete(map: Option<DerpMap>, relay: Option<&Embedded>) -> Option<DerpMap> {
    let Some(relay) = relay else { return map };
    let mut map = map.unwrap_or_default();
    map.regions.get_or_insert_with(BTreeMap::new).entry(relay.region.region_id).or_insert_with(|| Some(relay.region.clone()));
    Some(map)
}

impl Embedded {
    pub(super) fn relay(&self) -> &Relay {
        &self.relay
    }

    pub(super) fn service(&self) -> Arc<Service> {
        self.relay.service()
    }

    /// Ends connections of nodes that are no longer members, for ever.
    pub(super) fn keep_members(&self, hub: Arc<Hub>) -> impl Future<Output = ()> + Send + 'static {
        let relay = Arc::downgrade(&self.relay);
        async move {
            loop {
                tokio::time::sleep(LOOK).await;
                let Some(relay) = relay.upgrade() else { return };
                let _ = hub.call(|server, at| relay.keep_only(|node| server.admits(node, at.wall)));
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
