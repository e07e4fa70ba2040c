//! What the `create-*` commands say: results, and plans that are not carried out.

use crate::ident::{NodeName, Vmid};
use crate::plan::create::Plan;
use crate::plan::{Choice, Difference};

#[derive(serde::Serialize)]
pub(in crate::cli) struct Report {
    pub(in crate::cli) vmid: Vmid,
    pub(in crate::cli) name: NodeName,
    pub(in crate::cli) role: &'static str,
    pub(in crate::cli) node: String,
    pub(in crate::cli) changed: bool,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(in crate::cli) choices: Vec<Choice>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(in crate::cli) differences: Vec<Difference>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::cli) lan_address: Option<std::net::IpAddr>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(in crate::cli) mesh_addresses: Vec<std::net::IpAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::cli) url: Option<String>,
    pub(in crate::cli) steps: Vec<Timed>,
    pub(in crate::cli) seconds: f64,
    /// Calls made to Proxmox, those before the first step included.
    pub(in crate::cli) calls: u64,
}

#[derive(serde::Serialize)]
pub(in crate::cli) struct Timed {
    pub(in crate::cli) step: String,
    pub(in crate::cli) seconds: f64,
}

pub(super) fn summary(report: &Report) -> String {
    let mut text = format!("{} {} ({}) on {}", report.role, report.vmid, report.name, report.node);
    if !report.changed {
        text.push_str(": already there, nothing to do");
        return text;
    }
    if let Some(address) = report.lan_address {
        text.push_str(&format!("\n  on the LAN    {address}"));
    }
    if !report.mesh_addresses.is_empty() {
        let all: Vec<String> = report.mesh_addresses.iter().map(ToString::to_string).collect();
        text.push_str(&format!("\n  in the mesh   {}", all.join(", ")));
    }
    if let Some(url) = &report.url {
        text.push_str(&format!("\n  coordinator   {url}"));
    }
    text.push_str(&format!("\n  ready in      {:.1} s, {} calls to Proxmox", report.seconds, report.calls));
    if report.role == "coordinator" {
        text.push_str("\nnext: pvemesh create-exit-node ID");
    }
    text
}

pub(in crate::cli) fn dry_run_text(plan: &Plan, place: &str) -> String {
    let verb = if plan.differences.is_empty() { "make" } else { "change" };
    let mut text = format!("would {verb} {} {} ({}) on {} at {place}\n", plan.role, plan.vmid, plan.name, plan.host);
    for difference in &plan.differences {
        text.push_str(&format!("  {:<17} {} -> {}\n", difference.what, difference.from, difference.to));
    }
    for choice in &plan.choices {
        text.push_str(&format!("  {:<17} {}  ({})\n", choice.what, choice.value, choice.why));
    }
    for (number, step) in plan.steps.iter().enumerate() {
        text.push_str(&format!("{:>3}. {}\n     {}\n", number + 1, step.title, step.action));
        if let Some(undo) = &step.undo {
            text.push_str(&format!("     on failure: {undo}\n"));
        }
    }
    text.push_str("nothing was changed");
    text
}

pub(in crate::cli) fn dry_run_value(plan: &Plan) -> serde_json::Value {
    let steps: Vec<_> = plan
        .steps
        .iter()
        .map(|step| serde_json::json!({ "step": step.title, "call": step.action.to_string(), "undo": step.undo.as_ref().map(ToString::to_string) }))
        .collect();
    serde_json::json!({ "dry_run": true, "vmid": plan.vmid, "name": plan.name, "role": plan.role, "node": plan.host, "choices": plan.choices, "differences": plan.differences, "steps": steps })
}
