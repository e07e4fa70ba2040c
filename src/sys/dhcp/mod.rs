//! The DHCPv4 client of [`crate::dhcp`] on a UDP socket of one interface.
//!
//! The socket is bound to the interface, so it sends and hears broadcasts before there is an address; no raw socket is needed. The strict
//! reverse-path check has to be off on the interface until then, which init sees to.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};

use tokio::net::UdpSocket;
use tokio::time::{Instant, sleep_until};

pub use crate::dhcp::{Event, Lease, Machine};
use crate::ident::NodeName;
use crate::time::Time;

/// RFC 2131, 4.1.
const CLIENT_PORT: u16 = 68;
const SERVER_PORT: u16 = 67;
/// More than an Ethernet frame holds.
const MAX_MESSAGE: usize = 2048;

/// A client on one interface.
#[derive(Debug)]
pub struct Client {
    socket: UdpSocket,
    machine: Machine,
    started: Instant,
}

impl Client {
    /// Opens the socket on the interface, which must be up, and begins to ask.
    ///
    /// # Errors
    ///
    /// When the port is taken or the interface does not exist.
    pub async fn start(interface: &str, hardware: [u8; 6], hostname: NodeName, seed: [u8; 32]) -> io::Result<Self> {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, CLIENT_PORT)).await?;
        socket.bind_device(Some(interface.as_bytes()))?;
        socket.set_broadcast(true)?;
        let machine = Machine::new(Time::from_start(std::time::Duration::ZERO), hardware, hostname, seed);
        Ok(Self { socket, machine, started: Instant::now() })
    }

    /// The next event; may be dropped and called again at any time.
    pub async fn next(&mut self) -> Event {
        loop {
            while let Some(transmit) = self.machine.poll_transmit() {
                let to = SocketAddr::from((transmit.to, SERVER_PORT));
                // A link that is down or a route that is gone: the next try may work.
                if let Err(error) = self.socket.send_to(&transmit.bytes, to).await {
                    tracing::debug!(%to, %error, "DHCP message not sent");
                }
            }
            if let Some(event) = self.machine.poll_event() {
                return event;
            }
            let due = self.machine.poll_timeout();
            let timer = async {
                match due {
                    Some(due) => sleep_until(self.started + due.at.since(Time::default())).await,
                    None => std::future::pending().await,
                }
            };
            let mut buffer = [0; MAX_MESSAGE];
            tokio::select! {
                () = timer => self.machine.handle_timeout(now(self.started)),
                received = self.socket.recv_from(&mut buffer) => match received {
                    Ok((length, _)) => self.machine.handle_datagram(now(self.started), buffer.get(..length).unwrap_or_default()),
                    // An earlier send's ICMP answer, or the interface going down.
                    Err(error) => {
                        tracing::debug!(%error, "DHCP socket");
                        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                    }
                },
            }
        }
    }
}

fn now(started: Instant) -> Time {
    Time::from_start(started.elapsed())
}
