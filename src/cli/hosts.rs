//! Which of several hosts or clusters a command is for: the one named, else the one that has the guest.

use std::collections::BTreeSet;
use std::sync::Arc;

use futures_util::StreamExt as _;

use super::ask::Code;
use super::connect::{ConnectArgs, Session, call_failure, config_failure, reach};
use super::{Exit, Failure, Output};
use crate::ident::Vmid;
use crate::pve::{call, reply};
use crate::sys::config::{Config, Pve, Store};
use crate::sys::pve::{Executor as _, Pvesh};

/// How many are asked at once.
const AT_ONCE: usize = 8;

/// A host or cluster that could not be opened.
pub(super) struct Down {
    /// Its name.
    pub(super) name: String,
    /// Why.
    pub(super) failure: Failure,
}

/// Every way that is set up: what it is called, and how it goes.
pub(super) fn ways(config: &Config) -> Vec<(String, &Pve)> {
    config.pve.iter().chain(&config.host).map(|pve| (name_of(pve), pve)).collect()
}

/// What a host or cluster is called: its name, else the host in its address.
pub(super) fn name_of(pve: &Pve) -> String {
    let bare = pve.url.trim_start_matches("https://").trim_end_matches('/');
    pve.name.clone().unwrap_or_else(|| bare.rsplit_once(':').map_or(bare, |(host, _)| host).to_owned())
}

fn named<'c>(config: &'c Config, name: &str) -> Result<(String, &'c Pve), Failure> {
    let all = ways(config);
    let known: Vec<String> = all.iter().map(|(name, _)| name.clone()).collect();
    all.into_iter().find(|(known, _)| known == name).ok_or_else(|| {
        let known = if known.is_empty() { "none is set up".to_owned() } else { format!("there is {}", known.join(", ")) };
        let next = format!("choose one of them, or set it up: pvemesh init --name {name} --url https://HOST:8006");
        Failure::new("find a Proxmox host", format!("--host: no host or cluster is called {name}; {known}"), next).exit(Exit::Usage)
    })
}

/// Opens the one way there is, or the one named.
pub(super) async fn only(args: &ConnectArgs) -> Result<Session, Failure> {
    let (store, config) = load()?;
    let chosen = match &args.host {
        Some(name) => Some(named(&config, name)?),
        None => {
            let all = ways(&config);
            if all.len() > 1 {
                return Err(which(&all, "several hosts or clusters are set up and this command is for one"));
            }
            all.into_iter().next()
        }
    };
    match chosen {
        Some((name, pve)) => open(&store, &config, &name, pve, &code(args)?).await,
        None => here(store, config),
    }
}

/// Opens the one that has this guest, or an unfinished run for it. A guest that is nowhere yet goes to the only one, or the one named.
pub(super) async fn with_guest(args: &ConnectArgs, vmid: Vmid, output: &Output) -> Result<Session, Failure> {
    let (store, config) = load()?;
    if args.host.is_some() || ways(&config).len() <= 1 {
        return only(args).await;
    }
    let tried = format!("find guest {vmid}");
    let mut found = Vec::new();
    let mut down = Vec::new();
    let code = code(args)?;
    let asked = ways(&config).into_iter().map(|(name, pve)| {
        let (store, config, code) = (&store, &config, &code);
        async move {
            let looked = match open(store, config, &name, pve, code).await {
                Ok(session) => session.has(vmid).await.map(|has| has.then_some(session)),
                Err(failure) => Err(failure),
            };
            (name, looked)
        }
    });
    let asked: Vec<_> = futures_util::stream::iter(asked).buffered(AT_ONCE).collect().await;
    for (name, looked) in asked {
        match looked {
            Ok(Some(session)) => found.push((name, session)),
            Ok(None) => {}
            Err(failure) => down.push(Down { name, failure }),
        }
    }
    say_down(&down, output);
    if found.len() > 1 {
        let names: Vec<&str> = found.iter().map(|(name, _)| name.as_str()).collect();
        let next = format!("say which: --host {}", names.join(" or --host "));
        return Err(Failure::new(tried, format!("{} have a guest {vmid}", names.join(" and ")), next).exit(Exit::Conflict));
    }
    match (found.pop(), down.is_empty()) {
        (Some((_, session)), _) => Ok(session),
        (None, false) => {
            let names: Vec<&str> = down.iter().map(|d| d.name.as_str()).collect();
            let happened = format!("no host that answers has it, and {} cannot be asked", names.join(", "));
            Err(Failure::new(tried, happened, "bring it up, or name another one with --host").exit(Exit::Unreachable))
        }
        (None, true) => Err(which(&ways(&config), &format!("none of them has a guest {vmid}"))),
    }
}

/// Opens all of them; those that cannot be are said, and do not keep the others away.
///
/// # Errors
/// If none could be opened.
pub(super) async fn all(args: &ConnectArgs, output: &Output) -> Result<Vec<(Option<String>, Session)>, Failure> {
    let (store, config) = load()?;
    if args.host.is_some() || ways(&config).len() <= 1 {
        return Ok(vec![(None, only(args).await?)]);
    }
    let (mut sessions, mut down) = (Vec::new(), Vec::new());
    for (name, opened) in opened(&store, &config, &code(args)?).await {
        match opened {
            Ok(session) => sessions.push((Some(name), session)),
            Err(failure) => down.push(Down { name, failure }),
        }
    }
    say_down(&down, output);
    match (sessions.is_empty(), down.into_iter().next()) {
        (true, Some(first)) => Err(first.failure),
        _ => Ok(sessions),
    }
}

/// Opens these, by name; all that are set up without names. Every one of them has to answer.
///
/// # Errors
/// At the first that is unknown or cannot be opened.
pub(super) async fn each(args: &ConnectArgs, wanted: Option<&BTreeSet<String>>) -> Result<Vec<(Option<String>, Session)>, Failure> {
    let (store, config) = load()?;
    let one = args.host.clone().map(|name| BTreeSet::from([name]));
    let wanted = one.as_ref().or(wanted);
    for name in wanted.into_iter().flatten() {
        named(&config, name)?;
    }
    if ways(&config).is_empty() {
        return Ok(vec![(None, here(store, config)?)]);
    }
    let code = code(args)?;
    let chosen = ways(&config).into_iter().filter(|(name, _)| wanted.is_none_or(|wanted| wanted.contains(name)));
    let opening = chosen.map(|(name, pve)| {
        let (store, config, code) = (&store, &config, &code);
        async move {
            let opened = open(store, config, &name, pve, code).await;
            let opened = opened.map_err(|failure| Failure { happened: format!("{name}: {}", failure.happened), ..failure });
            opened.map(|session| (Some(name), session))
        }
    });
    let opened: Vec<_> = futures_util::stream::iter(opening).buffered(AT_ONCE).collect().await;
    opened.into_iter().collect()
}

fn say_down(down: &[Down], output: &Output) {
    for Down { name, failure } in down {
        output.note(format!("{name} is left out: {}: {}\n  next: {}", failure.tried, failure.happened, failure.next));
    }
}

fn which(all: &[(String, &Pve)], why: &str) -> Failure {
    let names: Vec<&str> = all.iter().map(|(name, _)| name.as_str()).collect();
    let next = format!("say which: --host {}", names.join(" or --host "));
    Failure::new("find a Proxmox host", format!("{why} ({})", names.join(", ")), next).exit(Exit::Usage)
}

fn code(args: &ConnectArgs) -> Result<Arc<Code>, Failure> {
    Ok(Arc::new(Code::new(args.otp.as_deref(), args.otp_file.as_ref())?))
}

fn load() -> Result<(Store, Config), Failure> {
    let store = Store::open().map_err(config_failure)?;
    let config = store.load().map_err(config_failure)?;
    Ok((store, config))
}

async fn opened(store: &Store, config: &Config, code: &Arc<Code>) -> Vec<(String, Result<Session, Failure>)> {
    let each = ways(config).into_iter().map(|(name, pve)| async move {
        let opened = open(store, config, &name, pve, code).await;
        (name, opened)
    });
    futures_util::stream::iter(each).buffered(AT_ONCE).collect().await
}

async fn open(store: &Store, config: &Config, name: &str, pve: &Pve, code: &Arc<Code>) -> Result<Session, Failure> {
    let https = reach(pve, code).await?;
    tracing::debug!(%name, place = %https.place(), "opened");
    let mut config = config.clone();
    // The guest of that number here is another one.
    if let Some(coordinator) = config.coordinator.as_mut().filter(|coordinator| coordinator.host != pve.name) {
        coordinator.vmid = None;
    }
    Ok(Session::new(Box::new(https), store.scoped(pve.name.as_deref()), config))
}

fn here(store: Store, config: Config) -> Result<Session, Failure> {
    if Pvesh::is_here() {
        return Ok(Session::new(Box::new(Pvesh::default()), store, config));
    }
    let happened = "this is no Proxmox host (or we are not its root), and no other one is set up";
    let next = "on the host, run it as root; elsewhere: pvemesh init --url https://HOST:8006 --user root@pam";
    Err(Failure::new("find a Proxmox host", happened, next).exit(Exit::Usage))
}

impl Session {
    /// Whether this cluster has the guest, or an unfinished run of ours for it.
    async fn has(&self, vmid: Vmid) -> Result<bool, Failure> {
        if self.store.journal(vmid).map_err(config_failure)?.is_some() {
            return Ok(true);
        }
        let tried = "list the guests";
        let request = call::guests().map_err(|e| call_failure(tried, &e.into()))?;
        let reply = self.executor.call(&request).await.map_err(|e| call_failure(tried, &e))?;
        let guests = reply::guests(&reply).map_err(|e| call_failure(tried, &e.into()))?;
        Ok(guests.iter().any(|guest| guest.vmid == vmid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_without_a_name_is_called_as_in_its_address() {
        let at = |url: &str| name_of(&Pve { url: url.to_owned(), ..Pve::default() });
        assert_eq!(at("https://pve.lan:8006/"), "pve.lan");
        assert_eq!(at("https://192.168.1.2"), "192.168.1.2");
        assert_eq!(at("https://[fd00::2]:8006/"), "[fd00::2]");
        let named = Pve { name: Some("office".to_owned()), url: "https://pve".to_owned(), ..Pve::default() };
        assert_eq!(name_of(&named), "office");
    }
}
