//! Asking the home router for a port: NAT-PMP (RFC 6886), PCP (RFC 6887) and UPnP IGD (WANIPConnection:1 and :2).
//!
//! A mapped port lets peers in that no pair of pings would open the NAT for: it turns a hard NAT into none. Messages are made and read here, as values, and it
//! is judged what to ask for next and for how long an answer holds; sockets, HTTP and waiting are the driver's.
//!
//! Only the default gateway is asked and only its answers count: whoever else is on the network could name addresses of his own. Port
//! mapping is IPv4 only; IPv6 has no NAT to ask.

mod datagram;
mod lease;
mod soap;
mod ssdp;

pub use datagram::{Answer, Nonce, PORT, pcp_announce, pcp_map, pmp_address, pmp_map, read};
pub use lease::{Mapping, Ports, Protocol, Services, is_worth_asking, renew_after};
pub use soap::{Fault, Reply, Request, Service, read_reply, services};
pub use ssdp::{SSDP_GROUP, SSDP_PORT, location, searches};

use std::time::Duration;

/// The lifetime that is asked for.
pub const LIFETIME: Duration = Duration::from_secs(7200);
/// How long a service has to answer a question.
pub const ANSWER_TIME: Duration = Duration::from_millis(250);
/// How often it is looked again whether the router offers anything, where it did not.
pub const LOOK_AGAIN: Duration = Duration::from_mins(10);
