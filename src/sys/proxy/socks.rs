//! SOCKS5: one request, then data.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};

use fast_socks5::server::Socks5ServerProtocol;
use fast_socks5::{ReplyError, Socks5Command};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::{PATIENCE, Way, carry};

/// What a program is told of a failure (RFC 1928, section 6).
fn reply(error: &io::Error) -> ReplyError {
    match error.kind() {
        io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset => ReplyError::ConnectionRefused,
        io::ErrorKind::TimedOut => ReplyError::ConnectionTimeout,
        io::ErrorKind::PermissionDenied => ReplyError::ConnectionNotAllowed,
        io::ErrorKind::NetworkUnreachable => ReplyError::NetworkUnreachable,
        io::ErrorKind::HostUnreachable | io::ErrorKind::NotFound | io::ErrorKind::AddrNotAvailable => ReplyError::HostUnreachable,
        _ => ReplyError::GeneralFailure,
    }
}

/// Serves a program that has begun to speak SOCKS5.
///
/// # Errors
/// It does not keep to the protocol, goes away, or is told of a failure.
pub(super) async fn serve(stream: TcpStream, way: &Way) -> io::Result<()> {
    let request = async {
        let greeted = Socks5ServerProtocol::accept_no_auth(stream).await.map_err(io::Error::other)?;
        greeted.read_command().await.map_err(io::Error::other)
    };
    let (program, command, target) = timeout(PATIENCE, request).await.map_err(|_| io::ErrorKind::TimedOut)??;
    if !matches!(command, Socks5Command::TCPConnect) {
        return program.reply_error(&ReplyError::CommandNotSupported).await.map_err(io::Error::other);
    }
    let (host, port) = target.into_string_and_port();
    match way.connect(&host, port).await {
        Ok(inner) => {
            // The address is of no use to a program, and ours in the mesh nobody's business.
            let nowhere = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
            let outer = program.reply_success(nowhere).await.map_err(io::Error::other)?;
            carry(outer, inner).await;
            Ok(())
        }
        Err(error) => {
            program.reply_error(&reply(&error)).await.map_err(io::Error::other)?;
            Err(error)
        }
    }
}
