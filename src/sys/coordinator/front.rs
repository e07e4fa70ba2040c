//! The ordinary HTTP side: which request goes where, and what is answered outside any Noise connection.

use std::net::IpAddr;
use std::sync::Arc;

use hyper::body::Incoming;
use hyper::header::{self, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use serde::{Deserialize, Serialize};

use super::body::{self, Allowance, Body, json, text};
use super::patience::Patience;
use super::{Shared, forwarded, page, relay, upgrade};
use crate::ident::{MachinePublic, NodePublic};
use crate::sys::gate::{Arrived, Place};
use crate::wire::control::{ServerKeys, UPGRADE_PATH, json as lenient};

/// The first capability version that speaks Noise; older clients get an empty answer.
const FIRST_NOISE_VERSION: u32 = 39;
/// The longest question of a relay.
const MAX_VERIFY: usize = 4096;

/// Where the page of a waiting registration is, its id behind it.
const LOGIN_PATH: &str = "/register/";

/// Where clients find out whether a portal stands in the way.
const PORTAL_CHECK: &str = "/generate_204";

/// Who makes requests on a connection.
#[derive(Debug, Clone)]
pub(super) struct Visitor {
    pub(super) whose: Whose,
    pub(super) patience: Patience,
}

/// Whose connection it is.
#[derive(Debug, Clone)]
pub(super) enum Whose {
    /// The client's own.
    Direct(Arc<Place>),
    /// A trusted proxy's, for whoever its requests say.
    Proxied {
        /// The proxy.
        proxy: IpAddr,
        /// The connection's place among all.
        arrived: Arrived,
    },
}

impl Whose {
    /// The place of whoever made this request.
    async fn place(self, shared: &Shared, headers: &header::HeaderMap) -> Option<Arc<Place>> {
        match self {
            Self::Direct(place) => Some(place),
            Self::Proxied { proxy, arrived } => {
                let client = forwarded::client(&shared.trusted_proxies, proxy, headers);
                shared.gate.admit(arrived, client).await.map(Arc::new)
            }
        }
    }
}

/// Answers a request.
pub(super) async fn respond(shared: Arc<Shared>, visitor: Visitor, mut request: Request<Incoming>) -> Response<Body> {
    let Some(place) = visitor.whose.place(&shared, request.headers()).await else { return busy() };
    if let Some(response) = relay::respond(&shared, &place, &mut request) {
        return response;
    }
    // One client sends the whole URL as the request's target: only the path counts.
    let path = request.uri().path().to_owned();
    let method = request.method();
    let read = method == Method::GET || method == Method::HEAD;
    match path.as_str() {
        UPGRADE_PATH => upgrade::respond(shared, upgrade::Caller { place, patience: visitor.patience }, request),
        "/verify" if method == Method::POST => verify(&shared, request).await,
        "/key" if read => key(&shared, request.uri().query()),
        "/health" if read => json(StatusCode::OK, &serde_json::json!({ "status": "pass" })),
        "/robots.txt" if read => text(StatusCode::OK, "User-agent: *\nDisallow: /\n"),
        "/verify" => not_by("POST"),
        "/key" | "/health" | "/robots.txt" => not_by("GET, HEAD"),
        path => match path.strip_prefix(LOGIN_PATH) {
            Some(id) if read => page::login(shared.hub.call(|server, _| server.waiting_state(id)).0, id),
            Some(_) => not_by("GET, HEAD"),
            None => text(StatusCode::NOT_FOUND, "not found"),
        },
    }
}

/// Answers a request that came without TLS beside a listener with it. The upgrade needs no TLS; the key does, because that fetch is the
/// one thing the certificate protects: it and all pages are on the other side.
pub(super) async fn respond_beside_tls(shared: Arc<Shared>, visitor: Visitor, request: Request<Incoming>) -> Response<Body> {
    // The check for portals is made here on purpose.
    let portal_check = shared.relay.is_some() && request.uri().path() == PORTAL_CHECK;
    if request.uri().path() == UPGRADE_PATH || portal_check {
        return respond(shared, visitor, request).await;
    }
    let place = request.uri().path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
    let Ok(location) = HeaderValue::try_from(format!("{}{place}", shared.url)) else {
        return text(StatusCode::NOT_FOUND, "not found");
    };
    let mut response = text(StatusCode::PERMANENT_REDIRECT, "this is served by https only");
    response.headers_mut().insert(header::LOCATION, location);
    response
}

fn key(shared: &Shared, query: Option<&str>) -> Response<Body> {
    let version = query.unwrap_or_default().split('&').find_map(|pair| pair.strip_prefix("v=")).and_then(|v| v.parse::<u32>().ok());
    match version {
        None => text(StatusCode::BAD_REQUEST, "name the client's capability version: /key?v=NUMBER"),
        Some(version) if version < FIRST_NOISE_VERSION => Response::new(Body::Whole(None)),
        Some(_) => json(StatusCode::OK, &ServerKeys { legacy_public_key: MachinePublic::ZERO, public_key: shared.hub.server_key() }),
    }
}

/// What a relay asks: whether it should serve a node.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Admission {
    node_public: NodePublic,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Admitted {
    allow: bool,
}

async fn verify(shared: &Shared, request: Request<Incoming>) -> Response<Body> {
    let allowance = Allowance { limit: MAX_VERIFY, free: MAX_VERIFY, turns: &shared.turns };
    let bytes = match body::read(request.into_body(), allowance).await {
        Ok(bytes) => bytes,
        Err(response) => return response,
    };
    match lenient::from_slice::<Admission>(&bytes) {
        Ok(asked) => {
            let allow = shared.hub.call(|server, at| server.admits(&asked.node_public, at.wall)).0;
            json(StatusCode::OK, &Admitted { allow })
        }
        Err(error) => text(StatusCode::BAD_REQUEST, format!("the question does not read: {error}")),
    }
}

fn not_by(allowed: &'static str) -> Response<Body> {
    let mut response = text(StatusCode::METHOD_NOT_ALLOWED, format!("this is asked for with {allowed}"));
    response.headers_mut().insert(header::ALLOW, HeaderValue::from_static(allowed));
    response
}

fn busy() -> Response<Body> {
    let mut response = text(StatusCode::SERVICE_UNAVAILABLE, "too many connections from this address: try again");
    response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("5"));
    response
}
