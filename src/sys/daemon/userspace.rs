//! A node without a TUN: the stack its packets end in, and the proxies by which local programs reach the mesh.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};

use ipnet::IpNet;

use crate::node::RouterConfig;
use crate::sys::names::NameServer;
use crate::sys::offload::Tun;
use crate::sys::proxy::Proxy;
use crate::sys::userspace::{Dialer, Stack};

/// How the mesh's packets reach this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ground {
    /// By a TUN interface of that name, with routes, rules and firewall.
    Tun(String),
    /// By ordinary sockets of this process, which needs no right and no device, and leaves the machine's own routing alone.
    Userspace {
        /// Where a proxy listens for local programs; SOCKS5 and HTTP alike.
        proxies: Vec<SocketAddr>,
    },
}

impl Ground {
    /// What `--tun` says: an interface's name, `userspace`, or that in stock's spelling.
    pub fn read(tun: &str, proxies: Vec<SocketAddr>) -> Self {
        match tun {
            "userspace" | "userspace-networking" => Self::Userspace { proxies },
            name => Self::Tun(name.to_owned()),
        }
    }

    /// The interface; empty if there is none.
    pub(super) fn interface(&self) -> &str {
        match self {
            Self::Tun(name) => name,
            Self::Userspace { .. } => "",
        }
    }
}

/// The sockets on which proxies listen, which outlive the engines.
#[derive(Debug, Default)]
pub(super) struct Listeners(Vec<TcpListener>);

impl Listeners {
    /// Takes the addresses that the user wants.
    pub(super) fn open(ground: &Ground) -> Result<Self, (SocketAddr, io::Error)> {
        let Ground::Userspace { proxies } = ground else { return Ok(Self::default()) };
        let mut addresses = proxies.clone();
        addresses.sort();
        addresses.dedup();
        let bound = addresses.into_iter().map(|address| TcpListener::bind(address).map_err(|error| (address, error)));
        Ok(Self(bound.collect::<Result<_, _>>()?))
    }

    /// Where they listen.
    pub(super) fn addresses(&self) -> Vec<SocketAddr> {
        self.0.iter().filter_map(|listener| listener.local_addr().ok()).collect()
    }
}

/// Stack and proxies, for one engine. Dropping it ends them.
#[derive(Debug)]
pub(super) struct Userspace {
    stack: Stack,
    dialer: Dialer,
    proxies: Vec<Proxy>,
}

impl Userspace {
    /// A stack, and what the engine takes for a TUN.
    pub(super) fn start() -> io::Result<(Self, Tun)> {
        let (stack, tun) = Stack::start()?;
        let dialer = Dialer::new(stack.clone());
        Ok((Self { stack, dialer, proxies: Vec::new() }, tun))
    }

    /// Serves local programs, which name what they want to reach.
    pub(super) fn serve(&mut self, listeners: &Listeners, names: &NameServer) -> io::Result<()> {
        self.stack.set_closed(listeners.addresses().iter().map(SocketAddr::port).collect());
        let start = |listener: &TcpListener| Proxy::start(listener.try_clone()?, self.dialer.clone(), names.lookup());
        self.proxies = listeners.0.iter().map(start).collect::<Result<_, _>>()?;
        Ok(())
    }

    pub(super) fn stack(&self) -> &Stack {
        &self.stack
    }

    pub(super) fn dialer(&self) -> &Dialer {
        &self.dialer
    }

    /// What a router would set up.
    pub(super) fn set(&self, addresses: Vec<IpAddr>, config: &RouterConfig, local: &[IpNet]) {
        self.stack.set_addresses(addresses);
        self.dialer.set_ways(config.clone(), local.to_vec());
    }
}
