//! What is asked of a router by datagrams: what it speaks, and mappings by NAT-PMP and PCP.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket as Plain};
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::time::{Instant, timeout_at};

use super::Wish;
use crate::portmap::{
    ANSWER_TIME, Answer, LIFETIME, Mapping, Nonce, PORT, Protocol, Services, location, pcp_announce, pcp_map, pmp_address, pmp_map, read,
    searches,
};
use crate::sys::dial::mark_socket;
use crate::sys::entropy;

/// After the first answer others are waited for this long.
const STRAGGLERS: Duration = Duration::from_millis(50);
/// How often a question is sent.
const TRIES: u32 = 2;
/// Descriptions that are looked at.
const MAX_LOCATIONS: usize = 4;
/// The longest datagram that is read.
const MAX_DATAGRAM: usize = 2048;

/// The router, asked through one socket.
pub(super) struct Router {
    wish: Wish,
    own: Ipv4Addr,
    socket: UdpSocket,
    nonce: Nonce,
}

/// What a router offers.
#[derive(Debug, Default)]
pub(super) struct Offer {
    pub(super) services: Services,
    /// Its public address, by NAT-PMP.
    pub(super) address: Option<Ipv4Addr>,
    /// Where its descriptions are, by UPnP.
    pub(super) locations: Vec<String>,
}

impl Router {
    /// # Errors
    /// The system gives no socket towards it.
    pub(super) fn open(wish: Wish) -> io::Result<Self> {
        // Which of our addresses faces the router is the kernel's to say.
        let facing = Plain::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        mark_socket(&facing)?;
        facing.connect((wish.gateway, PORT))?;
        let SocketAddr::V4(own) = facing.local_addr()? else { return Err(io::ErrorKind::AddrNotAvailable.into()) };
        let socket = Plain::bind((*own.ip(), 0))?;
        mark_socket(&socket)?;
        socket2::SockRef::from(&socket).set_multicast_if_v4(own.ip())?;
        socket.set_nonblocking(true)?;
        Ok(Self { wish, own: *own.ip(), socket: UdpSocket::from_std(socket)?, nonce: entropy::bytes()? })
    }

    /// Our address on its network.
    pub(super) fn own(&self) -> Ipv4Addr {
        self.own
    }

    pub(super) fn wish(&self) -> Wish {
        self.wish
    }

    async fn send(&self, message: &[u8]) {
        // An unreachable router shows by its silence.
        let _ = self.socket.send_to(message, (self.wish.gateway, PORT)).await;
    }

    /// What comes from the router until then; everybody else is not heard.
    async fn next(&self, until: Instant) -> Option<(u16, Vec<u8>)> {
        let mut buffer = [0; MAX_DATAGRAM];
        loop {
            match timeout_at(until, self.socket.recv_from(&mut buffer)).await {
                Err(_) => return None,
                Ok(Ok((length, from))) if from.ip() == IpAddr::V4(self.wish.gateway) => {
                    return Some((from.port(), buffer.get(..length).unwrap_or_default().to_vec()));
                }
                Ok(Ok(_)) => {}
                // Mostly an ICMP message: nothing listens at one of the ports.
                Ok(Err(_)) => tokio::task::yield_now().await,
            }
        }
    }

    async fn answer(&self, until: Instant) -> Option<Answer> {
        loop {
            let (port, datagram) = self.next(until).await?;
            if let Some(answer) = read(&datagram).filter(|_| port == PORT) {
                return Some(answer);
            }
        }
    }

    /// Asks what it speaks.
    pub(super) async fn probe(&self) -> Offer {
        self.send(&pmp_address()).await;
        self.send(&pcp_announce(self.own)).await;
        for (to, search) in searches(self.wish.gateway) {
            let _ = self.socket.send_to(search.as_bytes(), SocketAddr::V4(to)).await;
        }
        let start = Instant::now();
        let (mut until, mut offer) = (start + ANSWER_TIME, Offer::default());
        while let Some((port, datagram)) = self.next(until).await {
            match read(&datagram).filter(|_| port == PORT) {
                Some(Answer::PmpAddress { address }) => (offer.services.pmp, offer.address) = (true, Some(address)),
                Some(Answer::PcpThere) => offer.services.pcp = true,
                Some(_) => {}
                None => {
                    let place =
                        location(&datagram).filter(|place| offer.locations.len() < MAX_LOCATIONS && !offer.locations.contains(place));
                    offer.locations.extend(place);
                }
            }
            offer.services.upnp = !offer.locations.is_empty();
            if offer.services == (Services { pmp: true, pcp: true, upnp: true }) {
                until = until.min(Instant::now() + STRAGGLERS);
            }
        }
        offer
    }

    /// Sends a question until an answer is the right one, or it is clear that none comes.
    async fn ask<T>(&self, question: &[u8], mut right: impl FnMut(Answer) -> Option<Option<T>>) -> Option<T> {
        for _ in 0..TRIES {
            self.send(question).await;
            let until = Instant::now() + ANSWER_TIME;
            while let Some(answer) = self.answer(until).await {
                if let Some(result) = right(answer) {
                    return result;
                }
            }
        }
        None
    }

    pub(super) async fn map_by_pmp(&self, before: Option<SocketAddrV4>, address: Option<Ipv4Addr>) -> Option<Mapping> {
        let port = self.wish.port;
        let wanted = before.map_or(port, |before| before.port());
        let (external, lifetime) = self
            .ask(&pmp_map(port, wanted, LIFETIME), |answer| match answer {
                Answer::PmpMapped { internal, external, lifetime } if internal == port => Some(Some((external, lifetime))),
                Answer::PmpRefused(_) => Some(None),
                _ => None,
            })
            .await?;
        Some(Mapping { protocol: Protocol::Pmp, external: SocketAddrV4::new(address?, external), lifetime })
    }

    pub(super) async fn map_by_pcp(&self, before: Option<SocketAddrV4>) -> Option<Mapping> {
        let port = self.wish.port;
        let wanted = before.unwrap_or(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port));
        let (external, lifetime) = self
            .ask(&pcp_map(self.own, self.nonce, port, wanted, LIFETIME), |answer| match answer {
                Answer::PcpMapped { nonce, internal, external, lifetime } if nonce == self.nonce && internal == port => {
                    Some(Some((external, lifetime)))
                }
                Answer::PcpRefused(_) => Some(None),
                _ => None,
            })
            .await?;
        Some(Mapping { protocol: Protocol::Pcp, external, lifetime })
    }

    pub(super) async fn release_by_pmp(&self) {
        let gone = |answer| matches!(answer, Answer::PmpMapped { .. } | Answer::PmpRefused(_)).then_some(Some(()));
        self.ask(&pmp_map(self.wish.port, 0, Duration::ZERO), gone).await;
    }

    pub(super) async fn release_by_pcp(&self, external: SocketAddrV4) {
        let gone = |answer| matches!(answer, Answer::PcpMapped { .. } | Answer::PcpRefused(_)).then_some(Some(()));
        self.ask(&pcp_map(self.own, self.nonce, self.wish.port, external, Duration::ZERO), gone).await;
    }
}
