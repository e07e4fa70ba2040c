//! Packets do not allocate.

use std::alloc::System;
use std::process::Command;

use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

use super::*;

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Set for the process that counts, which does nothing else meanwhile.
const ALONE: &str = "PVEMESH_TEST_ALONE";
const PACKETS: usize = 20_000;

#[test]
fn a_packet_costs_no_allocation_in_either_direction() {
    need_root!(read);
    if std::env::var_os(ALONE).is_some() {
        return count();
    }
    let name = "allocations::a_packet_costs_no_allocation_in_either_direction";
    let mut alone = Command::new(std::env::current_exe().unwrap());
    let output = alone.args(["--exact", name, "--nocapture"]).env(ALONE, "1").output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    println!("{said}");
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
}

/// Lone packets there and back, each answered before the next is sent, so that every thread sleeps and wakes for each of them.
fn count() {
    let (a, b) = mesh([true, true]);
    let (at_a, at_b) = (a.udp("100.64.0.1"), b.udp("100.64.0.2"));
    eventually("the first datagram", LIMIT, || reaches(&at_a, &at_b, 100));
    eventually("one back", LIMIT, || reaches(&at_b, &at_a, 100));
    let (to_a, to_b) = (at_a.local_addr().unwrap(), at_b.local_addr().unwrap());
    let mut room = [0; 2048];
    let before = (a.counters(), b.counters());
    let region = Region::new(ALLOCATOR);
    let mut answered = 0;
    for n in 0..PACKETS {
        let packet = [n as u8; 1000];
        at_a.send_to(&packet, to_b).unwrap();
        if at_b.recv_from(&mut room).is_ok() && at_b.send_to(&packet, to_a).is_ok() && at_a.recv_from(&mut room).is_ok() {
            answered += 1;
        }
    }
    let made = region.change().allocations;
    let after = (a.counters(), b.counters());
    let passed = [after.0.tun_in - before.0.tun_in, after.0.tun_out - before.0.tun_out, after.1.tun_in - before.1.tun_in];
    println!("{made} allocations by two engines for {PACKETS} packets each way, {answered} answered; passed: {passed:?}");
    assert!(answered > PACKETS * 9 / 10, "{answered}");
    // What the timers and the probes of the path allocate does not grow with the packets.
    assert!(made < PACKETS / 20, "{made} allocations");
}
