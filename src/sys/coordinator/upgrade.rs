//! From an HTTP request to a Noise connection: by an upgrade of its own (POST), or through a WebSocket (GET), which is what clients in
//! browsers have.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use hyper::body::Incoming;
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};

use super::body::{Body, text};
use super::patience::Patience;
use super::{Shared, tunnel};
use crate::sys::entropy;
use crate::sys::gate::Place;
use crate::sys::noise_stream::NoiseStream;
use crate::sys::web_socket::{self, WebSocket};
use crate::wire::control::noise::{Accepted, EarlyPayload, INITIATION_LEN, Responder, encode_early};
use crate::wire::control::{HANDSHAKE_HEADER, UPGRADE_PROTOCOL};

/// Base64 of a Noise initiation, and nothing longer.
const MAX_HANDSHAKE_TEXT: usize = INITIATION_LEN.div_ceil(3) * 4;
/// Longest query: the same with every character escaped, and room for what else clients may add.
const MAX_QUERY: usize = 1024;
/// The only version of WebSocket there is (RFC 6455).
const WEB_SOCKET_VERSION: &str = "13";

/// Who asks for a control connection.
pub(super) struct Caller {
    pub(super) place: Arc<Place>,
    pub(super) patience: Patience,
}

/// Answers a request for a control connection.
pub(super) fn respond(shared: Arc<Shared>, caller: Caller, request: Request<Incoming>) -> Response<Body> {
    match *request.method() {
        Method::POST => own_upgrade(shared, caller, request),
        Method::GET => through_web_socket(shared, caller, request),
        _ => {
            let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "a control connection is asked for with POST, or GET for a WebSocket");
            response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, POST"));
            response
        }
    }
}

fn own_upgrade(shared: Arc<Shared>, caller: Caller, mut request: Request<Incoming>) -> Response<Body> {
    if !names(request.headers(), &header::UPGRADE, UPGRADE_PROTOCOL) {
        return text(StatusCode::BAD_REQUEST, "this address takes an upgrade to the control protocol only");
    }
    let handshake = request.headers().get(HANDSHAKE_HEADER).map(|value| value.as_bytes().to_vec());
    let accepted = match accept(&shared, handshake) {
        Ok(accepted) => accepted,
        Err(why) => return text(StatusCode::BAD_REQUEST, why),
    };
    let upgraded = hyper::upgrade::on(&mut request);
    shared.clone().spawn(async move {
        let Ok(Ok(stream)) = tokio::time::timeout(super::OUTER_TIME, upgraded).await else { return };
        let early = early_payload();
        tunnel(shared, caller, TokioIo::new(stream), accepted, early.as_deref()).await;
    });
    switching(UPGRADE_PROTOCOL)
}

fn through_web_socket(shared: Arc<Shared>, caller: Caller, mut request: Request<Incoming>) -> Response<Body> {
    let headers = request.headers();
    if !names(headers, &header::UPGRADE, "websocket") {
        return text(StatusCode::BAD_REQUEST, "this address takes an upgrade to the control protocol only");
    }
    if !names(headers, &header::SEC_WEBSOCKET_VERSION, WEB_SOCKET_VERSION) {
        let mut response = text(StatusCode::UPGRADE_REQUIRED, "this WebSocket version is not known");
        response.headers_mut().insert(header::SEC_WEBSOCKET_VERSION, HeaderValue::from_static(WEB_SOCKET_VERSION));
        return response;
    }
    if !names(headers, &header::SEC_WEBSOCKET_PROTOCOL, UPGRADE_PROTOCOL) {
        return text(StatusCode::BAD_REQUEST, "the WebSocket has to name the control protocol");
    }
    let Some(confirmation) = headers.get(header::SEC_WEBSOCKET_KEY).and_then(|key| web_socket::confirmation(key.as_bytes())) else {
        return text(StatusCode::BAD_REQUEST, "the WebSocket's key is missing or malformed");
    };
    let accepted = match accept(&shared, request.uri().query().and_then(handshake_of_query)) {
        Ok(accepted) => accepted,
        Err(why) => return text(StatusCode::BAD_REQUEST, why),
    };
    let upgraded = hyper::upgrade::on(&mut request);
    shared.clone().spawn(async move {
        let Ok(Ok(stream)) = tokio::time::timeout(super::OUTER_TIME, upgraded).await else { return };
        // No early payload: stock servers send none here.
        tunnel(shared, caller, WebSocket::server(TokioIo::new(stream)).await, accepted, None).await;
    });
    let mut response = switching("websocket");
    let headers = response.headers_mut();
    headers.insert(header::SEC_WEBSOCKET_ACCEPT, confirmation);
    headers.insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(UPGRADE_PROTOCOL));
    response
}

/// Sends the handshake's answer and what may come right behind it, in one write as clients are used to; then serves the connection.
async fn tunnel<T>(shared: Arc<Shared>, caller: Caller, mut stream: T, accepted: Accepted, early: Option<&[u8]>)
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let Accepted { response, mut keys, machine, .. } = accepted;
    let mut first = response.to_vec();
    if early.is_some_and(|early| keys.sealer.seal(early, &mut first).is_err()) {
        return;
    }
    let written = tokio::time::timeout(super::OUTER_TIME, async {
        stream.write_all(&first).await?;
        stream.flush().await
    });
    if matches!(written.await, Ok(Ok(()))) {
        tunnel::serve(shared, caller, machine, NoiseStream::new(stream, keys, &[])).await;
    }
}

fn switching(protocol: &'static str) -> Response<Body> {
    let mut response = Response::new(Body::Whole(None));
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    response.headers_mut().insert(header::UPGRADE, HeaderValue::from_static(protocol));
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    response
}

/// Whether a header's comma-separated list names something, in any case.
fn names(headers: &HeaderMap, header: &HeaderName, wanted: &str) -> bool {
    let lines = headers.get_all(header).iter().filter_map(|line| line.to_str().ok());
    lines.flat_map(|line| line.split(',')).any(|name| name.trim().eq_ignore_ascii_case(wanted))
}

/// The handshake in a WebSocket's query. A plus sign that was not escaped reads as a space there; base64 has no spaces.
fn handshake_of_query(query: &str) -> Option<Vec<u8>> {
    let query = query.get(..MAX_QUERY).unwrap_or(query);
    let (_, value) = form_urlencoded::parse(query.as_bytes()).find(|(name, _)| name.eq_ignore_ascii_case(HANDSHAKE_HEADER))?;
    Some(value.replace(' ', "+").into_bytes())
}

fn accept(shared: &Shared, handshake: Option<Vec<u8>>) -> Result<Accepted, String> {
    let initiation = handshake
        .filter(|text| text.len() <= MAX_HANDSHAKE_TEXT)
        .and_then(|text| BASE64.decode(text).ok())
        .ok_or_else(|| format!("{HANDSHAKE_HEADER} with a Noise initiation is missing or malformed"))?;
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
    fn the_handshake_is_found_in_a_query_escaped_or_not() {
        let found = |query: &str| handshake_of_query(query).map(|value| String::from_utf8(value).unwrap());
        assert_eq!(found("X-Tailscale-Handshake=a%2Bb%2Fc%3D%3D").as_deref(), Some("a+b/c=="));
        assert_eq!(found("x=1&X-Tailscale-Handshake=a+b/c==").as_deref(), Some("a+b/c=="));
        assert_eq!(found("handshake=a"), None);
    }
}
