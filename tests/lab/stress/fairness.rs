//! One peer sends all it can: what that does to the echoes of nine others.

use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::members::{Members, Stage, paced};
use crate::bench::measure::{median, percentile};
use crate::run::Done;

const LIGHT: u16 = 9;
/// Echoes a second of all light peers together.
const RATE: u32 = 900;
const LONG: Duration = Duration::from_secs(4);
/// Bytes of the heavy peer's datagrams.
const HEAVY: usize = 1200;

/// What the light peers saw: milliseconds until an answer, half and 99 of 100, and percent without one.
struct Seen([f64; 3]);

fn echoes(members: &mut Members) -> Seen {
    let mut sent: Vec<Option<Instant>> = vec![None; 1 << 16];
    let (mut times, mut count) = (Vec::new(), 0_u32);
    paced(RATE, LONG, |n| {
        let number = n as u16;
        sent[usize::from(number)] = Some(Instant::now());
        let echo = members.echo(n as usize % members.count(), number);
        members.send(n as usize % members.count(), &echo);
        count += 1;
        // Answers are looked for at least as often as echoes are sent.
        look(members, &mut sent, &mut times);
    });
    std::thread::sleep(Duration::from_millis(100));
    look(members, &mut sent, &mut times);
    let lost = 100.0 * (1.0 - times.len() as f64 / f64::from(count));
    Seen([percentile(&times, 0.5), percentile(&times, 0.99), lost])
}

fn look(members: &mut Members, sent: &mut [Option<Instant>], times: &mut Vec<f64>) {
    members.take(|_, packet| {
        let number = packet.get(26..28).map_or(0, |n| usize::from(u16::from_be_bytes([n[0], n[1]])));
        if let Some(at) = sent[number].take() {
            times.push(at.elapsed().as_secs_f64() * 1000.0);
        }
    });
}

/// What the light peers saw without and with the heavy one, and what it sent, in Mbit/s.
struct Round {
    alone: [f64; 3],
    beside: [f64; 3],
    rate: f64,
}

fn once() -> Done<Round> {
    let stage = Stage::new(LIGHT + 1)?;
    let sink = stage.far.run(|| UdpSocket::bind("0.0.0.0:9")).map_err(|e| format!("port 9: {e}"))?;
    let mut light = stage.near.run(|| Members::join(0..LIGHT))?;
    let Seen(alone) = echoes(&mut light);
    let mut heavy = stage.near.run(|| Members::join(LIGHT..LIGHT + 1))?;
    let done = Arc::new(AtomicBool::new(false));
    let stop = Arc::clone(&done);
    let sender = std::thread::spawn(move || {
        let packet = heavy.datagram(0, HEAVY);
        let (begun, mut sent) = (Instant::now(), 0_u64);
        while !stop.load(Ordering::Relaxed) {
            sent += u64::from(heavy.send(0, &packet));
        }
        sent as f64 * HEAVY as f64 * 8.0 / begun.elapsed().as_secs_f64() / 1e6
    });
    let Seen(beside) = echoes(&mut light);
    done.store(true, Ordering::Relaxed);
    let rate = sender.join().map_err(|_| "the heavy peer")?;
    drop(sink);
    Ok(Round { alone, beside, rate })
}

pub fn measure(rounds: usize) -> Done<Value> {
    let mut all = Vec::new();
    for round in 1..=rounds {
        eprintln!("round {round} of {rounds}: a heavy peer and nine light ones");
        all.push(once()?);
    }
    let of = |pick: fn(&Round) -> f64| median(&all.iter().map(pick).collect::<Vec<_>>());
    let alone = [of(|r| r.alone[0]), of(|r| r.alone[1]), of(|r| r.alone[2])];
    let beside = [of(|r| r.beside[0]), of(|r| r.beside[1]), of(|r| r.beside[2])];
    let rate = of(|r| r.rate);
    println!("echoes of nine light peers: p50 ms, p99 ms, lost %");
    println!("   alone {:>8.3} {:>8.3} {:>8.2}", alone[0], alone[1], alone[2]);
    println!("   beside one that sends {rate:.0} Mbit/s {:>8.3} {:>8.3} {:>8.2}", beside[0], beside[1], beside[2]);
    let seen = |[p50, p99, lost]: [f64; 3]| json!({ "p50_ms": p50, "p99_ms": p99, "lost_percent": lost });
    Ok(json!({ "alone": seen(alone), "beside_heavy": seen(beside), "heavy_mbit": rate }))
}
