//! What has been sent lately, so that its answers are let in.

use std::collections::HashSet;
use std::net::IpAddr;

/// Flows of one generation. Two are kept, so that at least this many of those used last are known; stock clients keep 512.
const GENERATION: usize = 2048;

/// One conversation in UDP or SCTP, as this node sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Flow {
    /// IP protocol number.
    pub protocol: u8,
    /// Address and port on this node's side.
    pub own: (IpAddr, u16),
    /// Address and port on the peer's side.
    pub other: (IpAddr, u16),
}

/// What becomes of a packet that is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Departure {
    /// It goes.
    Plain,
    /// It goes, and its answers would not come in if this flow were not remembered.
    Flow(Flow),
    /// It does not go.
    Held,
}

/// The flows used last. Bounded: the least used are forgotten, a generation at a time.
#[derive(Debug, Default)]
pub struct Flows {
    young: HashSet<Flow>,
    old: HashSet<Flow>,
}

impl Flows {
    /// Something has been sent.
    pub fn sent(&mut self, flow: Flow) {
        if self.young.contains(&flow) {
            return;
        }
        if self.young.len() >= GENERATION {
            std::mem::swap(&mut self.young, &mut self.old);
            self.young.clear();
        }
        self.young.insert(flow);
    }

    /// Whether a packet of this flow answers something; it counts as use.
    pub fn answers(&mut self, flow: &Flow) -> bool {
        if self.young.contains(flow) {
            return true;
        }
        let known = self.old.contains(flow);
        if known {
            self.sent(*flow);
        }
        known
    }
}
