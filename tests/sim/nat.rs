//! NATs by the words of RFC 4787: how they map, and what they let in.

use std::collections::BTreeMap;
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

/// What one port outside stands for.
struct Mapping {
    port: u16,
    /// Whom the host has sent to through it, and when last. What it has sent through another mapping opens nothing here.
    contacted: BTreeMap<SocketAddr, Time>,
}

/// A NAT in front of one host with one socket.
pub struct Nat {
    pub ip: IpAddr,
    pub mapping: Depends,
    pub filtering: Depends,
    next_port: u16,
    /// By what the mapping depends on.
    mappings: BTreeMap<Option<(IpAddr, u16)>, Mapping>,
}

impl Nat {
    pub fn new(ip: IpAddr, mapping: Depends, filtering: Depends) -> Self {
        Self { ip, mapping, filtering, next_port: 20_000, mappings: BTreeMap::new() }
    }

    /// A packet leaves; the address it has outside.
    pub fn leaves(&mut self, now: Time, to: SocketAddr) -> SocketAddr {
        self.mappings.retain(|_, mapping| {
            mapping.contacted.retain(|_, used| now.since(*used) < LIFETIME);
            !mapping.contacted.is_empty()
        });
        let mapping = self.mappings.entry(self.mapping.key(to)).or_insert_with(|| {
            self.next_port = if self.next_port == u16::MAX { 1024 } else { self.next_port + 1 };
            Mapping { port: self.next_port, contacted: BTreeMap::new() }
        });
        mapping.contacted.insert(to, now);
        SocketAddr::new(self.ip, mapping.port)
    }

    /// Whether a packet gets in.
    pub fn lets_in(&self, now: Time, at: SocketAddr, from: SocketAddr) -> bool {
        let mapping = self.mappings.values().find(|mapping| mapping.port == at.port());
        let known =
            |(known, used): (&SocketAddr, &Time)| now.since(*used) < LIFETIME && (self.filtering.key(*known) == self.filtering.key(from));
        mapping.is_some_and(|mapping| mapping.contacted.iter().any(known))
    }

    /// The router is switched off and on again.
    pub fn forget(&mut self) {
        self.mappings.clear();
    }
}
