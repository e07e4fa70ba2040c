//! The kernel's table of neighbours: which addresses a hardware address was seen with on this machine's networks.

use std::net::IpAddr;

use futures_util::TryStreamExt as _;
use netlink_packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState};

use crate::ident::Mac;

/// The addresses that these hardware addresses were seen with. A guest that has not spoken to this machine for long is not among them.
///
/// # Errors
/// The kernel refuses.
pub async fn addresses_of(macs: &[Mac]) -> Result<Vec<IpAddr>, rtnetlink::Error> {
    let (connection, handle, _) =
        rtnetlink::new_connection().map_err(|e| rtnetlink::Error::NamespaceError(format!("open a routing socket: {e}")))?;
    let connection = tokio::spawn(connection);
    let all: Result<Vec<NeighbourMessage>, _> = handle.neighbours().get().execute().try_collect().await;
    connection.abort();
    Ok(all?.iter().filter_map(|message| seen(message, macs)).collect())
}

fn seen(message: &NeighbourMessage, macs: &[Mac]) -> Option<IpAddr> {
    // What did not answer is remembered, too, without being there.
    if matches!(message.header.state, NeighbourState::Failed | NeighbourState::Incomplete | NeighbourState::None) {
        return None;
    }
    let hardware = message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::LinkLayerAddress(bytes) => <[u8; 6]>::try_from(bytes.as_slice()).ok(),
        _ => None,
    })?;
    let address = message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => Some(IpAddr::from(*v4)),
        NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => Some(IpAddr::from(*v6)),
        _ => None,
    })?;
    macs.contains(&Mac::from_bytes(hardware)).then_some(address)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(state: NeighbourState, mac: [u8; 6], address: [u8; 4]) -> NeighbourMessage {
        let mut message = NeighbourMessage::default();
        message.header.state = state;
        message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.to_vec()));
        message.attributes.push(NeighbourAttribute::Destination(NeighbourAddress::Inet(address.into())));
        message
    }

    #[test]
    fn only_neighbours_that_answered_and_are_asked_for_are_seen() {
        let (one, other) = ([0xbc, 0x24, 0x11, 0, 0, 1], [0xbc, 0x24, 0x11, 0, 0, 2]);
        let macs = [Mac::from_bytes(one)];
        assert_eq!(seen(&entry(NeighbourState::Stale, one, [10, 0, 0, 1]), &macs), Some([10, 0, 0, 1].into()));
        assert_eq!(seen(&entry(NeighbourState::Failed, one, [10, 0, 0, 1]), &macs), None);
        assert_eq!(seen(&entry(NeighbourState::Reachable, other, [10, 0, 0, 1]), &macs), None);
    }
}
