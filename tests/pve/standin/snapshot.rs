//! Snapshots of containers: the configuration as it was, and back to it.

use serde_json::json;

use super::backend::Stop;
use super::guests::{guest, id_of};
use super::http::Reply;
use super::lifecycle::{under_lock, unlocked, vm_start, vm_stop};
use super::schema::Params;
use super::tasks::spawn;
use super::{Context, pmxcfs};

fn name_of(params: &Params) -> String {
    params.get("snapname").cloned().unwrap_or_default()
}

/// `GET snapshot`.
///
/// # Errors
/// If there is no such container here.
pub fn list(context: &Context, params: &Params) -> Result<Reply, Reply> {
    let inner = context.core.inner.lock().unwrap();
    let config = guest(context, &inner, id_of(params))?;
    let mut rows: Vec<_> = config
        .snapshots()
        .map(|(name, values)| {
            let get = |key: &str| values.get(key).cloned().unwrap_or_default();
            json!({ "name": name, "description": get("description"), "snaptime": get("snaptime").parse().unwrap_or(0_u64) })
        })
        .collect();
    rows.push(json!({ "name": "current", "description": "You are here!", "digest": config.digest(), "running": 0 }));
    Ok(Reply::data(json!(rows)))
}

/// `POST snapshot`.
///
/// # Errors
/// If the name is taken or the container is locked.
pub fn take(context: &Context, params: &Params) -> Result<Reply, Reply> {
    let (core, id, name) = (context.core.clone(), id_of(params), name_of(params));
    let notes = params.get("description").cloned().unwrap_or_default();
    {
        let inner = core.inner.lock().unwrap();
        let config = guest(context, &inner, id)?;
        unlocked(config).map_err(|why| Reply::died(&why))?;
        if config.snapshots().any(|(known, _)| known == name) {
            return Err(Reply::died(&format!("snapshot name '{name}' already used")));
        }
    }
    Ok(Reply::data(json!(spawn(context, "vzsnapshot", &id.to_string(), move |log| {
        log.checkpoint()?;
        let mut inner = core.inner.lock().unwrap();
        if let Some(config) = inner.guests.get_mut(&id) {
            config.keep_as(&name, &notes);
        }
        pmxcfs::save(&core, &mut inner, id);
        Ok(())
    }))))
}

/// `DELETE snapshot/{snapname}`.
///
/// # Errors
/// If there is no such container here.
pub fn remove(context: &Context, params: &Params) -> Result<Reply, Reply> {
    let (core, id, name) = (context.core.clone(), id_of(params), name_of(params));
    guest(context, &core.inner.lock().unwrap(), id)?;
    Ok(Reply::data(json!(spawn(context, "vzdelsnapshot", &id.to_string(), move |log| {
        log.checkpoint()?;
        let mut inner = core.inner.lock().unwrap();
        let gone = inner.guests.get_mut(&id).is_some_and(|config| config.forget(&name));
        pmxcfs::save(&core, &mut inner, id);
        gone.then_some(()).ok_or_else(|| format!("snapshot '{name}' does not exist"))
    }))))
}

/// `POST snapshot/{snapname}/rollback`: a running container is stopped, and started again only if asked.
///
/// # Errors
/// If there is no such container here.
pub fn rollback(context: &Context, params: &Params) -> Result<Reply, Reply> {
    let (core, host, id, name) = (context.core.clone(), context.host.clone(), id_of(params), name_of(params));
    let start = params.get("start").is_some_and(|s| s == "1");
    guest(context, &core.inner.lock().unwrap(), id)?;
    Ok(Reply::data(json!(spawn(context, "vzrollback", &id.to_string(), move |log| {
        under_lock(&core, id, || {
            log.checkpoint()?;
            if core.options.backend.pid(id).is_some() {
                vm_stop(&core, &host, id, Stop::Kill, log)?;
            }
            let back = {
                let mut inner = core.inner.lock().unwrap();
                let back = inner.guests.get_mut(&id).is_some_and(|config| config.go_back_to(&name));
                pmxcfs::save(&core, &mut inner, id);
                back
            };
            if !back {
                return Err(format!("snapshot '{name}' does not exist"));
            }
            if start { vm_start(&core, &host, id, log) } else { Ok(()) }
        })
    }))))
}
