//! Taking a node out of a container again.

use std::collections::BTreeMap;

use super::{ENROLLED, Found, Record, refused, restored, target};
use crate::ident::{QUAD100_V4, Vmid};
use crate::plan::destroy::Removal;
use crate::plan::guest::{RECORD, SETTINGS};
use crate::plan::inside::{Changed, Deed, InsideAction};
use crate::plan::mark::{Mark, TAG};
use crate::plan::observed::Target;
use crate::plan::refusal::Refusal;
use crate::plan::step::{Action, Step};
use crate::pve::{Method, Request};

/// Plans it. `knows_coordinator`: the node is removed there too.
///
/// # Errors
/// If there is no node of ours in the container, or the container cannot be entered.
pub fn unenroll(vmid: Vmid, found: &Found, knows_coordinator: bool) -> Result<Removal, Refusal> {
    let target = target(vmid, &found.observed)?;
    let mark = Mark::of_container(vmid, &target.config).filter(|mark| mark.role.starts_with(ENROLLED));
    let Some(mark) = mark else {
        return Err(refused(
            format!("container {vmid} was not enrolled by pvemesh"),
            "pvemesh list shows what is; pvemesh destroy removes a guest that pvemesh made",
        ));
    };
    let Some(record) = found.record.as_ref().filter(|_| target.running && found.seen.is_some()) else {
        let (why, next) = if target.running {
            (
                format!("container {vmid} has lost {RECORD}, which says what was changed"),
                "put the node in again (pvemesh enroll), then take it out".to_owned(),
            )
        } else {
            (format!("container {vmid} does not run, and files are taken out of running ones only"), format!("start it: pct start {vmid}"))
        };
        return Err(refused(why, next));
    };
    let host = &target.host;
    let inside = |deed: Deed| Action::Inside(InsideAction { host: host.clone(), vmid, deed });
    let mut steps = Vec::new();
    let commands = record.service.disable();
    steps.push(Step::plain("stop the service", inside(Deed::Run { commands, with_key: false })));
    if knows_coordinator {
        steps.push(Step::plain(format!("remove node {} from the coordinator", mark.name), Action::RemoveNode(mark.name.clone())));
    }
    let keys = keys(record, target, &mark);
    if !keys.is_empty() {
        let put = Request::new(Method::Put, format!("/nodes/{host}/lxc/{vmid}/config"));
        let request = restored(put, &keys, |changed| changed.after.clone());
        let title = format!("put back {}", keys.keys().map(String::as_str).collect::<Vec<_>>().join(", "));
        steps.push(Step::plain(title, Action::Call { request, task: None }));
    }
    steps.push(Step::plain("take our part out of the notes", inside(Deed::Notes { ours: None })));
    let program = record.program.clone();
    let mut paths: Vec<String> = record.service.owned().map(str::to_owned).into_iter().collect();
    paths.extend([SETTINGS, RECORD, "/etc/pvemesh", "/var/lib/pvemesh", "/run/pvemesh"].map(str::to_owned));
    paths.extend([format!("{program}.before"), program.clone()]);
    steps.push(Step::plain("remove its files", inside(Deed::Remove { program, paths })));
    let forget = record.service.forget();
    if !forget.is_empty() {
        steps.push(Step::plain("tell the service manager", inside(Deed::Run { commands: forget, with_key: false })));
    }
    Ok(Removal { vmid, name: mark.name.clone(), role: mark.role, host: host.clone(), steps })
}

/// What the configuration's keys become: what was there before us, as far as it is still ours to say.
fn keys(record: &Record, target: &Target, mark: &Mark) -> BTreeMap<String, Changed> {
    let mut keys = BTreeMap::new();
    let value = |key: &str| target.config.values.get(key).cloned();
    let mut change = |key: &str, after: Option<String>| {
        let before = value(key);
        if before != after {
            keys.insert(key.to_owned(), Changed { before, after });
        }
    };
    let ours = |text: &str| text.split(' ').any(|server| server == QUAD100_V4.to_string());
    if value("nameserver").is_some_and(|text| ours(&text)) {
        for (key, before) in &record.before {
            change(key, before.clone());
        }
    }
    if let Some(device) = record.device.as_ref().filter(|device| value(device).is_some_and(|text| text.contains("/dev/net/tun"))) {
        change(device, None);
    }
    let role = mark.role.trim_start_matches(ENROLLED);
    let tags: Vec<&str> = target.config.tags.iter().map(String::as_str).filter(|tag| *tag != TAG && *tag != role).collect();
    if tags.len() != target.config.tags.len() {
        change("tags", (!tags.is_empty()).then(|| tags.join(";")));
    }
    keys
}
