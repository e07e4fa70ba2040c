//! Absences known beforehand: whoever stops a node's guest says so, and nobody has to find out by a stream that ends.
//!
//! A node that leaves hands over the routes that another router can carry, while it still carries what is on its way. One that is gone
//! is offline at once, without the grace that is given to streams that end for no known reason. Neither is stored: after a restart of
//! the coordinator the graces of [`super::presence`] do the same, later.

use std::time::Duration;

use super::{CommandError, Moment, Server};
use crate::ident::NodeId;
use crate::wire::admin::{Drain, NodeInfo};

/// The longest time for which a node may be drained.
pub const MAX_DRAIN: Duration = Duration::from_secs(3600);

impl Server {
    /// Takes over what whoever runs a node says of its near future.
    ///
    /// # Errors
    /// No such node, or the time is out of range.
    pub fn drain(&mut self, at: Moment, id: NodeId, wanted: Drain) -> Result<NodeInfo, CommandError> {
        self.known(id)?;
        let time = Duration::from_secs(wanted.for_secs);
        if time > MAX_DRAIN {
            return Err(CommandError::Invalid(format!("a node can be drained for at most {} seconds", MAX_DRAIN.as_secs())));
        }
        if wanted.gone {
            self.depart(id, at);
        } else {
            self.presences.set_leaving(id, (!time.is_zero()).then(|| at.now + time));
            self.elect_if_router(id, at);
        }
        self.known(id).map(|node| self.listed(node))
    }

    fn depart(&mut self, id: NodeId, at: Moment) {
        self.end_streams(id);
        self.presences.set_absent(id);
        self.registry.change_node(id, |node| node.last_seen = Some(at.wall));
        self.go_offline(id, at);
        self.elect_if_router(id, at);
    }
}
