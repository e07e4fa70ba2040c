//! `pvemesh apply`: a whole fleet, declared in a file.

mod carry;
mod show;

use std::collections::BTreeSet;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use super::connect::{ConnectArgs, Session, call_failure, config_failure, refusal};
use super::create::{self, Asked, How};
use super::{Exit, Failure, Output, hook, rights};
use crate::ident::{NodeId, NodeName, Vmid};
use crate::plan::create::{Image, Plan};
use crate::plan::fleet::{self, AfterFailure, Declared, Draft, Limits, Member, View, Want, Work};
use crate::plan::mark::RunId;
use crate::plan::options::{Join, KnownCoordinator, Role, auth_key};
use crate::sys::config::read_secret;
use crate::sys::entropy;
use crate::sys::pve::fleet::{look, look_at_hosts};
use crate::sys::pve::{Images as _, Mesh, Stock};
use carry::Crew;
use show::{Change, Report, Row};

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
    #[command(flatten)]
    connect: ConnectArgs,
}

/// Runs `apply`.
pub(super) async fn run(args: Apply, output: &Output) -> Result<(), Failure> {
    let begun = std::time::Instant::now();
    let tried = format!("apply {}", args.file.display());
    let members = read(&args.file, &tried)?;
    let mut session = Session::open(&args.connect).await?;
    let mut rows = Vec::new();
    if let Some(row) = first_coordinator(&mut session, &members, &args, output).await? {
        rows.push(row);
    }
    if session.config.coordinator.is_none() && args.dry_run && members.iter().any(needs_coordinator) {
        output.note("the other guests join the coordinator, and are planned once it is there");
        return Ok(());
    }
    let mesh = session.mesh().await?;
    let declared = declare(&members, &session, mesh.as_ref().map(|(known, _)| known), &args.file, &tried)?;
    let stock = Stock::prepare(&session.store, args.image.as_deref()).map_err(|e| create::image_failure(&tried, &e))?;
    let image = Image::new(env!("CARGO_PKG_VERSION"), &stock.shared().sha256, create::architecture(&tried)?);
    let door = mesh.as_ref().map(|(_, mesh)| &**mesh);
    let (view, draft) = plan(&session, door, &declared, &image, (&tried, args.dry_run)).await?;
    let changes: Vec<Change<'_>> = draft.works.iter().map(|(vmid, work)| Change::of(*vmid, work)).collect();
    for remark in &draft.remarks {
        output.note(remark);
    }
    if args.dry_run {
        output.result(&show::dry_run_value(&changes, &draft), show::dry_run_text(&changes, &draft));
        return Ok(());
    }
    changes.iter().filter(|change| !change.is_nothing()).for_each(|change| output.note(change));
    let limits = Limits { in_all: args.parallel.into(), per_host: args.per_host.into() };
    let after = if args.keep_going { AfterFailure::GoOn } else { AfterFailure::Stop };
    let crew = Crew { session: &session, mesh: door, stock: &stock, output, tried: &tried };
    let (done, failure) = crew.work(&draft, &jobs(&members, &draft), limits, after, &view).await?;
    rows.extend(done);
    if failure.is_none() {
        crew.keep_apart(&draft, &view).await?;
    }
    let report = Report::new(rows, &draft, begun.elapsed().as_secs_f64(), session.calls.count());
    output.result(&report, report.text());
    failure.map_or(Ok(()), Err)
}

fn read(file: &Path, tried: &str) -> Result<Vec<Member>, Failure> {
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
async fn first_coordinator(session: &mut Session, members: &[Member], args: &Apply, output: &Output) -> Result<Option<Row>, Failure> {
    let declared = members.iter().find_map(|member| match &member.want {
        Want::Coordinator { url, base_domain, trusted_proxies } => {
            let asked = Asked { url: url.clone(), base_domain: base_domain.clone(), trusted_proxies: trusted_proxies.clone() };
            Some((member, asked))
        }
        _ => None,
    });
    let Some((member, asked)) = declared.filter(|_| session.config.coordinator.is_none()) else { return Ok(None) };
    let how = How { dry_run: args.dry_run, image: args.image.as_deref(), output };
    let report = create::make_coordinator(session, &member.options, asked, how).await?;
    session.config = session.store.load().map_err(config_failure)?;
    Ok(report.map(|report| Row::made(&report)))
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

/// Reads what is there and plans; hosts are looked at only if something is to be done.
async fn plan(
    session: &Session,
    mesh: Option<&dyn Mesh>,
    declared: &[Declared<'_>],
    image: &Image,
    (tried, dry_run): (&str, bool),
) -> Result<(View, Draft), Failure> {
    let nodes: Vec<(NodeId, NodeName)> = match mesh {
        Some(mesh) => {
            let nodes = mesh.nodes().await;
            let nodes = nodes.map_err(|e| Failure::new(tried, e, "is this machine's admin key still known to it?").exit(Exit::Denied))?;
            nodes.into_iter().map(|node| (node.id, node.name)).collect()
        }
        None => Vec::new(),
    };
    let numbers: BTreeSet<Vmid> = declared.iter().map(|one| one.member.options.vmid).collect();
    let executor = &*session.executor;
    let mut view = look(executor, &numbers, nodes).await.map_err(|e| call_failure(tried, &e))?;
    let blocked = |blocked: fleet::Blocked| refusal(format!("{tried}: guest {}", blocked.vmid), &blocked.refusal);
    let all_there = numbers.iter().all(|vmid| view.targets.contains_key(vmid));
    if all_there {
        let draft = fleet::draw(declared, &view, image).map_err(blocked)?;
        if draft.works.iter().all(|(_, work)| matches!(work, Work::Nothing(_) | Work::Start(_))) {
            return Ok((view, draft));
        }
    }
    look_at_hosts(executor, &mut view).await.map_err(|e| call_failure(tried, &e))?;
    let (hookscript, script) = hook::for_new_guests(session, &view.observed).await;
    view.observed.hookscript = hookscript;
    let mut draft = fleet::draw(declared, &view, image).map_err(blocked)?;
    for (_, work) in &mut draft.works {
        let Some(plan) = work.plan_mut() else { continue };
        let host = plan.host.clone();
        plan.choices.extend(rights::review(executor, tried, &view.observed, &host, &mut plan.steps).await?);
    }
    let makes = draft.works.iter().any(|(_, work)| matches!(work, Work::Create(_)));
    if let Some(script) = script.filter(|_| makes && !dry_run) {
        script.put()?;
    }
    Ok((view, draft))
}

/// The jobs, in the file's order. Routers of one group are restarted one at a time.
fn jobs(members: &[Member], draft: &Draft) -> Vec<fleet::Job> {
    let group = |vmid: Vmid| members.iter().find(|member| member.options.vmid == vmid).and_then(|member| member.group.clone());
    let job = |(vmid, work): &(Vmid, Work)| {
        let plan: &Plan = work.plan()?;
        let alone_among = if matches!(work, Work::Change(_)) { group(*vmid) } else { None };
        Some(fleet::Job { vmid: *vmid, host: plan.host.clone(), alone_among })
    };
    draft.works.iter().filter_map(job).collect()
}
