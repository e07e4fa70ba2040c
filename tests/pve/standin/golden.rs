//! Containers turned into templates.

use serde_json::Value;

use super::guests::{id_of, no_config};
use super::http::Reply;
use super::schema::Params;
use super::{Context, tasks};

/// `POST template`: replies at once, while a task renames the volume.
pub fn make_template(context: &Context, params: &Params) -> Result<Reply, Reply> {
    let core = &context.core;
    let id = id_of(params);
    {
        let inner = core.inner.lock().unwrap();
        let config = inner.guests.get(&id).ok_or_else(|| Reply::died(&no_config(context, id)))?;
        if let Some(lock) = &config.lock {
            return Err(Reply::died(&format!("CT is locked ({lock})")));
        }
        if config.is_set("template") {
            return Err(Reply::died("you can't convert a template to a template"));
        }
        if core.options.backend.pid(id).is_some() {
            return Err(Reply::died("you can't convert a running CT to a template"));
        }
    }
    let shared = core.clone();
    tasks::spawn(context, "vztemplate", &id.to_string(), move |log| {
        log.checkpoint()?;
        let mut inner = shared.inner.lock().unwrap();
        let config = inner.guests.get_mut(&id).ok_or_else(|| "it is gone".to_owned())?;
        let volume = config.get("rootfs").unwrap_or_default().replace(&format!("vm-{id}-"), &format!("base-{id}-"));
        config.set("rootfs", &volume);
        config.set("template", "1");
        shared.save(&inner, id);
        Ok(())
    });
    Ok(Reply::data(Value::Null))
}
