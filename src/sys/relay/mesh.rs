//! The ways to the other relays of the region: this relay is a client of each, and hands over what its own clients send to theirs.

use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::dial::{Dialed, dial};
use crate::ident::{MeshKey, NodePrivate};
use crate::relay::client::{Client, Event};
use crate::relay::server::{Link, MESH_WRITE_LIMIT, Relay as Core};
use crate::sys::{clock, entropy};
use crate::wire::control::DerpNode;
use crate::wire::derp::ClientInfo;

/// How long after a failure it is tried again.
const RETRY: Duration = Duration::from_secs(5);
const PIECE: usize = 32 * 1024;

/// The other relays of the region.
#[derive(Debug, Clone)]
pub struct Mesh {
    /// What they all know.
    pub key: MeshKey,
    /// The relays of the region; this one may be among them, it notices.
    pub relays: Vec<DerpNode>,
}

/// How a connection to another relay ended.
enum Ended {
    /// It is this relay itself.
    Itself,
    Broken(String),
}

/// Keeps a connection to one relay of the region, for ever; ends if that is this relay itself.
pub(super) async fn keep(core: Arc<Core>, relay: DerpNode, mesh: MeshKey) {
    loop {
        match connection(&core, &relay, &mesh).await {
            Ended::Itself => return tracing::debug!(host = relay.host_name, "this relay of the region is ourselves"),
            Ended::Broken(error) => tracing::info!(host = relay.host_name, error, again = ?RETRY, "no way to a relay of the region"),
        }
        tokio::time::sleep(RETRY).await;
    }
}

async fn connection(core: &Arc<Core>, relay: &DerpNode, mesh: &MeshKey) -> Ended {
    let (seed, key) = match entropy::seed().and_then(|seed| Ok((seed, entropy::seed().map(NodePrivate::from_seed)?))) {
        Ok(made) => made,
        Err(error) => return Ended::Broken(error.to_string()),
    };
    let mut dialed = match dial(relay, None, false).await {
        Ok(dialed) => dialed,
        Err(error) => return Ended::Broken(error.to_string()),
    };
    let mut client = Client::new(clock::now(), seed, key, ClientInfo::new(Some(mesh)), dialed.relay);
    client.watch();
    let link = core.link();
    let first = std::mem::take(&mut dialed.first);
    client.handle_bytes(clock::now(), &first);
    match converse(core, &mut client, &link, &mut dialed).await {
        Ok(ended) => ended,
        Err(error) => Ended::Broken(error.to_string()),
    }
}

async fn converse(core: &Core, client: &mut Client, link: &Link, dialed: &mut Dialed) -> io::Result<Ended> {
    let (mut bytes, mut frames) = (vec![0; PIECE], Vec::new());
    loop {
        if core.is_itself(client) {
            return Ok(Ended::Itself);
        }
        while let Some(event) = client.poll_event() {
            match event {
                Event::Ended(why) => return Ok(Ended::Broken(why.to_string())),
                Event::Ready { .. } => {
                    tracing::info!(relay = ?client.relay(), remote = %dialed.remote, "meshed with a relay of the region")
                }
                event => link.handle_event(&event),
            }
        }
        frames.extend(std::iter::from_fn(|| client.poll_transmit()));
        write(dialed, &mut frames).await?;
        let deadline = client.poll_timeout().map(|deadline| clock::instant(deadline.at));
        let timeout = async {
            match deadline {
                Some(at) => tokio::time::sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            read = dialed.stream.read(&mut bytes) => match read? {
                0 => return Ok(Ended::Broken("it closed".to_owned())),
                count => client.handle_bytes(clock::now(), bytes.get(..count).unwrap_or_default()),
            },
            taken = waiting(link, &mut frames) => taken?,
            () = timeout => client.handle_timeout(clock::now()),
        }
    }
}

/// Takes what waits for the other relay, once something does.
async fn waiting(link: &Link, frames: &mut Vec<Vec<u8>>) -> io::Result<()> {
    poll_fn(|cx| match link.poll_transmit(frames, cx.waker()) {
        Ok(()) if frames.is_empty() => Poll::Pending,
        Ok(()) => Poll::Ready(Ok(())),
        Err(closed) => Poll::Ready(Err(io::Error::other(closed))),
    })
    .await
}

async fn write(dialed: &mut Dialed, frames: &mut Vec<Vec<u8>>) -> io::Result<()> {
    if frames.is_empty() {
        return Ok(());
    }
    let joined = frames.concat();
    frames.clear();
    let written = tokio::time::timeout(MESH_WRITE_LIMIT, async {
        dialed.stream.write_all(&joined).await?;
        dialed.stream.flush().await
    });
    written.await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}
