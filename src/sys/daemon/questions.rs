//! Questions whose answers take a while: a check of the network, a ping. Nothing waits for them but whoever asked.

use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::timeout;

use super::member::Member;
use super::pings::{STOPPED, shown};
use crate::netcheck::CHECK_LIMIT;
use crate::node::NetworkReport;
use crate::sys::local_api::{Asked, PingRequest, Refused, Reply, Request};

/// A check may have to wait for the end of another one.
const LIMIT: Duration = CHECK_LIMIT.saturating_mul(2);

impl Member {
    /// Answers by and by what takes a while; gives back what does not.
    pub(super) async fn answer_later(&mut self, asked: Asked) -> Option<Asked> {
        let (request, answer) = asked;
        let later = match request {
            Request::Netcheck => self.netcheck().await,
            Request::Ping(ping) => self.ping_for_user(ping),
            other => return Some((other, answer)),
        };
        tokio::spawn(async move {
            let reply = match later {
                Ok(reply) => reply.await.unwrap_or_else(|_| Err(STOPPED.into())),
                Err(error) => Err(error),
            };
            // Whoever asked may have gone.
            let _ = answer.send(reply);
        });
        None
    }

    async fn netcheck(&self) -> Result<oneshot::Receiver<Result<Reply, Refused>>, Refused> {
        let outside = self.outside().ok_or(STOPPED)?;
        let (done, outlook, links, ports) = (outside.check().await, outside.outlook(), outside.links(), outside.ports());
        let (answer, receiver) = oneshot::channel();
        tokio::spawn(async move {
            let _ = timeout(LIMIT, done).await;
            let known = outlook.borrow().clone();
            let mut report = NetworkReport::new(known.report.as_deref(), &known.regions, known.home).with_ports(&ports);
            report.captive_portal = known.portal;
            let trouble = links.into_iter().filter(|(_, state)| !state.trouble.is_empty());
            report.relay_trouble = trouble.map(|(id, state)| (id.0, state.trouble)).collect();
            let _ = answer.send(Ok(Reply::Network(Box::new(report))));
        });
        Ok(receiver)
    }

    fn ping_for_user(&self, PingRequest { kind, address }: PingRequest) -> Result<oneshot::Receiver<Result<Reply, Refused>>, Refused> {
        let outlook = self.outside().ok_or(STOPPED)?.outlook();
        let pinging = self.ping(kind, address)?;
        let (answer, receiver) = oneshot::channel();
        tokio::spawn(async move {
            let pinged = pinging.await.map(|pinged| Reply::Pong(pinged.map(|pinged| shown(pinged, &outlook.borrow()))));
            let _ = answer.send(pinged.map_err(Refused::from));
        });
        Ok(receiver)
    }
}
