//! Nodes at a relay: pairs that send as fast as answers come back, round trips, idle ones.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use pvemesh::ident::{NodePrivate, NodePublic};
use pvemesh::relay::client::{Client, Event};
use pvemesh::sys::clock;
use pvemesh::sys::relay::dial::{Stream, dial};
use pvemesh::wire::derp::{ClientInfo, Decoder, Frame};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, ReadHalf, WriteHalf};
use tokio::sync::Notify;

use crate::subject::Subject;

/// Packets of a pair that are under way: fewer than a relay keeps for a receiver, so that none is lost by design.
const WINDOW: u64 = 24;
/// A window that nothing came back from is taken as lost.
const LOST: Duration = Duration::from_millis(500);
const ROUND_TRIPS: usize = 2000;
const JOINING_AT_ONCE: usize = 16;

/// What came of a time of sending.
#[derive(Debug, Clone, Copy)]
pub struct Outcome {
    pub delivered: u64,
    pub bytes: u64,
    pub lost: u64,
    pub seconds: f64,
    pub cpu_seconds: f64,
}

impl Outcome {
    pub fn rate(&self) -> f64 {
        self.delivered as f64 / self.seconds
    }

    pub fn megabits(&self) -> f64 {
        self.bytes as f64 * 8.0 / 1e6 / self.seconds
    }

    pub fn cpu_part(&self) -> f64 {
        self.cpu_seconds / self.seconds
    }

    pub fn per_cpu_second(&self) -> f64 {
        self.delivered as f64 / self.cpu_seconds.max(0.01)
    }
}

/// A node that was let in.
struct Node {
    key: NodePublic,
    stream: Box<dyn Stream>,
}

impl Node {
    async fn join(subject: &Subject, n: u64) -> Self {
        let mut seed = [0x42; 32];
        seed[..8].copy_from_slice(&n.to_be_bytes());
        let key = NodePrivate::from_seed(seed);
        let mut dialed = dial(subject.node(), None, false).await.unwrap();
        let mut client = Client::new(clock::now(), seed, key.clone(), ClientInfo::new(None), dialed.relay);
        client.handle_bytes(clock::now(), &dialed.first);
        let mut bytes = vec![0; 4096];
        loop {
            while let Some(frame) = client.poll_transmit() {
                dialed.stream.write_all(&frame).await.unwrap();
            }
            dialed.stream.flush().await.unwrap();
            match client.poll_event() {
                Some(Event::Ready { .. }) => return Self { key: key.public(), stream: dialed.stream },
                Some(other) => panic!("{other:?}"),
                None => {}
            }
            let count = dialed.stream.read(&mut bytes).await.unwrap();
            assert!(count > 0, "the relay closed");
            client.handle_bytes(clock::now(), &bytes[..count]);
        }
    }
}

async fn join(subject: &Subject, count: usize) -> Vec<Node> {
    let mut nodes = Vec::with_capacity(count);
    for first in (0..count).step_by(JOINING_AT_ONCE) {
        let some = (first..count.min(first + JOINING_AT_ONCE)).map(|n| Node::join(subject, n as u64));
        nodes.extend(futures_util::future::join_all(some).await);
    }
    nodes
}

/// One direction of a pair.
#[derive(Default)]
struct Flow {
    sent: AtomicU64,
    received: AtomicU64,
    lost: AtomicU64,
    moved: Notify,
}

async fn send(mut stream: WriteHalf<Box<dyn Stream>>, to: NodePublic, size: usize, flow: Arc<Flow>) {
    let frame = Frame::SendPacket { to, packet: &vec![0x55; size] }.to_bytes();
    let window: Vec<u8> = (0..WINDOW).flat_map(|_| frame.iter().copied()).collect();
    loop {
        let answered = flow.received.load(Ordering::Relaxed) + flow.lost.load(Ordering::Relaxed);
        let free = WINDOW.saturating_sub(flow.sent.load(Ordering::Relaxed) - answered.min(flow.sent.load(Ordering::Relaxed)));
        if free == 0 {
            if tokio::time::timeout(LOST, flow.moved.notified()).await.is_err() {
                let missing = flow.sent.load(Ordering::Relaxed).saturating_sub(flow.received.load(Ordering::Relaxed));
                flow.lost.store(missing, Ordering::Relaxed);
            }
            continue;
        }
        // As the packets of one connection come: some at a time.
        let length = usize::try_from(free).unwrap() * frame.len();
        flow.sent.fetch_add(free, Ordering::Relaxed);
        if stream.write_all(&window[..length]).await.is_err() || stream.flush().await.is_err() {
            return;
        }
    }
}

async fn receive(mut stream: ReadHalf<Box<dyn Stream>>, flow: Arc<Flow>) {
    let (mut decoder, mut bytes) = (Decoder::default(), vec![0; 64 * 1024]);
    while let Ok(count) = stream.read(&mut bytes).await {
        if count == 0 {
            return;
        }
        let (mut rest, mut packets) = (&bytes[..count], 0);
        while let Some(raw) = decoder.next(&mut rest).unwrap() {
            packets += u64::from(matches!(raw.frame(), Ok(Some(Frame::RecvPacket { .. }))));
        }
        flow.received.fetch_add(packets, Ordering::Relaxed);
        flow.moved.notify_one();
    }
}

/// Pairs of which one sends to the other.
pub async fn throughput(subject: &Subject, pairs: usize, size: usize, time: Duration) -> Outcome {
    let mut nodes = join(subject, pairs * 2).await.into_iter();
    let (mut flows, mut tasks, mut kept) = (Vec::new(), Vec::new(), Vec::new());
    while let (Some(a), Some(b)) = (nodes.next(), nodes.next()) {
        let flow = Arc::new(Flow::default());
        let (from_a, to_relay) = tokio::io::split(a.stream);
        let (from_relay, to_b) = tokio::io::split(b.stream);
        tasks.push(tokio::spawn(send(to_relay, b.key, size, flow.clone())));
        tasks.push(tokio::spawn(receive(from_relay, flow.clone())));
        kept.push((from_a, to_b));
        flows.push(flow);
    }
    let count = || flows.iter().map(|flow| flow.received.load(Ordering::Relaxed)).sum::<u64>();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let (begun, first, cpu) = (Instant::now(), count(), subject.cpu());
    tokio::time::sleep(time).await;
    let (seconds, delivered, cpu_seconds) = (begun.elapsed().as_secs_f64(), count() - first, subject.cpu() - cpu);
    tasks.iter().for_each(tokio::task::JoinHandle::abort);
    let lost = flows.iter().map(|flow| flow.lost.load(Ordering::Relaxed)).sum();
    Outcome { delivered, bytes: delivered * size as u64, lost, seconds, cpu_seconds }
}

/// The time of a packet there and back: median, and what one in a hundred exceeds.
pub async fn round_trips(subject: &Subject, size: usize) -> (Duration, Duration) {
    let (mut a, mut b) = (Node::join(subject, 1).await, Node::join(subject, 2).await);
    let there = Frame::SendPacket { to: b.key, packet: &vec![1; size] }.to_bytes();
    let back = Frame::SendPacket { to: a.key, packet: &vec![2; size] }.to_bytes();
    let echo = tokio::spawn(async move {
        let mut frame = vec![0; back.len()];
        while b.stream.read_exact(&mut frame).await.is_ok() {
            if b.stream.write_all(&back).await.is_err() || b.stream.flush().await.is_err() {
                return;
            }
        }
    });
    let (mut times, mut frame) = (Vec::with_capacity(ROUND_TRIPS), vec![0; there.len()]);
    for _ in 0..ROUND_TRIPS {
        let begun = Instant::now();
        a.stream.write_all(&there).await.unwrap();
        a.stream.flush().await.unwrap();
        a.stream.read_exact(&mut frame).await.unwrap();
        times.push(begun.elapsed());
    }
    echo.abort();
    times.sort_unstable();
    (times[ROUND_TRIPS / 2], times[ROUND_TRIPS * 99 / 100])
}

/// KiB of memory a connection on which nothing happens.
pub async fn idle(subject: &Subject, count: usize) -> f64 {
    // What the first connections bring into being counts for none of them.
    let first = join(subject, JOINING_AT_ONCE).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let before = subject.kib();
    let nodes = join(subject, count).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let kib = (subject.kib() - before) / count as f64;
    drop((first, nodes));
    kib
}
