//! A crowd of peers in one thread, and the engine they talk to.

use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::time::{Duration, Instant};

use pvemesh::tunnel::{MIN_ROOM, OVERHEAD, Opened, Sealed, Tunnel};

use crate::bench::machines::{Machine, pair};
use crate::bench::measure::{Running, bound, start};
use crate::bench::subject::{key, member};
use crate::run::Done;

const ENGINE: &str = "192.0.2.2:41641";
/// The engine's own address.
const TO: Ipv4Addr = Ipv4Addr::new(100, 64, 0, 2);
const LIMIT: Duration = Duration::from_secs(20);

/// An engine with so many peers, on a machine of its own.
pub struct Stage {
    engine: Running,
    pub near: Machine,
    pub far: Machine,
}

impl Stage {
    pub fn new(peers: u16) -> Done<Self> {
        let (near, far) = pair();
        let mut command = bound(std::env::current_exe().map_err(|e| e.to_string())?);
        command.args(["engine", "2", "--crowd", &peers.to_string()]);
        let engine = start(&far, command)?;
        Ok(Self { engine, near, far })
    }

    /// Processor seconds the engine has used.
    pub fn used(&self) -> f64 {
        let text = std::fs::read_to_string(format!("/proc/{}/stat", self.engine.0.id())).unwrap_or_default();
        let fields: Vec<f64> = text.rsplit(')').next().unwrap_or_default().split_whitespace().map(|f| f.parse().unwrap_or(0.0)).collect();
        // utime and stime, the 14th and 15th of all, in hundredths.
        (fields.get(11).unwrap_or(&0.0) + fields.get(12).unwrap_or(&0.0)) / 100.0
    }
}

/// Some peers of the engine, on one socket.
pub struct Members {
    socket: UdpSocket,
    tunnels: Vec<(Tunnel, Ipv4Addr)>,
    room: Vec<u8>,
    received: Vec<u8>,
}

impl Members {
    /// Those with these numbers, each with a session. To be called on the near machine.
    pub fn join(numbers: std::ops::Range<u16>) -> Done<Self> {
        let socket = UdpSocket::bind("192.0.2.1:0").map_err(|e| e.to_string())?;
        socket.connect(ENGINE).map_err(|e| e.to_string())?;
        socket.set_nonblocking(true).map_err(|e| e.to_string())?;
        let engine = key(2).public();
        let tunnels = numbers.enumerate().map(|(index, n)| {
            let (own, address) = member(n);
            (Tunnel::new(&own, &engine, u32::try_from(index).unwrap_or_default()), address)
        });
        let mut members = Self { socket, tunnels: tunnels.collect(), room: vec![0; 4096], received: vec![0; 65_536] };
        let end = Instant::now() + LIMIT;
        for at in 0..members.tunnels.len() {
            while !members.tunnels[at].0.has_session() {
                if Instant::now() > end {
                    return Err(format!("the engine does not answer peer {at}"));
                }
                if let Some(length) = members.tunnels[at].0.meet(&mut members.room) {
                    let _ = members.socket.send(&members.room[..length]);
                }
                let patience = Instant::now() + Duration::from_millis(500);
                while !members.tunnels[at].0.has_session() && Instant::now() < patience {
                    members.take(|_, _| ());
                    std::thread::sleep(Duration::from_micros(50));
                }
            }
        }
        Ok(members)
    }

    pub fn count(&self) -> usize {
        self.tunnels.len()
    }

    /// Sends a packet from one of them; `false` if the kernel would not take it.
    pub fn send(&mut self, at: usize, packet: &[u8]) -> bool {
        debug_assert!(self.room.len() >= MIN_ROOM.max(packet.len() + OVERHEAD));
        match self.tunnels[at].0.seal(packet, &mut self.room) {
            Sealed::Data(length) | Sealed::Initiation(length) => self.socket.send(&self.room[..length]).is_ok(),
            Sealed::Waiting => false,
        }
    }

    /// Looks at everything that has come: which member it is for, and the packet.
    pub fn take(&mut self, mut came: impl FnMut(usize, &[u8])) {
        while let Ok(length) = self.socket.recv(&mut self.received) {
            let message = &self.received[..length];
            let receiver = match (message.first(), message.len()) {
                (Some(2), 92..) => &message[8..12],
                (Some(4), 32..) => &message[4..8],
                _ => continue,
            };
            let at = Tunnel::index_of(u32::from_le_bytes([receiver[0], receiver[1], receiver[2], receiver[3]])) as usize;
            let Some((tunnel, _)) = self.tunnels.get_mut(at) else { continue };
            match tunnel.open(IpAddr::V4(TO), message, &mut self.room) {
                Opened::Packet(packet, _) => came(at, packet),
                Opened::Reply { message, .. } => drop(self.socket.send(message)),
                Opened::Nothing | Opened::Refused(_) => {}
            }
        }
    }

    /// A UDP packet from one of them to port 9 of the engine's machine, with so many bytes of contents. No checksum.
    pub fn datagram(&self, at: usize, length: usize) -> Vec<u8> {
        let udp = [[0x30, 0x39], [0, 9], ((8 + length) as u16).to_be_bytes(), [0, 0]].concat();
        self.packet(at, 17, &[udp, vec![0; length]].concat())
    }

    /// An echo request from one of them; the number comes back.
    pub fn echo(&self, at: usize, number: u16) -> Vec<u8> {
        let mut icmp = [[8, 0], [0, 0], [0, 1], number.to_be_bytes()].concat();
        let sum = checksum(&icmp);
        icmp[2..4].copy_from_slice(&sum);
        self.packet(at, 1, &icmp)
    }

    fn packet(&self, at: usize, protocol: u8, payload: &[u8]) -> Vec<u8> {
        let mut packet = vec![0x45, 0];
        packet.extend(((20 + payload.len()) as u16).to_be_bytes());
        packet.extend([0, 0, 0x40, 0, 64, protocol, 0, 0]);
        packet.extend(self.tunnels[at].1.octets());
        packet.extend(TO.octets());
        let sum = checksum(&packet);
        packet[10..12].copy_from_slice(&sum);
        packet.extend(payload);
        packet
    }
}

/// The internet checksum (RFC 1071) of an even number of bytes.
fn checksum(bytes: &[u8]) -> [u8; 2] {
    let mut sum: u32 = bytes.chunks_exact(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!(sum as u16)).to_be_bytes()
}

/// Calls back so often a second, for so long; what comes too late is caught up with.
pub fn paced(rate: u32, long: Duration, mut act: impl FnMut(u64)) {
    let begun = Instant::now();
    let mut done = 0_u64;
    while begun.elapsed() < long {
        let due = (begun.elapsed().as_secs_f64() * f64::from(rate)) as u64;
        while done < due {
            act(done);
            done += 1;
        }
        std::thread::sleep(Duration::from_micros(200));
    }
}
