//! `pvemesh node`: the mesh member on this machine. Names and flags are those of `tailscale` where both have the thing.

mod dns;
mod netcheck;
mod ping;
mod show;
mod up;
mod via;
mod whois;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Subcommand};
use ipnet::IpNet;

use super::{Exit, Failure, Output};
use crate::ident::{NodeName, Via};
use crate::node::{DEFAULT_INTERFACE, PrefsChange, Tag, TunOffload};
use crate::sys::daemon::{self, DEFAULT_STATE_DIR, Ground, Options};
use crate::sys::local_api::{Client, DEFAULT_SOCKET, LocalError};

/// The mesh node on this machine.
#[derive(Debug, Args)]
pub(super) struct Node {
    /// The running node's local socket.
    #[arg(long, global = true, default_value = DEFAULT_SOCKET, env = "PVEMESH_SOCKET")]
    socket: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the node in the foreground, as a service does.
    Run(Run),
    /// Join the mesh, or change how; starts the node if it is not running.
    Up(up::Up),
    /// Leave the mesh until the next `up`; keys and address stay.
    Down,
    /// Show this node and the others.
    Status,
    /// Show this node's addresses.
    Ip {
        /// The IPv4 address only.
        #[arg(short = '4')]
        v4: bool,
        /// The IPv6 address only.
        #[arg(short = '6', conflicts_with = "v4")]
        v6: bool,
        /// Another node's addresses, by name.
        peer: Option<String>,
    },
    /// Ping a node and say which way the answer came: directly or through a relay.
    Ping(ping::Ping),
    /// Say what the network around this node is like: UDP, NAT, relays.
    Netcheck,
    /// Say whose address that is.
    Whois {
        /// An address, with or without a port.
        address: String,
    },
    /// Print the IPv6 prefix by which the network of a site is advertised and reached, so that sites may use the same IPv4 addresses; or,
    /// from a prefix, site and network.
    Via {
        /// The site's number, yours to choose; or a prefix.
        #[arg(value_name = "SITE|PREFIX")]
        site: String,
        /// The network there.
        #[arg(value_name = "CIDR")]
        network: Option<String>,
    },
    /// Names of the mesh.
    #[command(subcommand)]
    Dns(dns::Dns),
    /// Change preferences; what is not mentioned stays.
    Set(Wishes),
    /// Give this node up at the coordinator and forget its keys.
    Logout,
    /// Say as JSON what `pvemesh doctor` asks of a guest.
    #[command(hide = true)]
    SelfCheck,
}

/// Where the node's process keeps and finds things.
#[derive(Debug, Clone, Args)]
struct Run {
    /// The guest's configuration, in the appliance.
    #[arg(long, value_name = "FILE")]
    guest_config: Option<PathBuf>,
    #[command(flatten)]
    place: Place,
    /// Started by `up`: a session of its own, ended by `down`.
    #[arg(long, hide = true)]
    background: bool,
    /// Keep the log in this file too, within a bound.
    #[arg(long, value_name = "FILE", hide = true)]
    log_ring: Option<PathBuf>,
}

/// Files, interface and port of a node.
#[derive(Debug, Clone, Args)]
struct Place {
    /// Where keys and preferences are kept.
    #[arg(long, value_name = "DIR", default_value = DEFAULT_STATE_DIR, env = "PVEMESH_STATE_DIR")]
    state_dir: PathBuf,
    /// The name of the TUN interface; `userspace` for none: peers reach this machine and the networks behind it by ordinary sockets, local
    /// programs reach the mesh by a proxy, and no rights are needed.
    #[arg(long, value_name = "NAME", default_value = DEFAULT_INTERFACE)]
    tun: String,
    /// With `--tun userspace`, where a proxy listens that leads local programs into the mesh. It asks nobody who he is.
    #[arg(long, value_name = "ADDRESS:PORT")]
    socks5_server: Option<SocketAddr>,
    /// The same for programs that speak HTTP; each of the two speaks both.
    #[arg(long, value_name = "ADDRESS:PORT")]
    outbound_http_proxy_listen: Option<SocketAddr>,
    /// The WireGuard UDP port; 0 for any.
    #[arg(long)]
    port: Option<u16>,
    /// The most of the kernel's segmentation offloads to use; what it lacks is done without in any case. Less is slower: for a kernel or a
    /// network card that damages packets.
    #[arg(long, value_enum, default_value_t)]
    offload: OffloadWanted,
}

/// How much of the offloads is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
enum OffloadWanted {
    /// All.
    #[default]
    Auto,
    /// Not those of UDP on the TUN.
    Tcp,
    /// None on the TUN, and one datagram a send.
    None,
}

impl From<OffloadWanted> for TunOffload {
    fn from(wanted: OffloadWanted) -> Self {
        match wanted {
            OffloadWanted::Auto => Self::TcpAndUdp,
            OffloadWanted::Tcp => Self::Tcp,
            OffloadWanted::None => Self::None,
        }
    }
}

impl Place {
    fn ground(&self) -> Result<Ground, Failure> {
        let proxies: Vec<SocketAddr> = self.socks5_server.into_iter().chain(self.outbound_http_proxy_listen).collect();
        let ground = Ground::read(&self.tun, proxies.clone());
        if matches!(ground, Ground::Tun(_)) && !proxies.is_empty() {
            let happened = "a proxy is for a node without a TUN; with one, programs reach the mesh without";
            return Err(Failure::new("start the node", happened, "add `--tun userspace`, or leave the proxy out").exit(Exit::Usage));
        }
        Ok(ground)
    }
}

/// Preferences as flags.
#[derive(Debug, Clone, Default, Args)]
struct Wishes {
    /// The name to be known by.
    #[arg(long)]
    hostname: Option<NodeName>,
    /// Send internet traffic through this node: a name, an address or a stable id; `auto` for the fastest that answers, and another one
    /// when it dies; empty for none.
    #[arg(long, value_name = "NODE")]
    exit_node: Option<String>,
    /// With an exit node, keep reaching the local networks directly (the default).
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true, value_name = "BOOL")]
    exit_node_allow_lan_access: Option<bool>,
    /// Use the networks that other nodes offer.
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true, value_name = "BOOL")]
    accept_routes: Option<bool>,
    /// Offer to carry other nodes' internet traffic.
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true, value_name = "BOOL")]
    advertise_exit_node: Option<bool>,
    /// Offer to carry these networks, separated by commas; empty for none. The prefix that `node via` prints offers a network as that of a
    /// site.
    #[arg(long, value_name = "CIDRS")]
    advertise_routes: Option<String>,
    /// Give what enters these networks this node's own address there, so that their machines need no route back (the default). What leaves an
    /// exit node has it always.
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true, value_name = "BOOL")]
    snat_subnet_routes: Option<bool>,
    /// Let the machines on this machine's networks use the mesh, and the exit node in use, through it and in its name: whoever there takes it
    /// for a gateway may do what this node may.
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true, value_name = "BOOL")]
    lan_gateway: Option<bool>,
    /// Claim these tags, separated by commas; empty for none. The coordinator decides which are given.
    #[arg(long, value_name = "TAGS")]
    advertise_tags: Option<String>,
    /// Let other nodes open no connections to this machine or what is behind it.
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true, value_name = "BOOL")]
    shields_up: Option<bool>,
    /// Resolve names as the coordinator says (the default).
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true, value_name = "BOOL")]
    accept_dns: Option<bool>,
    /// Ask the home router for a port, by NAT-PMP, PCP or UPnP, so that peers behind the hardest NATs reach this node directly (the default).
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true, value_name = "BOOL")]
    port_mapping: Option<bool>,
    /// Guess ports together with a peer where nothing else leads directly to it: about a thousand pings within four seconds, to the peer's
    /// address alone (the default). Needs pvemesh on both ends.
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true, value_name = "BOOL")]
    port_guessing: Option<bool>,
    /// A file with the certificate authority of a coordinator with a certificate of its own making, in PEM form; empty for none.
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,
}

impl Wishes {
    fn change(&self) -> Result<PrefsChange, Failure> {
        Ok(PrefsChange {
            hostname: self.hostname.clone(),
            exit_node: self.exit_node.clone(),
            exit_node_allow_lan_access: self.exit_node_allow_lan_access,
            accept_routes: self.accept_routes,
            advertise_exit_node: self.advertise_exit_node,
            advertise_routes: self.advertise_routes.as_deref().map(routes).transpose()?,
            snat_subnet_routes: self.snat_subnet_routes,
            lan_gateway: self.lan_gateway,
            advertise_tags: self.advertise_tags.as_deref().map(tags).transpose()?,
            shields_up: self.shields_up,
            accept_dns: self.accept_dns,
            port_mapping: self.port_mapping,
            port_guessing: self.port_guessing,
            ca_file: self.ca_file.as_deref().map(readable).transpose()?,
            ..Default::default()
        })
    }
}

/// Networks from a list with commas. Bits behind the prefix are a mistake, as in the stock client.
fn routes(text: &str) -> Result<Vec<IpNet>, Failure> {
    let wrong = |word: &str, why: &str| {
        Failure::new("read --advertise-routes", format!("`{word}` {why}"), "write networks like 192.168.1.0/24, separated by commas")
            .exit(Exit::Usage)
    };
    let words = text.split(',').map(str::trim).filter(|word| !word.is_empty());
    words
        .map(|word| {
            let net: IpNet = word.parse().map_err(|_| wrong(word, "is not a network"))?;
            if net.trunc() != net {
                Err(wrong(word, &format!("has bits behind its prefix; did you mean {}?", net.trunc())))
            } else if Via::is_too_wide(&net) {
                Err(wrong(word, "is wider than a site (`pvemesh node via` prints the prefix of a site's network)"))
            } else {
                Ok(net)
            }
        })
        .collect()
}

/// Tags from a list with commas.
fn tags(text: &str) -> Result<Vec<Tag>, Failure> {
    let words = text.split(',').map(str::trim).filter(|word| !word.is_empty());
    words
        .map(|word| {
            word.parse()
                .map_err(|e| Failure::new("read --advertise-tags", e, "write tags like tag:server, separated by commas").exit(Exit::Usage))
        })
        .collect()
}

/// A file that the node's process can find from wherever it runs.
fn readable(path: &Path) -> Result<PathBuf, Failure> {
    if path.as_os_str().is_empty() {
        return Ok(PathBuf::new());
    }
    let failed =
        |e: std::io::Error| Failure::new(format!("read {}", path.display()), e, "name a file that this user can read").exit(Exit::Usage);
    std::fs::File::open(path).map_err(failed)?;
    std::fs::canonicalize(path).map_err(failed)
}

/// Runs a node command.
pub(super) async fn run(node: &Node, output: &Output) -> Result<(), Failure> {
    let client = Client::new(&node.socket);
    match &node.command {
        Command::SelfCheck => {
            let facts = crate::sys::chores::look(&node.socket).await;
            Output::new(&crate::cli::Global { json: true, verbose: 0 }).result(&facts, "");
            Ok(())
        }
        Command::Run(run) => serve(run, node, output).await,
        Command::Up(up) => up::run(up, node, &client, output).await,
        Command::Down => down(&client, output).await,
        Command::Status => show::status(&client, output).await,
        Command::Ip { v4, v6, peer } => show::addresses(&client, output, (*v4, *v6), peer.as_deref()).await,
        Command::Ping(ping) => ping::run(ping, &client, output).await,
        Command::Netcheck => netcheck::run(&client, output).await,
        Command::Whois { address } => whois::run(address, &client, output).await,
        Command::Via { site, network } => via::run(site, network.as_deref(), output),
        Command::Dns(dns) => dns::run(dns, &client, output).await,
        Command::Set(wishes) => {
            let prefs = client.set(&wishes.change()?).await.map_err(|e| unreached("change the preferences", &e))?;
            output.result(&prefs, "changed");
            Ok(())
        }
        Command::Logout => {
            let status = client.tell("logout").await.map_err(|e| unreached("log out", &e))?;
            status.health.iter().for_each(|line| output.note(format_args!("note: {line}")));
            output.result(&status, "logged out");
            Ok(())
        }
    }
}

async fn serve(run: &Run, node: &Node, output: &Output) -> Result<(), Failure> {
    if run.background {
        // A session of its own, so that closing the terminal does not end the node. It fails only where there is one already.
        let _ = rustix::process::setsid();
    }
    crate::sys::chores::trial::become_it();
    match &run.log_ring {
        Some(path) => super::log::start_kept(output, path),
        None => super::log::start(output),
    }
    let options = Options {
        state_dir: run.place.state_dir.clone(),
        socket: node.socket.clone(),
        ground: run.place.ground()?,
        port: run.place.port,
        offload: run.place.offload.into(),
        guest_config: run.guest_config.clone(),
        background: run.background,
    };
    daemon::run(options).await.map_err(|error| {
        let next = error.next();
        Failure::new("run the node", error, next)
    })
}

async fn down(client: &Client, output: &Output) -> Result<(), Failure> {
    match client.tell("down").await {
        Ok(status) => output.result(&status, "left the mesh"),
        Err(LocalError::NotRunning(_)) => output.result(&serde_json::json!({ "BackendState": "Stopped" }), "not running"),
        Err(error) => return Err(unreached("leave the mesh", &error)),
    }
    Ok(())
}

/// A failure to ask the running node.
fn unreached(tried: &str, error: &LocalError) -> Failure {
    let (next, exit) = match error {
        LocalError::NotRunning(_) => ("start it with `pvemesh node up`, or name its --socket", Exit::Unreachable),
        LocalError::Denied(_) => ("run as root", Exit::Denied),
        LocalError::Silent(_) => ("look at its log; restart it if it hangs", Exit::Unreachable),
        LocalError::Refused(refused) if !refused.next.is_empty() => (refused.next.as_str(), Exit::Failed),
        LocalError::Refused(_) => ("correct what the message names and try again", Exit::Failed),
    };
    Failure::new(tried, error, next).exit(exit)
}

/// A time like `30s`, `2m`, `500ms`; a bare number is seconds; 0 means no limit.
fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| "write a time like 30s or 2m".to_owned())?;
    match unit {
        "ms" => Ok(Duration::from_millis(number)),
        "" | "s" => Ok(Duration::from_secs(number)),
        "m" => Ok(Duration::from_secs(number.saturating_mul(60))),
        "h" => Ok(Duration::from_secs(number.saturating_mul(3600))),
        _ => Err("write a time like 30s or 2m".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_with_their_units() {
        assert_eq!(duration("30s"), Ok(Duration::from_secs(30)));
        assert_eq!(duration("2m"), Ok(Duration::from_secs(120)));
        assert_eq!(duration("0"), Ok(Duration::ZERO));
        for wrong in ["", "s", "-1", "1y", "1.5s"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn tags_are_read_and_mistakes_named() {
        assert_eq!(tags("").unwrap(), []);
        assert_eq!(tags("tag:a, tag:b").unwrap().len(), 2);
        assert!(tags("server").unwrap_err().happened.contains("`server`"));
    }

    #[test]
    fn routes_are_read_and_mistakes_named() {
        assert_eq!(routes("").unwrap(), []);
        assert_eq!(routes("10.0.0.0/8, fd00::/8").unwrap().len(), 2);
        assert!(routes("192.168.1.5/24").unwrap_err().happened.contains("192.168.1.0/24"));
        assert_eq!(routes("10.0.0.0").unwrap_err().exit, Exit::Usage);
        assert_eq!(routes("fd7a:115c:a1e0:b1a:0:7:192.168.1.0/120").unwrap(), ["fd7a:115c:a1e0:b1a:0:7:c0a8:100/120".parse().unwrap()]);
        assert!(routes("fd7a:115c:a1e0:b1a::/64").unwrap_err().happened.contains("wider than a site"));
    }
}
