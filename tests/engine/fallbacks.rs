//! What the kernel or a container does not give is done without, and said.
//!
//! A filter of system calls (seccomp) on the machine's thread refuses what an old kernel or a strict container would refuse.

use std::collections::BTreeMap;

use pvemesh::sys::engine::Offloads;
use seccompiler::{SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, apply_filter};

use super::*;

const ALL: Offloads = Offloads { tun: TunOffload::TcpAndUdp, joining: true, send: true, receive: true };
/// `TUNSETOFFLOAD`, see linux/if_tun.h.
const TUNSETOFFLOAD: u64 = 0x4004_54d0;
const TUN_F_USO: u64 = 0x20 | 0x40;
/// linux/udp.h.
const SOL_UDP: u64 = 17;
const UDP_SEGMENT: u64 = 103;
const UDP_GRO: u64 = 104;

fn equals(argument: u8, value: u64) -> SeccompCondition {
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value).unwrap()
}

/// From now on these calls fail with this error in the machine, and in threads it starts.
fn refuse(machine: &Machine, call: libc::c_long, conditions: Vec<SeccompCondition>, error: i32) {
    let rules = BTreeMap::from([(call, vec![SeccompRule::new(conditions).unwrap()])]);
    let architecture = std::env::consts::ARCH.try_into().unwrap();
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, SeccompAction::Errno(error as u32), architecture).unwrap();
    let program: seccompiler::BpfProgram = filter.try_into().unwrap();
    machine.run(move || apply_filter(&program).unwrap());
}

/// A mesh of which the first machine is refused something, and what its engine says then.
fn without(call: libc::c_long, conditions: Vec<SeccompCondition>, error: i32) -> Offloads {
    let (a, b) = pair();
    refuse(&a, call, conditions, error);
    let (a, b) = (Node::new(a, 1, true), Node::new(b, 2, true));
    a.peers(&[peer(2, &["192.0.2.2:41641"])]);
    b.peers(&[peer(1, &["192.0.2.1:41641"])]);
    carries(&a, &b);
    assert_eq!(b.with(Engine::offloads), ALL, "the other end has everything");
    a.with(Engine::offloads)
}

fn carries(a: &Node, b: &Node) {
    udp_of_many_sizes(a, b);
    tcp_both_ways(a, b, "100.64.0.2", 3_000_000);
    tcp_both_ways(a, b, "fd7a:115c:a1e0::2", 3_000_000);
}

#[test]
fn a_kernel_without_udp_super_packets_has_those_of_tcp() {
    need_root!(read);
    let flags = SeccompCondition::new(2, SeccompCmpArgLen::Dword, SeccompCmpOp::MaskedEq(TUN_F_USO), TUN_F_USO).unwrap();
    let offloads = without(libc::SYS_ioctl, vec![equals(1, TUNSETOFFLOAD), flags], libc::EINVAL);
    assert_eq!(offloads, Offloads { tun: TunOffload::Tcp, ..ALL });
}

#[test]
fn a_container_that_refuses_the_ioctl_has_plain_packets_on_the_tun() {
    need_root!(read);
    let offloads = without(libc::SYS_ioctl, vec![equals(1, TUNSETOFFLOAD)], libc::EPERM);
    assert_eq!(offloads, Offloads { tun: TunOffload::None, joining: false, ..ALL });
}

#[test]
fn a_kernel_without_udp_segmentation_sends_datagrams_singly() {
    need_root!(read);
    let offloads = without(libc::SYS_setsockopt, vec![equals(1, SOL_UDP), equals(2, UDP_SEGMENT)], libc::ENOPROTOOPT);
    assert_eq!(offloads, Offloads { send: false, ..ALL });
}

#[test]
fn a_kernel_without_udp_gro_receives_datagrams_singly() {
    need_root!(read);
    let offloads = without(libc::SYS_setsockopt, vec![equals(1, SOL_UDP), equals(2, UDP_GRO)], libc::ENOPROTOOPT);
    assert_eq!(offloads, Offloads { receive: false, ..ALL });
}

#[test]
fn with_none_wanted_none_is_used() {
    need_root!(read);
    let (a, b) = mesh([false, false]);
    carries(&a, &b);
    let counters = a.counters();
    assert_eq!(a.with(Engine::offloads), Offloads { tun: TunOffload::None, joining: false, send: false, receive: true });
    // What the machine says to nobody in particular goes nowhere.
    assert_eq!((counters.tun_in + counters.no_peer, counters.udp_out), (counters.tun_reads, counters.udp_sends), "{counters:?}");
}

/// Where IPsec protects what is between the machines, the kernel answers EIO to several datagrams at once.
#[test]
fn a_way_that_takes_no_segmented_sends_is_given_single_datagrams_from_then_on() {
    need_root!(read);
    let (a, b) = pair();
    // Not protected in fact: the policy is there, and lets pass what has no state.
    let policy = "xfrm policy add src 192.0.2.1/32 dst 192.0.2.2/32 proto udp dir out tmpl src 192.0.2.1 dst 192.0.2.2 proto esp spi 7 reqid 1 mode transport";
    let state = "xfrm state add src 192.0.2.1 dst 192.0.2.2 proto esp spi 7 reqid 1 mode transport auth digest_null 0x enc cipher_null 0x";
    let prepared = |machine: &Machine, line: &'static str| {
        machine.run(move || std::process::Command::new("ip").args(line.split_whitespace()).output().unwrap().status.success())
    };
    if ![&a, &b].into_iter().all(|machine| prepared(machine, state)) || !prepared(&a, policy) {
        println!("skipped: the kernel has no IPsec");
        return;
    }
    let (a, b) = (Node::new(a, 1, true), Node::new(b, 2, true));
    a.peers(&[peer(2, &["192.0.2.2:41641"])]);
    b.peers(&[peer(1, &["192.0.2.1:41641"])]);
    assert!(a.with(Engine::offloads).send);
    tcp_both_ways(&a, &b, "100.64.0.2", 3_000_000);
    assert!(!a.with(Engine::offloads).send, "{:?}", a.counters());
    assert_eq!(a.counters().send_failed, 0);
}
