//! Sockets marked to stay outside the tunnel.

use std::io;

use tokio::io::{AsyncRead, AsyncWrite};

use crate::node::policy_routing::BYPASS_MARK;

/// A connection of either kind.
pub(in crate::sys) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// Marks a socket so that its packets take the machine's own routes. Without the right to (`CAP_NET_ADMIN`) there is no tunnel of ours
/// either, so that refusal is no error.
///
/// # Errors
/// Any other refusal of the system.
pub fn mark_socket<S: std::os::fd::AsFd>(socket: &S) -> io::Result<()> {
    match socket2::SockRef::from(socket).set_mark(BYPASS_MARK) {
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        result => result,
    }
}
