//! What people read in a node's notes.

use std::net::IpAddr;

use crate::ident::{Vmid, is_mesh_address};
use crate::plan::enroll::ENROLLED;
use crate::plan::mark::Mark;
use crate::plan::render::{self, Notes};
use crate::wire::admin::NodeInfo;

/// The readable part of the notes, from what the coordinator knows of the node; `None` if it cannot be rendered.
///
/// Nothing in it changes by itself (no times, no port numbers), or every pass would write all notes anew.
pub(super) fn text(coordinator: &str, vmid: Vmid, mark: &Mark, node: &NodeInfo) -> Option<String> {
    let notes = Notes {
        vmid,
        name: node.name.clone(),
        role: mark.role.trim_start_matches(ENROLLED).replace('-', " "),
        coordinator: coordinator.to_owned(),
        offers: node.advertised_routes.clone(),
        version: node.client.trim_start_matches("pvemesh-").to_owned(),
        told: None,
    };
    let rendered = if mark.role.starts_with(ENROLLED) { render::enrolled(&notes) } else { render::notes(&notes) };
    let mut text = rendered.ok()?;
    let (mesh, other): (Vec<IpAddr>, Vec<IpAddr>) =
        node.addresses.iter().copied().chain(node.endpoints.iter().map(|e| e.ip())).partition(|address| is_mesh_address(*address));
    let (lan, outside): (Vec<IpAddr>, Vec<IpAddr>) = other.into_iter().partition(is_private);
    for (place, addresses) in [("in the mesh", mesh), ("on the LAN", lan), ("from outside", outside)] {
        let mut addresses = addresses;
        addresses.sort_unstable();
        addresses.dedup();
        for address in addresses {
            text.push_str(&format!("\n- address {place}: `{address}`"));
        }
    }
    let path = match node.home_relay {
        0 => "direct; no relay yet".to_owned(),
        number => format!("direct, or by relay {number}"),
    };
    text.push_str(&format!("\n- path: {path}\n- link: {}", link(coordinator)));
    Some(text)
}

/// A coordinator's address as a link, if nothing in it would be markup.
fn link(url: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, ':' | '/' | '.' | '-' | '[' | ']');
    if url.chars().all(plain) { format!("<{url}>") } else { "none".to_owned() }
}

fn is_private(address: &IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_private() || v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unique_local() || v6.is_unicast_link_local(),
    }
}
