//! One request over plain HTTP, outside the tunnel.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpSocket;
use tokio::time::timeout;

use super::mark_socket;

/// Makes a request of a server at an address, from one of our own if `from` is given. Redirects are not followed.
///
/// # Errors
/// It does not answer within `limit`, or with more than `longest` bytes.
pub(in crate::sys) async fn plain_http(
    to: SocketAddr,
    from: Option<IpAddr>,
    request: Request<Full<Bytes>>,
    longest: usize,
    limit: Duration,
) -> io::Result<Response<Bytes>> {
    let work = async {
        let socket = if to.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        mark_socket(&socket)?;
        if let Some(from) = from {
            socket.bind(SocketAddr::new(from, 0))?;
        }
        let stream = socket.connect(to).await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
        let connection = tokio::spawn(connection);
        let answer = async {
            let (head, body) = sender.send_request(request).await.map_err(io::Error::other)?.into_parts();
            let body = Limited::new(body, longest).collect().await.map_err(io::Error::other)?;
            Ok(Response::from_parts(head, body.to_bytes()))
        };
        let answer = answer.await;
        connection.abort();
        answer
    };
    timeout(limit, work).await.map_err(|_| io::ErrorKind::TimedOut)?
}
