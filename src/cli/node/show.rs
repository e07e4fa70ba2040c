//! `pvemesh node status` and `ip`.

use std::fmt::Write as _;
use std::net::IpAddr;

use super::{Exit, Failure, Output, unreached};
use crate::node::{BackendState, PeerStatus, RefusedConnection, Repairs, Status};
use crate::sys::clock;
use crate::sys::local_api::{Client, LocalError};
use crate::time::Wall;

pub(super) async fn status(client: &Client, output: &Output) -> Result<(), Failure> {
    match client.status().await {
        Ok(status) => {
            output.result(&status, table(&status).trim_end());
            Ok(())
        }
        Err(error @ LocalError::NotRunning(_)) if output.json() => {
            output.result(&serde_json::json!({ "BackendState": "Stopped", "Health": [error.to_string()] }), "");
            Err(unreached("show the node's state", &error))
        }
        Err(error) => Err(unreached("show the node's state", &error)),
    }
}

pub(super) async fn addresses(client: &Client, output: &Output, (v4, v6): (bool, bool), peer: Option<&str>) -> Result<(), Failure> {
    let status = client.status().await.map_err(|e| unreached("show the addresses", &e))?;
    let all = match peer {
        None => status.addresses.clone(),
        Some(name) => find(&status, name)?.addresses.clone(),
    };
    let wanted: Vec<IpAddr> = all.into_iter().filter(|ip| !(v4 && ip.is_ipv6() || v6 && ip.is_ipv4())).collect();
    if wanted.is_empty() {
        let next = "join the mesh first (`pvemesh node up`)";
        return Err(Failure::new("show the addresses", format!("the node has none; it is {:?}", status.backend_state), next));
    }
    let lines: Vec<String> = wanted.iter().map(ToString::to_string).collect();
    output.result(&wanted, lines.join("\n"));
    Ok(())
}

/// The peer, or this node, that a name, an address or a stable id means.
pub(super) fn find<'a>(status: &'a Status, wanted: &str) -> Result<&'a PeerStatus, Failure> {
    let name = wanted.trim_end_matches('.');
    let nodes = || status.peer.values().chain(&status.node);
    let means = |node: &&PeerStatus| {
        node.dns_name.trim_end_matches('.').eq_ignore_ascii_case(name)
            || node.id.0 == wanted
            || wanted.parse::<IpAddr>().is_ok_and(|ip| node.addresses.contains(&ip))
    };
    if let Some(node) = nodes().find(means).or_else(|| nodes().find(|node| node.name().eq_ignore_ascii_case(name))) {
        return Ok(node);
    }
    let names: Vec<&str> = nodes().map(PeerStatus::name).collect();
    let next =
        if names.is_empty() { "join the mesh first (`pvemesh node up`)".to_owned() } else { format!("known are: {}", names.join(", ")) };
    Err(Failure::new(format!("find the node `{wanted}`"), "no node of the mesh has this name or address", next).exit(Exit::Conflict))
}

/// Longer texts of other people's are cut.
const MAX_SHOWN: usize = 256;

fn table(status: &Status) -> String {
    let mut text = String::new();
    let _ = match status.backend_state {
        BackendState::Running => Ok(()),
        BackendState::NeedsLogin if !status.auth_url.is_empty() => writeln!(text, "not let in yet; visit {}", status.auth_url),
        BackendState::NeedsLogin if !status.refusal.is_empty() => writeln!(text, "refused by {}: {}", status.login_server, status.refusal),
        BackendState::NeedsLogin => writeln!(text, "this node's key is no longer good; log in again with `pvemesh node up`"),
        BackendState::NeedsMachineAuth => writeln!(text, "known to {}, where an admin has yet to approve it", status.login_server),
        BackendState::NoState => writeln!(text, "not in a mesh; join one with `pvemesh node up --login-server URL`"),
        BackendState::Stopped => writeln!(text, "stopped; start with `pvemesh node up`"),
        BackendState::Starting => writeln!(text, "waiting for {}", status.login_server),
    };
    let rows: Vec<[String; 5]> =
        status.node.iter().map(|node| row(node, until(node))).chain(status.peer.values().map(|p| row(p, doing(p)))).collect();
    let mut widths = [0; 4];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    for [a, b, c, d, e] in &rows {
        let [wa, wb, wc, wd] = widths;
        let _ = writeln!(text, "{a:wa$}  {b:wb$}  {c:wc$}  {d:wd$}  {e}");
    }
    if let Some(line) = chosen(status) {
        let _ = writeln!(text, "\n# {line}");
    }
    if !status.proxies.is_empty() {
        let proxies: Vec<String> = status.proxies.iter().map(ToString::to_string).collect();
        let _ = writeln!(text, "\n# No TUN; local programs reach the mesh by the proxy (SOCKS5 or HTTP) on {}", proxies.join(" and "));
    }
    if !status.health.is_empty() {
        let _ = writeln!(text, "\n# Health check:");
        for line in &status.health {
            let _ = writeln!(text, "#   - {line}");
        }
    }
    if let Some(missing) = status.offloads.map(|offloads| offloads.missing()).filter(|missing| !missing.is_empty()) {
        let _ = writeln!(text, "\n# Packets pass more slowly than they could, without {}", missing.join(", "));
    }
    if let Repairs { count, last: Some(last), what } = &status.repairs {
        let times = if *count == 1 { "once".to_owned() } else { format!("{count} times, last") };
        let _ = writeln!(text, "\n# Another program changed what the mesh needs; put right {times} at {last:.0}: {what}");
    }
    text
}

/// Which exit node the node has chosen itself, and why.
fn chosen(status: &Status) -> Option<String> {
    let exit = status.exit_node_status.as_ref().filter(|exit| exit.auto)?;
    let name = status.peer.values().find(|peer| peer.id == exit.id).map_or("", PeerStatus::name);
    let latency = exit.latency_ms.map(|ms| format!(", {ms:.1} ms away")).unwrap_or_default();
    let answers = if exit.answers == Some(false) { "; it does not answer" } else { "" };
    Some(format!("Exit node {}, chosen automatically{latency}: {}{answers}", printable(name), printable(&exit.reason)))
}

fn row(node: &PeerStatus, doing: String) -> [String; 5] {
    let address = node.addresses.first().map(ToString::to_string).unwrap_or_default();
    [address, printable(node.name()), printable(&node.user), printable(&node.os), doing]
}

/// What the node has not let in lately, the latest first: `refused by its filter: TCP 22, 3 s ago`.
pub(super) fn refused(peer: &PeerStatus, now: Wall) -> Option<String> {
    let shown: Vec<String> = peer.refused.iter().rev().map(|refused| refusal(peer, refused, now)).collect();
    (!shown.is_empty()).then(|| format!("refused by its filter: {}", shown.join(", ")))
}

fn refusal(peer: &PeerStatus, refused: &RefusedConnection, now: Wall) -> String {
    // Behind a router, the port alone says too little.
    let to = if peer.addresses.contains(&refused.to.ip()) { refused.to.port().to_string() } else { refused.to.to_string() };
    let ago = match now.duration_since(refused.at).as_secs().max(0) {
        seconds @ ..120 => format!("{seconds} s ago"),
        seconds => format!("{} min ago", seconds / 60),
    };
    let times = if refused.times > 1 { format!(", {} times", refused.times) } else { String::new() };
    format!("{} {to}, {ago}{times} ({})", printable(&refused.protocol), printable(&refused.reason))
}

/// Names come from other people; they do not get to move the cursor.
pub(super) fn printable(text: &str) -> String {
    if text.is_empty() { "-".to_owned() } else { text.chars().filter(|c| !c.is_control()).take(MAX_SHOWN).collect() }
}

/// How long this node's own key is good.
fn until(node: &PeerStatus) -> String {
    node.key_expiry.map_or_else(|| "-".to_owned(), |expiry| format!("-; key good until {expiry:.0}"))
}

fn doing(peer: &PeerStatus) -> String {
    let mut parts = Vec::new();
    if !peer.online {
        parts.push(peer.last_seen.map_or_else(|| "offline".to_owned(), |seen| format!("offline, last seen {seen:.0}")));
    } else if peer.path.is_empty() {
        parts.push("idle".to_owned());
    } else {
        let active = if peer.active { "active" } else { "idle" };
        let path =
            if peer.path == "relay" { format!("relay \"{}\"", printable(&peer.path_relay)) } else { format!("direct {}", peer.cur_addr) };
        let since = peer.path_since.map(|since| format!(" since {since:.0}")).unwrap_or_default();
        let why = if peer.path_reason.is_empty() { String::new() } else { format!(" ({})", printable(&peer.path_reason)) };
        parts.push(format!("{active}; {path}{since}{why}, tx {} rx {}", peer.tx_bytes, peer.rx_bytes));
    }
    parts.extend(refused(peer, clock::wall()));
    if peer.path.is_empty() && !peer.relay.is_empty() {
        parts.push(format!("home relay \"{}\"", printable(&peer.relay)));
    }
    if peer.expired {
        parts.push("key expired".to_owned());
    }
    if peer.exit_node {
        parts.push("exit node".to_owned());
    } else if peer.exit_node_option {
        parts.push("offers exit node".to_owned());
    }
    parts.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_node_has_refused_is_said_with_port_time_and_reason() {
        let now: Wall = "2026-05-01T12:00:00Z".parse().unwrap();
        let refused_at = |to: &str, at: &str, times, reason: &str| RefusedConnection {
            protocol: "TCP".to_owned(),
            to: to.parse().unwrap(),
            reason: reason.to_owned(),
            at: at.parse().unwrap(),
            times,
        };
        let mut peer = PeerStatus { addresses: vec!["100.64.0.2".parse().unwrap()], ..PeerStatus::default() };
        assert_eq!(refused(&peer, now), None);
        peer.refused = vec![
            refused_at("10.9.7.9:80", "2026-05-01T11:56:00Z", 3, "the node does not forward packets"),
            refused_at("100.64.0.2:22", "2026-05-01T11:59:57Z", 1, "the policy does not allow it"),
        ];
        let expected = "refused by its filter: TCP 22, 3 s ago (the policy does not allow it), \
            TCP 10.9.7.9:80, 4 min ago, 3 times (the node does not forward packets)";
        assert_eq!(refused(&peer, now).as_deref(), Some(expected));
        // A clock that was set back makes nothing negative.
        assert!(refused(&peer, "2026-05-01T11:00:00Z".parse().unwrap()).unwrap().contains("TCP 22, 0 s ago"));
    }
}
