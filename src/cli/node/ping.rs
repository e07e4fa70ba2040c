//! `pvemesh node ping`.

use std::net::IpAddr;
use std::time::Duration;

use serde::Serialize;

use super::{Failure, Output, duration, show, unreached};
use crate::ident::NodePublic;
use crate::node::{PeerStatus, PingReply, Status};
use crate::sys::local_api::{Client, LocalError};
use crate::sys::ping::Pinger;

/// How far apart the requests are.
const PAUSE: Duration = Duration::from_secs(1);

/// Pings a node.
#[derive(Debug, clap::Args)]
pub(super) struct Ping {
    /// The node: a name or an address. An address behind a node is pinged by ICMP.
    node: String,
    /// How many requests to send at most.
    #[arg(short, long = "c", default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..))]
    count: u16,
    /// How long to wait for each reply.
    #[arg(long, default_value = "5s", value_parser = duration, value_name = "TIME")]
    timeout: Duration,
    /// Stop at the first reply that comes directly.
    #[arg(long, num_args = 0..=1, default_value_t = true, default_missing_value = "true", require_equals = true, value_name = "BOOL", action = clap::ArgAction::Set)]
    until_direct: bool,
    /// Send ICMP echo requests through the tunnel, as the node's own system answers them.
    #[arg(long)]
    icmp: bool,
}

/// The outcome of all requests.
#[derive(Serialize)]
struct Report {
    node: String,
    address: Option<IpAddr>,
    /// How the last reply came: `direct`, `relay`; empty for ICMP.
    path: String,
    via: String,
    sent: u16,
    received: u16,
    rtt_ms: Vec<f64>,
}

/// Whom to ping, and how.
struct Target {
    name: String,
    address: Option<IpAddr>,
    /// The node's key, if path probes are wanted.
    key: Option<NodePublic>,
}

/// One reply: how it came, where, and after how many milliseconds.
type Came = (String, String, f64);

pub(super) async fn run(ping: &Ping, client: &Client, output: &Output) -> Result<(), Failure> {
    let status = client.status().await.map_err(|e| unreached("ping a node", &e))?;
    let target = target(&status, ping)?;
    let shown = target.address.map_or_else(|| target.name.clone(), |address| format!("{} ({address})", target.name));
    let tried = format!("ping {shown}");
    let pinger = match (target.key, target.address) {
        (Some(_), _) => None,
        (None, Some(address)) => Some(Pinger::new(address).map_err(|e| refused(&tried, &e))?),
        (None, None) => return Err(Failure::new(tried, "the node has no address", "wait until it has joined")),
    };
    let mut report = Report {
        node: target.name,
        address: target.address,
        path: String::new(),
        via: String::new(),
        sent: 0,
        received: 0,
        rtt_ms: Vec::new(),
    };
    for sequence in 1..=ping.count {
        if sequence > 1 {
            tokio::time::sleep(PAUSE).await;
        }
        report.sent += 1;
        let came = match (target.key, &pinger) {
            (Some(key), _) => probe(client, &key, ping.timeout).await.map_err(|e| unreached(&tried, &e))?,
            (None, Some(pinger)) => echo(client, pinger, sequence, ping, target.address).await.map_err(|e| refused(&tried, &e))?,
            (None, None) => None,
        };
        let Some((path, via, millis)) = came else {
            output.note(format_args!("no reply from {shown} within {:?}", ping.timeout));
            continue;
        };
        report.received += 1;
        report.rtt_ms.push((millis * 1000.0).round() / 1000.0);
        (report.path, report.via) = (path, via);
        if !output.json() {
            let by = if report.path == "relay" { format!("relay {}", show::printable(&report.via)) } else { report.via.clone() };
            output.result(&(), format_args!("pong from {shown} via {by} in {millis:.1}ms"));
        }
        if ping.until_direct && report.path == "direct" {
            break;
        }
    }
    if output.json() {
        output.result(&report, "");
    }
    if report.received == 0 {
        let next = "check that the node is online (`pvemesh node status`) and that its firewall lets UDP in";
        return Err(Failure::new(tried, "no reply", next).exit(super::Exit::Unreachable));
    }
    if ping.until_direct && report.path == "relay" {
        output.note(format_args!("note: no direct way was found; packets go through the relay"));
    }
    Ok(())
}

fn refused(tried: &str, error: &std::io::Error) -> Failure {
    Failure::new(tried, error, "check `pvemesh node status`; without root, net.ipv4.ping_group_range must allow pings")
}

/// One path probe, which the node's process sends.
async fn probe(client: &Client, key: &NodePublic, limit: Duration) -> Result<Option<Came>, LocalError> {
    match tokio::time::timeout(limit, client.ping(key)).await {
        Ok(reply) => Ok(reply?.map(|PingReply { path, via, latency_ms }| (path, via, latency_ms))),
        Err(_) => Ok(None),
    }
}

/// One ICMP echo through the tunnel.
async fn echo(client: &Client, pinger: &Pinger, sequence: u16, ping: &Ping, address: Option<IpAddr>) -> std::io::Result<Option<Came>> {
    let Some(rtt) = pinger.ping(sequence, ping.timeout)? else { return Ok(None) };
    let status = client.status().await.ok();
    let via = status.and_then(|s| via(&s, address?)).unwrap_or_else(|| "an unknown path".to_owned());
    Ok(Some((String::new(), via, rtt.as_secs_f64() * 1000.0)))
}

/// A node is pinged by path probes, unless it does not answer them. An address that is no node's is pinged all the same: it may be
/// behind one.
fn target(status: &Status, ping: &Ping) -> Result<Target, Failure> {
    let address = ping.node.parse().ok();
    match show::find(status, &ping.node) {
        Ok(node) => {
            let peer = status.peer.values().any(|peer| peer.public_key == node.public_key);
            let key = Some(node.public_key).filter(|_| peer && !ping.icmp);
            Ok(Target { name: node.name().to_owned(), address: address.or_else(|| node.addresses.first().copied()), key })
        }
        Err(_) if address.is_some() => Ok(Target { name: ping.node.clone(), address, key: None }),
        Err(failure) => Err(failure),
    }
}

/// Where the packets go.
fn via(status: &Status, address: IpAddr) -> Option<String> {
    let is_it = |peer: &&PeerStatus| peer.addresses.contains(&address);
    let peer = status.peer.values().find(is_it)?;
    let relay = Some(&peer.path_relay).filter(|code| !code.is_empty()).map(|code| format!("relay {code}"));
    Some(peer.cur_addr.clone()).filter(|addr| !addr.is_empty()).or(relay)
}
