//! Reads what a whole fleet's plan looks at, with as few calls as will do: one for all guests (of each cluster), one for each declared guest
//! that is there, and those about hosts only if something has to be made or changed.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};

use super::{CallError, Executor, observe};
use crate::ident::{NodeId, NodeName, Vmid};
use crate::plan::fleet::View;
use crate::plan::observed::{Hookscript, Observed, Target};
use crate::pve::reply::GuestSummary;

/// Configurations read at once; a host has three workers for its API.
const AT_ONCE: usize = 6;

/// Reads the declared ones of these guests, without the hosts.
///
/// # Errors
/// If the API cannot be read.
pub async fn look(
    executor: &dyn Executor,
    guests: Vec<GuestSummary>,
    declared: &BTreeSet<Vmid>,
    mesh: Vec<(NodeId, NodeName)>,
) -> Result<View, CallError> {
    let targets = targets(executor, guests.iter().filter(|guest| declared.contains(&guest.vmid))).await?;
    let observed = Observed {
        principal: executor.principal(),
        local: None,
        hosts: Vec::new(),
        guests,
        mesh,
        goldens: Vec::new(),
        target: None,
        hookscript: Hookscript::default(),
    };
    Ok(View { observed, targets })
}

/// Reads the configurations of those of these guests that are containers.
///
/// # Errors
/// If the API cannot be read.
pub async fn targets<'g>(
    executor: &dyn Executor,
    guests: impl IntoIterator<Item = &'g GuestSummary>,
) -> Result<BTreeMap<Vmid, Target>, CallError> {
    let there: Vec<_> = guests.into_iter().filter(|guest| guest.container).cloned().collect();
    stream::iter(there)
        .map(|guest| async move {
            let target = if guest.running {
                let config = observe::container_config(executor, &guest.host, guest.vmid).await?;
                config.map(|config| Target { host: guest.host.clone(), config, running: true })
            } else {
                // The list is some ten seconds old; a guest that looks stopped may just have been started.
                observe::container(executor, &guest.host, guest.vmid).await?
            };
            Ok::<_, CallError>(target.map(|target| (guest.vmid, target)))
        })
        .buffer_unordered(AT_ONCE)
        .try_filter_map(|found| async move { Ok(found) })
        .try_collect()
        .await
}

/// Adds the hosts, and the golden containers on them.
///
/// # Errors
/// If the API cannot be read.
pub async fn look_at_hosts(executor: &dyn Executor, view: &mut View) -> Result<(), CallError> {
    view.observed.hosts = observe::hosts(executor).await?;
    view.observed.goldens = observe::goldens(executor, &view.observed.guests).await?;
    Ok(())
}
