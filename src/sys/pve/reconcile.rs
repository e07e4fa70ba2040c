//! One pass of `plan::sync`: looks, and carries out what comes of it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::handover::Handover;
use super::provision::{StepError, Watch, run_call};
use super::{CallError, Executor, Mesh, MeshError, notes, observe};
use crate::ident::Vmid;
use crate::plan::attach::{is_usable, one_of_each, recorded, told};
use crate::plan::identity::{Ours, Renew};
use crate::plan::ledger::Ledger;
use crate::plan::mark::TAG;
use crate::plan::sync::{Change, MeshView, renewed};
use crate::pve::reply::{self, GuestSummary};
use crate::pve::{HostName, Principal, call, machine};
use crate::settings::Renewal;
use crate::sys::config::{Store, SyncLock};
use crate::sys::neighbours;
use crate::wire::admin::{DnsSettings, NodeInfo};

/// How long a guest may take to join under its new identity.
const JOIN_LIMIT: Duration = Duration::from_secs(60);
const LOOK_PAUSE: Duration = Duration::from_millis(300);

/// What Proxmox shows.
#[derive(Debug, Clone, Default)]
pub struct Survey {
    /// Every guest.
    pub guests: Vec<GuestSummary>,
    /// Remembered ones that are gone.
    pub gone: BTreeSet<Vmid>,
    /// Containers with our tag.
    pub ours: Vec<Ours>,
    /// Addresses of attached guests.
    pub seen: BTreeMap<Vmid, Vec<IpAddr>>,
    /// What could not be read.
    pub said: Vec<String>,
}

/// What the coordinator shows.
#[derive(Debug, Clone)]
pub struct MeshSurvey {
    url: String,
    base_domain: String,
    nodes: Vec<NodeInfo>,
    dns: DnsSettings,
}

impl MeshSurvey {
    /// Asks the coordinator.
    ///
    /// # Errors
    /// If it does not answer.
    pub async fn look(url: &str, mesh: &dyn Mesh) -> Result<Self, MeshError> {
        let (info, nodes, dns) = (mesh.info().await?, mesh.nodes().await?, mesh.dns().await?);
        Ok(Self { url: url.to_owned(), base_domain: info.base_domain, nodes, dns })
    }

    /// As a pass sees it.
    pub fn view(&self) -> MeshView<'_> {
        MeshView { url: &self.url, base_domain: &self.base_domain, nodes: &self.nodes, dns: &self.dns }
    }
}

/// Reads what a pass depends on: one call for the list, one for each guest of ours or attached.
///
/// # Errors
/// If the list cannot be read. A guest that cannot be read is left out, and said.
pub async fn survey(executor: &dyn Executor, ledger: &Ledger, local: Option<&HostName>) -> Result<Survey, CallError> {
    let mut survey = Survey { guests: reply::guests(&executor.call(&call::guests()?).await?)?, ..Survey::default() };
    for guest in survey.guests.iter().filter(|guest| guest.container && guest.tags.iter().any(|tag| tag == TAG)) {
        match observe::container_config(executor, &guest.host, guest.vmid).await {
            Ok(Some(config)) => {
                survey.ours.push(Ours { vmid: guest.vmid, host: guest.host.clone(), running: guest.running, config });
            }
            // It went away meanwhile, or moved to another host; the next pass sees which.
            Ok(None) => {}
            Err(error) => survey.said.push(format!("guest {} on {} cannot be read: {error}", guest.vmid, guest.host)),
        }
    }
    for (vmid, attached) in &ledger.attached {
        if let Some(guest) = survey.guests.iter().find(|guest| guest.vmid == *vmid).filter(|guest| guest.running) {
            let (addresses, why) = addresses(executor, guest, &attached.macs, local).await;
            survey.seen.insert(*vmid, addresses);
            survey.said.extend(why.map(|why| format!("guest {vmid}: {why}")));
        }
    }
    let known = ledger.guests.len() + ledger.attached.len();
    if survey.guests.is_empty() && known > 1 {
        survey
            .said
            .push(format!("Proxmox lists no guest at all, though {known} are remembered; that is not believed, and none is removed"));
        return Ok(survey);
    }
    survey.gone = gone(executor, ledger, &survey.guests).await?;
    Ok(survey)
}

/// The guests remembered that are no more. Only root sees all guests, so only for root a guest that is not listed is gone; and only if the
/// host that had it last says so too.
async fn gone(executor: &dyn Executor, ledger: &Ledger, guests: &[GuestSummary]) -> Result<BTreeSet<Vmid>, CallError> {
    let mut gone = BTreeSet::new();
    if !executor.principal().is_root() {
        return Ok(gone);
    }
    let listed = |vmid: &Vmid| guests.iter().any(|guest| guest.vmid == *vmid);
    for (vmid, kept) in ledger.guests.iter().filter(|(vmid, _)| !listed(vmid)) {
        if matches!(observe::container_config(executor, &kept.host, *vmid).await, Ok(None)) {
            gone.insert(*vmid);
        }
    }
    gone.extend(ledger.attached.keys().filter(|vmid| !listed(vmid)));
    Ok(gone)
}

/// The addresses of a running guest: as its container shows, as its agent says, or as this host last saw its hardware address. With what
/// was in the way, if nothing was found.
pub async fn addresses(
    executor: &dyn Executor,
    guest: &GuestSummary,
    macs: &[crate::ident::Mac],
    local: Option<&HostName>,
) -> (Vec<IpAddr>, Option<String>) {
    let reported = if guest.container {
        observe::interfaces(executor, &guest.host, guest.vmid).await
    } else {
        async { Ok(machine::read_agent_interfaces(&executor.call(&machine::agent_interfaces(&guest.host, guest.vmid)?).await?)?) }.await
    };
    let why = match reported {
        Ok(reported) => {
            let addresses = told(&reported, macs);
            if !addresses.is_empty() {
                return (addresses, None);
            }
            None
        }
        Err(error) => Some(error.to_string()),
    };
    if executor.principal() == Principal::RootHost && local == Some(&guest.host) {
        match neighbours::addresses_of(macs).await {
            Ok(mut seen) => {
                seen.retain(is_usable);
                seen.sort_unstable();
                if !seen.is_empty() {
                    return (one_of_each(&seen), None);
                }
            }
            Err(error) => tracing::debug!(%error, "the table of neighbours cannot be read"),
        }
    }
    (Vec::new(), why)
}

/// Reads what is kept of a guest that is to be attached.
///
/// # Errors
/// If its configuration cannot be read.
pub async fn configuration(executor: &dyn Executor, guest: &GuestSummary) -> Result<reply::ContainerConfig, CallError> {
    let place = machine::Guest { host: &guest.host, vmid: guest.vmid, container: guest.container };
    let mut config = reply::container_config(&executor.call(&machine::config(place)?).await?)?;
    config.hostname = config.hostname.or_else(|| config.values.get("name").cloned());
    Ok(config)
}

/// Carries changes out.
pub struct Reconciler<'a> {
    /// Proxmox.
    pub executor: &'a dyn Executor,
    /// The coordinator, with its address, if it answers.
    pub mesh: Option<(&'a str, &'a dyn Mesh)>,
    /// The files of this machine.
    pub store: &'a Store,
    /// The right to write them.
    pub right: &'a SyncLock,
    /// The way into guests.
    pub handover: &'a Handover,
}

impl Reconciler<'_> {
    /// Carries changes out in their order, and remembers each as soon as it is done. After a failure, a guest's later changes are left.
    pub async fn carry_out<'c>(
        &self,
        changes: &'c [Change],
        ledger: &mut Ledger,
        watch: &mut dyn Watch,
    ) -> Vec<(&'c Change, Result<(), StepError>)> {
        let mut failed: BTreeSet<Vmid> = BTreeSet::new();
        let mut outcomes = Vec::new();
        for change in changes {
            if failed.contains(&change.vmid()) {
                continue;
            }
            let begun = Instant::now();
            if !change.is_quiet() {
                watch.begin(&change.to_string());
            }
            let done = self.one(change, ledger, watch).await;
            if !change.is_quiet() {
                watch.end(begun.elapsed(), done.is_ok());
            }
            let saved = done.and_then(|()| Ok(self.store.save_ledger(ledger, self.right)?));
            if saved.is_err() {
                failed.insert(change.vmid());
            }
            outcomes.push((change, saved));
        }
        outcomes
    }

    async fn one(&self, change: &Change, ledger: &mut Ledger, watch: &mut dyn Watch) -> Result<(), StepError> {
        match change {
            Change::Remember(..) | Change::Forget(_) => {}
            Change::Notes { vmid, host, part, .. } => {
                notes::rewrite_if(self.executor, host, *vmid, &|config| part.brought_into(&config.description), watch).await?;
            }
            Change::RemoveNode { node, .. } => self.mesh()?.delete_node(*node).await?,
            Change::Record { name, addresses, .. } => {
                let mesh = self.mesh()?;
                // Read anew: other changes of this pass, or an admin, may have been there since.
                if let Some(changed) = recorded(&mesh.dns().await?, name, addresses) {
                    mesh.set_dns(&changed).await?;
                }
            }
            Change::Approve { node, routes, .. } => drop(self.mesh()?.approve_routes(*node, routes).await?),
            Change::Renew(renew) => return self.renew(renew, ledger, watch).await,
        }
        change.note(ledger);
        Ok(())
    }

    fn mesh(&self) -> Result<&dyn Mesh, StepError> {
        self.mesh.map(|(_, mesh)| mesh).ok_or(StepError::Missing("the coordinator is not known"))
    }

    async fn renew(&self, renew: &Renew, ledger: &mut Ledger, watch: &mut dyn Watch) -> Result<(), StepError> {
        let mesh = self.mesh()?;
        for id in &renew.remove {
            mesh.delete_node(*id).await?;
        }
        let made = match &renew.key {
            Some(key) => Some(mesh.create_key(key).await?),
            None => None,
        };
        let key_id = made.as_ref().map(|made| made.id);
        let outcome = self.hand_over(renew, made.map(|made| made.key), ledger, watch).await;
        if let (Err(_), Some(id)) = (&outcome, key_id)
            && let Err(error) = mesh.revoke_key(id).await
        {
            tracing::debug!(%error, "the join key expires by itself");
        }
        outcome
    }

    async fn hand_over(
        &self,
        renew: &Renew,
        auth_key: Option<crate::ident::Secret>,
        ledger: &mut Ledger,
        watch: &mut dyn Watch,
    ) -> Result<(), StepError> {
        let joins = auth_key.is_some();
        if renew.rename && joins {
            run_call(self.executor, &machine::set_hostname(&renew.host, renew.vmid, &renew.name)?, None, watch).await?;
        }
        let renewal = Renewal { vmid: renew.vmid, hostname: renew.name.clone(), generation: renew.mark.identity.generation, auth_key };
        // First: should anything fail from here on, the next one has to have a higher number, or the guest passes it over.
        ledger.guests.insert(renew.vmid, renew.kept.clone());
        self.store.save_ledger(ledger, self.right)?;
        self.handover.bring(self.executor, &renew.host, renew.vmid, &renewal, watch).await?;
        if !joins {
            return Ok(());
        }
        let node = self.joined(renew).await?;
        let url = self.mesh.map_or("", |(url, _)| url);
        let (part, kept) = renewed(renew, url, &node);
        notes::rewrite(self.executor, &renew.host, renew.vmid, &|config| part.within(&config.description), watch).await?;
        ledger.guests.insert(renew.vmid, kept);
        Ok(())
    }

    /// Waits until the guest has joined.
    async fn joined(&self, renew: &Renew) -> Result<NodeInfo, StepError> {
        let mesh = self.mesh()?;
        let begun = Instant::now();
        loop {
            let node = mesh.nodes().await?.into_iter().find(|node| node.name == renew.name);
            match node {
                Some(node) if node.online => return Ok(node),
                _ if begun.elapsed() > JOIN_LIMIT => {
                    let last = format!("{} has not joined; the container's console in Proxmox shows why", renew.name);
                    return Err(StepError::TooLong { limit: JOIN_LIMIT, last: Some(last) });
                }
                _ => tokio::time::sleep(LOOK_PAUSE).await,
            }
        }
    }
}
