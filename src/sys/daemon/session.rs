//! The control session at work: its task, what goes to it and what comes from it.

use std::sync::Arc;

use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinHandle;

use crate::sys::control::{self, Event, Identity, Report};

/// News that wait until the member has time for them: one, because a map that waits is soon an old one.
const QUEUE: usize = 1;

/// A session; none at first, and none while the node takes no part.
#[derive(Debug, Default)]
pub(super) struct Session(Option<Running>);

#[derive(Debug)]
struct Running {
    task: JoinHandle<()>,
    report: watch::Sender<Report>,
    wake: Arc<Notify>,
    events: mpsc::Receiver<Event>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Session {
    /// Ends the session before and starts one with this identity.
    pub(super) fn start(&mut self, identity: Identity, report: Report) {
        self.0 = None;
        let (report, reports) = watch::channel(report);
        let (news, events) = mpsc::channel(QUEUE);
        let wake = Arc::new(Notify::new());
        let task = tokio::spawn(control::run(identity, reports, Arc::clone(&wake), news));
        self.0 = Some(Running { task, report, wake, events });
    }

    pub(super) fn end(&mut self) {
        self.0 = None;
    }

    pub(super) fn runs(&self) -> bool {
        self.0.is_some()
    }

    /// What it tells next; never, while there is none.
    pub(super) async fn next(&mut self) -> Event {
        match &mut self.0 {
            Some(session) => match session.events.recv().await {
                Some(event) => event,
                None => std::future::pending().await,
            },
            None => std::future::pending().await,
        }
    }

    /// Opens the connection anew, without waiting.
    pub(super) fn wake(&self) {
        if let Some(session) = &self.0 {
            session.wake.notify_one();
        }
    }

    /// Has the coordinator told, if this differs from what it was told last.
    pub(super) fn publish(&self, now: Report) {
        if let Some(session) = &self.0 {
            session.report.send_if_modified(|report| {
                let changed = *report != now;
                *report = now;
                changed
            });
        }
    }
}
