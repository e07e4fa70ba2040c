//! `pvemesh hook install` and `uninstall`.

use std::path::PathBuf;

use super::Hook;
use crate::cli::connect::{Session, call_failure, config_failure};
use crate::cli::{Exit, Failure, Output};
use crate::plan::hook::{Place, place};
use crate::plan::mark::TAG;
use crate::plan::observed::{Hookscript, Observed};
use crate::pve::{Principal, StorageId, VolumeId, call, machine, reply};
use crate::sys::config::Store;
use crate::sys::pve::{CallError, HostFiles, InstallError, Installer};

fn failure(tried: &str, error: InstallError) -> Failure {
    let (next, exit) = match &error {
        InstallError::File { .. } => ("run it as root on the Proxmox host", Exit::Failed),
        InstallError::Foreign(_) => ("move it away, or name another storage with --storage", Exit::Conflict),
        InstallError::NoSystemd => ("crontab -e: * * * * * pvemesh sync", Exit::Conflict),
        InstallError::Systemd { .. } => ("systemctl status pvemesh-sync.timer shows more", Exit::Failed),
        InstallError::Name(_) => ("put pvemesh, and its settings, into a directory with a plain name", Exit::Usage),
    };
    Failure::new(tried, error, next).exit(exit)
}

fn installer(tried: &str) -> Result<Installer, Failure> {
    let program = std::env::current_exe().map_err(|e| Failure::new(tried, e, "is /proc mounted?"))?;
    let store = Store::open().map_err(config_failure)?;
    let config = std::path::absolute(store.directory()).unwrap_or_else(|_| store.directory().to_owned());
    Installer::new(HostFiles::here(), program, config).map_err(|e| failure(tried, e))
}

/// Whether the files that would be written are a Proxmox host's.
fn is_host() -> bool {
    HostFiles::here().path("/etc/pve").is_dir()
}

fn check_host(tried: &str) -> Result<(), Failure> {
    if is_host() {
        return Ok(());
    }
    let happened = "this machine is no Proxmox host, and a hook lies on the host whose guests it is for";
    Err(Failure::new(tried, happened, "run the same command on the host, as root").exit(Exit::Usage))
}

async fn where_to(session: &Session, wanted: Option<&StorageId>) -> Result<Result<Place, String>, CallError> {
    let storages = machine::read_storages(&session.executor.call(&machine::storages()?).await?)?;
    let hosts = reply::hosts(&session.executor.call(&call::hosts()?).await?)?.len();
    Ok(place(&storages, hosts, wanted))
}

#[derive(serde::Serialize)]
struct Report {
    dry_run: bool,
    changed: bool,
    hookscript: Option<VolumeId>,
    directory: Option<PathBuf>,
    script: &'static str,
    timer: &'static str,
}

fn words(changed: bool) -> &'static str {
    if changed { "installed" } else { "there already" }
}

/// Installs script and timer.
pub(super) async fn install(args: &Hook, output: &Output) -> Result<(), Failure> {
    let tried = "install the hook";
    check_host(tried)?;
    let wanted = args.storage.as_deref().map(str::parse::<StorageId>).transpose();
    let wanted = wanted.map_err(|e| Failure::new(tried, format!("--storage: {e}"), "pvesm status lists the storages").exit(Exit::Usage))?;
    let session = Session::open(&args.connect).await?;
    let found = where_to(&session, wanted.as_ref()).await.map_err(|e| call_failure(tried, &e))?;
    let place = found.map_err(|why| Failure::new(tried, why, "name a storage that is a directory: --storage").exit(Exit::Conflict))?;
    let installer = installer(tried)?;
    let (had_script, had_timer) = (installer.has_script(&place.directory), installer.has_timer());
    let script = if args.dry_run { !had_script } else { installer.install_script(&place.directory).map_err(|e| failure(tried, e))? };
    let timer = match args.no_timer {
        true => None,
        false if args.dry_run => Some(!had_timer),
        false => Some(installer.install_timer().map_err(|e| failure("install the timer (the hook is in its place)", e))?),
    };
    if !place.everywhere {
        let directory = place.directory.display();
        output.note(format!(
            "note: {} ({directory}) is on this host alone: run `pvemesh hook install` on every host, or a guest with the hook does not start there",
            place.volume
        ));
    }
    let report = Report {
        dry_run: args.dry_run,
        changed: script || timer == Some(true),
        hookscript: Some(place.volume.clone()),
        directory: Some(place.directory.clone()),
        script: words(script),
        timer: timer.map_or("left out", words),
    };
    let text = if report.changed {
        let would = if args.dry_run { "would be " } else { "" };
        format!("hook {} ({}): {would}{}; timer: {would}{}", place.volume, place.why, report.script, report.timer)
    } else {
        "nothing to do".to_owned()
    };
    output.result(&report, text);
    Ok(())
}

/// Removes script and timer, and nothing else. Guests that still name the script would not start, so it is taken out of them first.
pub(super) async fn uninstall(args: &Hook, output: &Output) -> Result<(), Failure> {
    let tried = "uninstall the hook";
    check_host(tried)?;
    let wanted = args.storage.as_deref().and_then(|text| text.parse::<StorageId>().ok());
    let session = Session::open(&args.connect).await?;
    let found = where_to(&session, wanted.as_ref()).await.map_err(|e| call_failure(tried, &e))?;
    let installer = installer(tried)?;
    let mut released = Vec::new();
    let place = found.ok();
    if let Some(place) = &place {
        released = release(&session, &place.volume, args.dry_run).await.map_err(|e| call_failure(tried, &e))?;
    }
    let (mut script, mut timer) = (false, false);
    if args.dry_run {
        script = place.as_ref().is_some_and(|place| installer.has_script(&place.directory));
        timer = installer.has_timer();
    } else {
        if let Some(place) = &place {
            script = installer.remove_script(&place.directory).map_err(|e| failure(tried, e))?;
        }
        timer |= installer.remove_timer().map_err(|e| failure(tried, e))?;
    }
    let gone = |was: bool| if was { "removed" } else { "was not there" };
    let value = serde_json::json!({
        "dry_run": args.dry_run, "changed": script || timer || !released.is_empty(), "script": gone(script), "timer": gone(timer),
        "released": released
    });
    let text = if script || timer || !released.is_empty() {
        format!("script: {}; timer: {}; taken out of {} guests", gone(script), gone(timer), released.len())
    } else {
        "nothing to do".to_owned()
    };
    output.result(&value, text);
    Ok(())
}

/// Takes the hook out of every guest that names it.
async fn release(session: &Session, volume: &VolumeId, dry_run: bool) -> Result<Vec<crate::ident::Vmid>, CallError> {
    let executor = &*session.executor;
    let guests = reply::guests(&executor.call(&call::guests()?).await?)?;
    let mut released = Vec::new();
    for guest in guests {
        let place = machine::Guest { host: &guest.host, vmid: guest.vmid, container: guest.container };
        let Ok(value) = executor.call(&machine::config(place)?).await else { continue };
        let config = reply::container_config(&value)?;
        if config.values.get("hookscript").is_none_or(|named| *named != volume.to_string()) {
            continue;
        }
        if !dry_run {
            executor.call(&machine::set_hookscript(place, None)?).await?;
        }
        released.push(guest.vmid);
    }
    Ok(released)
}

/// `pvemesh sync --install-timer`.
pub(in crate::cli) fn install_timer(output: &Output) -> Result<(), Failure> {
    let tried = "install the timer";
    check_host(tried)?;
    let installed = installer(tried)?.install_timer().map_err(|e| failure(tried, e))?;
    let text = if installed { "systemd runs `pvemesh sync` every minute" } else { "nothing to do" };
    output.result(&serde_json::json!({ "changed": installed, "timer": words(installed) }), text);
    Ok(())
}

/// A hook script that new guests will need.
pub(in crate::cli) struct Prepared {
    installer: Installer,
    directory: PathBuf,
}

impl Prepared {
    /// Writes it, unless it is there.
    pub(in crate::cli) fn put(&self) -> Result<(), Failure> {
        self.installer.install_script(&self.directory).map(drop).map_err(|e| failure("install the hook", e))
    }
}

/// The hook for new guests, and what has to be written for it: if we are root on the host. Elsewhere nobody can put it there.
pub(in crate::cli) async fn for_new_guests(session: &Session, observed: &Observed) -> (Hookscript, Option<Prepared>) {
    match prepared(session, observed).await {
        Ok((volume, prepared)) => (Hookscript::Ready(volume), Some(prepared)),
        Err(why) => (Hookscript::Left(why), None),
    }
}

async fn prepared(session: &Session, observed: &Observed) -> Result<(VolumeId, Prepared), String> {
    match &observed.principal {
        principal if !principal.is_root() => return Err("only root@pam may set a hookscript".to_owned()),
        Principal::RootHost => {}
        _ if is_host() => {}
        _ => return Err("it lies on the host, and this is another machine (`pvemesh hook install` there)".to_owned()),
    }
    let place = where_to(session, None).await.map_err(|error| format!("the storages cannot be listed: {error}"))??;
    if !place.everywhere {
        return Err(format!("{}, and a guest whose hook is missing on a host does not start there", place.why));
    }
    let installer = installer("install the hook").map_err(|failure| failure.happened)?;
    if !installer.is_free(&place.directory) {
        return Err(format!("something else is in its place in {}", place.directory.display()));
    }
    Ok((place.volume, Prepared { installer, directory: place.directory }))
}

/// The hook, if it lies where Proxmox finds it on every host.
pub(in crate::cli) async fn ours(session: &Session) -> Option<VolumeId> {
    let place = where_to(session, None).await.ok()?.ok()?;
    let there = is_host() && installer("look for the hook").ok()?.has_script(&place.directory);
    (there && place.everywhere).then_some(place.volume)
}

/// Removes the script that a `create` had installed, once no guest of ours is left, unless the timer says that it is to stay.
pub(in crate::cli) async fn forget_script(session: &Session) {
    let Ok(installer) = installer("remove the hook") else { return };
    if !is_host() || installer.has_timer() {
        return;
    }
    let listed = async {
        let guests = reply::guests(&session.executor.call(&call::guests().ok()?).await.ok()?).ok()?;
        let attached = session.store.ledger().ok()?.attached;
        (!guests.iter().any(|guest| guest.tags.iter().any(|tag| tag == TAG)) && attached.is_empty()).then_some(())
    };
    if listed.await.is_none() {
        return;
    }
    if let Ok(Ok(place)) = where_to(session, None).await
        && let Err(error) = installer.remove_script(&place.directory)
    {
        tracing::debug!(%error, "the hook script stays");
    }
}
