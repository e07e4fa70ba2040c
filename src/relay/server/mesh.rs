//! The way to another relay of the region: who is connected there, and what goes there.

use std::sync::Arc;
use std::task::Waker;

use super::mailbox::Mailbox;
use super::registry::ConnectionId;
use super::{Closed, Relay};
use crate::ident::NodePublic;
use crate::relay::client::{Client, Event};

/// This relay's link to another one: filled with the packets of our clients for clients there. Dropping it forgets who is there.
///
/// The link is driven beside the [`Client`] with which we are connected there: its events go to [`Link::handle_event`], and what
/// [`Link::poll_transmit`] gives is written to the same stream as the client's own frames.
#[derive(Debug)]
pub struct Link {
    relay: Arc<Relay>,
    id: ConnectionId,
    mailbox: Arc<Mailbox>,
}

impl Relay {
    /// A link without anybody at its end.
    pub fn link(self: &Arc<Self>) -> Link {
        Link { relay: self.clone(), id: self.number(), mailbox: Arc::new(Mailbox::new()) }
    }

    /// Whether the relay at the other end is this one: every name of a region leads to some relay, one of them to ourselves.
    pub fn is_itself(&self, client: &Client) -> bool {
        client.relay() == Some(self.key())
    }
}

impl Link {
    /// What the other relay said.
    pub fn handle_event(&self, event: &Event) {
        match event {
            Event::PeerPresent { peer, .. } => self.relay.change(|registry| registry.add_forwarder(*peer, self.id, &self.mailbox)),
            Event::PeerGone { peer, .. } => self.forget(peer),
            _ => {}
        }
    }

    fn forget(&self, peer: &NodePublic) {
        self.relay.change(|registry| registry.remove_forwarder(peer, self.id));
    }

    /// Moves the frames that wait for the other relay to `into`. If there are none, `waker` will be woken once there are.
    ///
    /// # Errors
    /// The link is to be ended.
    pub fn poll_transmit(&self, into: &mut Vec<Vec<u8>>, waker: &Waker) -> Result<(), Closed> {
        self.mailbox.take(into, waker)
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.mailbox.close(Closed::Stopping);
        self.relay.change(|registry| registry.remove_link(self.id));
    }
}
