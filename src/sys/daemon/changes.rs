//! Changes of the machine's links and addresses, told by the kernel as they happen.

use std::time::Duration;

use futures_util::{FutureExt as _, StreamExt as _};
use rtnetlink::MulticastGroup;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// Changes come in flocks: an address, its route, a carrier. They are told as one.
const SETTLE: Duration = Duration::from_millis(50);

/// Listens to the kernel. Dropping it ends that.
#[derive(Debug)]
pub(super) struct Changes {
    news: mpsc::Receiver<()>,
    task: Option<JoinHandle<()>>,
}

impl Drop for Changes {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

impl Changes {
    /// Begins to listen. Where the kernel does not tell, the look around every few seconds has to do.
    pub(super) fn listen() -> Self {
        let (tell, news) = mpsc::channel(1);
        let groups = [MulticastGroup::Link, MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv6Ifaddr];
        let task = match rtnetlink::new_multicast_connection(&groups) {
            Ok((connection, _, mut messages)) => Some(tokio::spawn(async move {
                let follow = async {
                    while messages.next().await.is_some() {
                        tokio::time::sleep(SETTLE).await;
                        while messages.next().now_or_never().flatten().is_some() {}
                        // One that waits says all there is to say.
                        let _ = tell.try_send(());
                    }
                };
                tokio::join!(connection, follow);
            })),
            Err(error) => {
                tracing::debug!(%error, "the kernel does not tell of changed links");
                None
            }
        };
        Self { news, task }
    }

    /// Waits for a change.
    pub(super) async fn next(&mut self) {
        if self.news.recv().await.is_none() {
            std::future::pending::<()>().await;
        }
    }
}
