//! Connections that other nodes have not let in, as they are shown.

use std::net::SocketAddr;

use jiff::SignedDuration;
use serde::{Deserialize, Serialize};

use crate::filter::RefusedFlow;
use crate::time::Wall;
use crate::wire::tsmp::Reason;

/// How long a refused connection is shown: as long as somebody may wonder about it.
const SHOWN: SignedDuration = SignedDuration::from_mins(10);
/// Its IP protocol number.
const TCP: u8 = 6;

/// A connection that another node has not let in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct RefusedConnection {
    /// Its protocol: `TCP`, or a number.
    pub protocol: String,
    /// Where it was to go.
    pub to: SocketAddr,
    /// Why, as the node says it.
    pub reason: String,
    /// When it said so last.
    pub at: Wall,
    /// How often it did, since it was said first.
    pub times: u32,
}

impl RefusedConnection {
    /// Those that were refused not long ago, the latest last.
    pub(super) fn all(flows: &[(RefusedFlow, Wall)], now: Wall) -> Vec<Self> {
        let recent = flows.iter().filter(|(_, at)| now.duration_since(*at) < SHOWN);
        recent.map(|(flow, at)| Self::new(flow, *at)).collect()
    }

    fn new(flow: &RefusedFlow, at: Wall) -> Self {
        let reason = match flow.reason {
            Reason::Policy => "the policy does not allow it".to_owned(),
            Reason::ShieldsUp => "the node lets no connections in".to_owned(),
            Reason::NotForwarded => "the node does not forward packets".to_owned(),
            Reason::HostFirewall => "the machine's firewall".to_owned(),
            Reason::UnknownTransit => "an address the app connector has not given out".to_owned(),
            Reason::Other(letter) => format!("for a reason not known here ({letter})"),
        };
        let protocol = if flow.protocol == TCP { "TCP".to_owned() } else { format!("protocol {}", flow.protocol) };
        Self { protocol, to: flow.to, reason, at, times: flow.times }
    }
}
