//! `pvemesh coordinator nodes`.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use super::span::{self, Expiry};
use super::table::{Table, joined, moment};
use super::{Place, failure};
use crate::cli::{Exit, Failure, Output};
use crate::ident::NodeName;
use crate::sys::admin::LocalAdmin;
use crate::time::Wall;
use crate::wire::admin::{Drain, Expire, NodeInfo, Registration};

/// Nodes of the mesh.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Nodes {
    /// List the nodes, and those that wait for approval.
    List(Place),
    /// Delete a node. If it is connected, its user is asked to log in again.
    Delete {
        /// Name or number of the node.
        node: String,
        #[command(flatten)]
        place: Place,
    },
    /// Rename a node; its name no longer follows its host name.
    Rename {
        /// Name or number of the node.
        node: String,
        /// The new name.
        name: NodeName,
        #[command(flatten)]
        place: Place,
    },
    /// Show everything about a node.
    Show {
        /// Name or number of the node.
        node: String,
        #[command(flatten)]
        place: Place,
    },
    /// End the validity of a node's key, now or later: its user has to log in again then.
    Expire {
        /// Name or number of the node.
        node: String,
        /// When: a span from now (180d), a time (2027-01-31T12:00:00Z), or never, which a later login does not change.
        #[arg(long, value_name = "WHEN", value_parser = span::expiry)]
        expiry: Option<Expiry>,
        #[command(flatten)]
        place: Place,
    },
    /// Give a node another IPv4 address; its IPv6 address follows.
    SetAddress {
        /// Name or number of the node.
        node: String,
        /// A free one of 100.64.0.0/10.
        address: Ipv4Addr,
        #[command(flatten)]
        place: Place,
    },
    /// Tag a node. It then acts as its tags instead of its user, and its key does not expire.
    Tag {
        /// Name or number of the node.
        node: String,
        /// Tags such as tag:server, in addition to those it has.
        #[arg(value_name = "TAG", required = true)]
        tags: Vec<String>,
        #[command(flatten)]
        place: Place,
    },
    /// Take tags off a node; without the last one it is its user's again.
    Untag {
        /// Name or number of the node.
        node: String,
        /// Tags; none named means all.
        #[arg(value_name = "TAG")]
        tags: Vec<String>,
        #[command(flatten)]
        place: Place,
    },
    /// Give a node to another user.
    Move {
        /// Name or number of the node.
        node: String,
        /// Login name of an existing user.
        user: String,
        #[command(flatten)]
        place: Place,
    },
    /// Have others take over the routes that a node carries, as far as they can: before its machine is worked on. It ends after a while, with
    /// the node's next connection, or by `undrain`.
    Drain {
        /// Name or number of the node.
        node: String,
        /// For how long, an hour at most.
        #[arg(long = "for", value_name = "SPAN", value_parser = span::seconds, default_value = "30m")]
        time: u64,
        #[command(flatten)]
        place: Place,
    },
    /// Let a drained node take part again. What another carries by now stays with that one.
    Undrain {
        /// Name or number of the node.
        node: String,
        #[command(flatten)]
        place: Place,
    },
    /// Let in a node that waits for approval.
    Register {
        /// What its login page shows.
        id: String,
        /// Whose node it becomes; the user is made if it does not exist.
        #[arg(long)]
        user: String,
        #[command(flatten)]
        place: Place,
    },
}

pub(super) fn run(command: Nodes, output: &Output) -> Result<(), Failure> {
    match command {
        Nodes::List(place) => list(&place, output),
        Nodes::Delete { node, place } => {
            let node = on_node(&place, "delete the node", &node, async |admin, node| admin.delete_node(node.id).await.map(|()| node))?;
            output.result(&serde_json::json!({ "deleted": node.id }), format!("node {} is deleted", node.name));
            Ok(())
        }
        Nodes::Rename { node, name, place } => {
            let node = on_node(&place, "rename the node", &node, async |admin, node| admin.rename_node(node.id, &name).await)?;
            output.result(&node, format!("node {} is now {}", node.id, node.fqdn));
            Ok(())
        }
        Nodes::Show { node, place } => {
            let node = on_node(&place, "look up the node", &node, async |_, node| Ok(node))?;
            output.result(&node, described(&node));
            Ok(())
        }
        Nodes::Expire { node, expiry, place } => {
            let when = match expiry {
                None => Expire::default(),
                Some(Expiry::Never) => Expire { never: true, in_secs: None },
                Some(Expiry::After(seconds)) => Expire { never: false, in_secs: Some(seconds) },
                Some(Expiry::At(time)) => Expire {
                    never: false,
                    in_secs: u64::try_from(time.as_second() - Wall::now().as_second()).ok().filter(|left| *left > 0),
                },
            };
            let node =
                on_node(&place, "set when the node's key expires", &node, async |admin, node| admin.expire_node(node.id, when).await)?;
            let text = match node.key_expiry {
                None => format!("the key of node {} does not expire", node.name),
                Some(_) if when.in_secs.is_none() => format!("node {} has to log in again", node.name),
                Some(expiry) => format!("the key of node {} expires at {}", node.name, moment(expiry)),
            };
            output.result(&node, text);
            Ok(())
        }
        Nodes::SetAddress { node, address, place } => {
            let node = on_node(&place, "set the node's address", &node, async |admin, node| admin.set_address(node.id, address).await)?;
            output.result(&node, format!("node {} has {}", node.name, joined(&node.addresses)));
            Ok(())
        }
        Nodes::Tag { node, tags, place } => {
            let node = on_node(&place, "tag the node", &node, async |admin, node| {
                let all: BTreeSet<String> = node.tags.into_iter().chain(tags).collect();
                admin.tag_node(node.id, &all.into_iter().collect::<Vec<_>>()).await
            })?;
            tagged(&node, output);
            Ok(())
        }
        Nodes::Untag { node, tags, place } => {
            let node = on_node(&place, "untag the node", &node, async |admin, node| {
                let left: Vec<String> = node.tags.into_iter().filter(|tag| !tags.is_empty() && !tags.contains(tag)).collect();
                admin.tag_node(node.id, &left).await
            })?;
            tagged(&node, output);
            Ok(())
        }
        Nodes::Move { node, user, place } => {
            let node = on_node(&place, "move the node", &node, async |admin, node| admin.move_node(node.id, &user).await)?;
            output.result(&node, format!("node {} belongs to {}", node.name, node.user));
            Ok(())
        }
        Nodes::Drain { node, time, place } => drain(&place, &node, time, output),
        Nodes::Undrain { node, place } => drain(&place, &node, 0, output),
        Nodes::Register { id, user, place } => {
            let node = place.ask("let the node in", async |admin| admin.approve(&id, &user).await)?;
            output.result(&node, format!("{} is in, as {}", node.fqdn, joined(&node.addresses)));
            Ok(())
        }
    }
}

/// For no seconds at all: ends it.
fn drain(place: &Place, node: &str, for_secs: u64, output: &Output) -> Result<(), Failure> {
    let tried = if for_secs == 0 { "end the draining of the node" } else { "drain the node" };
    let wanted = Drain { for_secs, gone: false };
    let node = on_node(place, tried, node, async |admin, node| admin.drain(node.id, wanted).await)?;
    let carried = if node.carried_routes.is_empty() { "nothing".to_owned() } else { joined(&node.carried_routes) };
    let text = match for_secs {
        0 => format!("node {} takes part again; it carries {carried}", node.name),
        _ if node.carried_routes.is_empty() => format!("node {} carries nothing for {for_secs} s", node.name),
        _ => format!("node {} keeps for {for_secs} s only what no other can carry: {carried}", node.name),
    };
    output.result(&node, text);
    Ok(())
}

#[derive(serde::Serialize)]
struct Listed {
    nodes: Vec<NodeInfo>,
    waiting: Vec<Registration>,
}

fn list(place: &Place, output: &Output) -> Result<(), Failure> {
    let (nodes, waiting) = place.ask("list the nodes", async |admin| Ok((admin.nodes().await?, admin.registrations().await?)))?;
    let mut table = Table::new(&["ID", "NAME", "ADDRESSES", "USER", "STATE", "ROUTES", "OS"], "no nodes yet");
    for node in &nodes {
        table.row([
            node.id.to_string(),
            node.name.to_string(),
            joined(&node.addresses),
            if node.tags.is_empty() { node.user.clone() } else { joined(&node.tags) },
            state(node),
            joined(&node.carried_routes),
            node.os.clone(),
        ]);
    }
    let mut text = table.to_string();
    for one in &waiting {
        let claims = if one.tags.is_empty() { String::new() } else { format!(", wants {}", joined(&one.tags)) };
        text.push_str(&format!(
            "\nwaiting since {}: {} ({}{claims}): pvemesh coordinator nodes register {} --user NAME",
            moment(one.asked),
            one.hostname,
            one.os,
            one.id
        ));
    }
    output.result(&Listed { nodes, waiting }, text);
    Ok(())
}

fn state(node: &NodeInfo) -> String {
    let expired = node.key_expiry.is_some_and(|expiry| expiry <= Wall::now());
    match (expired, node.online, node.last_seen) {
        (true, ..) => "expired".to_owned(),
        (false, true, _) => "online".to_owned(),
        (false, false, Some(seen)) => format!("offline since {}", moment(seen)),
        (false, false, None) => "never connected".to_owned(),
    }
}

fn tagged(node: &NodeInfo, output: &Output) {
    let text = match node.tags.as_slice() {
        [] => format!("node {} has no tags and acts as {}", node.name, node.user),
        tags => format!("node {} has {}", node.name, joined(tags)),
    };
    output.result(node, text);
}

/// Everything about a node, a line each.
fn described(node: &NodeInfo) -> String {
    let expiry = node.key_expiry.map_or_else(|| "never".to_owned(), moment);
    let relay = if node.home_relay == 0 { "-".to_owned() } else { node.home_relay.to_string() };
    [
        ("id", node.id.to_string()),
        ("name", node.fqdn.clone()),
        ("addresses", joined(&node.addresses)),
        ("user", node.user.clone()),
        ("tags", joined(&node.tags)),
        ("state", state(node)),
        ("key expires", expiry),
        ("ephemeral", if node.ephemeral { "yes" } else { "no" }.to_owned()),
        ("routes offered", joined(&node.advertised_routes)),
        ("routes approved", joined(&node.approved_routes)),
        ("routes carried", joined(&node.carried_routes)),
        ("endpoints", joined(&node.endpoints)),
        ("home relay", relay),
        ("system", format!("{} {}", node.os, node.client).trim().to_owned()),
        ("joined", node.created.map_or_else(|| "-".to_owned(), moment)),
        ("node key", node.key.to_string()),
        ("machine key", node.machine_key.to_string()),
    ]
    .map(|(what, value)| format!("{what:<16} {value}"))
    .join("\n")
}

/// Finds a node by name or number and does something with it.
pub(super) fn on_node<T>(
    place: &Place,
    tried: &str,
    which: &str,
    act: impl AsyncFnOnce(&LocalAdmin, NodeInfo) -> Result<T, crate::sys::admin::AdminError>,
) -> Result<T, Failure> {
    place.run(tried, async |admin| {
        let nodes = admin.nodes().await.map_err(|e| failure(tried, &e))?;
        let found = nodes.into_iter().find(|node| node.name.as_str() == which || node.fqdn == which || node.id.to_string() == which);
        let Some(node) = found else {
            let next = "see `pvemesh coordinator nodes list`";
            return Err(Failure::new(tried, format!("there is no node {which}"), next).exit(Exit::Conflict));
        };
        act(admin, node).await.map_err(|e| failure(tried, &e))
    })
}
