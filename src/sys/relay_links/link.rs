//! One region's connection.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf as _, BytesMut};
use tokio::io::{AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, sleep_until};

use super::dial::connect;
use super::{LinkState, News, Surroundings};
use crate::ident::RegionId;
use crate::netcheck::Redial;
use crate::path::RelayState;
use crate::relay::client::{Client, Event};
use crate::sys::relay::dial::Dialed;
use crate::sys::{clock, entropy};
use crate::time::Time;
use crate::wire::derp::{ClientInfo, GoneReason};

/// A region that is not home is left after so long without a packet.
const IDLE: Duration = Duration::from_mins(1);
/// Bytes read at a time.
const READ: usize = 64 * 1024;
/// Frames are gathered up to so many bytes before they are written.
const WRITE: usize = 64 * 1024;
/// How often the check of the network hears that a relay lives.
const HEARD_GAP: Duration = Duration::from_secs(5);
/// Packets have gone out for so long without anything coming in: the relay is asked whether it lives.
const DOUBTFUL: Duration = Duration::from_secs(5);

/// Why a connection is given up.
enum End {
    /// Nobody needs it any more.
    Idle,
    /// It is broken; the text says how.
    Broken(String),
    /// The network has changed under it.
    Moved,
    /// The relay asks to come back after this time.
    Restarting(Duration),
}

/// The task of one region.
pub(super) struct Link {
    id: RegionId,
    around: Surroundings,
    packets: Arc<Notify>,
    /// When a packet last went or came.
    used: Instant,
}

/// An open connection.
struct Session {
    client: Client,
    out: BytesMut,
    unflushed: bool,
    /// When a packet last went out, and the ping that asks whether the relay lives.
    sent: Option<Time>,
    asked: Option<u64>,
    told: Option<Time>,
}

impl Link {
    pub(super) fn new(id: RegionId, around: Surroundings, packets: Arc<Notify>) -> Self {
        Self { id, around, packets, used: Instant::now() }
    }

    fn is_home(&self) -> bool {
        *self.around.home.borrow() == Some(self.id)
    }

    fn is_idle(&self) -> bool {
        !self.is_home() && self.used.elapsed() >= IDLE
    }

    fn say(&self, state: RelayState, trouble: &str) {
        self.around.door.set_relay(self.id, state);
        self.around
            .note(self.id, |known| *known = LinkState { up: state == RelayState::Up, trouble: trouble.to_owned(), ..LinkState::default() });
    }

    /// Keeps the connection up as long as somebody needs it; says which region it was.
    pub(super) async fn run(mut self) -> RegionId {
        let mut redial = Redial::default();
        while !self.is_idle() {
            let mut began = Instant::now();
            let end = match self.open().await {
                Ok(connected) => {
                    began = Instant::now();
                    self.serve(connected).await
                }
                Err(error) => End::Broken(error),
            };
            let lasted = began.elapsed();
            let pause = match end {
                End::Idle => break,
                End::Moved => Duration::ZERO,
                End::Restarting(after) => after,
                End::Broken(why) => {
                    tracing::debug!(region = %self.id, %why, "the relay's connection is broken");
                    self.say(RelayState::Down, &why);
                    let _ = self.around.news.try_send(News::Lost(self.id));
                    redial.pause(lasted, u32::from_le_bytes(entropy::bytes().unwrap_or_default()))
                }
            };
            let mut settings = self.around.settings.clone();
            settings.mark_unchanged();
            tokio::select! {
                () = sleep(pause) => {}
                _ = settings.changed() => {}
            }
        }
        self.say(RelayState::Idle, "");
        self.id
    }

    async fn open(&self) -> Result<Dialed, String> {
        let (region, authority) = {
            let settings = self.around.settings.borrow();
            (settings.regions.iter().find(|region| region.id == self.id).cloned(), settings.authority.clone())
        };
        let region = region.ok_or("the region is in the relay map no more")?;
        connect(&region, authority.as_deref()).await.map_err(|error| error.to_string())
    }

    async fn serve(&mut self, dialed: Dialed) -> End {
        let Dialed { stream, relay, first, local, .. } = dialed;
        let (mut reader, mut writer) = tokio::io::split(stream);
        let Ok(seed) = entropy::seed() else { return End::Broken("the system has no randomness".to_owned()) };
        let info = ClientInfo::new(None);
        let mut session = Session {
            client: Client::new(clock::now(), seed, self.around.key.clone(), info, relay),
            out: BytesMut::with_capacity(WRITE),
            unflushed: false,
            sent: None,
            asked: None,
            told: None,
        };
        session.client.handle_bytes(clock::now(), &first);
        let mut input = BytesMut::with_capacity(READ);
        let mut settings = self.around.settings.clone();
        settings.mark_unchanged();
        let mut home = self.around.home.clone();
        loop {
            session.client.note_preferred(self.is_home());
            if let Some(end) = self.drain(&mut session) {
                return end;
            }
            self.fill(&mut session);
            let next = session.client.poll_timeout().map(|deadline| clock::instant(deadline.at).into());
            let idle = (!self.is_home()).then(|| self.used + IDLE);
            let due = next.into_iter().chain(idle).min().unwrap_or_else(|| Instant::now() + IDLE);
            tokio::select! {
                read = reader.read_buf(&mut input) => match read {
                    Ok(0) => return End::Broken("the relay closed the connection".to_owned()),
                    Ok(_) => {
                        session.client.handle_bytes(clock::now(), &input);
                        input.clear();
                    }
                    Err(error) => return End::Broken(error.to_string()),
                },
                written = push(&mut writer, &mut session.out, &mut session.unflushed), if session.unflushed => if let Err(error) = written {
                    return End::Broken(error.to_string());
                },
                () = self.packets.notified() => {}
                Ok(()) = home.changed() => {}
                Ok(()) = settings.changed() => {
                    let gone = !settings.borrow_and_update().addresses.contains(&local) && !local.is_loopback();
                    if gone {
                        return End::Moved;
                    }
                    session.asked = session.client.ping(clock::now()).or(session.asked);
                }
                () = sleep_until(due) => {
                    session.client.handle_timeout(clock::now());
                    if self.is_idle() {
                        return End::Idle;
                    }
                }
            }
        }
    }

    /// Carries out what the client says.
    fn drain(&mut self, session: &mut Session) -> Option<End> {
        while let Some(event) = session.client.poll_event() {
            match event {
                Event::Ready { .. } => {
                    tracing::debug!(region = %self.id, "a relay is connected");
                    self.say(RelayState::Up, "");
                }
                Event::Packet { from, bytes } => {
                    self.used = Instant::now();
                    self.around.door.deliver(self.id, from, bytes);
                }
                Event::PeerGone { peer, reason } => {
                    tracing::trace!(region = %self.id, gone = reason == GoneReason::Disconnected, "a peer is not at this relay");
                    self.around.door.peer_gone(self.id, &peer);
                }
                Event::Health(text) => self.around.note(self.id, |state| state.health = text.unwrap_or_default()),
                Event::Restarting { reconnect_in, .. } => return Some(End::Restarting(reconnect_in)),
                Event::PingLost { ping } if session.asked == Some(ping) => {
                    return Some(End::Broken("the relay does not answer".to_owned()));
                }
                Event::Pong { ping, .. } => session.asked = session.asked.filter(|asked| *asked != ping),
                Event::PingLost { .. } | Event::PeerPresent { .. } => {}
                Event::Ended(why) => return Some(End::Broken(why.to_string())),
            }
        }
        let heard = session.client.last_heard();
        if session.told.is_none_or(|told| heard.since(told) >= HEARD_GAP) && session.client.is_ready() {
            session.told = Some(heard);
            let _ = self.around.news.try_send(News::Heard(self.id));
        }
        None
    }

    /// Takes packets as long as there is room to write, so that those behind wait where the oldest is dropped.
    fn fill(&mut self, session: &mut Session) {
        let now = clock::now();
        while session.out.len() < WRITE {
            if let Some(frame) = session.client.poll_transmit() {
                session.out.extend_from_slice(&frame);
                session.unflushed = true;
                continue;
            }
            // Before the relay has said its key nothing can be written at all.
            let packet = session.client.relay().and_then(|_| self.around.door.next_packet(self.id));
            let Some((to, packet)) = packet else { break };
            session.client.send(now, to, &packet);
            self.used = Instant::now();
            let first = *session.sent.get_or_insert(now);
            if session.client.last_heard() > first {
                session.sent = Some(now);
            } else if now.since(first) >= DOUBTFUL && session.asked.is_none() {
                session.asked = session.client.ping(now);
            }
        }
    }
}

/// Writes a part of what is to be written, then flushes. Nothing is lost if it is given up in between.
async fn push<W: AsyncWrite + Unpin>(writer: &mut W, out: &mut BytesMut, unflushed: &mut bool) -> std::io::Result<()> {
    if out.has_remaining() {
        if writer.write_buf(out).await? == 0 {
            return Err(std::io::ErrorKind::WriteZero.into());
        }
    } else {
        writer.flush().await?;
        *unflushed = false;
    }
    Ok(())
}
