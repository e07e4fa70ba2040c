//! `pvemesh coordinator relays`.

use std::path::{Path, PathBuf};

use super::Place;
use super::table::{Table, joined};
use crate::cli::{Exit, Failure, Output};
use crate::wire::control::{DerpMap, DerpRegion, json};

const TRIED: &str = "add a relay";

/// Relays in the relay map, beside the coordinator's own and those of --derp-map.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Relays {
    /// List the relays that were added.
    List(Place),
    /// Add the relays of a relay map (JSON), as `pvemesh relay serve` prints it; one with a number that was added before is replaced.
    Add {
        /// The file.
        #[arg(value_name = "FILE")]
        file: PathBuf,
        #[command(flatten)]
        place: Place,
    },
    /// Take a relay out of the map again.
    Remove {
        /// The number of its region.
        #[arg(value_name = "NUMBER")]
        number: i32,
        #[command(flatten)]
        place: Place,
    },
}

pub(super) fn run(command: Relays, output: &Output) -> Result<(), Failure> {
    match command {
        Relays::List(place) => {
            let relays = place.ask("list the relays", async |admin| admin.relays().await)?;
            let mut table = Table::new(&["REGION", "NAME", "RELAYS"], "no relays were added");
            for region in &relays {
                let hosts: Vec<&str> = region.nodes.iter().map(|node| node.host_name.as_str()).collect();
                table.row([region.region_id.to_string(), region.region_name.clone(), joined(&hosts)]);
            }
            output.result(&relays, table);
            Ok(())
        }
        Relays::Add { file, place } => {
            let regions = read(&file)?;
            let added = place.ask(TRIED, async |admin| {
                let mut added = Vec::new();
                for region in &regions {
                    added.push(admin.add_relay(region).await?);
                }
                Ok(added)
            })?;
            let numbers: Vec<i32> = added.iter().map(|region| region.region_id).collect();
            output.result(&added, format!("added to the relay map: region {}", joined(&numbers)));
            Ok(())
        }
        Relays::Remove { number, place } => {
            place.ask("remove a relay", async |admin| admin.remove_relay(number).await)?;
            output.result(&serde_json::json!({ "removed": number }), format!("region {number} is no longer in the relay map"));
            Ok(())
        }
    }
}

fn read(file: &Path) -> Result<Vec<DerpRegion>, Failure> {
    let failed = |happened: String| {
        Failure::new(TRIED, happened, "name a file with a relay map, as `pvemesh relay serve` prints it").exit(Exit::Usage)
    };
    let bytes = std::fs::read(file).map_err(|e| failed(format!("{}: {e}", file.display())))?;
    let map: DerpMap = json::from_slice(&bytes).map_err(|e| failed(format!("{}: {e}", file.display())))?;
    let regions: Vec<DerpRegion> = map.regions.unwrap_or_default().into_values().flatten().collect();
    if regions.is_empty() { Err(failed(format!("{} names no region", file.display()))) } else { Ok(regions) }
}
