//! What the data plane costs a packet, without the kernel: `cargo bench --bench packets`.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, missing_docs, reason = "a benchmark")]

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use pvemesh::filter::{Filter, FilterConfig, Last};
use pvemesh::ident::{NodePrivate, PrefixMap};
use pvemesh::tunnel::{Coalescer, Joining, OVERHEAD, Opened, Sealed, Segmentation, Segments, Tunnel, VirtioHeader};
use pvemesh::wire::control::{FilterRule, NetPortRange, PortRange};

const FROM: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
/// Payload of a TCP segment with timestamps in the mesh's MTU of 1280.
const SEGMENT: usize = 1228;
const HEADERS: usize = 52;

fn tcp(payload: usize) -> Vec<u8> {
    let length = HEADERS + payload;
    let mut packet = vec![0x5a; length];
    packet[..HEADERS].fill(0);
    packet[0] = 0x45;
    packet[2..4].copy_from_slice(&u16::try_from(length).unwrap().to_be_bytes());
    packet[6] = 0x40;
    packet[8..10].copy_from_slice(&[64, 6]);
    packet[12..20].copy_from_slice(&[100, 64, 0, 1, 100, 64, 0, 2]);
    packet[32..34].copy_from_slice(&[0x80, 0x10]);
    packet
}

fn super_header() -> VirtioHeader {
    VirtioHeader {
        needs_checksum: true,
        segmentation: Segmentation::Tcp4,
        header_length: 0,
        segment_size: u16::try_from(SEGMENT).unwrap(),
        checksum_start: 20,
        checksum_offset: 16,
    }
}

fn session() -> (Tunnel, Tunnel) {
    let key = |n| NodePrivate::from_seed([n; 32]);
    let (mut a, mut b) = (Tunnel::new(&key(1), &key(2).public(), 1), Tunnel::new(&key(2), &key(1).public(), 2));
    let (mut room_a, mut room_b) = (vec![0; 2000], vec![0; 2000]);
    let Sealed::Initiation(length) = a.seal(&tcp(1), &mut room_a) else { panic!("no initiation") };
    let Opened::Reply { message, .. } = b.open(FROM, &room_a[..length], &mut room_b) else { panic!("no response") };
    let message = message.to_vec();
    let Opened::Reply { message, .. } = a.open(FROM, &message, &mut room_a) else { panic!("no session") };
    let message = message.to_vec();
    assert_eq!(b.open(FROM, &message, &mut room_b), Opened::Nothing);
    (a, b)
}

fn sealing(c: &mut Criterion) {
    let mut group = c.benchmark_group("tunnel");
    for size in [64, 1280] {
        let packet = tcp(size - HEADERS);
        let mut room = vec![0; size + OVERHEAD + 200];
        group.throughput(Throughput::Bytes(size as u64));
        let (mut a, mut b) = session();
        group.bench_function(format!("seal {size}"), |bench| bench.iter(|| black_box(a.seal(&packet, &mut room))));
        let mut opened = vec![0; size + 200];
        group.bench_function(format!("seal and open {size}"), |bench| {
            bench.iter(|| {
                let Sealed::Data(length) = a.seal(&packet, &mut room) else { panic!("no session") };
                black_box(b.open(FROM, &room[..length], &mut opened));
            });
        });
    }
}

fn shaping(c: &mut Criterion) {
    let mut group = c.benchmark_group("shaping");
    let whole = tcp(50 * SEGMENT);
    group.throughput(Throughput::Elements(50));
    group.bench_function("split 50 segments", |bench| {
        bench.iter_batched_ref(
            || whole.clone(),
            |packet| {
                let mut segments = Segments::new(&super_header(), packet).unwrap();
                while let Some(segment) = segments.next() {
                    black_box(segment);
                }
            },
            BatchSize::SmallInput,
        );
    });
    let mut arena = Vec::new();
    let mut source = whole.clone();
    let mut segments = Segments::new(&super_header(), &mut source).unwrap();
    while let Some(segment) = segments.next() {
        arena.extend_from_slice(segment);
    }
    let mut coalescer = Coalescer::new(Joining::TcpAndUdp);
    group.bench_function("join 50 segments", |bench| {
        bench.iter_batched_ref(
            || arena.clone(),
            |arena| {
                for n in 0..50 {
                    coalescer.push(arena, n * (HEADERS + SEGMENT)..(n + 1) * (HEADERS + SEGMENT));
                }
                coalescer.finish(arena, |pieces, count| {
                    assert_eq!(count, 50);
                    black_box(pieces);
                });
            },
            BatchSize::SmallInput,
        );
    });
}

fn routing(c: &mut Criterion) {
    let mut routes = PrefixMap::default();
    for n in 0..1000_u32 {
        routes.insert(ipnet::IpNet::new(Ipv4Addr::from(0x6440_0000 + n).into(), 32).unwrap(), n);
    }
    routes.insert("0.0.0.0/0".parse().unwrap(), 0);
    let node: IpAddr = Ipv4Addr::from(0x6440_0100).into();
    let internet: IpAddr = Ipv4Addr::new(1, 1, 1, 1).into();
    c.bench_function("routes/node", |bench| bench.iter(|| black_box(routes.find(black_box(node)))));
    c.bench_function("routes/exit", |bench| bench.iter(|| black_box(routes.find(black_box(internet)))));
}

/// A connection attempt by UDP, judged by so many rules: half of them about one source each, half about everyone and a port each.
fn filtering(c: &mut Criterion) {
    let mut group = c.benchmark_group("filter");
    for count in [10_u32, 1_000, 100_000] {
        let rules = (0..count).map(|n| {
            let source = if n % 2 == 0 { Ipv4Addr::from(0x6440_0000 + n / 2).to_string() } else { "*".to_owned() };
            let port = u16::try_from(n % 50_000).unwrap();
            FilterRule {
                src_ips: vec![source],
                dst_ports: vec![NetPortRange { ip: "*".to_owned(), ports: PortRange { first: port, last: port } }],
                ..FilterRule::default()
            }
        });
        let own: IpAddr = Ipv4Addr::new(100, 127, 0, 1).into();
        let filter = Filter::new(&FilterConfig { rules: rules.collect(), addresses: vec![own.into()], ..FilterConfig::default() });
        let mut packet = vec![0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0, 100, 64, 0, 2, 100, 127, 0, 1, 0x9c, 0x40, 0, 5, 0, 8, 0, 0];
        for (what, port) in [("let in", 5_u16), ("refused", 60_000)] {
            packet[22..24].copy_from_slice(&port.to_be_bytes());
            let judged = filter.admit(&packet, &mut Last::default(), |_| false).is_ok();
            assert_eq!(judged, what == "let in");
            group.bench_function(format!("{what} by {count} rules"), |bench| {
                bench.iter(|| black_box(filter.admit(black_box(&packet), &mut Last::default(), |_| false)));
            });
        }
        let mut last = Last::default();
        packet[22..24].copy_from_slice(&5_u16.to_be_bytes());
        group.bench_function(format!("the next of a flow, {count} rules"), |bench| {
            bench.iter(|| black_box(filter.admit(black_box(&packet), &mut last, |_| false)));
        });
    }
    group.finish();
}

criterion_group!(packets, sealing, shaping, routing, filtering);
criterion_main!(packets);
