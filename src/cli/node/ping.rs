//! `pvemesh node ping`.

use std::net::IpAddr;
use std::time::Duration;

use serde::Serialize;

use super::{Failure, Output, duration, show, unreached};
use crate::node::{PeerStatus, Status};
use crate::sys::local_api::Client;
use crate::sys::ping::Pinger;

/// How far apart the requests are.
const PAUSE: Duration = Duration::from_secs(1);

/// Pings a node.
#[derive(Debug, clap::Args)]
pub(super) struct Ping {
    /// The node: a name or an address.
    node: String,
    /// How many requests to send.
    #[arg(short, long = "c", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..))]
    count: u16,
    /// How long to wait for each reply.
    #[arg(long, default_value = "5s", value_parser = duration, value_name = "TIME")]
    timeout: Duration,
}

#[derive(Serialize)]
struct Report {
    node: String,
    address: IpAddr,
    via: String,
    sent: u16,
    received: u16,
    rtt_ms: Vec<f64>,
}

pub(super) async fn run(ping: &Ping, client: &Client, output: &Output) -> Result<(), Failure> {
    let status = client.status().await.map_err(|e| unreached("ping a node", &e))?;
    let (name, address) = target(&status, &ping.node)?;
    let tried = format!("ping {name} ({address})");
    let failed = |e: std::io::Error| {
        Failure::new(&*tried, e, "check `pvemesh node status`; without root, net.ipv4.ping_group_range must allow pings")
    };
    let pinger = Pinger::new(address).map_err(failed)?;
    let mut report = Report { node: name, address, via: String::new(), sent: 0, received: 0, rtt_ms: Vec::new() };
    for sequence in 1..=ping.count {
        if sequence > 1 {
            tokio::time::sleep(PAUSE).await;
        }
        report.sent += 1;
        let Some(rtt) = pinger.ping(sequence, ping.timeout).map_err(failed)? else {
            output.note(format_args!("no reply from {} ({address}) within {:?}", report.node, ping.timeout));
            continue;
        };
        let millis = rtt.as_secs_f64() * 1000.0;
        report.received += 1;
        report.rtt_ms.push((millis * 1000.0).round() / 1000.0);
        report.via = client.status().await.ok().and_then(|s| via(&s, address)).unwrap_or_else(|| "an unknown path".to_owned());
        if !output.json() {
            output.result(&(), format_args!("pong from {} ({address}) via {} in {millis:.1}ms", report.node, report.via));
        }
    }
    if output.json() {
        output.result(&report, "");
    }
    if report.received == 0 {
        let next = "check that the node is online (`pvemesh node status`) and that its firewall lets UDP in";
        return Err(Failure::new(tried, "no reply", next).exit(super::Exit::Unreachable));
    }
    Ok(())
}

/// Name and address to ping. An address that is no node's is pinged all the same: it may be behind one.
fn target(status: &Status, wanted: &str) -> Result<(String, IpAddr), Failure> {
    match (show::find(status, wanted), wanted.parse()) {
        (Ok(node), Ok(address)) => Ok((node.name().to_owned(), address)),
        (Ok(node), Err(_)) => {
            let first = node.addresses.first().copied();
            first
                .map(|address| (node.name().to_owned(), address))
                .ok_or_else(|| Failure::new(format!("ping {wanted}"), "the node has no address", "wait until it has joined"))
        }
        (Err(_), Ok(address)) => Ok((wanted.to_owned(), address)),
        (Err(failure), Err(_)) => Err(failure),
    }
}

/// Where the packets go.
fn via(status: &Status, address: IpAddr) -> Option<String> {
    let is_it = |peer: &&PeerStatus| peer.addresses.contains(&address);
    status.peer.values().find(is_it).map(|peer| peer.cur_addr.clone()).filter(|addr| !addr.is_empty())
}
