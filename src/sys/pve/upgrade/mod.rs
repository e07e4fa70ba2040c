//! Puts a new program into a guest, on trial (see `sys::chores::trial`), looks at it from outside, and keeps it or not.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;

use super::deeds::push_beside;
use super::inside::{Inside, InsideError, Run, run_well};
use super::mesh::{Door, Mesh};
use super::{Executor, observe};
use crate::ident::{NodeName, Vmid, is_mesh_address};
use crate::plan::RELAY_PORT;
use crate::plan::guest::{GuestFacts, Service};
use crate::plan::options::KnownCoordinator;
use crate::pve::HostName;

/// Pause between two looks.
const LOOK: Duration = Duration::from_millis(400);
/// A program that is well has to be so again after this, or one that dies every second would pass.
const SETTLED: Duration = Duration::from_secs(3);
/// How long the old program may take to be well again.
const BACK_LIMIT: Duration = Duration::from_secs(60);
/// How long telling a guest something may take, service restart included.
const ORDER_LIMIT: Duration = Duration::from_secs(60);

/// The new program, as a file here.
#[derive(Debug, Clone)]
pub struct NewProgram {
    /// The file.
    pub path: PathBuf,
    /// Its SHA-256, hex.
    pub sha256: String,
    /// The machine it is for, as in `x86_64`.
    pub machine: String,
}

/// A guest that gets it.
#[derive(Debug, Clone)]
pub struct Upgraded {
    /// Its number.
    pub vmid: Vmid,
    /// Where it is.
    pub host: HostName,
    /// Its name.
    pub name: NodeName,
    /// Its role's name.
    pub role: String,
    /// Where our program is in it.
    pub program: String,
    /// Who keeps it running.
    pub service: Service,
}

/// What became of a guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    /// It has the program already.
    Same,
    /// It has the new program, seen well from outside.
    New,
    /// The new program was not well; the old one is back and well.
    Back(String),
    /// The new program was not well, and the old one is not seen well either.
    Lost(String),
}

/// A ping through the mesh, where this machine is a member: whether an answer came.
pub type Ping = dyn Fn(IpAddr) -> BoxFuture<'static, bool> + Send + Sync;

/// Everything an upgrade needs.
pub struct Upgrader<'a> {
    /// Proxmox.
    pub executor: &'a dyn Executor,
    /// The way into the guest.
    pub inside: &'a dyn Inside,
    /// The way to coordinators.
    pub door: &'a dyn Door,
    /// The known coordinator, opened, if it answers.
    pub mesh: Option<&'a dyn Mesh>,
    /// The known coordinator.
    pub known: Option<&'a KnownCoordinator>,
    /// Pings through the mesh, if that is possible from here.
    pub ping: Option<&'a Ping>,
    /// After how many seconds the guest takes the old program back unless told that all is well.
    pub seconds: u64,
}

impl Upgrader<'_> {
    /// What the guest says of itself.
    ///
    /// # Errors
    /// If it cannot be asked.
    pub async fn facts(&self, guest: &Upgraded) -> Result<GuestFacts, InsideError> {
        facts(self.inside, guest.vmid, &guest.program).await
    }

    /// Gives a guest the new program.
    ///
    /// # Errors
    /// If it was not begun; nothing has changed then.
    pub async fn upgrade(&self, guest: &Upgraded, new: &NewProgram) -> Result<Fate, InsideError> {
        let before = self.facts(guest).await?;
        if before.program.installed == new.sha256 && before.program.running == new.sha256 {
            return Ok(Fate::Same);
        }
        if before.machine != new.machine {
            let why = format!("it is for {}, and the container for {}", new.machine, before.machine);
            return Err(InsideError::NoProgram { vmid: guest.vmid, program: new.path.display().to_string(), why });
        }
        if before.program.trial {
            // A run that was ended midway; its time is not over yet.
            self.order(guest, &["abort"]).await?;
        }
        let lan = self.lan_addresses(guest).await;
        let beside = push_beside(self.inside, guest.vmid, &new.path, &guest.program).await?;
        let (service, seconds) = (guest.service.to_string(), self.seconds.to_string());
        let begin = ["begin", &beside, "--installed", &guest.program, "--service", &service, "--seconds", &seconds];
        if let Err(error) = self.order(guest, &begin).await {
            let clean = Run::new([guest.program.as_str(), "inside", "remove", &beside]);
            let _ = self.inside.run(guest.vmid, &clean).await;
            return Err(error);
        }
        // The guest must hear of it before its patience is at its end.
        let limit = Duration::from_secs(self.seconds).saturating_sub(Duration::from_secs(5).min(Duration::from_secs(self.seconds) / 4));
        match self.well_within(guest, &new.sha256, &lan, limit).await {
            Ok(()) => match self.order(guest, &["confirm", "--keep", &format!("{}.before", guest.program)]).await {
                Ok(()) => Ok(Fate::New),
                Err(error) => Ok(self.back(guest, &before, &lan, error.to_string()).await),
            },
            Err(why) => Ok(self.back(guest, &before, &lan, why).await),
        }
    }

    async fn back(&self, guest: &Upgraded, before: &GuestFacts, lan: &[IpAddr], why: String) -> Fate {
        // If the guest does not hear this, it does the same by itself when its time is over.
        if let Err(error) = self.order(guest, &["abort"]).await {
            tracing::warn!(%error, "the guest is not told to take the old program back; it will by itself");
        }
        let old = if before.program.running.is_empty() { &before.program.installed } else { &before.program.running };
        let limit = BACK_LIMIT.max(Duration::from_secs(self.seconds));
        match self.well_within(guest, old, lan, limit).await {
            Ok(()) => Fate::Back(why),
            Err(still) => Fate::Lost(format!("{why}; and with the old program: {still}")),
        }
    }

    async fn order(&self, guest: &Upgraded, words: &[&str]) -> Result<(), InsideError> {
        let argv = [guest.program.as_str(), "inside", "trial"].into_iter().chain(words.iter().copied());
        run_well(self.inside, guest.vmid, &Run::new(argv).limit(ORDER_LIMIT)).await.map(drop)
    }

    async fn well_within(&self, guest: &Upgraded, sha256: &str, lan: &[IpAddr], limit: Duration) -> Result<(), String> {
        let begun = Instant::now();
        let mut since: Option<Instant> = None;
        loop {
            let why = match self.look(guest, sha256, lan).await {
                Ok(()) => {
                    let first = *since.get_or_insert_with(Instant::now);
                    if first.elapsed() >= SETTLED {
                        return Ok(());
                    }
                    "it is well for a moment only".to_owned()
                }
                Err(why) => {
                    since = None;
                    why
                }
            };
            if begun.elapsed() > limit {
                return Err(why);
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// One look from outside, at the mesh's side and at the LAN's.
    async fn look(&self, guest: &Upgraded, sha256: &str, lan: &[IpAddr]) -> Result<(), String> {
        let facts = self.facts(guest).await.map_err(|e| e.to_string())?;
        if facts.program.running != sha256 {
            return Err(if facts.program.running.is_empty() { "nothing runs".to_owned() } else { "another program runs".to_owned() });
        }
        let there = self.lan_addresses(guest).await;
        if let Some(lost) = lan.iter().find(|address| !there.contains(address)) {
            return Err(format!("its address {lost} on the LAN is gone"));
        }
        match guest.role.as_str() {
            "coordinator" => self.look_at_coordinator(guest.vmid).await,
            "relay" => {
                let address = lan.first().ok_or("it has no address on the LAN")?;
                self.door.meet_relay(SocketAddr::new(*address, RELAY_PORT), guest.name.as_str()).await.map(drop).map_err(|e| e.to_string())
            }
            _ => self.look_at_node(guest, &facts).await,
        }
    }

    async fn look_at_coordinator(&self, vmid: Vmid) -> Result<(), String> {
        let Some(known) = self.known.filter(|known| known.vmid == Some(vmid)) else { return Ok(()) };
        let mesh = self.door.open(&known.lan_url, Some(known.server_key)).await.map_err(|e| e.to_string())?;
        mesh.info().await.map(drop).map_err(|e| e.to_string())
    }

    async fn look_at_node(&self, guest: &Upgraded, facts: &GuestFacts) -> Result<(), String> {
        let Some(node) = &facts.node else { return Err(format!("its node does not answer: {}", facts.node_trouble)) };
        if node.state != "Running" {
            return Err(format!("its node is {}", node.state));
        }
        if !node.coordinator_online {
            return Err("its node does not reach the coordinator".to_owned());
        }
        // With a coordinator elsewhere, the node's own word has to do.
        if let Some(mesh) = self.mesh {
            let nodes = mesh.nodes().await.map_err(|e| e.to_string())?;
            match nodes.iter().find(|node| node.name == guest.name) {
                Some(seen) if seen.online => {}
                Some(_) => return Err("the coordinator does not see it online".to_owned()),
                None => return Err("the coordinator does not know it".to_owned()),
            }
        }
        if let (Some(ping), Some(address)) = (self.ping, node.addresses.first())
            && !ping(*address).await
        {
            return Err(format!("{address} does not answer through the mesh"));
        }
        Ok(())
    }

    async fn lan_addresses(&self, guest: &Upgraded) -> Vec<IpAddr> {
        let interfaces = observe::interfaces(self.executor, &guest.host, guest.vmid).await.unwrap_or_default();
        let all = interfaces.iter().flat_map(|interface| &interface.addresses).map(ipnet::IpNet::addr);
        let mut lan: Vec<IpAddr> = all
            .filter(|address| {
                let local = matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local());
                !address.is_loopback() && !local && !is_mesh_address(*address)
            })
            .collect();
        lan.sort_by_key(|address| address.is_ipv6());
        lan
    }
}

/// What a guest says of itself, asked of our program in it.
///
/// # Errors
/// If it cannot be asked, or answers something else.
pub async fn facts(inside: &dyn Inside, vmid: Vmid, program: &str) -> Result<GuestFacts, InsideError> {
    let ran = run_well(inside, vmid, &Run::new([program, "node", "self-check"])).await?;
    serde_json::from_slice(&ran.output).map_err(|e| InsideError::Garbled { vmid, why: e.to_string() })
}

#[cfg(test)]
mod tests;
