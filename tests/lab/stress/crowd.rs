//! Many peers with small flows: what a packet costs the engine.

use std::net::UdpSocket;
use std::time::Duration;

use serde_json::{Value, json};

use super::members::{Members, Stage, paced};
use crate::bench::measure::median;
use crate::run::Done;

const CROWDS: [u16; 4] = [1, 10, 100, 1000];
/// Packets a second of all peers together: what both processors carry with ease.
const RATE: u32 = 40_000;
const LONG: Duration = Duration::from_secs(4);

/// Microseconds of processor time a packet, of the engine alone.
fn once(peers: u16) -> Done<f64> {
    let stage = Stage::new(peers)?;
    let mut members = stage.near.run(move || Members::join(0..peers))?;
    // Somebody has the port, so that the kernel sends no refusals back.
    let sink = stage.far.run(|| UdpSocket::bind("0.0.0.0:9")).map_err(|e| format!("port 9: {e}"))?;
    // Sizes that grow from packet to packet keep a lone flow from being joined, which is not what is asked here.
    let packets: Vec<Vec<Vec<u8>>> = (0..members.count()).map(|at| (0..64).map(|n| members.datagram(at, 60 + n)).collect()).collect();
    let before = stage.used();
    let mut sent = 0_u64;
    paced(RATE, LONG, |n| {
        let at = n as usize % packets.len();
        sent += u64::from(members.send(at, &packets[at][(n as usize / packets.len()) % 64]));
        if n % 1024 == 0 {
            members.take(|_, _| ());
        }
    });
    drop(sink);
    Ok((stage.used() - before) * 1e6 / sent as f64)
}

pub fn measure(rounds: usize) -> Done<Value> {
    let mut costs = CROWDS.map(|_| Vec::new());
    for round in 1..=rounds {
        eprintln!("round {round} of {rounds}: crowds of peers");
        for (peers, costs) in CROWDS.into_iter().zip(&mut costs) {
            costs.push(once(peers)?);
        }
    }
    println!("processor time of the engine for a packet of {RATE} a second, us, by peers among which they are spread");
    let medians = costs.each_ref().map(|costs| median(costs));
    for (peers, cost) in CROWDS.into_iter().zip(medians) {
        println!("{peers:>8} {cost:>8.2} {:>8.2}x", cost / medians[0]);
    }
    Ok(json!(CROWDS.into_iter().zip(medians).map(|(peers, us)| json!({ "peers": peers, "us_per_packet": us })).collect::<Vec<_>>()))
}
