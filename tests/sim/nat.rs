//! NATs by the words of RFC 4787: how they map, and what they let in.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use pvemesh::path::Local;
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
    /// Which of the host's sockets it belongs to.
    local: Local,
    /// Whom the host has sent to through it, and when last. What it has sent through another mapping opens nothing here.
    contacted: BTreeMap<SocketAddr, Time>,
}

/// A NAT in front of one host.
pub struct Nat {
    pub ip: IpAddr,
    pub mapping: Depends,
    pub filtering: Depends,
    next_port: u16,
    /// Whether ports are given all over the place, not one after the other.
    pub scatters: bool,
    /// By socket, and what the mapping depends on.
    mappings: BTreeMap<(Local, Option<(IpAddr, u16)>), Mapping>,
}

impl Nat {
    pub fn new(ip: IpAddr, mapping: Depends, filtering: Depends) -> Self {
        Self { ip, mapping, filtering, next_port: 20_000, scatters: false, mappings: BTreeMap::new() }
    }

    /// A packet leaves; the address it has outside.
    pub fn leaves(&mut self, now: Time, local: Local, to: SocketAddr) -> SocketAddr {
        self.mappings.retain(|_, mapping| {
            mapping.contacted.retain(|_, used| now.since(*used) < LIFETIME);
            !mapping.contacted.is_empty()
        });
        let scatters = self.scatters;
        let mapping = self.mappings.entry((local, self.mapping.key(to))).or_insert_with(|| {
            // Both have every number in turn; the second is a linear congruential generator of full period.
            let next = |port: u16| if scatters { port.wrapping_mul(25_173).wrapping_add(13_849) } else { port.wrapping_add(1) };
            self.next_port = next(self.next_port);
            while self.next_port < 1024 {
                self.next_port = next(self.next_port);
            }
            Mapping { port: self.next_port, local, contacted: BTreeMap::new() }
        });
        mapping.contacted.insert(to, now);
        SocketAddr::new(self.ip, mapping.port)
    }

    /// Which of the host's sockets a packet gets to.
    pub fn lets_in(&self, now: Time, at: SocketAddr, from: SocketAddr) -> Option<Local> {
        let mapping = self.mappings.values().find(|mapping| mapping.port == at.port());
        let known =
            |(known, used): (&SocketAddr, &Time)| now.since(*used) < LIFETIME && (self.filtering.key(*known) == self.filtering.key(from));
        mapping.filter(|mapping| mapping.contacted.iter().any(known)).map(|mapping| mapping.local)
    }

    /// The router is switched off and on again.
    pub fn forget(&mut self) {
        self.mappings.clear();
    }
}
