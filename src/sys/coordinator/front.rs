//! The ordinary HTTP side: the server's key, its health, the login page, and the upgrade into a Noise connection.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use hyper::body::Incoming;
use hyper::header::{self, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::AsyncWriteExt as _;

use super::body::{Body, answer, json, text};
use super::gate::Place;
use super::{Shared, tunnel};
use crate::ident::MachinePublic;
use crate::sys::entropy;
use crate::sys::noise_stream::NoiseStream;
use crate::wire::control::noise::{Accepted, EarlyPayload, INITIATION_LEN, Responder, encode_early};
use crate::wire::control::{HANDSHAKE_HEADER, ServerKeys, UPGRADE_PATH, UPGRADE_PROTOCOL};

/// Base64 of a Noise initiation, and nothing longer.
const MAX_HANDSHAKE_TEXT: usize = INITIATION_LEN.div_ceil(3) * 4;
/// The first capability version that speaks Noise; older clients get an empty answer.
const FIRST_NOISE_VERSION: u32 = 39;
/// Longest id of a registration.
const MAX_ID: usize = 64;

/// Answers a request on the ordinary HTTP side.
pub(super) async fn respond(shared: Arc<Shared>, place: Arc<Place>, request: Request<Incoming>) -> Response<Body> {
    // One client sends the whole URL as the request's target: only the path counts.
    let path = request.uri().path().to_owned();
    match (request.method(), path.as_str()) {
        (&Method::GET, "/key") => key(&shared, request.uri().query()),
        (&Method::GET, "/health") => json(StatusCode::OK, &serde_json::json!({ "status": "pass" })),
        (&Method::POST, UPGRADE_PATH) => upgrade(shared, place, request),
        (&Method::GET, path) => match path.strip_prefix("/register/") {
            Some(id) => login_page(id),
            None => text(StatusCode::NOT_FOUND, "not found"),
        },
        _ => text(StatusCode::NOT_FOUND, "not found"),
    }
}

fn key(shared: &Shared, query: Option<&str>) -> Response<Body> {
    let version = query.unwrap_or_default().split('&').find_map(|pair| pair.strip_prefix("v=")).and_then(|v| v.parse::<u32>().ok());
    match version {
        None => text(StatusCode::BAD_REQUEST, "name the client's capability version: /key?v=NUMBER"),
        Some(version) if version < FIRST_NOISE_VERSION => Response::new(Body::Whole(None)),
        Some(_) => json(StatusCode::OK, &ServerKeys { legacy_public_key: MachinePublic::ZERO, public_key: shared.hub.server_key() }),
    }
}

/// What the user of a waiting node is shown.
fn login_page(id: &str) -> Response<Body> {
    // The id goes into the page: only what ids are made of.
    if id.is_empty() || id.len() > MAX_ID || !id.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-') {
        return text(StatusCode::NOT_FOUND, "not found");
    }
    let page = format!(
        "<!doctype html><meta charset=utf-8><meta name=viewport content=\"width=device-width,initial-scale=1\"><title>pvemesh</title>\
         <body style=\"font-family:sans-serif;max-width:40em;margin:2em auto;padding:0 1em\">\
         <h1>Almost there</h1><p>To let this device in, run on the coordinator:</p>\
         <pre style=\"white-space:pre-wrap\">pvemesh coordinator nodes register {id} --user NAME</pre>\
         <p>It connects by itself as soon as that is done.</p>"
    );
    let mut response = answer(StatusCode::OK, "text/html; charset=utf-8", page);
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static("default-src 'none'; style-src 'unsafe-inline'"));
    response
}

fn upgrade(shared: Arc<Shared>, place: Arc<Place>, mut request: Request<Incoming>) -> Response<Body> {
    let asked = request.headers().get(header::UPGRADE).and_then(|value| value.to_str().ok());
    if !asked.is_some_and(|protocol| protocol.eq_ignore_ascii_case(UPGRADE_PROTOCOL)) {
        return text(StatusCode::BAD_REQUEST, "this address takes an upgrade to the control protocol only");
    }
    let accepted = match accept(&shared, &request) {
        Ok(accepted) => accepted,
        Err(why) => return text(StatusCode::BAD_REQUEST, why),
    };
    let upgraded = hyper::upgrade::on(&mut request);
    shared.clone().spawn(async move {
        let Ok(Ok(stream)) = tokio::time::timeout(super::OUTER_TIME, upgraded).await else { return };
        let mut stream = TokioIo::new(stream);
        let Accepted { response, mut keys, machine, .. } = accepted;
        // Response and early payload in one write, as clients are used to.
        let mut first = response.to_vec();
        let Some(early) = early_payload() else { return };
        if keys.sealer.seal(&early, &mut first).is_err() {
            return;
        }
        let written = tokio::time::timeout(super::OUTER_TIME, stream.write_all(&first)).await;
        if matches!(written, Ok(Ok(()))) {
            tunnel::serve(shared, place, machine, NoiseStream::new(stream, keys, &[])).await;
        }
    });
    let mut response = Response::new(Body::Whole(None));
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    response.headers_mut().insert(header::UPGRADE, HeaderValue::from_static(UPGRADE_PROTOCOL));
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    response
}

fn accept(shared: &Shared, request: &Request<Incoming>) -> Result<Accepted, String> {
    let header = request.headers().get(HANDSHAKE_HEADER).map(HeaderValue::as_bytes);
    let initiation = header
        .filter(|text| text.len() <= MAX_HANDSHAKE_TEXT)
        .and_then(|text| BASE64.decode(text).ok())
        .ok_or_else(|| format!("the header {HANDSHAKE_HEADER} with a Noise initiation is missing or malformed"))?;
    let seed = entropy::seed().map_err(|e| e.to_string())?;
    Responder::accept(seed, shared.hub.key(), &initiation).map_err(|e| e.to_string())
}

fn early_payload() -> Option<Vec<u8>> {
    // A challenge's public key; nothing answers it today, but clients expect a well-formed one.
    let challenge = entropy::node_key().ok()?.public().to_string();
    let digits = challenge.split(':').next_back()?;
    encode_early(&EarlyPayload { node_key_challenge: format!("chalpub:{digits}") }).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trap_09_the_early_payload_stays_below_1024_bytes() {
        assert!(early_payload().unwrap().len() < 1024);
    }

    #[test]
    fn the_login_page_takes_over_nothing_but_an_id() {
        assert_eq!(login_page("pvmesh-authreq-0123456789abcdef01234567").status(), StatusCode::OK);
        for bad in ["", "<script>", "a/b", "A", &"a".repeat(65)] {
            assert_eq!(login_page(bad).status(), StatusCode::NOT_FOUND, "{bad}");
        }
    }
}
