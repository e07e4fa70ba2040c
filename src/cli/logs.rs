//! `pvemesh logs`: what a guest's node, coordinator or relay has said.

use std::io::Write as _;

use super::connect::{ConnectArgs, Session, refusal};
use super::enroll::Entry;
use super::ways::{WayArgs, inside_failure};
use super::{Failure, Output};
use crate::ident::Vmid;
use crate::plan::Refusal;
use crate::plan::options::OptionError;
use crate::sys::pve::inside::{Run, run_well};

/// Show what a guest's node, coordinator or relay has said.
#[derive(Debug, clap::Args)]
pub(super) struct Logs {
    /// The guest's number (VMID).
    #[arg(value_name = "ID")]
    vmid: String,
    /// Go on with what is added, until Ctrl-C.
    #[arg(short, long)]
    follow: bool,
    /// How many lines.
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(0..=100_000))]
    lines: u32,
    #[command(flatten)]
    way: WayArgs,
    #[command(flatten)]
    connect: ConnectArgs,
}

/// Runs the command.
pub(super) async fn run(args: Logs, output: &Output) -> Result<(), Failure> {
    let tried = format!("read the log of guest {}", args.vmid.escape_default().take(20).collect::<String>());
    let vmid: Vmid = args.vmid.parse().map_err(|e| refusal(&tried, &Refusal::Option(OptionError::new("ID", e))))?;
    let session = Session::for_guest(&args.connect, vmid, output).await?;
    let resident = Entry { session: &session, way: &args.way, mesh: None, tried: &tried }.resident(vmid).await?;
    let lines = args.lines.to_string();
    let mut argv: Vec<String> = if resident.service.keeps_log() {
        ["journalctl", "--unit=pvemesh.service", "--no-pager", "--output=short-iso", "--lines", &lines].map(str::to_owned).to_vec()
    } else {
        [resident.program.as_str(), "inside", "log", "--lines", &lines].map(str::to_owned).to_vec()
    };
    if args.follow {
        argv.push("--follow".to_owned());
        let mut sink = |bytes: &[u8]| {
            let mut out = std::io::stdout().lock();
            if out.write_all(bytes).and_then(|()| out.flush()).is_err() {
                // Whoever read has gone.
                std::process::exit(0);
            }
        };
        return resident.inside.follow(vmid, &argv, &mut sink).await.map(drop).map_err(|e| inside_failure(&tried, &e));
    }
    let mut run = Run::new(argv);
    run.max_output = 16 << 20;
    let text = run_well(&*resident.inside, vmid, &run).await.map_err(|e| inside_failure(&tried, &e))?.text();
    let all: Vec<&str> = text.lines().collect();
    output.result(&serde_json::json!({ "vmid": vmid, "lines": all }), &text);
    Ok(())
}
