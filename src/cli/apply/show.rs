//! What `apply` says: what differs, and what was done.

use std::fmt;

use super::sites::Planned;
use crate::cli::create::Report as Made;
use crate::ident::Vmid;
use crate::plan::destroy::Removal;
use crate::plan::fleet::Work;
use crate::plan::{Difference, Step};
use crate::pve::HostName;
use crate::pve::reply::GuestSummary;

/// What is to be done about one guest.
pub(super) struct Change<'a> {
    /// Its host or cluster, where there are several.
    cluster: Option<&'a str>,
    vmid: Vmid,
    what: What<'a>,
}

#[derive(Clone, Copy)]
enum What<'a> {
    Work(&'a Work),
    Remove(&'a Removal),
}

impl<'a> Change<'a> {
    /// Those of all sites: what is made or changed, then what goes.
    pub(super) fn all(planned: &'a [Planned<'a>], several: bool) -> Vec<Self> {
        let works = planned.iter().flat_map(|planned| {
            let cluster = planned.cluster(several);
            planned.draft.works.iter().map(move |(vmid, work)| Self { cluster, vmid: *vmid, what: What::Work(work) })
        });
        let removals = planned.iter().flat_map(|planned| {
            let cluster = planned.cluster(several);
            planned.removals.iter().map(move |removal| Self { cluster, vmid: removal.vmid, what: What::Remove(removal) })
        });
        works.chain(removals).collect()
    }

    pub(super) fn is_nothing(&self) -> bool {
        matches!(self.what, What::Work(Work::Nothing(_)))
    }

    fn steps(&self) -> &'a [Step] {
        match self.what {
            What::Work(work) => work.plan().map(|plan| &plan.steps[..]).unwrap_or_default(),
            What::Remove(removal) => &removal.steps,
        }
    }

    fn value(&self) -> serde_json::Value {
        let steps: Vec<_> =
            self.steps().iter().map(|step| serde_json::json!({ "step": step.title, "call": step.action.to_string() })).collect();
        let mut value = match self.what {
            What::Work(Work::Nothing(existing)) => {
                serde_json::json!({ "vmid": self.vmid, "name": existing.name, "node": existing.host })
            }
            What::Work(Work::Start(plan) | Work::Change(plan) | Work::Create(plan)) => serde_json::json!({
                "vmid": self.vmid, "name": plan.name, "role": plan.role, "node": plan.host, "differences": plan.differences, "steps": steps,
            }),
            What::Remove(removal) => serde_json::json!({
                "vmid": self.vmid, "name": removal.name, "role": removal.role, "node": removal.host, "steps": steps,
            }),
        };
        if let Some(fields) = value.as_object_mut() {
            fields.insert("outcome".to_owned(), self.verb().into());
            fields.extend(self.cluster.map(|cluster| ("cluster".to_owned(), cluster.into())));
        }
        value
    }

    fn verb(&self) -> &'static str {
        match self.what {
            What::Work(Work::Nothing(_)) => "nothing",
            What::Work(Work::Start(_)) => "start",
            What::Work(Work::Change(_)) => "change",
            What::Work(Work::Create(_)) => "create",
            What::Remove(_) => "remove",
        }
    }
}

impl fmt::Display for Change<'_> {
    /// As a diff: `+` made, `~` changed, `>` started, `-` removed.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let vmid = self.vmid;
        let at = |host: &HostName| place(self.cluster, host.as_str());
        match self.what {
            What::Work(Work::Nothing(existing)) => write!(f, "  = {vmid} {} on {}", existing.name, at(&existing.host)),
            What::Work(Work::Start(plan)) => write!(f, "  > {vmid} {} ({}) on {}: start", plan.name, plan.role, at(&plan.host)),
            What::Remove(removal) => write!(f, "  - {vmid} {} ({}) on {}", removal.name, removal.role, at(&removal.host)),
            What::Work(Work::Create(plan)) => {
                write!(f, "  + {vmid} {} ({}) on {}", plan.name, plan.role, at(&plan.host))?;
                let chosen = |what: &str| plan.choices.iter().find(|choice| choice.what == what).map_or("", |choice| &choice.value);
                write!(f, ": storage {}, bridge {}, address {}", chosen("storage"), chosen("bridge"), chosen("address"))
            }
            What::Work(Work::Change(plan)) => {
                write!(f, "  ~ {vmid} {} ({}) on {}", plan.name, plan.role, at(&plan.host))?;
                for Difference { what, from, to } in &plan.differences {
                    write!(f, "\n      {what}: {from} -> {to}")?;
                }
                Ok(())
            }
        }
    }
}

/// Where a guest is: its Proxmox node, behind its host or cluster where there are several.
fn place(cluster: Option<&str>, node: &str) -> String {
    cluster.map_or_else(|| node.to_owned(), |cluster| format!("{cluster}/{node}"))
}

fn counted(changes: &[Change<'_>], planned: &[Planned<'_>]) -> String {
    let count = |wanted: &str| changes.iter().filter(|change| change.verb() == wanted).count();
    let mut text =
        format!("{} to make, {} to change, {} to start, {} as wanted", count("create"), count("change"), count("start"), count("nothing"));
    if count("remove") > 0 {
        text.push_str(&format!(", {} to remove", count("remove")));
    }
    let undeclared = undeclared(planned);
    if !undeclared.is_empty() {
        let all: Vec<String> = undeclared.iter().map(|guest| format!("{} ({})", guest.vmid, guest.name)).collect();
        text.push_str(&format!("\nnot in the file and left alone: {}", all.join(", ")));
    }
    text
}

fn undeclared<'a>(planned: &'a [Planned<'_>]) -> Vec<&'a GuestSummary> {
    planned.iter().flat_map(|planned| &planned.draft.undeclared).collect()
}

/// What would be done.
pub(super) fn dry_run_text(changes: &[Change<'_>], planned: &[Planned<'_>]) -> String {
    let mut text = String::new();
    for (host, volume) in planned.iter().flat_map(|planned| &planned.draft.uploads) {
        text.push_str(&format!("  ^ upload the image to {host} as {volume}\n"));
    }
    for change in changes {
        text.push_str(&format!("{change}\n"));
        for step in change.steps() {
            text.push_str(&format!("        {}\n", step.action));
        }
    }
    text.push_str(&counted(changes, planned));
    text.push_str("\nnothing was changed");
    text
}

/// The same for programs.
pub(super) fn dry_run_value(changes: &[Change<'_>], planned: &[Planned<'_>], several: bool) -> serde_json::Value {
    let guests: Vec<_> = changes.iter().map(Change::value).collect();
    let mut uploads = Vec::new();
    for planned in planned {
        for (host, volume) in &planned.draft.uploads {
            uploads.push(match planned.cluster(several) {
                Some(cluster) => serde_json::json!({ "cluster": cluster, "node": host, "volume": volume.to_string() }),
                None => serde_json::json!({ "node": host, "volume": volume.to_string() }),
            });
        }
    }
    let remarks: Vec<&String> = planned.iter().flat_map(|planned| &planned.draft.remarks).collect();
    let undeclared: Vec<Vmid> = undeclared(planned).iter().map(|guest| guest.vmid).collect();
    serde_json::json!({ "dry_run": true, "guests": guests, "uploads": uploads, "undeclared": undeclared, "remarks": remarks })
}

/// What became of one guest.
#[derive(Debug, serde::Serialize)]
pub(super) struct Row {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) cluster: Option<String>,
    pub(super) vmid: Vmid,
    pub(super) name: String,
    pub(super) role: String,
    pub(super) node: String,
    pub(super) outcome: &'static str,
    pub(super) seconds: f64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) mesh_addresses: Vec<std::net::IpAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) error: Option<String>,
}

impl Row {
    /// A coordinator made before the others.
    pub(super) fn made(report: &Made) -> Self {
        Self {
            cluster: None,
            vmid: report.vmid,
            name: report.name.to_string(),
            role: report.role.to_owned(),
            node: report.node.clone(),
            outcome: if report.changed { "created" } else { "unchanged" },
            seconds: report.seconds,
            mesh_addresses: report.mesh_addresses.clone(),
            error: None,
        }
    }

    /// Where it is, for people.
    pub(super) fn place(&self) -> String {
        place(self.cluster.as_deref(), &self.node)
    }
}

/// What became of the fleet.
#[derive(Debug, serde::Serialize)]
pub(super) struct Report {
    guests: Vec<Row>,
    undeclared: Vec<Vmid>,
    seconds: f64,
    /// Calls made to Proxmox.
    calls: u64,
}

impl Report {
    pub(super) fn new(mut guests: Vec<Row>, planned: &[Planned<'_>], seconds: f64, calls: u64) -> Self {
        guests.sort_by(|a, b| (&a.cluster, a.vmid).cmp(&(&b.cluster, b.vmid)));
        Self { guests, undeclared: undeclared(planned).iter().map(|guest| guest.vmid).collect(), seconds, calls }
    }

    pub(super) fn text(&self) -> String {
        let count = |outcome: &str| self.guests.iter().filter(|row| row.outcome == outcome).count();
        let unchanged = count("unchanged");
        if unchanged == self.guests.len() {
            return format!("{unchanged} guests are as wanted, nothing to do ({:.1} s, {} calls to Proxmox)", self.seconds, self.calls);
        }
        let mut text = String::new();
        for row in self.guests.iter().filter(|row| row.error.is_some()) {
            text.push_str(&format!("{} {}: {}\n", row.vmid, row.name, row.error.as_deref().unwrap_or_default()));
        }
        let words = [
            ("created", "made"),
            ("changed", "changed"),
            ("started", "started"),
            ("unchanged", "as wanted"),
            ("removed", "removed"),
            ("failed", "failed"),
            ("not begun", "not begun"),
        ];
        let parts: Vec<String> = words
            .iter()
            .map(|(outcome, word)| (count(outcome), word))
            .filter(|(n, _)| *n > 0)
            .map(|(n, word)| format!("{n} {word}"))
            .collect();
        text.push_str(&format!("{} ({:.1} s, {} calls to Proxmox)", parts.join(", "), self.seconds, self.calls));
        text
    }
}
