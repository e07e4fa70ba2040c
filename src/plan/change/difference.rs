//! What is asked for compared with what is there, option by option.
//!
//! An option that was not given is not compared: it stays as it is.

use std::collections::BTreeMap;

use ipnet::IpNet;

use crate::ident::NodeName;
use crate::plan::observed::{Observed, Target};
use crate::plan::options::{GuestOptions, Join, NodeKind, Role};
use crate::plan::refusal::Refusal;
use crate::pve::{Device, Properties};
use crate::settings::{self, Guest, Ipv4Setup, Ipv6Setup};

/// One thing that is to be another.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Difference {
    /// What, as the option is called.
    pub what: &'static str,
    /// As it is.
    pub from: String,
    /// As it is wanted.
    pub to: String,
}

/// Everything that differs, in the places where it is changed.
#[derive(Debug, Clone, Default)]
pub(super) struct Differences {
    /// For people.
    pub(super) all: Vec<Difference>,
    /// The container's configuration: what is set.
    pub(super) set: BTreeMap<&'static str, String>,
    /// The guest's own settings, if any of them differs.
    pub(super) guest: Option<Guest>,
    /// Its new name.
    pub(super) name: Option<NodeName>,
    /// Networks that it is to carry from now on, and those that it is not to carry any more.
    pub(super) routes: Option<(Vec<IpNet>, Vec<IpNet>)>,
}

/// A guest that is there, and what is asked of it.
pub(super) struct Comparison<'a> {
    pub(super) options: &'a GuestOptions,
    pub(super) role: &'a Role,
    pub(super) target: &'a Target,
    pub(super) name: &'a NodeName,
    /// What it was told.
    pub(super) told: Option<&'a Guest>,
    pub(super) observed: &'a Observed,
}

impl Comparison<'_> {
    pub(super) fn differences(&self) -> Result<Differences, Refusal> {
        self.place()?;
        let mut found = Differences::default();
        self.resources(&mut found);
        let mut settings = Settings { guest: self.told.cloned(), found: &mut found, changed: false };
        self.name(&mut settings)?;
        self.network(&mut settings)?;
        match self.role {
            Role::Coordinator { url, base_domain, trusted_proxies, .. } => {
                if let Some(told) = settings.guest.as_mut().and_then(|guest| guest.coordinator.as_mut()) {
                    let mut told = told.clone();
                    settings.set_if("url", url.as_ref(), &mut told.url);
                    settings.set_if("base domain", base_domain.as_ref(), &mut told.base_domain);
                    settings.set_list("trusted proxies", trusted_proxies, &mut told.front.trusted_proxies);
                    settings.put(|guest| guest.coordinator = Some(told));
                } else if url.is_some() || base_domain.is_some() || !trusted_proxies.is_empty() {
                    return Err(self.untold());
                }
            }
            Role::Relay { address, .. } => match (settings.guest.as_ref().and_then(|guest| guest.relay.clone()), address) {
                (Some(mut told), _) => {
                    settings.set_if("address", address.as_ref(), &mut told.hostname);
                    settings.put(|guest| guest.relay = Some(told));
                }
                (None, Some(_)) => return Err(self.untold()),
                (None, None) => {}
            },
            Role::Node { .. } => self.node(&mut settings)?,
        }
        let Settings { guest, changed, .. } = settings;
        if changed {
            found.guest = Some(guest.ok_or_else(|| self.untold())?);
        }
        Ok(found)
    }

    fn untold(&self) -> Refusal {
        Refusal::Untold { vmid: self.options.vmid }
    }

    fn cannot(&self, what: &'static str, is: impl ToString, wanted: impl ToString, next: String) -> Refusal {
        Refusal::CannotChange { vmid: self.options.vmid, what, is: is.to_string(), wanted: wanted.to_string(), next }
    }

    /// Where it is: Proxmox moves guests, we do not.
    fn place(&self) -> Result<(), Refusal> {
        let vmid = self.options.vmid;
        if let Some(wanted) = self.options.host.as_ref().filter(|wanted| **wanted != self.target.host) {
            let next = format!("move it with Proxmox: pct migrate {vmid} {wanted} --restart");
            return Err(self.cannot("node", &self.target.host, wanted, next));
        }
        let root = self.target.config.values.get("rootfs").and_then(|root| root.split_once(':')).map_or("", |(storage, _)| storage);
        match &self.options.storage {
            Some(wanted) if !root.is_empty() && wanted.as_str() != root => {
                let next = format!("move it with Proxmox: pct move-volume {vmid} rootfs {wanted}");
                Err(self.cannot("storage", root, wanted, next))
            }
            _ => Ok(()),
        }
    }

    fn resources(&self, found: &mut Differences) {
        for (what, wanted) in [("memory", self.options.memory), ("cores", self.options.cores.map(u32::from))] {
            let Some(wanted) = wanted.map(|wanted| wanted.to_string()) else { continue };
            let is = self.target.config.values.get(what).cloned().unwrap_or_default();
            if is != wanted {
                found.set.insert(what, wanted.clone());
                found.all.push(Difference { what, from: is, to: wanted });
            }
        }
    }

    fn name(&self, settings: &mut Settings<'_>) -> Result<(), Refusal> {
        let Some(wanted) = self.options.name.as_ref().filter(|wanted| *wanted != self.name) else { return Ok(()) };
        let holder = self.observed.guests.iter().find(|guest| guest.name == wanted.as_str() && guest.vmid != self.options.vmid);
        if let Some(guest) = holder {
            return Err(Refusal::NameTaken { name: wanted.to_string(), by: format!("guest {}", guest.vmid) });
        }
        if self.observed.mesh.iter().any(|(_, node)| node == wanted) {
            return Err(Refusal::NameTaken { name: wanted.to_string(), by: "a node of the coordinator".to_owned() });
        }
        settings.found.set.insert("hostname", wanted.to_string());
        settings.found.name = Some(wanted.clone());
        settings.differs("name", self.name, wanted);
        settings.put(|guest| guest.hostname = wanted.clone());
        Ok(())
    }

    /// The interface as Proxmox has it, and as the guest sets it up.
    fn network(&self, settings: &mut Settings<'_>) -> Result<(), Refusal> {
        let lan = &self.options.lan;
        let kept = self.target.config.values.get("net0").cloned().unwrap_or_default();
        let mut net = Properties::parse(&kept, "name");
        if let Some(wanted) = &self.options.bridge {
            let is = net.value("bridge").unwrap_or_default().to_owned();
            if is != wanted.as_str() {
                settings.found.all.push(Difference { what: "bridge", from: is, to: wanted.to_string() });
                net.set("bridge", wanted.as_str());
            }
        }
        if lan.ipv4.is_some() || lan.ipv6.is_some() || !lan.nameservers.is_empty() {
            let Some(told) = settings.guest.as_ref().map(|guest| guest.network.clone()) else { return Err(self.untold()) };
            let mut network = told.clone();
            if let Some(ipv4) = lan.ipv4 {
                (network.ipv4, network.gateway4) = (ipv4, lan.gateway4);
                net.set_or_remove("ip", ipv4_words(ipv4));
                net.set_or_remove("gw", lan.gateway4.map(|gateway| gateway.to_string()));
            }
            if let Some(ipv6) = lan.ipv6 {
                (network.ipv6, network.gateway6) = (ipv6, lan.gateway6);
                net.set_or_remove("ip6", ipv6_words(ipv6));
                net.set_or_remove("gw6", lan.gateway6.map(|gateway| gateway.to_string()));
            }
            if !lan.nameservers.is_empty() {
                network.nameservers.clone_from(&lan.nameservers);
            }
            if network != told {
                let moves = (network.ipv4, network.gateway4) != (told.ipv4, told.gateway4);
                if moves && matches!(self.role, Role::Coordinator { .. }) {
                    let next =
                        "its nodes know it by that address; make a coordinator with --url of a name first, or keep the address".to_owned();
                    return Err(self.cannot("address", setup_words(&told), setup_words(&network), next));
                }
                settings.differs("address", setup_words(&told), setup_words(&network));
                settings.put(|guest| guest.network = network);
            }
        }
        let wanted = net.to_string();
        if wanted != kept && !kept.is_empty() {
            settings.found.set.insert("net0", wanted);
        }
        Ok(())
    }

    fn node(&self, settings: &mut Settings<'_>) -> Result<(), Refusal> {
        let Role::Node { kind, join, endpoints, userspace } = self.role else { return Ok(()) };
        let Some(mut told) = settings.guest.as_ref().and_then(|guest| guest.node.clone()) else {
            // What it was told is not known; what is asked must not depend on it.
            let asks = !endpoints.is_empty() || userspace.is_some() || matches!(kind, NodeKind::SubnetRouter { .. });
            return if asks { Err(self.untold()) } else { Ok(()) };
        };
        let server = match join {
            Join::Ours(known) => &known.lan_url,
            Join::Other { login_server, .. } => login_server,
        };
        if *server != told.login_server {
            let next = format!("keep it there, or make another one and remove this: pvemesh destroy {}", self.options.vmid);
            return Err(self.cannot("coordinator", &told.login_server, server, next));
        }
        settings.set_list("endpoints", endpoints, &mut told.endpoints);
        settings.set_if("without a TUN", userspace.as_ref(), &mut told.userspace);
        if *userspace == Some(false) && !self.target.config.values.values().any(|value| value.starts_with(Device::TUN_PATH)) {
            settings.found.set.insert("dev0", Device::Tun.to_string());
        }
        if let NodeKind::SubnetRouter { routes, lan, snat, gateway } = kind {
            let wanted = self.routes(routes, *lan, &told)?;
            let (was, is) = (told.advertise_routes.clone(), wanted);
            settings.set_list("routes", &is, &mut told.advertise_routes);
            if was != is {
                let only = |one: &[IpNet], other: &[IpNet]| one.iter().filter(|net| !other.contains(net)).copied().collect::<Vec<_>>();
                settings.found.routes = Some((only(&is, &was), only(&was, &is)));
            }
            settings.set_if("source NAT", snat.as_ref(), &mut told.snat_subnet_routes);
            settings.set_if("LAN gateway", gateway.as_ref(), &mut told.lan_gateway);
        }
        settings.put(|guest| guest.node = Some(told));
        Ok(())
    }

    /// The networks wanted, in the order that they have now. `auto` was resolved when it was first asked for and stays what it was.
    fn routes(&self, named: &[IpNet], auto: bool, told: &settings::Node) -> Result<Vec<IpNet>, Refusal> {
        let mut wanted: Vec<IpNet> = told.advertise_routes.iter().filter(|net| named.contains(net)).copied().collect();
        wanted.extend(named.iter().filter(|net| !told.advertise_routes.contains(net)));
        if !auto {
            return Ok(wanted);
        }
        let resolved = told.advertise_routes.iter().find(|net| !named.contains(net)).copied();
        let fixed = match self.told.map(|guest| guest.network.ipv4) {
            Some(Ipv4Setup::Fixed(net)) => Some(IpNet::from(net).trunc()),
            _ => None,
        };
        let bridge = self.target.config.values.get("net0").map(|net| Properties::parse(net, "name"));
        let bridge = bridge.as_ref().and_then(|net| net.value("bridge")).unwrap_or_default();
        let of_host = self.observed.host(&self.target.host).and_then(|host| host.bridges.iter().find(|b| b.name == bridge));
        let net = resolved.or(fixed).or_else(|| of_host.and_then(|bridge| bridge.address).map(|net| net.trunc()));
        let Some(net) = net else {
            let bridge = bridge.parse().map_err(|e| Refusal::Option(crate::plan::options::OptionError::new("--route", e)))?;
            return Err(Refusal::NoNetwork { host: self.target.host.clone(), bridge });
        };
        if !wanted.contains(&net) {
            wanted.push(net);
        }
        wanted.sort_by_key(|net| told.advertise_routes.iter().position(|old| old == net).unwrap_or(usize::MAX));
        Ok(wanted)
    }
}

/// The guest's settings while they are compared.
struct Settings<'a> {
    guest: Option<Guest>,
    found: &'a mut Differences,
    changed: bool,
}

impl Settings<'_> {
    fn differs(&mut self, what: &'static str, from: impl ToString, to: impl ToString) {
        self.found.all.push(Difference { what, from: from.to_string(), to: to.to_string() });
        self.changed = true;
    }

    fn put(&mut self, change: impl FnOnce(&mut Guest)) {
        if let Some(guest) = &mut self.guest {
            change(guest);
        }
    }

    fn set_if<T: Clone + PartialEq + ToString>(&mut self, what: &'static str, wanted: Option<&T>, is: &mut T) {
        if let Some(wanted) = wanted.filter(|wanted| *wanted != is) {
            self.differs(what, is.to_string(), wanted.to_string());
            *is = wanted.clone();
        }
    }

    /// A list; an empty one was not given.
    fn set_list<T: Clone + PartialEq + ToString>(&mut self, what: &'static str, wanted: &[T], is: &mut Vec<T>) {
        if wanted.is_empty() || wanted == is.as_slice() {
            return;
        }
        let words = |list: &[T]| {
            let all: Vec<String> = list.iter().map(ToString::to_string).collect();
            if all.is_empty() { "none".to_owned() } else { all.join(", ") }
        };
        self.differs(what, words(is), words(wanted));
        *is = wanted.to_vec();
    }
}

fn ipv4_words(setup: Ipv4Setup) -> Option<String> {
    match setup {
        Ipv4Setup::Dhcp => Some("dhcp".to_owned()),
        Ipv4Setup::Fixed(net) => Some(net.to_string()),
        Ipv4Setup::None => None,
    }
}

fn ipv6_words(setup: Ipv6Setup) -> Option<String> {
    match setup {
        Ipv6Setup::Auto => Some("auto".to_owned()),
        Ipv6Setup::Fixed(net) => Some(net.to_string()),
        Ipv6Setup::None => None,
    }
}

fn setup_words(network: &settings::Network) -> String {
    let part = |setup: Option<String>, gateway: Option<String>| {
        let gateway = gateway.map(|gateway| format!(" via {gateway}")).unwrap_or_default();
        format!("{}{gateway}", setup.unwrap_or_else(|| "none".to_owned()))
    };
    let mut words = format!(
        "{}, {}",
        part(ipv4_words(network.ipv4), network.gateway4.map(|g| g.to_string())),
        part(ipv6_words(network.ipv6), network.gateway6.map(|g| g.to_string()))
    );
    if !network.nameservers.is_empty() {
        let all: Vec<String> = network.nameservers.iter().map(ToString::to_string).collect();
        words.push_str(&format!(", DNS {}", all.join(" ")));
    }
    words
}
