//! What a guest is told (its configuration), and what is said of it in Proxmox (mark and notes).

use super::INTERFACE;
use super::maker::Maker;
use crate::plan::mark::{Identity, Mark};
use crate::plan::options::{DEFAULT_BASE_DOMAIN, Join, NodeKind, Role};
use crate::plan::render::Notes;
use crate::plan::step::RELAY_PORT;
use crate::settings::{self, DEFAULT_COORDINATOR_PORT, DEFAULT_PORT, Guest, Ipv4Setup, Network};

impl Maker<'_> {
    pub(super) fn mark(&self, ready: bool) -> Mark {
        Mark {
            vmid: self.options.vmid,
            role: self.role.name().to_owned(),
            name: self.name.clone(),
            run: self.run,
            ready,
            identity: Identity::default(),
            fleet: self.options.fleet.clone(),
        }
    }

    pub(super) fn notes(&self) -> Notes {
        Notes::of(&self.guest(), self.role.words(), &self.image.version)
    }

    /// A coordinator's address if none was given: its fixed address, else its name (which a home router's DNS often knows).
    pub(super) fn own_url(&self) -> String {
        match self.options.lan.new_ipv4() {
            Ipv4Setup::Fixed(net) => format!("http://{}:{DEFAULT_COORDINATOR_PORT}", net.addr()),
            Ipv4Setup::Dhcp | Ipv4Setup::None => format!("http://{}:{DEFAULT_COORDINATOR_PORT}", self.name),
        }
    }

    pub(super) fn guest(&self) -> Guest {
        let lan = &self.options.lan;
        let network = Network {
            interface: INTERFACE.to_owned(),
            ipv4: lan.new_ipv4(),
            gateway4: lan.gateway4,
            ipv6: lan.new_ipv6(),
            gateway6: lan.gateway6,
            nameservers: lan.nameservers.clone(),
        };
        let mut guest = Guest { vmid: self.options.vmid, hostname: self.name.clone(), network, node: None, coordinator: None, relay: None };
        match self.role {
            Role::Coordinator { url, base_domain, admin_key, trusted_proxies } => {
                guest.coordinator = Some(settings::Coordinator {
                    url: url.clone().unwrap_or_else(|| self.own_url()),
                    listen: ([0, 0, 0, 0], DEFAULT_COORDINATOR_PORT).into(),
                    admin_keys: vec![*admin_key],
                    base_domain: base_domain.clone().unwrap_or_else(|| DEFAULT_BASE_DOMAIN.to_owned()),
                    front: settings::Front { trusted_proxies: trusted_proxies.clone(), ..settings::Front::default() },
                    relay: settings::EmbeddedRelay::default(),
                });
            }
            Role::Relay { coordinator, address } => {
                let all = |port| std::net::SocketAddr::from((std::net::Ipv6Addr::UNSPECIFIED, port));
                guest.relay = Some(settings::Relay {
                    // The certificate is made before the guest has an address; a name serves as well, for clients are told both.
                    hostname: address.clone().unwrap_or_else(|| self.name.to_string()),
                    verify_url: format!("{}/verify", coordinator.lan_url),
                    listen: all(RELAY_PORT),
                    stun: all(settings::DEFAULT_STUN_PORT),
                });
            }
            Role::Node { kind, join, endpoints, userspace } => {
                let (login_server, server_key, auth_key) = match join {
                    Join::Ours(known) => (known.lan_url.clone(), Some(known.server_key), None),
                    Join::Other { login_server, auth_key } => (login_server.clone(), None, Some(auth_key.clone())),
                };
                guest.node = Some(settings::Node {
                    login_server,
                    server_key,
                    auth_key,
                    port: DEFAULT_PORT,
                    endpoints: endpoints.clone(),
                    advertise_exit_node: *kind == NodeKind::ExitNode,
                    advertise_routes: if let NodeKind::SubnetRouter { routes, .. } = kind { routes.clone() } else { Vec::new() },
                    accept_routes: false,
                    accept_dns: true,
                    snat_subnet_routes: !matches!(kind, NodeKind::SubnetRouter { snat: Some(false), .. }),
                    userspace: *userspace == Some(true),
                    lan_gateway: matches!(kind, NodeKind::SubnetRouter { gateway: Some(true), .. }),
                });
            }
        }
        guest
    }
}
