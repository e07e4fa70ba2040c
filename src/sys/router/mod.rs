//! The machine's routing while it is a mesh member: the TUN's addresses, table 52, the policy rules, forwarding and masquerade.
//!
//! [`Router::apply`] compares what is wanted with what the kernel has, changes the difference and says what that was, so it may be called at
//! any time, also to repair what another program removed. What is ours is told by its origin ([`policy_routing::ORIGIN`]), not by memory, so [`Router::clear`] and
//! [`clean_leftovers`] find it after a crash too.
//!
//! It does not make the TUN interface, and does not watch for changes. It works on the network namespace of the thread that made it.

mod changed;
pub(in crate::sys) mod link;
mod routes;
mod rules;

use std::net::IpAddr;
use std::path::PathBuf;

pub use changed::Changed;

use crate::ident::{QUAD100_V4, QUAD100_V6};
use crate::node::RouterConfig;
use crate::node::policy_routing::{self, Family};
use crate::sys::nft::{self, Firewall, NftError, Rules};
use crate::sys::sysctl::{self, Sysctls};
use ipnet::IpNet;

/// Why routing was not set up.
#[derive(Debug, thiserror::Error)]
pub enum RouterError {
    /// A netlink socket could not be opened.
    #[error("open a routing socket: {0}")]
    Open(std::io::Error),
    /// The kernel refused a change.
    #[error("{tried}: {reason}")]
    Netlink {
        /// What was tried.
        tried: String,
        /// What the kernel said.
        reason: String,
    },
    /// The TUN interface does not exist.
    #[error("interface {0} does not exist; start the packet engine first")]
    NoInterface(String),
    /// A program that runs has the TUN interface.
    #[error("another program holds the interface {0}")]
    Held(String),
    /// The name cannot be an interface's.
    #[error("`{0}` is not an interface name: 1 to 15 characters, no `/`, no blanks")]
    Name(String),
    /// A kernel setting could not be changed.
    #[error(transparent)]
    Sysctl(#[from] sysctl::SysctlError),
    /// The firewall table could not be changed.
    #[error(transparent)]
    Firewall(#[from] NftError),
}

/// Holds the machine's routing. Dropping it changes nothing but the firewall table, which the kernel removes with its owner.
#[derive(Debug)]
pub struct Router {
    handle: rtnetlink::Handle,
    connection: tokio::task::JoinHandle<()>,
    firewall: Option<Firewall>,
    sysctls: Sysctls,
}

impl Drop for Router {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

/// Whether a text can be the name of an interface (the kernel's `dev_valid_name`).
pub fn is_interface_name(name: &str) -> bool {
    (1..16).contains(&name.len()) && !matches!(name, "." | "..") && name.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b'/' | b':'))
}

impl Router {
    /// Opens the sockets; changes nothing yet. Previous kernel settings are remembered under `/run/pvemesh`.
    ///
    /// # Errors
    ///
    /// When the kernel gives no routing socket.
    pub async fn new() -> Result<Self, RouterError> {
        Self::with_memory(sysctl::default_memory()).await
    }

    /// The same with another file for the previous kernel settings.
    ///
    /// # Errors
    ///
    /// When the kernel gives no routing socket.
    #[expect(clippy::unused_async, reason = "it needs a running tokio, which an async signature says best")]
    pub async fn with_memory(memory: PathBuf) -> Result<Self, RouterError> {
        // A kernel that knows strict checks lists one table alone; an older one lists everything, which is sorted out here.
        let opened = rtnetlink::new_connection_with_strict_check().or_else(|_| rtnetlink::new_connection());
        let (connection, handle, _) = opened.map_err(RouterError::Open)?;
        Ok(Self { handle, connection: tokio::spawn(connection), firewall: None, sysctls: Sysctls::new(memory) })
    }

    /// Makes the machine's routing what `config` says, and says what had to be changed for that.
    ///
    /// # Errors
    ///
    /// When the interface is missing or the kernel refuses a change; what was changed before that stays, and the next call goes on from there.
    pub async fn apply(&mut self, config: &RouterConfig) -> Result<Changed, RouterError> {
        let name = config.interface.as_str();
        if !is_interface_name(name) {
            return Err(RouterError::Name(name.escape_default().to_string()));
        }
        let mut changed = Changed::default();
        let link = link::find(&self.handle, name).await?.ok_or_else(|| RouterError::NoInterface(name.to_owned()))?;
        let usable6 = sysctl::enable_ipv6(name);
        changed.link = link::bring_up(&self.handle, name, link, Some(u32::from(config.mtu))).await?;
        let addresses: Vec<_> = config.addresses.iter().copied().filter(|net| net.addr().is_ipv4() || usable6).collect();
        changed.addresses = link::set_addresses(&self.handle, name, link.index, &[Family::V4, Family::V6], &addresses).await?;
        for family in families() {
            let usable = family == Family::V4 || usable6;
            changed.routes += routes::set(&self.handle, family, link.index, &policy_routing::routes(config, family, usable)).await?;
            changed.rules += rules::set(&self.handle, family, &policy_routing::rules(config, family)).await?;
        }
        changed.settings = self.sysctls.apply(config.forward, policy_routing::carries_outside_traffic(config), name)?;
        changed.firewall = self.set_firewall(&Rules {
            interface: name.to_owned(),
            forward: config.forward,
            masquerade: config.forward && config.masquerade,
            lan_gateway: if config.lan_gateway { own_addresses(config) } else { Vec::new() },
            shields_up: config.shields_up,
        })?;
        Ok(changed)
    }

    fn set_firewall(&mut self, rules: &Rules) -> Result<bool, NftError> {
        if rules.forward || rules.shields_up {
            match &mut self.firewall {
                Some(firewall) if firewall.holds(rules)? => Ok(false),
                Some(firewall) => firewall.apply(rules).map(|()| true),
                none => {
                    *none = Some(Firewall::install(rules)?);
                    Ok(true)
                }
            }
        } else if let Some(firewall) = self.firewall.take() {
            firewall.remove().map(|()| true)
        } else {
            Ok(false)
        }
    }

    /// Removes everything [`Router::apply`] set up and gives kernel settings their previous values. The interface may be gone already.
    ///
    /// # Errors
    ///
    /// The first refusal of the kernel; the rest is cleared nevertheless.
    pub async fn clear(&mut self) -> Result<(), RouterError> {
        let mut first = Ok(());
        let mut note = |result: Result<(), RouterError>| {
            if first.is_ok() {
                first = result;
            }
        };
        for family in families() {
            note(rules::set(&self.handle, family, &[]).await.map(drop));
            note(routes::set(&self.handle, family, 0, &[]).await.map(drop));
        }
        let removed = match self.firewall.take() {
            Some(firewall) => firewall.remove(),
            None => nft::remove_leftover(),
        };
        note(removed.map_err(Into::into));
        note(self.sysctls.restore().map_err(Into::into));
        first
    }
}

/// The node's mesh addresses, one of each family. The resolver's own is no node's.
fn own_addresses(config: &RouterConfig) -> Vec<IpAddr> {
    let all = config.addresses.iter().map(IpNet::addr).filter(|ip| ![IpAddr::V4(QUAD100_V4), IpAddr::V6(QUAD100_V6)].contains(ip));
    [true, false].into_iter().filter_map(|v4| all.clone().find(|ip| ip.is_ipv4() == v4)).collect()
}

fn families() -> impl Iterator<Item = Family> {
    [Family::V4, Family::V6].into_iter().filter(|family| *family == Family::V4 || sysctl::kernel_has_ipv6())
}

/// Removes what a node that was killed left behind. The interface itself goes with its process; where there still is a TUN of that name that
/// nobody holds, its addresses are taken off. One that a program holds is another node's, which has its rules and routes as well, and
/// nothing is touched; nor are the addresses of an interface of another kind.
///
/// # Errors
///
/// A node seems to run, or the first refusal of the kernel; the rest is cleaned nevertheless then.
pub async fn clean_leftovers(interface: &str) -> Result<(), RouterError> {
    let mut router = Router::new().await?;
    let link = link::find(&router.handle, interface).await?;
    if link.is_some_and(|link| link.is_tun && link.running) {
        return Err(RouterError::Held(interface.to_owned()));
    }
    let cleared = router.clear().await;
    if let Some(link) = link.filter(|link| link.is_tun) {
        link::set_addresses(&router.handle, interface, link.index, &[Family::V4, Family::V6], &[]).await?;
    }
    cleared
}
