//! A guest cloned from a golden container.
//!
//! The clone carries its own mark from the first call on (its notes are a parameter of the clone), so a run that is stopped between the
//! clone and the call that gives it its own interface and tags still finds it, and takes it back. The template's tag comes with the clone.

use super::CREATE_LIMIT;
use super::image::Image;
use super::maker::Maker;
use crate::plan::choose::Choice;
use crate::plan::golden::Golden;
use crate::plan::options::{DEFAULT_CORES, DEFAULT_MEMORY};
use crate::plan::refusal::Refusal;
use crate::plan::render;
use crate::plan::step::{Action, Step, Undo};
use crate::pve::golden::{self, Copy, Own};

/// What is cloned and why, for the output.
pub(super) fn reason(golden: &Golden, image: &Image) -> Choice {
    let why = if golden.image == image.digits() {
        "it has /dev/net/tun, which only root may pass through"
    } else {
        "it has /dev/net/tun, which only root may pass through; same version, another build"
    };
    Choice { what: "cloned from", value: format!("golden container {}", golden.vmid), why: why.to_owned() }
}

impl Maker<'_> {
    /// The container as a clone, up to where its configuration is handed over.
    pub(super) fn clone_steps(&self, golden: &Golden) -> Result<[Step; 2], Refusal> {
        let (host, vmid) = (&self.place.host, self.options.vmid);
        let copy = Copy {
            vmid,
            storage: self.place.storage.clone(),
            hostname: self.name.clone(),
            notes: self.mark(false).attach(&render::notes(&self.notes())?),
        };
        let request = golden::copy(host, golden.vmid, &copy)?;
        let undo = Undo::RemoveContainer { host: host.clone(), vmid, run: self.run };
        let title = format!("clone {} as container {vmid} on {host}", golden.vmid);
        let cloned = Step::undone_by(title, Action::Call { request, task: Some(CREATE_LIMIT) }, undo);
        let own = Own {
            cores: self.options.cores.unwrap_or(DEFAULT_CORES),
            memory: self.options.memory.unwrap_or(DEFAULT_MEMORY),
            network: self.interface(),
            tags: self.tags()?,
        };
        let request = golden::give_own(host, vmid, &own)?;
        let given = Step::plain("give it its own interface and tags", Action::Call { request, task: None });
        Ok([cloned, given])
    }
}
