//! A guest of ours, or a container with a node of ours in it: where our program is there and who keeps it running.

use super::connect::{call_failure, refusal};
use super::enroll::Entry;
use super::ways::inside_failure;
use super::{Exit, Failure};
use crate::ident::Vmid;
use crate::plan::Refusal;
use crate::plan::enroll::{ENROLLED, Record};
use crate::plan::guest::{APPLIANCE_PROGRAM, RECORD, Service};
use crate::plan::mark::Mark;
use crate::pve::HostName;
use crate::sys::pve::inside::Inside;
use crate::sys::pve::observe;

/// A record is far shorter.
const MAX_RECORD: usize = 64 * 1024;

/// A guest that is entered.
pub(super) struct Resident {
    pub(super) host: HostName,
    pub(super) mark: Mark,
    pub(super) program: String,
    pub(super) service: Service,
    pub(super) inside: Box<dyn Inside>,
}

impl Entry<'_> {
    /// Enters a guest of ours.
    pub(super) async fn resident(&self, vmid: Vmid) -> Result<Resident, Failure> {
        let (host, mark, running) = self.marked(vmid).await?;
        if !running {
            let next = format!("start it: pct start {vmid}");
            return Err(Failure::new(self.tried, format!("container {vmid} does not run"), next).exit(Exit::Conflict));
        }
        let inside = self.way.need(self.session, &host, self.tried, vmid)?;
        let (program, service) = if mark.role.starts_with(ENROLLED) {
            let record = inside.pull(vmid, RECORD, MAX_RECORD).await.map_err(|e| inside_failure(self.tried, &e))?;
            let record = record.and_then(|bytes| serde_json::from_slice::<Record>(&bytes).ok()).ok_or_else(|| {
                let happened = format!("container {vmid} has lost {RECORD}, which says where its program is");
                Failure::new(self.tried, happened, format!("put the node in again: pvemesh enroll {vmid}")).exit(Exit::Conflict)
            })?;
            (record.program, record.service)
        } else {
            (APPLIANCE_PROGRAM.to_owned(), Service::Appliance)
        };
        Ok(Resident { host, mark, program, service, inside })
    }

    /// A guest of ours by the API: where it is, its mark, and whether it runs.
    pub(super) async fn marked(&self, vmid: Vmid) -> Result<(HostName, Mark, bool), Failure> {
        let failed = |e| call_failure(self.tried, &e);
        let executor = &*self.session.executor;
        let guests = observe::guests(executor).await.map_err(failed)?;
        let guest = guests.iter().find(|guest| guest.vmid == vmid).ok_or_else(|| refusal(self.tried, &Refusal::NoSuchGuest(vmid)))?;
        let target = observe::container(executor, &guest.host, vmid).await.map_err(failed)?;
        let found = target.and_then(|target| Some((target.host.clone(), Mark::of_container(vmid, &target.config)?, target.running)));
        found.ok_or_else(|| refusal(self.tried, &Refusal::NotOurs { vmid, name: guest.name.clone() }))
    }
}
