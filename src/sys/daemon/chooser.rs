//! The node's own choice of an exit node, driven: its pings are sent, its time is kept, and its traffic read.

use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;

use crate::coord::client::NetMap;
use crate::ident::NodeId;
use crate::node::{AutoChoice, AutoExit, Prefs, is_auto};
use crate::sys::clock;
use crate::sys::engine::Engine;

/// What happens to a choice by itself.
pub(super) enum Step {
    /// An exit node has answered.
    Answer(NodeId, Duration),
    /// Something is due.
    Due,
}

/// The choice, while it is left to the node.
#[derive(Debug, Default)]
pub(super) struct Chooser {
    core: Option<AutoExit>,
    /// Answers that may come.
    waiting: FuturesUnordered<BoxFuture<'static, (NodeId, Option<Duration>)>>,
}

impl Chooser {
    /// Takes map and preferences. What is to be asked because of them is asked with the next [`Self::ask`].
    pub(super) fn set(&mut self, map: &NetMap, prefs: &Prefs) {
        if is_auto(&prefs.exit_node) {
            self.core.get_or_insert_default().set_map(clock::now(), map, clock::wall());
        } else {
            self.end();
        }
    }

    /// There is nothing to choose any more.
    pub(super) fn end(&mut self) {
        *self = Self::default();
    }

    pub(super) fn choice(&self) -> Option<AutoChoice> {
        self.core.as_ref().and_then(AutoExit::choice)
    }

    pub(super) fn network_changed(&mut self) {
        if let Some(core) = &mut self.core {
            core.network_changed(clock::now());
        }
    }

    /// Sends the pings that are to be sent.
    pub(super) fn ask(&mut self, engine: Option<&Engine>) {
        let Some(core) = &mut self.core else { return };
        while let Some((id, key)) = core.poll_ping() {
            // Whoever cannot be asked does not answer.
            if let Some(Ok(pong)) = engine.map(|engine| engine.measure(&key)) {
                self.waiting.push(Box::pin(async move { (id, pong.await.ok().map(|pong| pong.latency)) }));
            }
        }
    }

    /// What happens next; nothing, while there is nothing to choose. May be dropped at any time.
    pub(super) async fn next(&mut self) -> Step {
        let due = self.core.as_ref().and_then(AutoExit::poll_timeout);
        let rest = async {
            match due {
                Some(deadline) => tokio::time::sleep_until(clock::instant(deadline.at).into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::pin!(rest);
        loop {
            tokio::select! {
                Some((id, latency)) = self.waiting.next() => if let Some(latency) = latency {
                    return Step::Answer(id, latency);
                },
                () = &mut rest => return Step::Due,
            }
        }
    }

    /// Reacts to it. Whether the choice is another one now, or what is known of it.
    pub(super) fn on(&mut self, step: &Step, engine: Option<&Engine>) -> bool {
        let Some(core) = &mut self.core else { return false };
        let decided = |choice: Option<AutoChoice>| choice.map(|choice| (choice.id, choice.why, choice.answers));
        let before = decided(core.choice());
        match step {
            Step::Answer(id, latency) => core.answered(clock::now(), *id, *latency),
            Step::Due => {
                let carried = engine.zip(core.key()).and_then(|(engine, key)| engine.carried(&key));
                core.handle_timeout(clock::now(), carried);
            }
        }
        let changed = decided(core.choice()) != before;
        self.ask(engine);
        changed
    }
}
