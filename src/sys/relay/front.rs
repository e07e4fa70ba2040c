//! The HTTP side of a relay: pages, the checks that clients make, and the upgrade to DERP.

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Response, StatusCode};

use crate::ident::RelayPublic;
use crate::sys::web_socket;
use crate::wire::derp::{VERSION, http as derp};

/// Where clients upgrade.
pub(in crate::sys) const PATH: &str = "/derp";
/// The subprotocol of a WebSocket that carries DERP, and the protocol of the upgrade.
const PROTOCOL: &str = "derp";

/// What is done about a request.
#[derive(Debug)]
pub(in crate::sys) enum Answer {
    /// This is sent.
    Page(Response<String>),
    /// Frames follow.
    Upgrade(Upgrade),
}

/// An upgrade.
#[derive(Debug)]
pub(in crate::sys) struct Upgrade {
    /// What is sent first; `None` after a fast start.
    pub(in crate::sys) response: Option<Response<String>>,
    /// The frames come in a WebSocket's messages.
    pub(in crate::sys) web_socket: bool,
    /// The client would rather be at another relay of the region.
    pub(in crate::sys) not_ideal: bool,
}

/// Whether a path is one that a relay answers beside other servers on the same listener.
pub(in crate::sys) fn owns(path: &str) -> bool {
    matches!(path, PATH | "/derp/probe" | "/derp/latency-check" | "/generate_204")
}

/// What is done about a request.
pub(in crate::sys) fn answer(key: &RelayPublic, method: &Method, path: &str, headers: &HeaderMap) -> Answer {
    if path == PATH {
        return derp(key, method, headers);
    }
    let read = *method == Method::GET || *method == Method::HEAD;
    let known = owns(path) || matches!(path, "/" | "/robots.txt");
    Answer::Page(match path {
        _ if known && !read => {
            with(page(StatusCode::METHOD_NOT_ALLOWED, "this is asked for with GET\n"), header::ALLOW, HeaderValue::from_static("GET, HEAD"))
        }
        "/derp/probe" | "/derp/latency-check" => {
            with(page(StatusCode::OK, ""), header::ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"))
        }
        "/generate_204" => no_content(headers),
        "/robots.txt" => page(StatusCode::OK, "User-agent: *\nDisallow: /\n"),
        "/" => page(StatusCode::OK, "This is a relay (DERP) of a private mesh, run by pvemesh.\n"),
        _ => page(StatusCode::NOT_FOUND, "not found\n"),
    })
}

fn page(status: StatusCode, text: &str) -> Response<String> {
    let mut response = Response::new(text.to_owned());
    *response.status_mut() = status;
    with(response, header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"))
}

fn with(mut response: Response<String>, name: HeaderName, value: HeaderValue) -> Response<String> {
    response.headers_mut().insert(name, value);
    response
}

/// The captive-portal check: no portal can know what stands in the challenge.
fn no_content(headers: &HeaderMap) -> Response<String> {
    let (asked, answered) = derp::CHALLENGE;
    let mut response = Response::new(String::new());
    *response.status_mut() = StatusCode::NO_CONTENT;
    let challenge = headers.get(asked).and_then(|value| value.to_str().ok()).and_then(derp::challenge_response);
    if let Some(value) = challenge.and_then(|text| HeaderValue::try_from(text).ok()) {
        response = with(response, HeaderName::from_static(CHALLENGE_ANSWER), value);
        debug_assert!(answered.eq_ignore_ascii_case(CHALLENGE_ANSWER), "one name in two spellings");
    }
    with(response, header::CACHE_CONTROL, HeaderValue::from_static("no-cache, no-store, must-revalidate, no-transform, max-age=0"))
}

const CHALLENGE_ANSWER: &str = "x-tailscale-response";

fn derp(key: &RelayPublic, method: &Method, headers: &HeaderMap) -> Answer {
    let protocol = headers.get(header::UPGRADE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let web_socket = protocol.eq_ignore_ascii_case("websocket");
    if *method != Method::GET || !(web_socket || protocol.eq_ignore_ascii_case(PROTOCOL)) {
        return Answer::Page(page(StatusCode::UPGRADE_REQUIRED, "clients of the mesh upgrade this connection to DERP\n"));
    }
    let not_ideal = headers.contains_key(derp::IDEAL_NODE);
    let subprotocols = headers.get_all(header::SEC_WEBSOCKET_PROTOCOL).iter().filter_map(|value| value.to_str().ok());
    if web_socket && subprotocols.flat_map(|line| line.split(',')).any(|name| name.trim().eq_ignore_ascii_case(PROTOCOL)) {
        let Some(accept) = headers.get(header::SEC_WEBSOCKET_KEY).and_then(|key| web_socket::confirmation(key.as_bytes())) else {
            return Answer::Page(page(StatusCode::BAD_REQUEST, "the WebSocket's key is missing or malformed\n"));
        };
        let response = with(switching("websocket"), header::SEC_WEBSOCKET_ACCEPT, accept);
        let response = with(response, header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(PROTOCOL));
        return Answer::Upgrade(Upgrade { response: Some(response), web_socket: true, not_ideal });
    }
    // A client that says WebSocket without naming the protocol inside means frames without one around them.
    let fast = headers.get(derp::FAST_START).is_some_and(|value| value == "1");
    let mut response = switching(if web_socket { "websocket" } else { "DERP" });
    let about = [(derp::VERSION, VERSION.to_string()), (derp::PUBLIC_KEY, derp::key_digits(key))];
    for (name, value) in about {
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) {
            response = with(response, name, value);
        }
    }
    Answer::Upgrade(Upgrade { response: (!fast).then_some(response), web_socket: false, not_ideal })
}

fn switching(protocol: &'static str) -> Response<String> {
    let mut response = Response::new(String::new());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let response = with(response, header::UPGRADE, HeaderValue::from_static(protocol));
    with(response, header::CONNECTION, HeaderValue::from_static("Upgrade"))
}
