//! A change on trial (`node::trial`), watched: the router is pinged, the coordinator's address connected to.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::net::TcpSocket;
use tokio::time::{sleep, timeout};

use crate::node::Prefs;
use crate::node::trial::{Reach, Trial, Verdict};
use crate::sys::clock;
use crate::sys::dial::mark_socket;
use crate::sys::ping::Pinger;

/// How long the router may take to answer a ping.
const PING: Duration = Duration::from_millis(500);
/// How long the coordinator may take to take a connection.
const CONNECT: Duration = Duration::from_secs(2);
/// The pause before it is tried again.
const PAUSE: Duration = Duration::from_millis(500);

/// Whom to look for.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Landmarks {
    pub(super) gateway: Option<Ipv4Addr>,
    /// The router is to be reached by the node's own packets only.
    pub(super) past_the_tunnel: bool,
    pub(super) coordinator: Option<SocketAddr>,
}

impl Landmarks {
    /// Looks once.
    pub(super) async fn look(self) -> Reach {
        let gateway = async {
            let Some(gateway) = self.gateway else { return false };
            let ping = move || {
                let open = if self.past_the_tunnel { Pinger::past_the_tunnel } else { Pinger::new };
                open(IpAddr::V4(gateway))?.ping(1, PING)
            };
            matches!(tokio::task::spawn_blocking(ping).await, Ok(Ok(Some(_))))
        };
        let coordinator = async {
            let Some(address) = self.coordinator else { return false };
            let connect = async {
                let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
                mark_socket(&socket)?;
                socket.connect(address).await
            };
            matches!(timeout(CONNECT, connect).await, Ok(Ok(_)))
        };
        let (gateway, coordinator) = tokio::join!(gateway, coordinator);
        Reach { gateway, coordinator }
    }
}

/// The change that is on trial, if one is.
#[derive(Default)]
pub(super) struct Watch {
    trial: Option<(Trial, Landmarks)>,
    looking: Option<BoxFuture<'static, Reach>>,
    /// What was taken back last.
    note: Option<String>,
}

impl Watch {
    /// A change is on trial from now on, together with one that still is.
    pub(super) fn begin(&mut self, (mut trial, landmarks): (Trial, Landmarks)) {
        if let Some((earlier, _)) = &self.trial {
            trial.include(earlier);
        }
        *self = Self { trial: Some((trial, landmarks)), ..Self::default() };
    }

    /// Nothing is on trial any more.
    pub(super) fn end(&mut self) {
        *self = Self::default();
    }

    /// What is reached; never, while nothing is on trial. May be dropped at any time.
    pub(super) async fn next(&mut self) -> Reach {
        let Some((_, landmarks)) = self.trial else { return std::future::pending().await };
        let looking = self.looking.get_or_insert_with(|| Box::pin(landmarks.look()));
        let reach = looking.await;
        self.looking = Some(Box::pin(async move {
            sleep(PAUSE).await;
            landmarks.look().await
        }));
        reach
    }

    /// What follows from it: the preferences to go back to, if the change is to be taken back.
    pub(super) fn on(&mut self, reach: Reach, prefs: &Prefs) -> Option<Prefs> {
        let (trial, _) = self.trial.as_mut()?;
        trial.note(reach);
        match trial.verdict(clock::now()) {
            Verdict::Wait => None,
            Verdict::Keep => {
                self.end();
                None
            }
            Verdict::Undo(why) => {
                let prefs = trial.undone(prefs);
                tracing::warn!("{why}");
                *self = Self { note: Some(why), ..Self::default() };
                Some(prefs)
            }
        }
    }

    /// What the user should know.
    pub(super) fn note(&self) -> Option<String> {
        self.note.clone()
    }
}
