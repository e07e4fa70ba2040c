//! From a region of the relay map to a stream of frames: the region's relays in order.

use std::path::Path;

use crate::netcheck::Region;
use crate::sys::relay::dial::{DialError, Dialed, How, reach};

/// Why a region is not reached.
#[derive(Debug, thiserror::Error)]
pub(super) enum LinkError {
    /// It has no relay at all.
    #[error("the region has no relay")]
    NoRelay,
    /// The last one that was tried.
    #[error(transparent)]
    Dial(#[from] DialError),
}

/// Opens the stream of frames to a region: to its first relay that can be reached.
pub(super) async fn connect(region: &Region, authority: Option<&Path>) -> Result<Dialed, LinkError> {
    let servers = || region.servers.iter().filter(|server| server.relay.is_some());
    let first = servers().next().map(|server| server.name.as_str());
    let mut last = LinkError::NoRelay;
    for (n, server) in servers().enumerate() {
        match reach(server, How { authority, ideal: first.filter(|_| n > 0), plain: false }).await {
            Ok(dialed) => return Ok(dialed),
            Err(error) => last = error.into(),
        }
    }
    Err(last)
}
