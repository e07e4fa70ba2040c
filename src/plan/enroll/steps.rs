//! The steps that put a node into a container: what is wanted and what is there, compared.

use std::collections::BTreeMap;

use ipnet::IpNet;

use super::{Device, ENROLLED, Found, KEY_LIFE_SECS, ONLINE_LIMIT, Outcome, REBOOT_LIMIT, Record, TUN, Wanted, names, restored};
use crate::ident::{NodeName, Secret};
use crate::plan::block;
use crate::plan::choose::Choice;
use crate::plan::create::{OWNER, Plan};
use crate::plan::guest::{Command, RECORD, SETTINGS, Service};
use crate::plan::inside::{Changed, Content, Deed, InsideAction, UndoDeed};
use crate::plan::mark::{Mark, RunId, TAG};
use crate::plan::observed::Target;
use crate::plan::options::{Join, NodeKind};
use crate::plan::refusal::Refusal;
use crate::plan::render::{self, Notes};
use crate::plan::step::{Action, Step, Undo};
use crate::pve::{Method, Request, call};
use crate::settings::{self, DEFAULT_PORT, Guest, Ipv4Setup, Ipv6Setup, Network};
use crate::wire::admin::CreateKey;

/// Seconds a guest gets to end by itself before it is started again.
const GRACE_SECS: u16 = 30;

/// One container to be enrolled.
pub(super) struct Maker<'a> {
    pub(super) wanted: &'a Wanted,
    pub(super) found: &'a Found,
    pub(super) target: &'a Target,
    pub(super) mark: Option<Mark>,
    pub(super) name: NodeName,
    pub(super) service: Service,
    pub(super) program: String,
    pub(super) device: Device,
    pub(super) naming: names::Naming,
    pub(super) run: RunId,
}

impl Maker<'_> {
    /// What to do.
    pub(super) fn outcome(self) -> Result<Outcome, Refusal> {
        let steps = self.steps()?;
        let host = self.target.host.clone();
        if steps.is_empty() {
            return Ok(Outcome::NothingToDo { name: self.name, host });
        }
        let choices = self.choices();
        let role = self.wanted.kind.word();
        Ok(Outcome::Plan(Plan {
            vmid: self.wanted.vmid,
            name: self.name,
            role,
            host,
            run: self.run,
            choices,
            differences: Vec::new(),
            steps,
        }))
    }

    fn choices(&self) -> Vec<Choice> {
        let choice = |what, value: String, why: &str| Choice { what, value, why: why.to_owned() };
        let why_name = if self.wanted.name.is_some() { "given with --name" } else { "the container's" };
        let mut choices = vec![
            choice("name", self.name.to_string(), why_name),
            choice("program", self.program.clone(), "the first writable place of the search path"),
            choice("service", self.service.to_string(), "what the container has"),
        ];
        choices.push(match &self.device {
            Device::There if self.wanted.userspace => choice("TUN", "none".to_owned(), "--tun userspace"),
            Device::There => choice("TUN", "as it is".to_owned(), "the container can open it"),
            Device::Kept(key) => choice("TUN", key.clone(), "it is there, and passed through for the next start"),
            Device::HotPlugged(key) => choice("TUN", key.clone(), "plugged into the running container"),
            Device::AtRestart(key) => choice("TUN", key.clone(), "the container is restarted (--restart)"),
            Device::RestartAlone => choice("TUN", "as it is".to_owned(), "the container is restarted (--restart)"),
        });
        choices.push(self.naming.choice());
        choices
    }

    fn inside(&self, deed: Deed) -> Action {
        Action::Inside(InsideAction { host: self.target.host.clone(), vmid: self.wanted.vmid, deed })
    }

    pub(super) fn is_new(&self) -> bool {
        self.found.record.is_none() || self.mark.is_none()
    }

    fn steps(&self) -> Result<Vec<Step>, Refusal> {
        let settings = self.settings();
        render::guest(&settings)?;
        let service_text = render::service(self.service, &self.program)?;
        let joins =
            self.is_new() || self.found.settings.is_none() || self.found.approved.is_none() && matches!(self.wanted.join, Join::Ours(_));
        let new_settings = joins || self.found.settings.as_ref() != Some(&settings);
        let new_service = service_text.is_some() && self.found.service_file != service_text;
        let mut steps = Vec::new();
        if joins {
            steps.extend(self.mint_key());
        }
        self.push_device(&mut steps)?;
        if self.is_new() {
            let action = self.inside(Deed::Program { source: self.wanted.program.clone(), to: self.program.clone() });
            steps.push(Step::undone_by("put the program in", action, self.undo_all()));
        }
        let files = steps.len();
        let record = self.record();
        if self.found.record.as_ref() != Some(&record) {
            steps.push(Step::plain("record what is changed", self.write(RECORD, 0o600, Content::Text(record.to_string()))));
        }
        if new_settings {
            let action = self.write(SETTINGS, 0o600, Content::Settings(Box::new(settings)));
            let undo = (joins && self.is_new()).then(|| self.undo_node()).flatten();
            steps.push(Step { title: "write the node's settings".to_owned(), action, undo });
        }
        if let (true, Some(text), Some((path, mode))) = (new_service, service_text, self.service.file()) {
            steps.push(Step::plain(format!("describe the service to {}", self.service), self.write(path, mode, Content::Text(text))));
        }
        // What was never there goes with the program; what was there is put back, by the first step that may change a file.
        if let Some(first) = steps.get_mut(files).filter(|_| !self.is_new()) {
            first.undo = Some(self.undo_files()?);
        }
        self.push_start(&mut steps, joins, new_settings, new_service)?;
        self.push_approval(&mut steps, joins);
        if new_settings {
            steps.push(self.wait());
        }
        self.push_names(&mut steps);
        self.push_notes(&mut steps);
        Ok(steps)
    }

    fn push_device(&self, steps: &mut Vec<Step>) -> Result<(), Refusal> {
        let (Device::Kept(key) | Device::HotPlugged(key) | Device::AtRestart(key)) = &self.device else { return Ok(()) };
        let request = self.put().with(key, TUN);
        let keys = BTreeMap::from([(key.clone(), Changed { before: None, after: Some(TUN.to_owned()) })]);
        let title = format!("pass {TUN} through ({key})");
        steps.push(Step::undone_by(title, Action::Call { request, task: None }, self.undo(UndoDeed::Restore { keys })));
        Ok(())
    }

    fn push_start(&self, steps: &mut Vec<Step>, joins: bool, new_settings: bool, new_service: bool) -> Result<(), Refusal> {
        let needs_restart = matches!(self.device, Device::AtRestart(_) | Device::RestartAlone);
        if needs_restart {
            // Nothing is started before it: the service could not open the device.
            let request = call::reboot(&self.target.host, self.wanted.vmid, GRACE_SECS)?;
            steps.push(Step::plain(format!("restart container {}", self.wanted.vmid), Action::Call { request, task: Some(REBOOT_LIMIT) }));
        }
        let run = |commands: Vec<Command>| self.inside(Deed::Run { commands, with_key: false });
        if self.is_new() {
            let undo = self.undo(UndoDeed::Run { commands: self.service.disable() });
            steps.push(Step::undone_by("start the service", run(self.service.enable()), undo));
        } else if new_service || new_settings {
            // It ran before, and runs again when the files are as they were.
            let enable = if new_service { self.service.enable() } else { Vec::new() };
            let commands: Vec<Command> = enable.into_iter().chain(self.service.restart()).collect();
            let undo = joins.then(|| self.undo_node()).flatten();
            steps.push(Step { title: "restart the service".to_owned(), action: run(commands), undo });
        }
        Ok(())
    }

    /// A node that is in already is let carry what it offers now.
    fn push_approval(&self, steps: &mut Vec<Step>, joins: bool) {
        let routes = self.wanted.kind.offers();
        if let Some(approved) = self.found.approved.as_ref().filter(|_| !joins) {
            let same = approved.len() == routes.len() && routes.iter().all(|route| approved.contains(route));
            if !same {
                let only = |one: &[IpNet], other: &[IpNet]| one.iter().filter(|net| !other.contains(net)).copied().collect();
                let (name, add, remove) = (self.name.clone(), only(approved, &routes), only(&routes, approved));
                let action = self.inside(Deed::Approve { name: name.clone(), routes });
                steps.push(Step::undone_by("let it carry these networks", action, Undo::ApproveRoutes { name, add, remove }));
            }
        }
    }

    fn push_names(&self, steps: &mut Vec<Step>) {
        let mut keys = self.naming.keys(self.target);
        let tags: Vec<&str> = self.target.config.tags.iter().map(String::as_str).collect();
        let ours = [TAG, self.wanted.kind.word()];
        if ours.iter().any(|tag| !tags.contains(tag)) {
            let stale = ["node", "exit-node", "subnet-router"];
            let old = self.mark.is_some();
            let kept = tags.iter().copied().filter(|tag| !(old && stale.contains(tag)));
            let mut all: Vec<&str> = kept.chain(ours).collect();
            all.sort_unstable();
            all.dedup();
            let before = self.target.config.values.get("tags").cloned();
            keys.insert("tags".to_owned(), Changed { before, after: Some(all.join(";")) });
        }
        if keys.is_empty() {
            return;
        }
        let request = restored(self.put(), &keys, |changed| changed.after.clone());
        let title = format!("set {}", keys.keys().map(String::as_str).collect::<Vec<_>>().join(", "));
        steps.push(Step::undone_by(title, Action::Call { request, task: None }, self.undo(UndoDeed::Restore { keys })));
    }

    fn push_notes(&self, steps: &mut Vec<Step>) {
        let same = self.mark.as_ref().is_some_and(|mark| mark.ready && mark.role == self.role() && mark.name == self.name);
        if same && steps.is_empty() {
            return;
        }
        let mark = Mark {
            vmid: self.wanted.vmid,
            role: self.role(),
            name: self.name.clone(),
            run: self.run,
            ready: true,
            identity: self.mark.as_ref().map(|mark| mark.identity).unwrap_or_default(),
            fleet: None,
        };
        let deed = Deed::Notes { ours: Some(Box::new((self.notes(), mark))) };
        let before = block::part(&self.target.config.description).map(str::to_owned);
        steps.push(Step::undone_by("write the notes", self.inside(deed), self.undo(UndoDeed::Notes { run: self.run, before })));
    }

    fn role(&self) -> String {
        format!("{ENROLLED}{}", self.wanted.kind.word())
    }

    fn put(&self) -> Request {
        Request::new(Method::Put, format!("/nodes/{}/lxc/{}/config", self.target.host, self.wanted.vmid))
    }

    fn write(&self, to: &str, mode: u32, content: Content) -> Action {
        self.inside(Deed::Write { program: self.program.clone(), to: to.to_owned(), mode, content })
    }

    fn mint_key(&self) -> Option<Step> {
        let Join::Ours(_) = self.wanted.join else { return None };
        let key = CreateKey {
            user: OWNER.to_owned(),
            reusable: false,
            ephemeral: false,
            expires_in_secs: KEY_LIFE_SECS,
            tags: vec![format!("tag:{}", self.wanted.kind.word())],
            approve_routes: self.wanted.kind.offers(),
            only_for: Some(self.name.clone()),
            address: None,
        };
        Some(Step::undone_by(format!("make a join key for {}", self.name), Action::MintKey(key), Undo::RevokeKey { id: None }))
    }

    fn wait(&self) -> Step {
        let (host, vmid, name) = (self.target.host.clone(), self.wanted.vmid, self.name.clone());
        let title = format!("wait for {name} to join");
        match self.wanted.join {
            Join::Ours(_) => Step::plain(title, Action::AwaitNode { name, limit: ONLINE_LIMIT }),
            Join::Other { .. } => Step::plain(title, Action::AwaitMeshAddress { host, vmid, limit: ONLINE_LIMIT }),
        }
    }

    fn record(&self) -> Record {
        let old = self.found.record.clone();
        let mut before = old.as_ref().map(|record| record.before.clone()).unwrap_or_default();
        for (key, changed) in self.naming.keys(self.target) {
            before.entry(key).or_insert(changed.before);
        }
        let device = match &self.device {
            Device::Kept(key) | Device::HotPlugged(key) | Device::AtRestart(key) => Some(key.clone()),
            Device::There | Device::RestartAlone => old.and_then(|record| record.device),
        };
        Record { program: self.program.clone(), service: self.service, device, before }
    }

    fn settings(&self) -> Guest {
        let (login_server, server_key, auth_key): (String, _, Option<Secret>) = match &self.wanted.join {
            Join::Ours(known) => (known.lan_url.clone(), Some(known.server_key), None),
            // Once it is in, it has no use for the key.
            Join::Other { login_server, auth_key } => (login_server.clone(), None, self.is_new().then(|| auth_key.clone())),
        };
        let kind = &self.wanted.kind;
        let node = settings::Node {
            login_server,
            server_key,
            auth_key,
            port: DEFAULT_PORT,
            endpoints: self.wanted.endpoints.clone(),
            advertise_exit_node: *kind == NodeKind::ExitNode,
            advertise_routes: if let NodeKind::SubnetRouter { routes, .. } = kind { routes.clone() } else { Vec::new() },
            accept_routes: self.wanted.accept_routes,
            accept_dns: self.naming.by_node(),
            snat_subnet_routes: !matches!(kind, NodeKind::SubnetRouter { snat: Some(false), .. }),
            userspace: self.wanted.userspace,
            lan_gateway: matches!(kind, NodeKind::SubnetRouter { gateway: Some(true), .. }),
        };
        // The container's own system sets its interfaces up.
        let network = Network {
            interface: "eth0".to_owned(),
            ipv4: Ipv4Setup::None,
            gateway4: None,
            ipv6: Ipv6Setup::None,
            gateway6: None,
            nameservers: Vec::new(),
        };
        Guest { vmid: self.wanted.vmid, hostname: self.name.clone(), network, node: Some(node), coordinator: None, relay: None }
    }

    fn notes(&self) -> Notes {
        let coordinator = match &self.wanted.join {
            Join::Ours(known) => known.lan_url.clone(),
            Join::Other { login_server, .. } => login_server.clone(),
        };
        Notes {
            vmid: self.wanted.vmid,
            name: self.name.clone(),
            role: self.wanted.kind.word().replace('-', " "),
            coordinator,
            offers: self.wanted.kind.offers(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            told: None,
        }
    }
}
