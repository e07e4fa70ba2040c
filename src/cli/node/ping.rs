//! `pvemesh node ping`.

use std::net::IpAddr;
use std::time::Duration;

use serde::Serialize;

use super::{Failure, Output, duration, show, unreached};
use crate::node::{PeerStatus, PingReply, Status};
use crate::sys::local_api::{Client, LocalError, PingRequest};
use crate::sys::ping::Pinger;
use crate::wire::control::PingKind;

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
    /// Ping through the tunnel, as the node's mesh program answers, whatever its policy and firewall; the answer tells the port of its peer
    /// API. An address behind a node is answered for by that node. One answer is enough.
    #[arg(long, group = "kind")]
    tsmp: bool,
    /// Send ICMP echo requests through the tunnel, as the node's own system answers them.
    #[arg(long, group = "kind")]
    icmp: bool,
    /// Ask the node's peer API for its front page, through the tunnel. One answer is enough.
    #[arg(long, group = "kind")]
    peerapi: bool,
}

/// The outcome of all requests.
#[derive(Serialize)]
struct Report {
    node: String,
    address: Option<IpAddr>,
    /// How the last reply came: `direct`, `relay`; empty for ICMP and the peer API.
    path: String,
    via: String,
    /// The port of the node's peer API, if a reply told it.
    #[serde(skip_serializing_if = "Option::is_none")]
    peer_api_port: Option<u16>,
    sent: u16,
    received: u16,
    rtt_ms: Vec<f64>,
}

/// Whom to ping, and how.
struct Target {
    name: String,
    address: Option<IpAddr>,
    kind: PingKind,
}

pub(super) async fn run(ping: &Ping, client: &Client, output: &Output) -> Result<(), Failure> {
    let status = client.status().await.map_err(|e| unreached("ping a node", &e))?;
    let target = target(&status, ping)?;
    let shown = target.address.map_or_else(|| target.name.clone(), |address| format!("{} ({address})", target.name));
    let tried = format!("ping {shown}");
    let Some(address) = target.address else {
        return Err(Failure::new(tried, "the node has no address", "wait until it has joined"));
    };
    let kind = target.kind;
    let pinger = (kind == PingKind::Icmp).then(|| Pinger::new(address)).transpose().map_err(|e| refused(&tried, &e))?;
    let mut report = Report {
        node: target.name,
        address: target.address,
        path: String::new(),
        via: String::new(),
        peer_api_port: None,
        sent: 0,
        received: 0,
        rtt_ms: Vec::new(),
    };
    for sequence in 1..=ping.count {
        if sequence > 1 {
            tokio::time::sleep(PAUSE).await;
        }
        report.sent += 1;
        let came = match &pinger {
            None => ask(client, PingRequest { kind, address }, ping.timeout).await.map_err(|e| unreached(&tried, &e))?,
            Some(pinger) => echo(client, pinger, sequence, ping, address).await.map_err(|e| refused(&tried, &e))?,
        };
        let Some(PingReply { path, via, latency_ms: millis, peer_api_port }) = came else {
            output.note(format_args!("no reply from {shown} within {:?}", ping.timeout));
            continue;
        };
        report.received += 1;
        report.rtt_ms.push((millis * 1000.0).round() / 1000.0);
        (report.path, report.via) = (path, via);
        report.peer_api_port = peer_api_port.or(report.peer_api_port);
        if !output.json() {
            output.result(&(), line(&report, kind, &shown, millis));
        }
        let is_enough = matches!(kind, PingKind::Tsmp | PingKind::PeerApi);
        if is_enough || (ping.until_direct && report.path == "direct") {
            break;
        }
    }
    if output.json() {
        output.result(&report, "");
    }
    if report.received == 0 {
        let next = match kind {
            PingKind::Icmp => "`--tsmp` says whether the node is reached at all; if it is, a firewall or the policy is in the way",
            _ => "check that the node is online (`pvemesh node status`) and that its firewall lets UDP in",
        };
        return Err(Failure::new(tried, "no reply", next).exit(super::Exit::Unreachable));
    }
    if kind == PingKind::Disco && ping.until_direct && report.path == "relay" {
        output.note(format_args!("note: no direct way was found; packets go through the relay"));
    }
    Ok(())
}

fn refused(tried: &str, error: &std::io::Error) -> Failure {
    Failure::new(tried, error, "check `pvemesh node status`; without root, net.ipv4.ping_group_range must allow pings")
}

/// A reply, for people.
fn line(report: &Report, kind: PingKind, shown: &str, millis: f64) -> String {
    match kind {
        PingKind::PeerApi => format!("hit the peer API of {shown} at {} in {millis:.1}ms", report.via),
        PingKind::Tsmp => {
            let port =
                report.peer_api_port.map_or_else(|| "it has no peer API".to_owned(), |port| format!("its peer API is at port {port}"));
            format!("pong from {shown} via TSMP in {millis:.1}ms; {port}")
        }
        PingKind::Disco | PingKind::Icmp if report.path == "relay" => {
            format!("pong from {shown} via relay {} in {millis:.1}ms", show::printable(&report.via))
        }
        PingKind::Disco | PingKind::Icmp => format!("pong from {shown} via {} in {millis:.1}ms", report.via),
    }
}

/// One ping, which the node's process sends.
async fn ask(client: &Client, ping: PingRequest, limit: Duration) -> Result<Option<PingReply>, LocalError> {
    tokio::time::timeout(limit, client.ping(ping)).await.unwrap_or(Ok(None))
}

/// One ICMP echo through the tunnel.
async fn echo(client: &Client, pinger: &Pinger, sequence: u16, ping: &Ping, address: IpAddr) -> std::io::Result<Option<PingReply>> {
    let Some(rtt) = pinger.ping(sequence, ping.timeout)? else { return Ok(None) };
    let status = client.status().await.ok();
    let via = status.and_then(|s| via(&s, address)).unwrap_or_else(|| "an unknown path".to_owned());
    Ok(Some(PingReply { via, latency_ms: rtt.as_secs_f64() * 1000.0, ..PingReply::default() }))
}

/// A node is pinged by path probes, unless something else is wanted or it is this one. An address that is no node's is pinged all the same:
/// it may be behind one.
fn target(status: &Status, ping: &Ping) -> Result<Target, Failure> {
    let address = ping.node.parse().ok();
    let wanted = match ping {
        Ping { tsmp: true, .. } => Some(PingKind::Tsmp),
        Ping { icmp: true, .. } => Some(PingKind::Icmp),
        Ping { peerapi: true, .. } => Some(PingKind::PeerApi),
        _ => None,
    };
    match show::find(status, &ping.node) {
        Ok(node) => {
            let is_peer = status.peer.values().any(|peer| peer.public_key == node.public_key);
            let kind = wanted.unwrap_or(if is_peer { PingKind::Disco } else { PingKind::Icmp });
            Ok(Target { name: node.name().to_owned(), address: address.or_else(|| node.addresses.first().copied()), kind })
        }
        Err(_) if address.is_some() => Ok(Target { name: ping.node.clone(), address, kind: wanted.unwrap_or(PingKind::Icmp) }),
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
