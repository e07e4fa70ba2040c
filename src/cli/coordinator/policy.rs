//! `pvemesh coordinator policy`.

use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};

use super::table::{joined, moment};
use super::{Place, failure};
use crate::cli::{Exit, Failure, Output};
use crate::coord::policy::MAX_BYTES;
use crate::sys::admin::AdminError;
use crate::wire::admin::{PolicyReport, SetPolicy};

/// The policy: who may reach whom.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Policy {
    /// Show the policy file in force.
    Get {
        /// Write it to this file instead.
        #[arg(long, value_name = "FILE")]
        output_file: Option<PathBuf>,
        #[command(flatten)]
        place: Place,
    },
    /// Put a policy file in force; nodes are told what changes for them at once.
    Set(Given),
    /// Say what would come of a policy file, and change nothing.
    Check(Given),
    /// Take the policy away: everything is allowed again.
    Remove(Place),
}

/// A policy file.
#[derive(Debug, clap::Args)]
pub(crate) struct Given {
    /// The file (HuJSON, in Tailscale's grammar); - reads standard input.
    file: PathBuf,
    /// Even if no node could reach any other then.
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    place: Place,
}

pub(super) fn run(command: Policy, output: &Output) -> Result<(), Failure> {
    match command {
        Policy::Get { output_file, place } => get(output_file.as_deref(), &place, output),
        Policy::Set(given) => give(given, false, output),
        Policy::Check(given) => give(given, true, output),
        Policy::Remove(place) => {
            place.ask("take the policy away", async |admin| admin.remove_policy().await)?;
            output.result(&serde_json::json!({ "in_force": false }), "there is no policy any more: everything is allowed");
            Ok(())
        }
    }
}

fn get(file: Option<&Path>, place: &Place, output: &Output) -> Result<(), Failure> {
    const TRIED: &str = "show the policy";
    let policy = place.ask(TRIED, async |admin| admin.policy().await)?;
    let Some(text) = policy.text.as_deref() else {
        if output.json() {
            output.result(&policy, "");
        } else {
            output.note("There is no policy: every node may reach every other.");
        }
        return Ok(());
    };
    let Some(file) = file else {
        output.result(&policy, text.trim_end());
        return Ok(());
    };
    let unwritten = |e| Failure::new(format!("write {}", file.display()), e, "name a file in a directory you can write to");
    std::fs::write(file, text).map_err(unwritten)?;
    let set = policy.set.map_or_else(|| "-".to_owned(), moment);
    let shown = serde_json::json!({ "file": file, "set": policy.set });
    output.result(&shown, format!("the policy set at {set} is in {}", file.display()));
    Ok(())
}

fn give(given: Given, check_only: bool, output: &Output) -> Result<(), Failure> {
    let tried = if check_only { "check the policy" } else { "put the policy in force" };
    let wanted = SetPolicy { text: read(&given.file)?, force: given.force, check_only };
    let report = given.place.run(tried, async |admin| admin.set_policy(&wanted).await.map_err(|error| refusal(tried, &error)))?;
    for user in &report.unknown_users {
        output.note(format_args!("warning: the policy names the user {user}, who does not exist"));
    }
    if !report.isolated.is_empty() {
        output.note(format_args!("warning: these nodes see no other: {}", joined(&report.isolated)));
    }
    output.result(&report, described(&report));
    Ok(())
}

fn described(report: &PolicyReport) -> String {
    let mut text = match (report.in_force, report.nodes) {
        (true, nodes) => format!("the policy is in force for {nodes} nodes"),
        (false, _) => "the policy reads, and its tests pass; it is not in force".to_owned(),
    };
    for approval in &report.approves {
        let verb = if report.in_force { "approved" } else { "would be approved" };
        text.push_str(&format!("\n{verb}: {} for {}", approval.route, approval.node));
    }
    text
}

fn read(file: &Path) -> Result<String, Failure> {
    let failed = |e: std::io::Error| Failure::new(format!("read {}", file.display()), e, "name a policy file").exit(Exit::Usage);
    let mut text = String::new();
    let limit = MAX_BYTES as u64 + 1;
    let result = if file == Path::new("-") {
        let _ = std::io::stderr().flush();
        std::io::stdin().lock().take(limit).read_to_string(&mut text)
    } else {
        std::fs::File::open(file).and_then(|file| file.take(limit).read_to_string(&mut text))
    };
    result.map_err(failed)?;
    if text.len() > MAX_BYTES {
        let happened = format!("it has more than {MAX_BYTES} bytes, the most a policy may have");
        return Err(Failure::new(format!("read {}", file.display()), happened, "name a policy file").exit(Exit::Usage));
    }
    Ok(text)
}

fn refusal(tried: &str, error: &AdminError) -> Failure {
    match error {
        AdminError::Refused { status: 400, .. } => {
            Failure::new(tried, error, "correct the file at that place; the policy in force stays as it was").exit(Exit::Usage)
        }
        AdminError::Refused { status: 409, text } if text.contains("locked out") => {
            Failure::new(tried, error, "allow something first, or give --force if this is what you want").exit(Exit::Conflict)
        }
        AdminError::Refused { status: 409, .. } => {
            Failure::new(tried, error, "correct the rules or the tests; the policy in force stays as it was").exit(Exit::Conflict)
        }
        _ => failure(tried, error),
    }
}
