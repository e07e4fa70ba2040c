//! Questions to a resolver on the near machine: one at a time, and many at once.

use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use hickory_proto::op::{Message, MessageType, OpCode, Query};
use hickory_proto::rr::{Name, RecordType};

use super::machines::Machine;
use super::measure::Figures;
use crate::run::Done;

/// Questions asked one after the other.
const SINGLE: u32 = 2000;
/// Questions under way at a time otherwise; fewer than a node takes.
const WINDOW: u16 = 64;
const PATIENCE: Duration = Duration::from_secs(2);

/// Whom to ask, and for what.
#[derive(Debug, Clone)]
pub struct Asked {
    pub server: SocketAddr,
    pub name: &'static str,
}

impl Asked {
    /// A server that sends every question back as its answer: what asking costs without anybody who answers.
    pub fn echo(machine: &Machine) -> Done<Self> {
        let socket = machine.run(|| UdpSocket::bind("127.0.0.1:0")).map_err(|e| format!("an echo server: {e}"))?;
        let server = socket.local_addr().map_err(|e| e.to_string())?;
        // It ends with this program.
        std::thread::spawn(move || {
            let mut buffer = [0; 512];
            while let Ok((length, from)) = socket.recv_from(&mut buffer) {
                let _ = socket.send_to(buffer.get(..length).unwrap_or_default(), from);
            }
        });
        Ok(Self { server, name: "end-2.mesh.internal." })
    }

    /// A node's own resolver.
    pub fn node() -> Self {
        Self { server: ([100, 100, 100, 100], 53).into(), name: "end-2.mesh.internal." }
    }

    fn question(&self) -> Done<Vec<u8>> {
        let mut message = Message::new(0, MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = true;
        message.add_query(Query::query(Name::from_ascii(self.name).map_err(|e| e.to_string())?, RecordType::A));
        message.to_vec().map_err(|e| e.to_string())
    }

    /// Microseconds for each of [`SINGLE`] questions, and how many a second are answered of those asked [`WINDOW`] at a time.
    fn ask(&self, seconds: u32) -> Done<(Vec<f64>, f64)> {
        let failed = |e: std::io::Error| format!("ask {}: {e}", self.server);
        let question = self.question()?;
        let socket = UdpSocket::bind("0.0.0.0:0").map_err(failed)?;
        socket.connect(self.server).map_err(failed)?;
        socket.set_read_timeout(Some(PATIENCE)).map_err(failed)?;
        let mut buffer = [0; 512];
        let mut times = Vec::new();
        let numbered = |number: u16| [&number.to_be_bytes(), question.get(2..).unwrap_or_default()].concat();
        for number in 0..SINGLE {
            let start = Instant::now();
            socket.send(&numbered(number as u16)).map_err(failed)?;
            socket.recv(&mut buffer).map_err(failed)?;
            times.push(start.elapsed().as_secs_f64() * 1e6);
        }
        if buffer.get(3).is_some_and(|flags| flags & 15 != 0) {
            return Err(format!("{} does not know {}", self.server, self.name));
        }
        let (start, mut answered) = (Instant::now(), 0_u32);
        for number in 0..WINDOW {
            socket.send(&numbered(number)).map_err(failed)?;
        }
        while start.elapsed() < Duration::from_secs(seconds.into()) {
            socket.recv(&mut buffer).map_err(failed)?;
            answered += 1;
            socket.send(&numbered(answered as u16)).map_err(failed)?;
        }
        Ok((times, f64::from(answered) / start.elapsed().as_secs_f64()))
    }
}

impl Figures {
    /// Asks on a machine, where there is somebody to ask.
    pub fn names(&mut self, machine: &Machine, asked: Option<&Asked>, seconds: u32) -> Done {
        let Some(asked) = asked.cloned() else { return Ok(()) };
        let (times, rate) = machine.run(move || asked.ask(seconds))?;
        self.name_p50.push(super::measure::percentile(&times, 0.5));
        self.name_p99.push(super::measure::percentile(&times, 0.99));
        self.names.push(rate / 1000.0);
        Ok(())
    }
}
