//! Ten thousand datagrams a second that are not for the mesh: what they do to who is a member of it.

use std::net::UdpSocket;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use pvemesh::ident::{NodePrivate, NodePublic};
use pvemesh::tunnel::Tunnel;
use serde_json::{Value, json};

use super::members::paced;
use crate::bench::machines::{Machine, pair};
use crate::bench::measure::{Figures, Load, Server, median};
use crate::bench::subject::Subject;
use crate::run::Done;

const RATE: u32 = 10_000;
const SECONDS: u32 = 4;
const TARGET: &str = "192.0.2.2:41643";

/// What a flood consists of.
const FLOODS: [&str; 4] =
    ["random bytes", "data of sessions that do not exist", "handshakes with a wrong checksum", "handshakes of strangers"];

/// A few hundred datagrams of a kind, to be sent again and again.
fn datagrams(kind: usize, target: &NodePublic) -> Vec<Vec<u8>> {
    let noise =
        |n: usize, length: usize| (0..length).map(|i| (i.wrapping_mul(197) ^ n.wrapping_mul(91) ^ (i >> 3)) as u8).collect::<Vec<u8>>();
    (0..256)
        .map(|n| match kind {
            0 => noise(n, 40 + n * 4),
            1 => [&[4, 0, 0, 0][..], &noise(n, 28 + n * 4)].concat(),
            2 => [&[1, 0, 0, 0][..], &noise(n, 144)].concat(),
            _ => {
                let mut seed = [77; 32];
                seed[0] = n as u8;
                let mut room = [0; 256];
                let length = Tunnel::new(&NodePrivate::from_seed(seed), target, n as u32).initiate(&mut room).unwrap_or_default();
                room[..length].to_vec()
            }
        })
        .collect()
}

/// Sends the datagrams at the rate until told to stop.
fn flood(machine: &Machine, datagrams: Vec<Vec<u8>>) -> Done<impl FnOnce() + use<>> {
    let socket = machine.run(|| UdpSocket::bind("192.0.2.1:0")).map_err(|e| e.to_string())?;
    let done = Arc::new(AtomicBool::new(false));
    let stop = Arc::clone(&done);
    let sender = std::thread::spawn(move || {
        while !stop.load(Ordering::Relaxed) {
            paced(RATE, Duration::from_millis(200), |n| {
                let _ = socket.send_to(&datagrams[n as usize % datagrams.len()], TARGET);
            });
        }
    });
    Ok(move || {
        done.store(true, Ordering::Relaxed);
        let _ = sender.join();
    })
}

pub fn measure(binary: &Path, dir: &Path, rounds: usize) -> Done<Value> {
    let (a, b) = pair();
    let subject = Subject::mesh(binary, dir, &a, &b)?;
    let server = Server::start(&b)?;
    let load = Load { machine: &a, target: &subject.target, seconds: SECONDS };
    let target = subject.far_key()?;
    let mut figures: Vec<Figures> = (0..=FLOODS.len()).map(|_| Figures::default()).collect();
    for round in 1..=rounds {
        for (n, figures) in figures.iter_mut().enumerate() {
            let kind = n.checked_sub(1);
            eprintln!("round {round} of {rounds}: {}", kind.map_or("no flood", |kind| FLOODS[kind]));
            let stop = kind.map(|kind| flood(&a, datagrams(kind, &target))).transpose()?;
            figures.tcp(&load, 1)?;
            figures.ping_idle(&load)?;
            stop.into_iter().for_each(|stop| stop());
        }
    }
    drop(server);
    let rate = |n: usize| median(&figures[n].tcp_1);
    println!("one TCP stream, Gbit/s, and ping p50, ms, while {RATE} datagrams a second come beside it");
    let mut all = Vec::new();
    for (n, figures) in figures.iter().enumerate() {
        let what = n.checked_sub(1).map_or("no flood", |kind| FLOODS[kind]);
        let ping = median(&figures.ping_idle_p50);
        println!("{what:<40} {:>8.3} {:>8.3}x {ping:>8.3}", rate(n), rate(n) / rate(0));
        all.push(json!({ "flood": what, "tcp_1_gbit": rate(n), "ratio": rate(n) / rate(0), "ping_p50_ms": ping }));
    }
    Ok(json!(all))
}
