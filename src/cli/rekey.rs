//! `pvemesh rekey`: new keys for a node, from outside.

use super::carry::recover;
use super::connect::{ConnectArgs, Session, config_failure, refusal};
use super::create::{dry_run_text, dry_run_value};
use super::enroll::Entry;
use super::progress::Progress;
use super::ways::WayArgs;
use super::{Exit, Failure, Output};
use crate::ident::Vmid;
use crate::plan::Refusal;
use crate::plan::mark::RunId;
use crate::plan::options::OptionError;
use crate::plan::rekey::{self, Rekeyed};
use crate::sys::entropy;

/// Give a node new keys: one whose key has expired, or may be known to others.
#[derive(Debug, clap::Args)]
pub(super) struct Rekey {
    /// The guest's number (VMID).
    #[arg(value_name = "ID")]
    vmid: String,
    /// Print every step, and change nothing.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    way: WayArgs,
    #[command(flatten)]
    connect: ConnectArgs,
}

/// Runs the command.
pub(super) async fn run(args: Rekey, output: &Output) -> Result<(), Failure> {
    let tried = format!("give guest {} new keys", args.vmid.escape_default().take(20).collect::<String>());
    let vmid: Vmid = args.vmid.parse().map_err(|e| refusal(&tried, &Refusal::Option(OptionError::new("ID", e))))?;
    let session = Session::for_guest(&args.connect, vmid, output).await?;
    let Some((_, mesh)) = session.mesh().await? else {
        let happened = "no coordinator of ours is known; with another one, name and address could not be kept";
        return Err(Failure::new(tried, happened, "delete the node there, then destroy the guest and create it again").exit(Exit::Conflict));
    };
    let entry = Entry { session: &session, way: &args.way, mesh: Some(&*mesh), tried: &tried };
    let lock = if args.dry_run { None } else { Some(session.store.lock(vmid).map_err(config_failure)?) };
    let resident = entry.resident(vmid).await?;
    let mut progress = Progress::new(output);
    if lock.is_some() {
        recover(&session, &args.way, Some(&*mesh), vmid, output, &mut progress).await?;
    }
    let nodes = entry.nodes().await?;
    let random = entropy::bytes::<16>().map_err(|e| Failure::new(&tried, e, "this system has no randomness"))?;
    let guest = Rekeyed { vmid, host: resident.host, mark: resident.mark, program: resident.program, service: resident.service };
    let plan = rekey::rekey(&guest, &nodes, RunId::new(u128::from_be_bytes(random))).map_err(|e| refusal(&tried, &e))?;
    if args.dry_run {
        output.result(&dry_run_value(&plan), dry_run_text(&plan, &session.executor.place()));
        return Ok(());
    }
    entry.provision(&plan, Some(&*resident.inside), &mut progress, output).await?;
    let node = entry.nodes().await?.into_iter().find(|node| node.name == plan.name);
    let key = node.as_ref().map(|node| node.key.to_string());
    let addresses = node.map(|node| node.addresses).unwrap_or_default();
    let value = serde_json::json!({ "vmid": vmid, "name": plan.name, "key": key, "mesh_addresses": addresses });
    output.result(&value, format!("{} has new keys, and its name and address as before", plan.name));
    Ok(())
}
