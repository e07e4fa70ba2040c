//! NATs by the words of RFC 4787: how they map, and what they let in.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use pvemesh::time::Time;

/// How long a mapping lives without a packet from inside.
const LIFETIME: Duration = Duration::from_secs(30);

/// What makes a difference, for mapping or for filtering.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depends {
    /// Nothing: endpoint-independent.
    Nothing,
    /// The other end's address.
    Address,
    /// Its address and port.
    AddressAndPort,
}

pub const ALL: [Depends; 3] = [Depends::Nothing, Depends::Address, Depends::AddressAndPort];

impl Depends {
    fn key(self, to: SocketAddr) -> Option<(IpAddr, u16)> {
        match self {
            Self::Nothing => None,
            Self::Address => Some((to.ip(), 0)),
            Self::AddressAndPort => Some((to.ip(), to.port())),
        }
    }
}

/// A NAT in front of one host with one socket.
pub struct Nat {
    pub ip: IpAddr,
    pub mapping: Depends,
    pub filtering: Depends,
    next_port: u16,
    /// By what the mapping depends on: the port outside, and when a packet last left through it.
    mappings: BTreeMap<Option<(IpAddr, u16)>, (u16, Time)>,
    /// Whom the host has sent to.
    contacted: BTreeSet<SocketAddr>,
}

impl Nat {
    pub fn new(ip: IpAddr, mapping: Depends, filtering: Depends) -> Self {
        Self { ip, mapping, filtering, next_port: 20_000, mappings: BTreeMap::new(), contacted: BTreeSet::new() }
    }

    /// A packet leaves; the address it has outside.
    pub fn leaves(&mut self, now: Time, to: SocketAddr) -> SocketAddr {
        self.mappings.retain(|_, (_, used)| now.since(*used) < LIFETIME);
        if self.mappings.is_empty() {
            self.contacted.clear();
        }
        self.contacted.insert(to);
        let port = self.mappings.get(&self.mapping.key(to)).map(|(port, _)| *port).unwrap_or_else(|| {
            self.next_port += 1;
            self.next_port
        });
        self.mappings.insert(self.mapping.key(to), (port, now));
        SocketAddr::new(self.ip, port)
    }

    /// Whether a packet gets in.
    pub fn lets_in(&self, now: Time, at: SocketAddr, from: SocketAddr) -> bool {
        let mapped = self.mappings.values().any(|(port, used)| *port == at.port() && now.since(*used) < LIFETIME);
        mapped && self.contacted.iter().any(|known| self.filtering.key(*known) == self.filtering.key(from))
    }
}
