//! Ctrl-C and SIGTERM: the first asks for what was made to be taken back, the second ends the program at once.

use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, Shared};
use tokio::signal::unix::{SignalKind, signal};

use super::{Exit, Failure, Output};

/// Listens from now until it is dropped.
pub(super) struct Interrupt {
    requested: Shared<BoxFuture<'static, ()>>,
    listener: tokio::task::JoinHandle<()>,
}

impl Interrupt {
    pub(super) fn listen(output: &Output) -> Result<Self, Failure> {
        let failed = |e| Failure::new("listen for Ctrl-C", e, "try again");
        let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
        let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
        let (tell, told) = tokio::sync::oneshot::channel::<()>();
        let output = output.clone();
        let listener = tokio::spawn(async move {
            tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
            output.note("interrupted: taking back what was made (once more ends at once)");
            let _ = tell.send(());
            tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
            output.note("ended; the journal is kept, and the next run takes back what is left");
            std::process::exit(Exit::Left as i32);
        });
        let requested = async move {
            // The listener being gone is no request.
            if told.await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        let requested = requested.boxed().shared();
        Ok(Self { requested, listener })
    }

    /// Ready once the admin wants to stop.
    pub(super) fn requested(&mut self) -> &mut (dyn Future<Output = ()> + Unpin + Send) {
        &mut self.requested
    }

    /// The same for one of several pieces of work.
    pub(super) fn for_one(&self) -> Shared<BoxFuture<'static, ()>> {
        self.requested.clone()
    }
}

impl Drop for Interrupt {
    fn drop(&mut self) {
        self.listener.abort();
    }
}
