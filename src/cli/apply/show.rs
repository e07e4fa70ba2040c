//! What `apply` says: what differs, and what was done.

use std::fmt;

use crate::cli::create::Report as Made;
use crate::ident::Vmid;
use crate::plan::Difference;
use crate::plan::create::Plan;
use crate::plan::fleet::{Draft, Work};

/// What is to be done about one guest.
pub(super) struct Change<'a> {
    vmid: Vmid,
    work: &'a Work,
}

impl<'a> Change<'a> {
    pub(super) fn of(vmid: Vmid, work: &'a Work) -> Self {
        Self { vmid, work }
    }

    pub(super) fn is_nothing(&self) -> bool {
        matches!(self.work, Work::Nothing(_))
    }

    fn value(&self) -> serde_json::Value {
        let steps = |plan: &Plan| {
            plan.steps.iter().map(|step| serde_json::json!({ "step": step.title, "call": step.action.to_string() })).collect::<Vec<_>>()
        };
        match self.work {
            Work::Nothing(existing) => {
                serde_json::json!({ "vmid": self.vmid, "name": existing.name, "node": existing.host, "outcome": "nothing" })
            }
            Work::Start(plan) | Work::Change(plan) | Work::Create(plan) => serde_json::json!({
                "vmid": self.vmid, "name": plan.name, "role": plan.role, "node": plan.host, "outcome": verb(self.work),
                "differences": plan.differences, "steps": steps(plan),
            }),
        }
    }
}

fn verb(work: &Work) -> &'static str {
    match work {
        Work::Nothing(_) => "nothing",
        Work::Start(_) => "start",
        Work::Change(_) => "change",
        Work::Create(_) => "create",
    }
}

impl fmt::Display for Change<'_> {
    /// As a diff: `+` made, `~` changed, `>` started.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.work {
            Work::Nothing(existing) => write!(f, "  = {} {} on {}", self.vmid, existing.name, existing.host),
            Work::Start(plan) => write!(f, "  > {} {} ({}) on {}: start", self.vmid, plan.name, plan.role, plan.host),
            Work::Create(plan) => {
                write!(f, "  + {} {} ({}) on {}", self.vmid, plan.name, plan.role, plan.host)?;
                let chosen = |what: &str| plan.choices.iter().find(|choice| choice.what == what).map_or("", |choice| &choice.value);
                write!(f, ": storage {}, bridge {}, address {}", chosen("storage"), chosen("bridge"), chosen("address"))
            }
            Work::Change(plan) => {
                write!(f, "  ~ {} {} ({}) on {}", self.vmid, plan.name, plan.role, plan.host)?;
                for Difference { what, from, to } in &plan.differences {
                    write!(f, "\n      {what}: {from} -> {to}")?;
                }
                Ok(())
            }
        }
    }
}

fn counted(draft: &Draft) -> String {
    let count = |wanted: &str| draft.works.iter().filter(|(_, work)| verb(work) == wanted).count();
    let mut text =
        format!("{} to make, {} to change, {} to start, {} as wanted", count("create"), count("change"), count("start"), count("nothing"));
    if !draft.undeclared.is_empty() {
        let all: Vec<String> = draft.undeclared.iter().map(|guest| format!("{} ({})", guest.vmid, guest.name)).collect();
        text.push_str(&format!("\nnot in the file and left alone: {}", all.join(", ")));
    }
    text
}

/// What would be done.
pub(super) fn dry_run_text(changes: &[Change<'_>], draft: &Draft) -> String {
    let mut text = String::new();
    for (host, volume) in &draft.uploads {
        text.push_str(&format!("  ^ upload the image to {host} as {volume}\n"));
    }
    for change in changes {
        text.push_str(&format!("{change}\n"));
        let steps = change.work.plan().map(|plan| &plan.steps[..]).unwrap_or_default();
        for step in steps {
            text.push_str(&format!("        {}\n", step.action));
        }
    }
    text.push_str(&counted(draft));
    text.push_str("\nnothing was changed");
    text
}

/// The same for programs.
pub(super) fn dry_run_value(changes: &[Change<'_>], draft: &Draft) -> serde_json::Value {
    let guests: Vec<_> = changes.iter().map(Change::value).collect();
    let uploads: Vec<_> =
        draft.uploads.iter().map(|(host, volume)| serde_json::json!({ "node": host, "volume": volume.to_string() })).collect();
    let undeclared: Vec<Vmid> = draft.undeclared.iter().map(|guest| guest.vmid).collect();
    serde_json::json!({ "dry_run": true, "guests": guests, "uploads": uploads, "undeclared": undeclared, "remarks": draft.remarks })
}

/// What became of one guest.
#[derive(Debug, serde::Serialize)]
pub(super) struct Row {
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

    /// A guest whose plan came to this end.
    pub(super) fn of(plan: &Plan, outcome: &'static str, seconds: f64) -> Self {
        let (mesh_addresses, error) = (Vec::new(), None);
        let (name, role, node) = (plan.name.to_string(), plan.role.to_owned(), plan.host.to_string());
        Self { vmid: plan.vmid, name, role, node, outcome, seconds, mesh_addresses, error }
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
    pub(super) fn new(mut guests: Vec<Row>, draft: &Draft, seconds: f64, calls: u64) -> Self {
        guests.sort_by_key(|row| row.vmid);
        Self { guests, undeclared: draft.undeclared.iter().map(|guest| guest.vmid).collect(), seconds, calls }
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
