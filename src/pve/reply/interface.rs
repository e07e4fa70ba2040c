//! Interfaces inside guests.

use serde_json::Value;

use super::{ReplyError, list, number, parsed, text};
use crate::ident::Mac;

/// An interface inside a running container, from `GET /nodes/N/lxc/ID/interfaces`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestInterface {
    /// Its name inside the guest.
    pub name: String,
    /// Its hardware address, if it was told.
    pub mac: Option<Mac>,
    /// Its addresses with prefix lengths.
    pub addresses: Vec<ipnet::IpNet>,
}

/// Reads `GET /nodes/N/lxc/ID/interfaces`; empty while the container is not running.
///
/// # Errors
/// If it is no list.
pub fn interfaces(value: &Value) -> Result<Vec<GuestInterface>, ReplyError> {
    list(value, "a container's interfaces", |item| {
        let mut addresses: Vec<ipnet::IpNet> = ["inet", "inet6"].into_iter().filter_map(|key| parsed(item.get(key))).collect();
        for entry in item.get("ip-addresses").and_then(Value::as_array).into_iter().flatten() {
            let address: Option<std::net::IpAddr> = parsed(entry.get("ip-address"));
            let prefix = number(entry.get("prefix")).and_then(|n| u8::try_from(n).ok());
            if let Some(net) = address.zip(prefix).and_then(|(a, p)| ipnet::IpNet::new(a, p).ok())
                && !addresses.contains(&net)
            {
                addresses.push(net);
            }
        }
        let mac = ["hwaddr", "hardware-address"].into_iter().find_map(|key| parsed(item.get(key)));
        Some(GuestInterface { name: text(item.get("name"))?, mac, addresses })
    })
}

/// Reads what `ip -json address` prints; for hosts whose API does not tell a container's interfaces (before 8.1).
///
/// # Errors
/// If it is no list.
pub fn ip_addresses(value: &Value) -> Result<Vec<GuestInterface>, ReplyError> {
    list(value, "the addresses of interfaces", |item| {
        let entries = item.get("addr_info").and_then(Value::as_array).into_iter().flatten();
        let addresses = entries.filter_map(|entry| {
            let prefix = number(entry.get("prefixlen")).and_then(|n| u8::try_from(n).ok())?;
            ipnet::IpNet::new(parsed(entry.get("local"))?, prefix).ok()
        });
        Some(GuestInterface { name: text(item.get("ifname"))?, mac: parsed(item.get("address")), addresses: addresses.collect() })
    })
}
