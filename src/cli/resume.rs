//! `pvemesh resume`: what runs that were killed or could not be taken back have left.

use super::carry::way_back;
use super::connect::{ConnectArgs, Session, config_failure, refusal, step_advice};
use super::progress::Progress;
use super::ways::WayArgs;
use super::{Exit, Failure, Output};
use crate::ident::Vmid;
use crate::plan::Refusal;
use crate::plan::journal::{Journal, Recovery};
use crate::plan::options::OptionError;
use crate::sys::config::ConfigError;
use crate::sys::pve::{Mesh, Stock, Undoer};

/// Takes back what runs that did not come to their end have left, by their journals in the configuration's directory. The next create or
/// destroy of the same guest does the same. A run that had come to its end but for its journal is left as it is.
#[derive(Debug, clap::Args)]
pub(super) struct Resume {
    /// Only the run for this guest (VMID); all of them if absent.
    #[arg(value_name = "ID")]
    vmid: Option<String>,
    /// Print what would be taken back, and change nothing.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    way: WayArgs,
    #[command(flatten)]
    connect: ConnectArgs,
}

/// What became of one run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
enum State {
    /// It had come to its end.
    Finished,
    /// Nothing of it is left.
    TakenBack,
    /// Something of it is left.
    Left,
    /// It would be taken back.
    Planned,
    /// It is at work at this moment.
    Busy,
}

#[derive(Debug, serde::Serialize)]
struct Row {
    vmid: Vmid,
    name: String,
    role: String,
    state: State,
    /// What was, or would be, taken back.
    undone: Vec<String>,
    /// What could not be.
    left: Vec<String>,
}

impl Row {
    fn new(journal: &Journal, state: State) -> Self {
        let (name, role) = (journal.name.to_string(), journal.role.clone());
        Self { vmid: journal.vmid, name, role, state, undone: Vec::new(), left: Vec::new() }
    }
}

/// Runs the command.
pub(super) async fn run(args: Resume, output: &Output) -> Result<(), Failure> {
    let tried = "take back what earlier runs left";
    let only = args.vmid.as_deref().map(str::parse::<Vmid>).transpose();
    let only = only.map_err(|e| refusal(tried, &Refusal::Option(OptionError::new("ID", e))))?;
    let session = Session::open(&args.connect).await?;
    if !args.dry_run {
        Stock::discard_orphans(&session.store);
    }
    let mut vmids = session.store.journals().map_err(config_failure)?;
    vmids.retain(|vmid| only.is_none_or(|only| only == *vmid));
    let mesh = if vmids.is_empty() { None } else { reachable_mesh(&session, output).await };
    let mut rows = Vec::new();
    for vmid in vmids {
        rows.extend(one(&session, vmid, mesh.as_deref(), &args, output).await?);
    }
    output.result(&serde_json::json!({ "dry_run": args.dry_run, "runs": rows }), text(&rows));
    let left: Vec<String> = rows.iter().flat_map(|row| row.left.iter().map(move |what| format!("{}: {what}", row.vmid))).collect();
    if left.is_empty() {
        Ok(())
    } else {
        Err(Failure::new(tried, left.join("; "), "clear that up, then run pvemesh resume again").exit(Exit::Left))
    }
}

/// Without the coordinator the rest can still be taken back; what is there is then listed as left.
async fn reachable_mesh(session: &Session, output: &Output) -> Option<Box<dyn Mesh>> {
    match session.mesh().await {
        Ok(opened) => opened.map(|(_, mesh)| mesh),
        Err(failure) => {
            output.note(format!("{}: {}", failure.tried, failure.happened));
            None
        }
    }
}

async fn one(session: &Session, vmid: Vmid, mesh: Option<&dyn Mesh>, args: &Resume, output: &Output) -> Result<Option<Row>, Failure> {
    let _lock = match session.store.lock(vmid) {
        Ok(lock) => lock,
        Err(ConfigError::Busy(_)) => {
            let journal = session.store.journal(vmid).map_err(config_failure)?;
            return Ok(journal.map(|journal| Row::new(&journal, State::Busy)));
        }
        Err(error) => return Err(config_failure(error)),
    };
    let Some(journal) = session.store.journal(vmid).map_err(config_failure)? else { return Ok(None) };
    let tried = format!("take back what an earlier run left for {vmid}");
    let inside = way_back(session, &args.way, &journal, &tried).await?;
    let undoer = Undoer { executor: &*session.executor, mesh, inside: inside.as_deref(), store: &session.store };
    let failed = |error: crate::sys::pve::StepError| {
        let (next, exit, _) = step_advice(&error);
        Failure::new(&tried, &error, next).exit(exit)
    };
    if args.dry_run {
        let recovery = undoer.look(&journal).await.map_err(failed)?;
        return Ok(Some(match recovery {
            Recovery::Finished => Row::new(&journal, State::Finished),
            Recovery::TakeBack(wanted) => {
                Row { undone: wanted.iter().map(ToString::to_string).collect(), ..Row::new(&journal, State::Planned) }
            }
        }));
    }
    let recovery = undoer.look(&journal).await.map_err(failed)?;
    let (undone, left) = undoer.settle(&journal, &recovery, &mut Progress::new(output)).await.map_err(failed)?;
    let state = match (&recovery, left.is_empty()) {
        (Recovery::Finished, _) => State::Finished,
        (_, true) => State::TakenBack,
        (_, false) => State::Left,
    };
    Ok(Some(Row { undone, left, ..Row::new(&journal, state) }))
}

fn text(rows: &[Row]) -> String {
    if rows.is_empty() {
        return "no run is unfinished, nothing to do".to_owned();
    }
    let lines = rows.iter().map(|row| {
        let what = format!("{} {} ({})", row.role, row.vmid, row.name);
        let steps: String = row.undone.iter().map(|step| format!("\n    {step}")).collect();
        match row.state {
            State::Finished => format!("{what}: it had come to its end"),
            State::TakenBack if row.undone.is_empty() => format!("{what}: nothing of it was left"),
            State::TakenBack => format!("{what}: taken back{steps}"),
            State::Left => format!("{what}: not all of it could be taken back{steps}"),
            State::Planned => format!("{what}: would be taken back{steps}"),
            State::Busy => format!("{what}: at work at this moment"),
        }
    });
    lines.collect::<Vec<_>>().join("\n")
}
