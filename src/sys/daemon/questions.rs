//! Questions whose answers take a while: a check of the network, a ping. Nothing waits for them but whoever asked.

use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};

use super::member::Member;
use crate::ident::NodePublic;
use crate::netcheck::CHECK_LIMIT;
use crate::node::{NetworkReport, PingReply};
use crate::path::{PING_LOST, Path, Pong};
use crate::sys::local_api::{Asked, Reply, Request};
use crate::sys::survey::Outlook;

/// A check may have to wait for the end of another one.
const LIMIT: Duration = CHECK_LIMIT.saturating_mul(2);

/// An unanswered ping is repeated after so long.
const AGAIN: Duration = Duration::from_millis(500);

const STOPPED: &str = "the node does not take part in a mesh at this moment; start it with `pvemesh node up`";

impl Member {
    /// Answers by and by what takes a while; gives back what does not.
    pub(super) async fn answer_later(&mut self, asked: Asked) -> Option<Asked> {
        let (request, answer) = asked;
        let later = match request {
            Request::Netcheck => self.netcheck().await,
            Request::Ping(key) => self.ping(&key),
            other => return Some((other, answer)),
        };
        tokio::spawn(async move {
            let reply = match later {
                Ok(reply) => reply.await.unwrap_or_else(|_| Err(STOPPED.to_owned())),
                Err(error) => Err(error),
            };
            // Whoever asked may have gone.
            let _ = answer.send(reply);
        });
        None
    }

    async fn netcheck(&self) -> Result<oneshot::Receiver<Result<Reply, String>>, String> {
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

    fn ping(&self, key: &NodePublic) -> Result<oneshot::Receiver<Result<Reply, String>>, String> {
        let (engine, outside) = self.engine().zip(self.outside()).ok_or(STOPPED)?;
        let mut waiting = FuturesUnordered::from_iter([engine.ping(key).map_err(|error| error.to_string())?]);
        let (door, key, outlook) = (engine.door(), *key, outside.outlook());
        let (answer, receiver) = oneshot::channel();
        tokio::spawn(async move {
            // A way may open at any moment, the peer's relay be known only now: whoever waits for an answer wants that one, too.
            let first = timeout(PING_LOST, async {
                loop {
                    tokio::select! {
                        Some(Ok(pong)) = waiting.next() => return pong,
                        () = sleep(AGAIN) => waiting.extend(door.ping(&key).and_then(Result::ok)),
                    }
                }
            });
            let pong = first.await.ok().map(|pong| shown(&pong, &outlook.borrow()));
            let _ = answer.send(Ok(Reply::Pong(pong)));
        });
        Ok(receiver)
    }
}

fn shown(pong: &Pong, outlook: &Outlook) -> PingReply {
    let (path, via) = match pong.path {
        Path::Direct(address) => ("direct", address.to_string()),
        Path::Relay(region) => {
            let code = outlook.regions.iter().find(|(id, ..)| *id == region).map(|(_, code, _)| code.clone());
            ("relay", code.unwrap_or_else(|| region.to_string()))
        }
    };
    PingReply { path: path.to_owned(), via, latency_ms: pong.latency.as_secs_f64() * 1000.0 }
}
