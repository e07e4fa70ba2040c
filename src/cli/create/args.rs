//! What the `create-*` commands take.

use std::path::PathBuf;

use super::making::How;
use crate::cli::Output;
use crate::cli::connect::ConnectArgs;
use crate::cli::ways::WayArgs;
use crate::plan::options::{GuestOptions, GuestTexts, OptionError};

/// What every new guest takes.
#[derive(Debug, Clone, clap::Args)]
pub(in crate::cli) struct GuestArgs {
    /// The guest's number in Proxmox (VMID), 100 or more.
    #[arg(value_name = "ID")]
    pub(super) vmid: String,
    /// Its name in Proxmox and in the mesh; chosen if absent (exit-1, exit-2 ...).
    #[arg(long)]
    pub(super) name: Option<String>,
    /// The Proxmox node to make it on; chosen if absent.
    #[arg(long)]
    pub(super) node: Option<String>,
    /// The storage for its root volume; chosen if absent.
    #[arg(long)]
    pub(super) storage: Option<String>,
    /// The storage the image is uploaded to; chosen if absent.
    #[arg(long)]
    pub(super) template_storage: Option<String>,
    /// The bridge of its network interface; chosen if absent.
    #[arg(long)]
    pub(super) bridge: Option<String>,
    /// Memory in MiB [default: 64].
    #[arg(long, value_name = "MIB")]
    pub(super) memory: Option<u32>,
    /// Processor cores [default: 2].
    #[arg(long)]
    pub(super) cores: Option<u16>,
    /// Its IPv4 address on the LAN with prefix length, `dhcp` or `none` [default: dhcp].
    #[arg(long, value_name = "CIDR|dhcp")]
    pub(super) ip: Option<String>,
    /// Its IPv4 gateway, with a fixed address.
    #[arg(long, value_name = "ADDRESS")]
    pub(super) gw: Option<String>,
    /// Its IPv6 address with prefix length, `auto` or `none` [default: auto].
    #[arg(long, value_name = "CIDR|auto")]
    pub(super) ip6: Option<String>,
    /// Its IPv6 gateway, with a fixed address.
    #[arg(long, value_name = "ADDRESS")]
    pub(super) gw6: Option<String>,
    /// A name server for it; may be given several times.
    #[arg(long, value_name = "ADDRESS")]
    pub(super) dns: Vec<String>,
    /// The appliance image to use, made with `pvemesh image build`; built from this very program if absent.
    #[arg(long, value_name = "FILE")]
    pub(super) image: Option<PathBuf>,
    /// Print the decisions and every call, and change nothing.
    #[arg(long)]
    pub(super) dry_run: bool,
    #[command(flatten)]
    pub(super) way: WayArgs,
    #[command(flatten)]
    pub(super) connect: ConnectArgs,
}

impl GuestArgs {
    /// How the guest is made, as said.
    pub(super) fn how<'a>(&'a self, output: &'a Output) -> How<'a> {
        How { dry_run: self.dry_run, image: self.image.as_deref(), way: &self.way, output }
    }

    /// The number as typed, fit for a message.
    pub(super) fn shown_id(&self) -> String {
        self.vmid.chars().take(20).flat_map(char::escape_default).collect()
    }

    pub(super) fn check(&self) -> Result<GuestOptions, OptionError> {
        let texts = GuestTexts {
            vmid: self.vmid.clone(),
            name: self.name.clone(),
            node: self.node.clone(),
            storage: self.storage.clone(),
            template_storage: self.template_storage.clone(),
            bridge: self.bridge.clone(),
            memory: self.memory,
            cores: self.cores,
            ip: self.ip.clone(),
            gw: self.gw.clone(),
            ip6: self.ip6.clone(),
            gw6: self.gw6.clone(),
            dns: self.dns.clone(),
        };
        texts.check()
    }
}

/// A coordinator: key exchange, addresses and names for the mesh.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct CreateCoordinator {
    #[command(flatten)]
    pub(super) guest: GuestArgs,
    /// The address clients are told, if they reach it under another one than its own on the LAN.
    #[arg(long, value_name = "URL")]
    pub(super) url: Option<String>,
    /// The DNS suffix of node names [default: mesh.internal].
    #[arg(long, value_name = "DOMAIN")]
    pub(super) base_domain: Option<String>,
    /// The network a reverse proxy in front of it connects from: from there, X-Forwarded-For tells whose request it is. Several times for several.
    #[arg(long = "trusted-proxy", value_name = "CIDR")]
    pub(super) trusted_proxies: Vec<ipnet::IpNet>,
}

/// A relay.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct CreateRelay {
    #[command(flatten)]
    pub(super) guest: GuestArgs,
    /// The name or address clients are told, if they reach it under another one than its own on the LAN; TCP 443 and UDP 3478 of it lead here.
    #[arg(long, value_name = "HOST")]
    pub(super) address: Option<String>,
}

/// What packets go through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(in crate::cli) enum Tun {
    /// /dev/net/tun.
    Device,
    /// The process.
    Userspace,
}

/// How a new node joins, and what it is.
#[derive(Debug, Clone, clap::Args)]
pub(in crate::cli) struct NodeArgs {
    #[command(flatten)]
    pub(super) guest: GuestArgs,
    /// An address and port under which the node is reached from outside, such as a port forwarded by the home router; several times for several.
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub(super) endpoint: Vec<String>,
    /// What the mesh's packets go through in the container: `device` is /dev/net/tun, which Proxmox lets root@pam alone pass through; `userspace` is the
    /// process itself, which an API token will do for [default: device].
    #[arg(long, value_name = "KIND")]
    pub(super) tun: Option<Tun>,
    /// Join this coordinator (Headscale, Tailscale, or ours elsewhere) instead of the known one.
    #[arg(long, value_name = "URL", requires = "auth_key_file")]
    pub(super) login_server: Option<String>,
    /// A file with the join key for --login-server.
    #[arg(long, value_name = "FILE", requires = "login_server")]
    pub(super) auth_key_file: Option<PathBuf>,
    /// Make the coordinator first, in this guest, if none is known.
    #[arg(long, value_name = "ID", conflicts_with = "login_server")]
    pub(super) with_coordinator: Option<String>,
}

/// A subnet router.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct CreateSubnetRouter {
    #[command(flatten)]
    pub(super) node: NodeArgs,
    /// A network that the node makes reachable, or `auto` for the one it stands in: that of --ip, or the host's on the bridge. The
    /// prefix that `node via` prints makes a network reachable as that of a site. Several times for several.
    #[arg(long, value_name = "CIDR", required = true)]
    pub(super) route: Vec<String>,
    /// Give what enters these networks the node's own address there, so that their machines need no route back [default: true]. With `false`
    /// they see who it is, and need one.
    #[arg(long, action = clap::ArgAction::Set, value_name = "BOOL")]
    pub(super) snat_subnet_routes: Option<bool>,
    /// Let machines on the container's networks use the mesh through it, in its name, once it is their gateway: they may do there what the
    /// node may.
    #[arg(long, action = clap::ArgAction::Set, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(super) lan_gateway: Option<bool>,
}
