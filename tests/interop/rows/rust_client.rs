//! tailscale-rs, with stock tailscaled as its peer: register, map, ping.

use std::net::IpAddr;

use super::{Act, Row};
use crate::member::RustClient;
use crate::scene::{Clients, NAMES, Outcome, Scene, holds, with};
use crate::see;
use crate::traffic;
use crate::wait::{secs, until};

pub const ACT: Act = Act {
    name: "tailscale-rs",
    plays: |cast| cast.clients == Clients::Rust,
    seconds: 30,
    rows: &[Row { sentence: "tailscale-rs registers by key, reads its map and is pinged both ways", play: all }],
};

fn all(scene: &mut Scene) -> Outcome {
    let peer = scene.joined(0)?.status()?.own()?.v4()?;
    let machine = scene.internet.client("crab")?;
    let mut client = RustClient::new(&scene.programs, &machine);
    let key = scene.single_use_key()?;
    client.start(&scene.coordinator.url(), &key, Some(peer))?;
    let joined = client.says("joined", secs(20))?;
    let listed = scene.coordinator.node("crab")?;
    let own: IpAddr = joined["v4"].as_str().and_then(|a| a.parse().ok()).ok_or("it names no address")?;
    see!(listed.addresses.contains(&own), "it says {own}, the coordinator {:?}", listed.addresses);
    let seen = client.says("peer", secs(15))?;
    see!(seen["node"].as_str().is_some_and(|node| node.contains(NAMES[0])), "its map says of the peer: {seen}");
    until("tailscaled sees it", secs(5), || Ok(scene.at(0)?.status()?.find("crab").is_some()))?;
    let pong = client.says("pong", secs(20))?;
    let back = scene.machine(0)?;
    until("it answers tailscaled", secs(15), || traffic::udp(&back, own).map(|()| true))?;
    client.stop();
    match pong["ms"].as_f64() {
        Some(ms) => with(format!("{ms:.0} ms")),
        None => holds(),
    }
}
