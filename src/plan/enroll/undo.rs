//! What takes the steps of an enrolling back: a new node goes without a trace, and a changed one is what it was.

use super::steps::Maker;
use crate::ident::NodeId;
use crate::plan::guest::{RECORD, SETTINGS};
use crate::plan::inside::{FileBefore, InsideUndo, UndoDeed};
use crate::plan::options::Join;
use crate::plan::refusal::Refusal;
use crate::plan::render;
use crate::plan::step::Undo;

impl Maker<'_> {
    pub(super) fn undo(&self, deed: UndoDeed) -> Undo {
        Undo::Inside(InsideUndo { host: self.target.host.clone(), vmid: self.wanted.vmid, deed })
    }

    /// Everything of ours goes from the container.
    pub(super) fn undo_all(&self) -> Undo {
        let program = self.program.clone();
        let mut paths: Vec<String> = [SETTINGS, RECORD, "/etc/pvemesh", "/var/lib/pvemesh", "/run/pvemesh"].map(str::to_owned).into();
        paths.extend(self.service.owned().map(str::to_owned));
        paths.extend([format!("{program}.before"), format!("{program}.new"), program.clone()]);
        self.undo(UndoDeed::Remove { program, paths, then: self.service.forget() })
    }

    /// The files of an enrolled node are what they were, and so is what runs.
    pub(super) fn undo_files(&self) -> Result<Undo, Refusal> {
        let file = |path: &str, mode: u32, text: Option<String>| FileBefore { path: path.to_owned(), mode, text };
        let settings = self.found.settings.as_ref().map(render::guest).transpose()?;
        let record = self.found.record.as_ref().map(ToString::to_string);
        let mut files = vec![file(RECORD, 0o600, record), file(SETTINGS, 0o600, settings)];
        files.extend(self.service.file().map(|(path, mode)| file(path, mode, self.found.service_file.clone())));
        let then = self.service.forget().into_iter().chain(self.service.restart()).collect();
        Ok(self.undo(UndoDeed::Rewrite { program: self.program.clone(), files, then }))
    }

    /// Whoever joins under its name goes from the coordinator.
    pub(super) fn undo_node(&self) -> Option<Undo> {
        let Join::Ours(_) = self.wanted.join else { return None };
        let before: Vec<NodeId> = self.found.observed.mesh.iter().map(|(id, _)| *id).collect();
        Some(Undo::RemoveNode { name: self.name.clone(), before, key: None })
    }
}
