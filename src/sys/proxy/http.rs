//! HTTP/1.1: tunnels by CONNECT, and requests passed on.

use std::convert::Infallible;
use std::io;

use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::header::{self, HeaderName, HeaderValue};
use hyper::service::service_fn;
use hyper::{HeaderMap, Method, Request, Response, StatusCode, Uri};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;

use super::{PATIENCE, Way, carry};
use crate::sys::dial::Stream;

type Body = BoxBody<Bytes, hyper::Error>;

/// What belongs to a connection and not to what is passed on (RFC 9110, section 7.6.1).
const HOP_BY_HOP: [HeaderName; 8] = [
    header::CONNECTION,
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    HeaderName::from_static("keep-alive"),
];
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

/// Serves a program that does not speak SOCKS5.
///
/// # Errors
/// It does not speak HTTP/1 either, or goes away.
pub(super) async fn serve(stream: TcpStream, way: &Way) -> io::Result<()> {
    let service = service_fn(|request| async move { Ok::<_, Infallible>(answer(request, way).await) });
    hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .max_buf_size(64 * 1024)
        .preserve_header_case(true)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades()
        .await
        .map_err(io::Error::other)
}

fn said(status: StatusCode, text: String) -> Response<Body> {
    let mut response = Response::new(Full::new(Bytes::from(text)).map_err(|never| match never {}).boxed());
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

fn failed(host: &str, error: &io::Error) -> Response<Body> {
    let status = match error.kind() {
        io::ErrorKind::PermissionDenied => StatusCode::FORBIDDEN,
        io::ErrorKind::TimedOut => StatusCode::GATEWAY_TIMEOUT,
        _ => StatusCode::BAD_GATEWAY,
    };
    said(status, format!("{host} is not reached: {error}\n"))
}

async fn answer(request: Request<Incoming>, way: &Way) -> Response<Body> {
    let tunnel = request.method() == Method::CONNECT;
    let port = request.uri().port_u16().or_else(|| (request.uri().scheme_str() == Some("http")).then_some(80));
    let (Some(host), Some(port)) = (request.uri().host().map(str::to_owned), port) else {
        let text = "this is a proxy: ask by CONNECT with host and port, or with a whole http:// URL\n";
        return said(StatusCode::BAD_REQUEST, text.to_owned());
    };
    let stream = match way.connect(&host, port).await {
        Ok(stream) => stream,
        Err(error) => return failed(&host, &error),
    };
    if tunnel {
        tokio::spawn(async move {
            if let Ok(program) = hyper::upgrade::on(request).await {
                carry(TokioIo::new(program), stream).await;
            }
        });
        return Response::new(Full::default().map_err(|never| match never {}).boxed());
    }
    match pass_on(request, TokioIo::new(stream)).await {
        Ok(response) => response.map(|body| body.boxed()),
        Err(error) => said(StatusCode::BAD_GATEWAY, format!("{host} does not answer as a web server does: {error}\n")),
    }
}

/// Passes a request on over a connection of its own.
async fn pass_on(mut request: Request<Incoming>, stream: TokioIo<Box<dyn Stream>>) -> Result<Response<Incoming>, hyper::Error> {
    let (mut sender, connection) = hyper::client::conn::http1::Builder::new().preserve_header_case(true).handshake(stream).await?;
    tokio::spawn(connection);
    if let Some(host) = request.uri().authority().and_then(|authority| HeaderValue::from_str(authority.as_str()).ok()) {
        // The URL's counts (RFC 9112, section 3.2.2).
        request.headers_mut().insert(header::HOST, host);
    }
    let path = request.uri().path_and_query().map_or("/", |path| path.as_str()).parse::<Uri>();
    *request.uri_mut() = path.unwrap_or_default();
    strip(request.headers_mut());
    let mut response = sender.send_request(request).await?;
    strip(response.headers_mut());
    Ok(response)
}

/// Takes away what is not passed on.
fn strip(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in named.iter().chain(&HOP_BY_HOP).chain([&PROXY_CONNECTION]) {
        headers.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_belongs_to_the_connection_is_not_passed_on() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("connection", "close, X-Secret"),
            ("x-secret", "1"),
            ("proxy-authorization", "Basic eA=="),
            ("proxy-connection", "keep-alive"),
            ("accept", "*/*"),
        ] {
            headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        strip(&mut headers);
        assert_eq!(headers.keys().map(HeaderName::as_str).collect::<Vec<_>>(), ["accept"]);
    }
}
