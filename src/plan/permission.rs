//! What Proxmox would refuse for want of rights, found before the first write.
//!
//! A plan's steps and undos are turned into the requests they make, [`privilege::needs`] says what each needs, and `GET /access/permissions`
//! what there is. So a run by a token either has every right it will want, or does not begin.

use std::collections::BTreeSet;

use super::choose::Choice;
use super::create::Image;
use super::refusal::Refusal;
use super::step::{Action, Step, Undo};
use crate::pve::access::Rights;
use crate::pve::privilege::{self, Need};
use crate::pve::{BuildError, HostName, Method, Principal, Request, Version, call};

/// A privilege that is missing, and the first call that needs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    /// The step, in words.
    pub step: String,
    /// The call, `POST /nodes/pve/lxc`.
    pub call: String,
    /// The parameter that makes it needed, if not the call itself does.
    pub parameter: Option<String>,
    /// The privileges one of which is needed.
    pub privilege: String,
    /// Where.
    pub path: String,
}

impl std::fmt::Display for Missing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let with = self.parameter.as_ref().map(|name| format!(" with {name}")).unwrap_or_default();
        write!(f, "{} on {} (step \"{}\": {}{with})", self.privilege, self.path, self.step, self.call)
    }
}

/// The requests of a step, as far as rights are concerned: values do not matter, parameters do.
fn requests(action: &Action) -> Result<Vec<Request>, BuildError> {
    let upload = |host: &HostName, storage: &crate::pve::StorageId| {
        vec![Request::new(Method::Post, format!("/nodes/{host}/storage/{storage}/upload"))]
    };
    Ok(match action {
        Action::Upload { host, volume } | Action::UploadPersonal { host, volume, .. } => upload(host, volume.storage()),
        Action::Call { request, .. } => vec![request.clone()],
        Action::Deliver { host, guest } | Action::Redeliver { host, guest } => {
            vec![Request::new(Method::Put, format!("/nodes/{host}/lxc/{}/config", guest.vmid)).with("env", "")]
        }
        Action::AwaitAddress { host, vmid, .. } | Action::AwaitMeshAddress { host, vmid, .. } => vec![call::interfaces(host, *vmid)?],
        Action::AwaitTemplate { host, vmid, .. } => vec![call::container_config(host, *vmid)?],
        Action::Finish { host, mark, .. } => vec![call::set_notes(host, mark.vmid, "", None)?],
        _ => Vec::new(),
    })
}

fn undo_requests(undo: &Undo) -> Result<Vec<Request>, BuildError> {
    Ok(match undo {
        Undo::RemoveContainer { host, vmid, .. } => {
            vec![call::container_config(host, *vmid)?, call::stop(host, *vmid)?, call::destroy(host, *vmid)?]
        }
        Undo::Stop { host, vmid } => vec![call::shutdown(host, *vmid, 1)?],
        Undo::RemoveVolume { host, volume } => vec![call::templates(host, volume.storage())?, call::delete_volume(host, volume, 1)?],
        _ => Vec::new(),
    })
}

/// The access control paths that the steps need something at; empty for root, who is asked nothing.
///
/// # Errors
/// If a request cannot be built.
pub fn paths(principal: &Principal, steps: &[Step], version: Version) -> Result<BTreeSet<String>, BuildError> {
    let mut paths = BTreeSet::new();
    if principal.is_root() {
        return Ok(paths);
    }
    for step in steps {
        let mut all = requests(&step.action)?;
        if let Some(undo) = &step.undo {
            all.extend(undo_requests(undo)?);
        }
        paths.extend(all.iter().flat_map(|request| privilege::needs(request, version)).map(|need| need.path));
    }
    Ok(paths)
}

/// Checks the steps against what there is. Two removals are done without where the right is missing, and said so: that of the image which
/// serves every guest, after a failure and with the last guest.
///
/// `rights` must cover [`paths`].
///
/// # Errors
/// With everything that would be refused, if anything would.
pub fn review(principal: &Principal, rights: &Rights, version: Version, steps: &mut Vec<Step>) -> Result<Vec<Choice>, Refusal> {
    if principal.is_root() {
        return Ok(Vec::new());
    }
    let mut missing: Vec<Missing> = Vec::new();
    let mut choices = Vec::new();
    let lacking = |request: &Request| -> Vec<Need> {
        privilege::needs(request, version).into_iter().filter(|need| !rights.has(&need.path, need.any_of)).collect()
    };
    let mut kept = Vec::with_capacity(steps.len());
    for mut step in steps.drain(..) {
        let asked = requests(&step.action)?;
        if let Some(parameter) = asked.iter().find_map(privilege::root_only) {
            return Err(Refusal::RootOnly { principal: principal.clone(), step: step.title, parameter: parameter.to_owned() });
        }
        if is_image_removal(&step.action) && asked.iter().any(|request| !lacking(request).is_empty()) {
            choices.push(stays(&step.title));
            continue;
        }
        for request in &asked {
            note(&mut missing, &step.title, request, lacking(request));
        }
        if let Some(undo) = &step.undo {
            let back = undo_requests(undo)?;
            let shared = matches!(step.action, Action::Upload { .. });
            if shared && back.iter().any(|request| !lacking(request).is_empty()) {
                choices.push(stays("taking the upload back"));
                step.undo = None;
            } else {
                for request in &back {
                    note(&mut missing, &format!("undo: {undo}"), request, lacking(request));
                }
            }
        }
        kept.push(step);
    }
    *steps = kept;
    if missing.is_empty() { Ok(choices) } else { Err(Refusal::Rights { principal: principal.clone(), missing }) }
}

/// Whether a step removes the image that serves every guest. One with a guest's configuration in it is another matter.
fn is_image_removal(action: &Action) -> bool {
    let Action::Call { request, .. } = action else { return false };
    let file = request.path.rsplit('/').next().unwrap_or_default();
    request.method == Method::Delete && request.path.contains("/content/") && !Image::is_personal(file)
}

fn stays(what: &str) -> Choice {
    let why = format!("{what} needs Datastore.Allocate, which is not granted; the image holds no secret and serves the next guest");
    Choice { what: "image", value: "stays on the storage".to_owned(), why }
}

fn note(missing: &mut Vec<Missing>, step: &str, request: &Request, needs: Vec<Need>) {
    for need in needs {
        let privilege = need.words();
        if missing.iter().any(|known| known.privilege == privilege && known.path == need.path) {
            continue;
        }
        let call = format!("{} {}", request.method, request.path);
        missing.push(Missing { step: step.to_owned(), call, parameter: need.parameter, privilege, path: need.path });
    }
}

/// Where nothing fit because nothing was shown: Proxmox leaves out of its lists what somebody has no right to see. `everywhere` is what
/// `GET /access/permissions` says without a path.
pub fn explain(refusal: Refusal, principal: &Principal, everywhere: &Rights) -> Refusal {
    if principal.is_root() {
        return refusal;
    }
    let hidden = |what, any_of: &[&str], path| {
        let privilege = any_of.first().copied().unwrap_or_default().to_owned();
        (!everywhere.has_anywhere(any_of)).then(|| Refusal::Hidden { principal: principal.clone(), what, privilege, path })
    };
    let why = match &refusal {
        Refusal::NoBridge(_) | Refusal::UnknownBridge { .. } => hidden("bridge", &["SDN.Use", "SDN.Audit"], "/sdn/zones"),
        Refusal::NoStorage { .. } | Refusal::UnknownStorage { .. } => {
            hidden("storage", &["Datastore.AllocateSpace", "Datastore.Audit"], "/storage")
        }
        Refusal::NoSuchGuest(_) | Refusal::NeedsRoot { .. } => hidden("guest", &["VM.Audit"], "/vms"),
        _ => None,
    };
    why.unwrap_or(refusal)
}

#[cfg(test)]
#[allow(clippy::indexing_slicing, reason = "test code")]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::ident::Vmid;

    const V9_1: Version = Version::new(9, 1, 9);

    fn token() -> Principal {
        Principal::Token("pvemesh@pve!mesh".to_owned())
    }

    fn pve() -> HostName {
        "pve".parse().unwrap()
    }

    fn vmid() -> Vmid {
        "101".parse().unwrap()
    }

    fn upload() -> Step {
        let volume: crate::pve::VolumeId = "local:vztmpl/pvemesh-0.1.0-0123456789ab.tar.gz".parse().unwrap();
        Step::undone_by(
            "upload the image",
            Action::Upload { host: pve(), volume: volume.clone() },
            Undo::RemoveVolume { host: pve(), volume },
        )
    }

    fn start() -> Step {
        Step::plain("start it", Action::Call { request: call::start(&pve(), vmid()).unwrap(), task: None })
    }

    #[test]
    fn everything_missing_is_named_once_with_the_first_call_that_needs_it() {
        let rights = Rights::read(&json!({"/vms/101": {"VM.Audit": 1}, "/storage/local": {"Datastore.AllocateSpace": 0}}));
        let mut steps = vec![start(), start(), upload()];
        let refusal = review(&token(), &rights, V9_1, &mut steps).unwrap_err();
        let Refusal::Rights { missing, .. } = &refusal else { panic!("{refusal}") };
        let shown: Vec<String> = missing.iter().map(ToString::to_string).collect();
        assert_eq!(
            shown,
            [
                "VM.PowerMgmt on /vms/101 (step \"start it\": POST /nodes/pve/lxc/101/status/start)",
                "Datastore.AllocateTemplate on /storage/local (step \"upload the image\": POST /nodes/pve/storage/local/upload)",
            ]
        );
        assert!(refusal.next().contains("pvemesh init --print-role"), "{}", refusal.next());
    }

    #[test]
    fn the_shared_image_may_stay_where_it_cannot_be_removed() {
        let held = json!({"Datastore.AllocateSpace": 1, "Datastore.AllocateTemplate": 1});
        let rights = Rights::read(&json!({ "/storage/local": held }));
        let mut steps = vec![upload()];
        let choices = review(&token(), &rights, V9_1, &mut steps).unwrap();
        assert!(steps[0].undo.is_none() && choices[0].why.contains("Datastore.Allocate"), "{choices:?}");
        let all = json!({"Datastore.Allocate": 1, "Datastore.AllocateSpace": 1, "Datastore.AllocateTemplate": 1});
        let mut steps = vec![upload()];
        assert!(review(&token(), &Rights::read(&json!({ "/storage/local": all })), V9_1, &mut steps).unwrap().is_empty());
        assert!(steps[0].undo.is_some());
    }

    #[test]
    fn an_image_with_a_configuration_in_it_must_not_stay() {
        let removal = |volume: &str| {
            let request = call::delete_volume(&"my-ct1".parse().unwrap(), &volume.parse().unwrap(), 15).unwrap();
            Step::plain("remove it", Action::Call { request, task: None })
        };
        let none = Rights::default();
        let mut shared = vec![removal("local:vztmpl/pvemesh-0.1.0-0123456789ab.tar.gz")];
        assert_eq!(review(&token(), &none, V9_1, &mut shared).unwrap().len(), 1);
        assert!(shared.is_empty());
        let mut personal = vec![removal("local:vztmpl/pvemesh-0.1.0-ct101-00000000000000000123456789abcdef.tar.gz")];
        let refusal = review(&token(), &none, V9_1, &mut personal).unwrap_err();
        assert!(refusal.to_string().contains("Datastore.Allocate on /storage/local"), "{refusal}");
    }

    #[test]
    fn root_is_asked_nothing() {
        let mut steps = vec![start(), upload()];
        assert!(paths(&Principal::RootTicket, &steps, V9_1).unwrap().is_empty());
        assert!(review(&Principal::RootTicket, &Rights::default(), V9_1, &mut steps).is_ok());
        assert_eq!(steps.len(), 2);
        let asked = paths(&token(), &steps, V9_1).unwrap();
        assert_eq!(asked.into_iter().collect::<Vec<_>>(), ["/storage/local", "/vms/101"]);
    }

    #[test]
    fn what_is_only_hidden_is_not_called_missing() {
        let none = Rights::default();
        let refusal = explain(Refusal::NoBridge(pve()), &token(), &none);
        assert!(refusal.to_string().contains("SDN.Use"), "{refusal}");
        let some = Rights::read(&json!({"/sdn/zones/localnetwork/vmbr1": {"SDN.Use": 1}}));
        assert!(matches!(explain(Refusal::NoBridge(pve()), &token(), &some), Refusal::NoBridge(_)));
        assert!(matches!(explain(Refusal::NoBridge(pve()), &Principal::RootTicket, &none), Refusal::NoBridge(_)));
    }
}
