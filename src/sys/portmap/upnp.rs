//! What is asked of a router by UPnP: HTTP to the gateway itself, whatever address its description names.

use std::io;
use std::net::{IpAddr, SocketAddr, SocketAddrV4};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Method, Request as Http, Uri, header};

use super::Held;
use super::datagram::Router;
use crate::portmap::{Fault, LIFETIME, Mapping, Protocol, Reply, Request, Service, read_reply, services};
use crate::sys::dial::plain_http;
use crate::sys::entropy;

/// How long one request may take.
const REQUEST_TIME: Duration = Duration::from_secs(2);
/// The longest answer that is read: descriptions have some kilobytes.
const MAX_ANSWER: usize = 64 * 1024;
/// Ports that are tried where one is taken.
const PORT_TRIES: u32 = 4;

/// Where a service takes requests.
#[derive(Debug, Clone)]
pub(super) struct Control {
    service: Service,
    port: u16,
    path: String,
}

/// Port and path of a URL, if its host is an address of the router's that we may ask; the host itself does not count.
fn place(url: &str) -> Option<(u16, String)> {
    let uri: Uri = url.parse().ok()?;
    if uri.scheme_str() != Some("http") {
        return None;
    }
    Some((uri.port_u16().unwrap_or(80), uri.path_and_query()?.as_str().to_owned()))
}

/// Makes an HTTP request to the router; gives the answer's text, whatever its status.
async fn http(router: &Router, port: u16, request: Http<Full<Bytes>>) -> io::Result<String> {
    let to = SocketAddr::new(IpAddr::V4(router.wish().gateway), port);
    let answer = plain_http(to, Some(IpAddr::V4(router.own())), request, MAX_ANSWER, REQUEST_TIME).await?;
    Ok(String::from_utf8_lossy(answer.body()).into_owned())
}

fn head(router: &Router, method: Method, port: u16, path: &str) -> http::request::Builder {
    Http::builder()
        .method(method)
        .uri(path)
        .header(header::HOST, format!("{}:{port}", router.wish().gateway))
        .header(header::CONNECTION, "close")
}

/// The services that a router describes.
async fn controls(router: &Router, locations: &[String]) -> Vec<Control> {
    let mut found = Vec::new();
    for (port, path) in locations.iter().filter_map(|location| place(location)) {
        let Ok(request) = head(router, Method::GET, port, &path).body(Full::default()) else { continue };
        let description = match http(router, port, request).await {
            Ok(description) => description,
            Err(error) => {
                tracing::debug!(%error, "the router's description cannot be read");
                continue;
            }
        };
        for service in services(&description) {
            let (port, path) = match place(&service.control) {
                Some(whole) => whole,
                None if service.control.starts_with('/') => (port, service.control.clone()),
                // Below where the description is.
                None => (port, format!("{}/{}", path.rsplit_once('/').map_or("", |(directory, _)| directory), service.control)),
            };
            found.push(Control { service, port, path });
        }
    }
    found
}

async fn call(router: &Router, control: &Control, request: Request) -> Result<Reply, Fault> {
    let kind = control.service.kind;
    let http_request = head(router, Method::POST, control.port, &control.path)
        .header(header::CONTENT_TYPE, "text/xml; charset=\"utf-8\"")
        .header("SOAPAction", format!("\"{kind}#{}\"", request.action()))
        .body(Full::from(request.body(kind)))
        .map_err(|_| Fault::Unread)?;
    match http(router, control.port, http_request).await {
        Ok(text) => read_reply(&text),
        Err(error) => {
            tracing::debug!(%error, action = request.action(), "the router does not answer");
            Err(Fault::Unread)
        }
    }
}

/// Some port, if there is no reason for a certain one. Never 0, which some routers take for all ports.
fn any_port() -> u16 {
    const FIRST: u16 = 1024;
    let random = entropy::bytes::<2>().map_or(0, u16::from_be_bytes);
    FIRST + random % (u16::MAX - 1 - FIRST)
}

pub(super) async fn map(router: &Router, locations: &[String], before: Option<SocketAddrV4>) -> Option<Held> {
    for control in controls(router, locations).await {
        let Ok(Reply { address: Some(address), .. }) = call(router, &control, Request::Address).await else { continue };
        let mut external = before.map_or(router.wish().port, |before| before.port());
        for _ in 0..PORT_TRIES {
            match add(router, &control, external).await {
                Ok(port) => {
                    let mapping = Mapping { protocol: Protocol::Upnp, external: SocketAddrV4::new(address, port), lifetime: LIFETIME };
                    return Some(Held { mapping, control: Some(control) });
                }
                Err(fault) if fault.is_conflict() => external = any_port(),
                Err(fault) => {
                    tracing::debug!(?fault, "the router refuses a mapping");
                    break;
                }
            }
        }
    }
    None
}

/// Asks for a port; gives the one there is.
async fn add(router: &Router, control: &Control, external: u16) -> Result<u16, Fault> {
    let internal = SocketAddrV4::new(router.own(), router.wish().port);
    let any = control.service.has_add_any();
    let request = |lease| Request::Add { external, internal, lease, any };
    let reply = match call(router, control, request(LIFETIME)).await {
        Err(fault) if fault.wants_permanent() => call(router, control, request(Duration::ZERO)).await?,
        result => result?,
    };
    Ok(reply.port.filter(|_| any).unwrap_or(external))
}

pub(super) async fn release(router: &Router, control: &Control, external: u16) {
    let _ = call(router, control, Request::Delete { external }).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_of_a_location_does_not_count_and_other_schemes_are_refused() {
        assert_eq!(place("http://10.9.9.9:5000/root.xml?x=1"), Some((5000, "/root.xml?x=1".to_owned())));
        assert_eq!(place("http://router/"), Some((80, "/".to_owned())));
        for url in ["https://192.168.1.1/x", "file:///etc/passwd", "/ctl/IPConn", ""] {
            assert_eq!(place(url), None, "{url}");
        }
    }
}
