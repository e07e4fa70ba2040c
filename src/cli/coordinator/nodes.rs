//! `pvemesh coordinator nodes` and `routes`.

use std::collections::BTreeSet;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::table::{Table, joined, moment};
use super::{Place, failure};
use crate::cli::{Exit, Failure, Output};
use crate::ident::NodeName;
use crate::sys::admin::LocalAdmin;
use crate::wire::admin::{NodeInfo, Registration};

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
    /// End the validity of a node's key now: its user has to log in again.
    Expire {
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

/// Routes that nodes offer to carry.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Routes {
    /// List the routes that are offered or approved.
    List(Place),
    /// Let a node carry routes, in addition to those it may carry already.
    Approve {
        /// Name or number of the node.
        node: String,
        /// Networks.
        #[arg(value_name = "NET")]
        routes: Vec<IpNet>,
        /// Let it be an exit node.
        #[arg(long)]
        exit_node: bool,
        /// These and no others: what was approved before and is not named loses its approval.
        #[arg(long)]
        replace: bool,
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
        Nodes::Expire { node, place } => {
            let node = on_node(&place, "expire the node's key", &node, async |admin, node| admin.expire_node(node.id).await)?;
            output.result(&node, format!("node {} has to log in again", node.name));
            Ok(())
        }
        Nodes::Register { id, user, place } => {
            let node = place.ask("let the node in", async |admin| admin.approve(&id, &user).await)?;
            output.result(&node, format!("{} is in, as {}", node.fqdn, joined(&node.addresses)));
            Ok(())
        }
    }
}

pub(super) fn run_routes(command: Routes, output: &Output) -> Result<(), Failure> {
    match command {
        Routes::List(place) => {
            let nodes = place.ask("list the routes", async |admin| admin.nodes().await)?;
            let rows: Vec<Route> = nodes.iter().flat_map(routes_of).collect();
            let mut table = Table::new(&["NODE", "NAME", "ROUTE", "OFFERED", "APPROVED"], "no node offers routes");
            for row in &rows {
                let word = |yes| if yes { "yes" } else { "no" }.to_owned();
                table.row([row.node.to_string(), row.name.clone(), row.route.to_string(), word(row.offered), word(row.approved)]);
            }
            output.result(&rows, table);
            Ok(())
        }
        Routes::Approve { node, routes, exit_node, replace, place } => {
            const TRIED: &str = "approve routes";
            if routes.is_empty() && !exit_node && !replace {
                let next = "name networks, or --exit-node; --replace alone withdraws all approvals";
                return Err(Failure::new(TRIED, "no routes are named", next).exit(Exit::Usage));
            }
            let exit = [IpNet::V4(Ipv4Net::default()), IpNet::V6(Ipv6Net::default())];
            let named: Vec<IpNet> = routes.into_iter().chain(exit.into_iter().filter(|_| exit_node)).collect();
            let node = on_node(&place, TRIED, &node, async |admin, node| {
                let before = if replace { Vec::new() } else { node.approved_routes };
                let all: BTreeSet<IpNet> = before.into_iter().chain(named).collect();
                admin.approve_routes(node.id, &all.into_iter().collect::<Vec<_>>()).await
            })?;
            output.result(&node, format!("node {} may carry {}", node.name, joined(&node.approved_routes)));
            Ok(())
        }
    }
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
            joined(node.advertised_routes.iter().filter(|route| node.approved_routes.contains(route))),
            node.os.clone(),
        ]);
    }
    let mut text = table.to_string();
    for one in &waiting {
        text.push_str(&format!(
            "\nwaiting since {}: {} ({}): pvemesh coordinator nodes register {} --user NAME",
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
    let expired = node.key_expiry.is_some_and(|expiry| expiry <= crate::time::Wall::now());
    match (expired, node.online, node.last_seen) {
        (true, ..) => "expired".to_owned(),
        (false, true, _) => "online".to_owned(),
        (false, false, Some(seen)) => format!("offline since {}", moment(seen)),
        (false, false, None) => "never connected".to_owned(),
    }
}

#[derive(serde::Serialize)]
struct Route {
    node: crate::ident::NodeId,
    name: String,
    route: IpNet,
    offered: bool,
    approved: bool,
}

fn routes_of(node: &NodeInfo) -> Vec<Route> {
    let all: BTreeSet<IpNet> = node.advertised_routes.iter().chain(&node.approved_routes).copied().collect();
    all.into_iter()
        .map(|route| Route {
            node: node.id,
            name: node.name.to_string(),
            route,
            offered: node.advertised_routes.contains(&route),
            approved: node.approved_routes.contains(&route),
        })
        .collect()
}

/// Finds a node by name or number and does something with it.
fn on_node<T>(
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
