//! `pvemesh coordinator routes`.

use std::collections::BTreeSet;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::Place;
use super::nodes::on_node;
use super::table::{Table, joined};
use crate::cli::{Exit, Failure, Output};
use crate::wire::admin::NodeInfo;

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

pub(super) fn run(command: Routes, output: &Output) -> Result<(), Failure> {
    match command {
        Routes::List(place) => {
            let nodes = place.ask("list the routes", async |admin| admin.nodes().await)?;
            let rows: Vec<Route> = nodes.iter().flat_map(routes_of).collect();
            let mut table = Table::new(&["NODE", "NAME", "ROUTE", "OFFERED", "APPROVED", "CARRIED"], "no node offers routes");
            for row in &rows {
                let word = |yes| if yes { "yes" } else { "no" }.to_owned();
                table.row([
                    row.node.to_string(),
                    row.name.clone(),
                    row.route.to_string(),
                    word(row.offered),
                    word(row.approved),
                    word(row.carried),
                ]);
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
struct Route {
    node: crate::ident::NodeId,
    name: String,
    route: IpNet,
    offered: bool,
    approved: bool,
    carried: bool,
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
            carried: node.carried_routes.contains(&route),
        })
        .collect()
}
