//! `pvemesh node whois`: whose address that is.

use std::net::{IpAddr, SocketAddr};

use serde::Serialize;

use super::show::{printable, refused};
use super::{Exit, Failure, Output, unreached};
use crate::node::{PeerStatus, Status};
use crate::sys::clock;
use crate::sys::local_api::Client;
use crate::wire::control::UserProfile;

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Whois {
    node: PeerStatus,
    user_profile: UserProfile,
}

pub(super) async fn run(address: &str, client: &Client, output: &Output) -> Result<(), Failure> {
    let tried = format!("find out whose address {} is", printable(address));
    let ip = parse(address).ok_or_else(|| {
        Failure::new(&*tried, "that is no address", "write an address of the mesh, with or without a port").exit(Exit::Usage)
    })?;
    let status = client.status().await.map_err(|e| unreached(&tried, &e))?;
    let nodes = || status.peer.values().chain(&status.node);
    let Some(node) = nodes().find(|node| node.addresses.contains(&ip)) else {
        let happened = router_of(&status, ip).map_or_else(
            || "no node of the mesh has it".to_owned(),
            |(name, net)| format!("no node has it itself; {} carries {net}", printable(&name)),
        );
        return Err(Failure::new(tried, happened, "`pvemesh node status` lists the nodes' addresses").exit(Exit::Conflict));
    };
    let user_profile = status.user.get(&node.user_id).cloned().unwrap_or_default();
    let found = Whois { node: node.clone(), user_profile };
    output.result(&found, text(&found));
    Ok(())
}

fn parse(address: &str) -> Option<IpAddr> {
    address.parse().ok().or_else(|| address.parse::<SocketAddr>().ok().map(|socket| socket.ip()))
}

/// Who carries the packets to an address behind a node.
fn router_of(status: &Status, ip: IpAddr) -> Option<(String, ipnet::IpNet)> {
    let routes = status.peer.values().flat_map(|peer| peer.allowed_ips.iter().map(move |net| (peer.name().to_owned(), *net)));
    routes.filter(|(_, net)| net.prefix_len() != 0 && net.contains(&ip)).max_by_key(|(_, net)| net.prefix_len())
}

fn text(found: &Whois) -> String {
    let Whois { node, user_profile } = found;
    let addresses: Vec<String> = node.addresses.iter().map(ToString::to_string).collect();
    let mut lines = vec![
        "Machine:".to_owned(),
        format!("  Name:       {}", printable(node.dns_name.trim_end_matches('.'))),
        format!("  ID:         {}", printable(&node.id.0)),
        format!("  Addresses:  {}", addresses.join(", ")),
    ];
    if !node.tags.is_empty() {
        lines.push(format!("  Tags:       {}", printable(&node.tags.join(", "))));
    }
    if let Some(refused) = refused(node, clock::wall()) {
        lines.push(format!("  Note:       {refused}"));
    }
    lines.extend([
        "User:".to_owned(),
        format!("  Name:       {}", printable(&user_profile.login_name)),
        format!("  ID:         {}", user_profile.id),
    ]);
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_read_with_and_without_a_port() {
        for text in ["100.64.0.1", "100.64.0.1:80", "fd7a:115c:a1e0::1", "[fd7a:115c:a1e0::1]:80"] {
            assert!(parse(text).is_some(), "{text}");
        }
        assert!(parse("exit-1").is_none());
    }

    #[test]
    fn the_closest_route_names_the_router() {
        let peer = |name: &str, nets: &[&str]| PeerStatus {
            dns_name: format!("{name}.mesh."),
            allowed_ips: nets.iter().map(|net| net.parse().unwrap()).collect(),
            ..Default::default()
        };
        let peers = [("a", peer("a", &["10.0.0.0/8", "0.0.0.0/0"])), ("b", peer("b", &["10.1.0.0/16"]))];
        let status = Status { peer: peers.map(|(key, peer)| (key.to_owned(), peer)).into(), ..Default::default() };
        let router = |ip: &str| router_of(&status, ip.parse().unwrap()).map(|(name, _)| name);
        assert_eq!((router("10.1.2.3").as_deref(), router("10.2.2.3").as_deref(), router("9.9.9.9")), (Some("b"), Some("a"), None));
    }
}
