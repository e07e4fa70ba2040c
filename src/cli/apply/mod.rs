//! `pvemesh apply`: a whole fleet, declared in a file.

mod board;
mod carry;
mod show;
mod sites;

use std::io::{IsTerminal as _, Read as _};
use std::path::{Path, PathBuf};

use super::connect::{ConnectArgs, Session, config_failure, refusal};
use super::create::{self, Asked, How};
use super::interrupt::Interrupt;
use super::ways::WayArgs;
use super::{Exit, Failure, Output, ask};
use crate::plan::create::{Image, Plan};
use crate::plan::fleet::{self, AfterFailure, Declared, Fleet, FleetName, Limits, Member, Want, Work};
use crate::plan::mark::RunId;
use crate::plan::options::{Join, KnownCoordinator, Role, auth_key};
use crate::sys::config::read_secret;
use crate::sys::entropy;
use crate::sys::pve::{Images as _, Stock};
use carry::Crew;
use show::{Change, Report, Row};
use sites::{Planned, Planner, Site};

/// Larger files declare no fleet.
const MAX_FILE: u64 = 1 << 20;

/// Makes the guests that a file declares, changes those that differ, and leaves the others alone.
#[derive(Debug, clap::Args)]
pub(super) struct Apply {
    /// The file, as in fleet.toml (docs/fleet.md).
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Print what differs and every call, and change nothing.
    #[arg(long)]
    dry_run: bool,
    /// Guests worked on at once, in all.
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=64))]
    parallel: u16,
    /// Guests worked on at once on one host.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=64))]
    per_host: u16,
    /// Go on with the others when a guest fails; otherwise none is begun after it.
    #[arg(long)]
    keep_going: bool,
    /// The appliance image to use, made with `pvemesh image build`; built from this very program if absent.
    #[arg(long, value_name = "FILE")]
    image: Option<PathBuf>,
    /// Remove the guests that were made for this fleet and are not in the file any more.
    #[arg(long)]
    prune: bool,
    /// Do not ask whether they are to go.
    #[arg(short, long, requires = "prune")]
    yes: bool,
    #[command(flatten)]
    way: WayArgs,
    #[command(flatten)]
    connect: ConnectArgs,
}

/// Runs `apply`.
pub(super) async fn run(args: Apply, output: &Output) -> Result<(), Failure> {
    let begun = std::time::Instant::now();
    let tried = format!("apply {}", args.file.display());
    let mut fleet = read(&args.file, &tried)?;
    if args.prune && fleet.name.is_none() {
        let next = format!("give it one in {}: fleet = \"home\"; guests made from then on bear it", args.file.display());
        return Err(
            Failure::new(tried, "--prune: the fleet has no name, so nobody can tell which guests are of it", next).exit(Exit::Usage)
        );
    }
    let mut sites = sites::open(&args.connect, &mut fleet, args.prune, (&tried, output)).await?;
    let places = sites::assign(&fleet, &sites, &tried)?;
    let members = &fleet.members;
    let mut rows = Vec::new();
    if let Some(row) = first_coordinator(&mut sites, members, &places, &args, output).await? {
        rows.push(row);
    }
    let several = sites.len() > 1;
    let Some(first) = sites.first() else { return Err(Failure::new(tried, "there is no host", "pvemesh init")) };
    if first.session.config.coordinator.is_none() && args.dry_run && members.iter().any(needs_coordinator) {
        output.note("the other guests join the coordinator, and are planned once it is there");
        return Ok(());
    }
    let mesh = first.session.mesh().await?;
    let declared = declare(members, &first.session, mesh.as_ref().map(|(known, _)| known), &args.file, &tried)?;
    let declared = on_each(declared, &places, sites.len());
    let stock = Stock::prepare(&first.session.store, args.image.as_deref()).map_err(|e| create::image_failure(&tried, &e))?;
    let image = Image::new(env!("CARGO_PKG_VERSION"), &stock.shared().sha256, create::architecture(&tried)?);
    let door = mesh.as_ref().map(|(_, mesh)| &**mesh);
    let prune = fleet.name.as_ref().filter(|_| args.prune);
    let planner = Planner { mesh: door, image: &image, way: &args.way, dry_run: args.dry_run, prune, tried: &tried };
    let planned = planner.all(&sites, &declared).await?;
    let changes = Change::all(&planned, several);
    for remark in planned.iter().flat_map(|planned| &planned.draft.remarks) {
        output.note(remark);
    }
    if args.dry_run {
        output.result(&show::dry_run_value(&changes, &planned, several), show::dry_run_text(&changes, &planned));
        return Ok(());
    }
    changes.iter().filter(|change| !change.is_nothing()).for_each(|change| output.note(change));
    if let Some(fleet) = prune.filter(|_| planned.iter().any(|planned| !planned.removals.is_empty())) {
        confirm(fleet, args.yes, &planned, &tried, output)?;
    }
    let interrupt = Interrupt::listen(output)?;
    let crew = Crew {
        planned: &planned,
        several,
        mesh: door,
        way: &args.way,
        stock: &stock,
        limits: Limits { in_all: args.parallel.into(), per_host: args.per_host.into() },
        after: if args.keep_going { AfterFailure::GoOn } else { AfterFailure::Stop },
        interrupt: &interrupt,
        output,
        tried: &tried,
    };
    let (done, mut failure) = crew.work(&jobs(members, &places, &planned)).await?;
    let whole = failure.is_none() && done.iter().all(|row| row.outcome != "not begun");
    rows.extend(done);
    if whole {
        crew.keep_apart().await?;
        // Last, so that what replaces a guest is there before it goes.
        let (gone, failed) = crew.prune().await;
        rows.extend(gone);
        failure = failed;
    }
    let calls = sites.iter().map(|site| site.session.calls.count()).sum();
    let report = Report::new(rows, &planned, begun.elapsed().as_secs_f64(), calls);
    output.result(&report, report.text());
    failure.map_or(Ok(()), Err)
}

/// Asks whether it is meant that guests go.
fn confirm(fleet: &FleetName, yes: bool, planned: &[Planned<'_>], tried: &str, output: &Output) -> Result<(), Failure> {
    if yes {
        return Ok(());
    }
    let all: Vec<String> = planned.iter().flat_map(|planned| &planned.removals).map(|removal| removal.vmid.to_string()).collect();
    if !std::io::stdin().is_terminal() {
        let happened = format!("removing {} asks for a yes, and there is no terminal to ask on", all.join(", "));
        return Err(Failure::new(tried, happened, "add --yes, or leave --prune out").exit(Exit::Usage));
    }
    let answer = ask::line(output, &format!("type {fleet} to remove {}", all.join(", ")))?;
    if answer == fleet.to_string() {
        return Ok(());
    }
    Err(Failure::new(tried, "it was not confirmed", "nothing was changed").exit(Exit::Usage))
}

fn read(file: &Path, tried: &str) -> Result<Fleet, Failure> {
    let mut text = String::new();
    std::fs::File::open(file)
        .and_then(|open| open.take(MAX_FILE).read_to_string(&mut text))
        .map_err(|e| Failure::new(tried, e, "check the path; docs/fleet.md shows such a file").exit(Exit::Usage))?;
    fleet::read(&text).map_err(|e| Failure::new(tried, e, "correct the file; docs/fleet.md lists its keys").exit(Exit::Usage))
}

fn needs_coordinator(member: &Member) -> bool {
    matches!(&member.want, Want::Relay { .. } | Want::Node { elsewhere: None, .. })
}

/// Makes the declared coordinator before anything that joins it, unless it is there: then it is planned with the others.
async fn first_coordinator(
    sites: &mut [Site],
    members: &[Member],
    places: &[usize],
    args: &Apply,
    output: &Output,
) -> Result<Option<Row>, Failure> {
    let declared = members.iter().zip(places).find_map(|(member, place)| match &member.want {
        Want::Coordinator { url, base_domain, trusted_proxies } => {
            let asked = Asked { url: url.clone(), base_domain: base_domain.clone(), trusted_proxies: trusted_proxies.clone() };
            Some((member, *place, asked))
        }
        _ => None,
    });
    let is_known = sites.iter().any(|site| site.session.config.coordinator.is_some());
    let several = sites.len() > 1;
    let Some((member, place, asked)) = declared.filter(|_| !is_known) else { return Ok(None) };
    let Some(site) = sites.get_mut(place) else { return Ok(None) };
    let how = How { dry_run: args.dry_run, image: args.image.as_deref(), way: &args.way, output };
    let report = create::make_coordinator(&site.session, &member.options, asked, how).await?;
    let row = report.map(|report| Row { cluster: site.name.clone().filter(|_| several), ..Row::made(&report) });
    if row.is_some() {
        site.refresh(&format!("apply {}", args.file.display())).await?;
    }
    for (number, site) in sites.iter_mut().enumerate() {
        site.session.config = site.session.store.load().map_err(config_failure)?;
        if let Some(coordinator) = site.session.config.coordinator.as_mut().filter(|_| number != place) {
            // The guest of that number here is another one.
            coordinator.vmid = None;
        }
    }
    Ok(row)
}

/// The members with their roles, which say whom they join.
fn declare<'m>(
    members: &'m [Member],
    session: &Session,
    known: Option<&KnownCoordinator>,
    file: &Path,
    tried: &str,
) -> Result<Vec<Declared<'m>>, Failure> {
    let mut declared = Vec::new();
    for member in members {
        let vmid = member.options.vmid;
        let coordinator = || {
            known.cloned().ok_or_else(|| {
                let next = format!("declare one in {} (role = \"coordinator\"), or make it: pvemesh create-coordinator ID", file.display());
                Failure::new(tried, format!("guest {vmid} needs a coordinator, and none is known"), next).exit(Exit::Conflict)
            })
        };
        let role = match &member.want {
            Want::Coordinator { url, base_domain, trusted_proxies } => {
                let seed = entropy::seed().map_err(|e| Failure::new(tried, e, "this system has no randomness"))?;
                let admin_key = session.store.admin_key(seed).map_err(config_failure)?.public();
                Role::Coordinator {
                    url: url.clone(),
                    base_domain: base_domain.clone(),
                    admin_key,
                    trusted_proxies: trusted_proxies.clone(),
                }
            }
            Want::Relay { address } => Role::Relay { coordinator: coordinator()?, address: address.clone() },
            Want::Node { kind, endpoints, userspace, elsewhere } => {
                let join = match elsewhere {
                    Some((url, key_file)) => {
                        // Beside the fleet's file unless it says otherwise.
                        let path = file.parent().map_or_else(|| key_file.clone(), |parent| parent.join(key_file));
                        let text = read_secret(&path).map_err(config_failure)?;
                        let key = auth_key("auth_key_file", text.expose()).map_err(|e| refusal(tried, &e.into()))?;
                        Join::Other { login_server: url.clone(), auth_key: key }
                    }
                    None => Join::Ours(coordinator()?),
                };
                Role::Node { kind: kind.clone(), join, endpoints: endpoints.clone(), userspace: *userspace }
            }
        };
        let random = entropy::bytes::<16>().map_err(|e| Failure::new(tried, e, "this system has no randomness"))?;
        declared.push(Declared { member, role, run: RunId::new(u128::from_be_bytes(random)) });
    }
    Ok(declared)
}

/// The members of each site.
fn on_each<'m>(declared: Vec<Declared<'m>>, places: &[usize], sites: usize) -> Vec<Vec<Declared<'m>>> {
    let mut each: Vec<Vec<Declared<'m>>> = (0..sites).map(|_| Vec::new()).collect();
    for (one, place) in declared.into_iter().zip(places) {
        if let Some(here) = each.get_mut(*place) {
            here.push(one);
        }
    }
    each
}

/// The jobs, in the file's order. Routers of one group are restarted one at a time, wherever they are.
fn jobs(members: &[Member], places: &[usize], planned: &[Planned<'_>]) -> Vec<fleet::Job> {
    let job = |(member, site): (&Member, &usize)| {
        let vmid = member.options.vmid;
        let (_, work) = planned.get(*site)?.draft.works.iter().find(|(of, _)| *of == vmid)?;
        let plan: &Plan = work.plan()?;
        let alone_among = if matches!(work, Work::Change(_)) { member.group.clone() } else { None };
        Some(fleet::Job { site: *site, vmid, host: plan.host.clone(), alone_among })
    };
    members.iter().zip(places).filter_map(job).collect()
}
