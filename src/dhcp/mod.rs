//! The appliance's DHCPv4 client as a state machine (RFC 2131, section 4.4): time and seed are given, datagrams go in and out.
//!
//! ```text
//!          DISCOVER            OFFER              ACK                T1              T2
//! Selecting ------> Selecting ------> Requesting ------> Bound ------> Renewing ------> Rebinding
//!     ^                                   | NAK            ^ ACK          | NAK             | NAK, expiry
//!     +-----------------------------------+----------------+--------------+-----------------+
//! ```
//!
//! It asks for ever, with a back-off. It does not probe the address for another user (RFC 2131, 2.2 asks for it; the appliance's address is
//! the server's word), and takes no routes but the default one (docs/decisions/lan-first-rules.md).

mod options;

use std::collections::VecDeque;
use std::net::Ipv4Addr;
use std::time::Duration;

use dhcproto::v4::{DhcpOption, Flags, Message, MessageType, Opcode, OptionCode};
use dhcproto::{Decodable as _, Encodable as _};
use ipnet::Ipv4Net;
use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore as _, SeedableRng as _};

use crate::ident::NodeName;
use crate::time::{Deadline, Time};

/// The first wait for an answer. RFC 2131 (4.1) proposes 4 s; a container's bridge forwards at once, but loses what is sent in the first
/// moment after the link came up, and a boot should not take seconds because of that.
const FIRST_WAIT: Duration = Duration::from_millis(250);
/// The longest (4.1).
const LONGEST_WAIT: Duration = Duration::from_secs(64);
/// Requests without an answer before asking everybody anew.
const REQUESTS: u32 = 5;
/// The shortest wait between renewals (4.4.5).
const RENEW_WAIT: Duration = Duration::from_secs(60);
/// A lease shorter than this would have us ask all the time.
const SHORTEST_LEASE: Duration = Duration::from_secs(30);
/// "For ever" (RFC 2131, 3.3).
const INFINITE: u32 = u32::MAX;

/// What a server granted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// The address with its network.
    pub address: Ipv4Net,
    /// The default gateway.
    pub router: Option<Ipv4Addr>,
    /// Name servers, in the server's order.
    pub nameservers: Vec<Ipv4Addr>,
    /// The search domain.
    pub domain: Option<String>,
    /// Who granted it.
    pub server: Ipv4Addr,
    /// For how long; `None` is for ever.
    pub length: Option<Duration>,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A lease was granted, or renewed (then possibly with other values).
    Bound(Lease),
    /// The address may not be used any more.
    Lost {
        /// The address.
        address: Ipv4Net,
        /// Why.
        why: &'static str,
    },
}

/// A datagram to send from port 68 to port 67.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transmit {
    /// Where to; all ones is everybody on the link.
    pub to: Ipv4Addr,
    /// The message.
    pub bytes: Vec<u8>,
}

/// When a lease is to be renewed, asked for elsewhere, and given up.
#[derive(Debug, Clone, Copy)]
struct Terms {
    renew: Time,
    rebind: Time,
    expire: Time,
}

#[derive(Debug, Clone)]
enum State {
    Selecting,
    Requesting { offer: Ipv4Addr, server: Ipv4Addr },
    Bound,
    Renewing,
    Rebinding,
}

/// One interface's DHCP client.
#[derive(Debug)]
pub struct Machine {
    hardware: [u8; 6],
    hostname: NodeName,
    random: ChaCha8Rng,
    state: State,
    lease: Option<(Lease, Option<Terms>)>,
    /// The address to ask for: the last one.
    wish: Option<Ipv4Addr>,
    exchange: u32,
    began: Time,
    tries: u32,
    due: Option<Deadline>,
    transmits: VecDeque<Transmit>,
    events: VecDeque<Event>,
}

impl Machine {
    /// A client that begins to ask at `now`. `seed` is for transaction numbers and jitter.
    pub fn new(now: Time, hardware: [u8; 6], hostname: NodeName, seed: [u8; 32]) -> Self {
        let mut machine = Self {
            hardware,
            hostname,
            random: ChaCha8Rng::from_seed(seed),
            state: State::Selecting,
            lease: None,
            wish: None,
            exchange: 0,
            began: now,
            tries: 0,
            due: None,
            transmits: VecDeque::new(),
            events: VecDeque::new(),
        };
        machine.start(now);
        machine
    }

    /// The next datagram to send.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        self.transmits.pop_front()
    }

    /// The next thing that happened.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// When to call [`Machine::handle_timeout`] next.
    pub fn poll_timeout(&self) -> Option<Deadline> {
        self.due
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Time) {
        if self.due.is_none_or(|due| due.at > now) {
            return;
        }
        let terms = self.lease.as_ref().and_then(|(_, terms)| *terms);
        match (&self.state, terms) {
            (State::Selecting, _) => self.discover(now),
            (State::Requesting { .. }, _) if self.tries >= REQUESTS => self.start(now),
            (State::Requesting { .. }, _) => self.request(now),
            (State::Bound | State::Renewing | State::Rebinding, None) => self.due = None,
            (_, Some(terms)) if now >= terms.expire => {
                self.lose("it expired");
                self.start(now);
            }
            (_, Some(terms)) if now >= terms.rebind => self.extend(now, State::Rebinding, terms.expire),
            (_, Some(terms)) => self.extend(now, State::Renewing, terms.rebind),
        }
    }

    /// Takes what arrived on port 68. Anything that is no answer to us is ignored.
    pub fn handle_datagram(&mut self, now: Time, bytes: &[u8]) {
        let Some(Ok(message)) = options::only_read(bytes).map(|bytes| Message::from_bytes(&bytes)) else { return };
        // The length first: `chaddr` slices its 16 bytes by it, and panics on a longer one.
        let to_us = usize::from(message.hlen()) == self.hardware.len() && message.chaddr() == self.hardware;
        if message.opcode() != Opcode::BootReply || message.xid() != self.exchange || !to_us {
            return;
        }
        let server = match message.opts().get(OptionCode::ServerIdentifier) {
            Some(DhcpOption::ServerIdentifier(server)) => Some(*server),
            _ => None,
        };
        match (message.opts().msg_type(), &self.state, server) {
            (Some(MessageType::Offer), State::Selecting, Some(server)) if usable(message.yiaddr()) => {
                self.state = State::Requesting { offer: message.yiaddr(), server };
                self.tries = 0;
                self.request(now);
            }
            (Some(MessageType::Ack), State::Requesting { server: chosen, .. }, server) if server.is_none_or(|server| server == *chosen) => {
                let chosen = *chosen;
                self.bind(now, &message, chosen);
            }
            (Some(MessageType::Ack), State::Renewing | State::Rebinding, server) => {
                let known = self.lease.as_ref().map_or(Ipv4Addr::BROADCAST, |(lease, _)| lease.server);
                self.bind(now, &message, server.unwrap_or(known));
            }
            (Some(MessageType::Nak), State::Requesting { server: chosen, .. }, Some(server)) if server == *chosen => {
                self.lose("the server refused it");
                self.wish = None;
                self.start(now);
            }
            (Some(MessageType::Nak), State::Renewing | State::Rebinding, Some(_)) => {
                self.lose("the server refused to renew it");
                self.wish = None;
                self.start(now);
            }
            _ => {}
        }
    }

    fn start(&mut self, now: Time) {
        self.state = State::Selecting;
        self.exchange = self.random.next_u32();
        self.began = now;
        self.tries = 0;
        self.discover(now);
    }

    fn discover(&mut self, now: Time) {
        let mut options = vec![DhcpOption::MessageType(MessageType::Discover)];
        options.extend(self.wish.map(DhcpOption::RequestedIpAddress));
        self.send(now, Ipv4Addr::BROADCAST, Ipv4Addr::UNSPECIFIED, options);
        self.wait(now, "ask for an address again");
    }

    fn request(&mut self, now: Time) {
        let State::Requesting { offer, server } = self.state else { return };
        let options = vec![
            DhcpOption::MessageType(MessageType::Request),
            DhcpOption::RequestedIpAddress(offer),
            DhcpOption::ServerIdentifier(server),
        ];
        self.send(now, Ipv4Addr::BROADCAST, Ipv4Addr::UNSPECIFIED, options);
        self.wait(now, "ask for the offered address again");
    }

    /// Asks to keep the address: the server in `Renewing`, everybody in `Rebinding`; again halfway to the end of that phase.
    fn extend(&mut self, now: Time, phase: State, end: Time) {
        let Some((lease, Some(terms))) = &self.lease else { return };
        let (address, server, expire) = (lease.address.addr(), lease.server, terms.expire);
        if matches!(self.state, State::Bound) {
            self.exchange = self.random.next_u32();
            self.began = now;
        }
        let to = if matches!(phase, State::Renewing) { server } else { Ipv4Addr::BROADCAST };
        self.state = phase;
        self.send(now, to, address, vec![DhcpOption::MessageType(MessageType::Request)]);
        let again = now + (end.since(now) / 2).max(RENEW_WAIT);
        self.due = Some(Deadline { at: again.min(end).min(expire), why: "renew the address" });
    }

    fn bind(&mut self, now: Time, message: &Message, server: Ipv4Addr) {
        let Some((lease, t1, t2)) = read_lease(message, server) else { return };
        let terms = lease.length.map(|length| {
            let rebind = t2.filter(|t2| *t2 < length).unwrap_or(length / 8 * 7);
            let renew = t1.filter(|t1| *t1 < rebind).unwrap_or(length / 2).min(rebind);
            Terms { renew: now + renew, rebind: now + rebind, expire: now + length }
        });
        if let Some((old, _)) = &self.lease
            && old.address != lease.address
        {
            self.events.push_back(Event::Lost { address: old.address, why: "the server gave another" });
        }
        self.wish = Some(lease.address.addr());
        self.due = terms.map(|terms| Deadline { at: terms.renew, why: "renew the address" });
        self.lease = Some((lease.clone(), terms));
        self.state = State::Bound;
        self.events.push_back(Event::Bound(lease));
    }

    fn lose(&mut self, why: &'static str) {
        if let Some((lease, _)) = self.lease.take() {
            self.events.push_back(Event::Lost { address: lease.address, why });
        }
    }

    /// Sets the next try: doubling, with up to an eighth of jitter either way.
    fn wait(&mut self, now: Time, why: &'static str) {
        let base = FIRST_WAIT.saturating_mul(1 << self.tries.min(8)).min(LONGEST_WAIT);
        self.tries = self.tries.saturating_add(1);
        let jitter = base / 4 * (self.random.next_u32() >> 16) / (1 << 16);
        self.due = Some(Deadline { at: now + (base - base / 8 + jitter), why });
    }

    fn send(&mut self, now: Time, to: Ipv4Addr, current: Ipv4Addr, options: Vec<DhcpOption>) {
        let mut message = Message::new_with_id(
            self.exchange,
            current,
            Ipv4Addr::UNSPECIFIED,
            Ipv4Addr::UNSPECIFIED,
            Ipv4Addr::UNSPECIFIED,
            &self.hardware,
        );
        message.set_secs(u16::try_from(now.since(self.began).as_secs()).unwrap_or(u16::MAX));
        if current.is_unspecified() {
            // We take no unicast before we have the address.
            message.set_flags(Flags::default().set_broadcast());
        }
        let all = message.opts_mut();
        for option in options {
            all.insert(option);
        }
        all.insert(DhcpOption::Hostname(self.hostname.to_string()));
        all.insert(DhcpOption::ParameterRequestList(vec![
            OptionCode::SubnetMask,
            OptionCode::Router,
            OptionCode::DomainNameServer,
            OptionCode::DomainName,
        ]));
        if let Ok(bytes) = message.to_vec() {
            self.transmits.push_back(Transmit { to, bytes });
        }
    }
}

/// An address a host can have.
fn usable(address: Ipv4Addr) -> bool {
    !(address.is_unspecified() || address.is_broadcast() || address.is_loopback() || address.is_multicast())
}

/// The lease in an acknowledgement and its T1 and T2; `None` if it makes no sense.
fn read_lease(message: &Message, server: Ipv4Addr) -> Option<(Lease, Option<Duration>, Option<Duration>)> {
    let options = message.opts();
    let address = message.yiaddr();
    if !usable(address) {
        return None;
    }
    let mask = match options.get(OptionCode::SubnetMask) {
        Some(DhcpOption::SubnetMask(mask)) => *mask,
        // Without one, only the address itself is known to be ours.
        _ => Ipv4Addr::BROADCAST,
    };
    let seconds = |code| match options.get(code) {
        Some(DhcpOption::AddressLeaseTime(value) | DhcpOption::Renewal(value) | DhcpOption::Rebinding(value)) => Some(*value),
        _ => None,
    };
    let duration = |value: u32| Duration::from_secs(value.into());
    let length = match seconds(OptionCode::AddressLeaseTime)? {
        INFINITE => None,
        value => Some(duration(value).max(SHORTEST_LEASE)),
    };
    let router = match options.get(OptionCode::Router) {
        Some(DhcpOption::Router(routers)) => routers.iter().copied().find(|router| usable(*router)),
        _ => None,
    };
    let nameservers = match options.get(OptionCode::DomainNameServer) {
        Some(DhcpOption::DomainNameServer(servers)) => servers.iter().copied().filter(|server| !server.is_unspecified()).take(3).collect(),
        _ => Vec::new(),
    };
    let domain = match options.get(OptionCode::DomainName) {
        Some(DhcpOption::DomainName(name)) => domain_name(name),
        _ => None,
    };
    let address = Ipv4Net::with_netmask(address, mask).ok()?;
    let lease = Lease { address, router, nameservers, domain, server, length };
    Some((lease, seconds(OptionCode::Renewal).map(duration), seconds(OptionCode::Rebinding).map(duration)))
}

/// A domain name fit for `resolv.conf`: anything else could add lines to it.
fn domain_name(name: &str) -> Option<String> {
    let name = name.trim_end_matches(['\0', '.']);
    let valid = (1..=253).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'));
    valid.then(|| name.to_owned())
}

#[cfg(test)]
mod tests;
