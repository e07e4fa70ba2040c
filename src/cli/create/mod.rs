//! `pvemesh create-*`: guests of the mesh.

mod args;
mod making;
mod report;

use super::connect::{ConnectArgs, Session, config_failure, refusal};
use super::ways::WayArgs;
use super::{Exit, Failure, Output};
use crate::ident::Vmid;
use crate::plan::Refusal;
use crate::plan::options::{
    GuestOptions, GuestTexts, Join, NodeKind, OptionError, Role, auth_key, base_domain, endpoints, relay_address, routes, server_url,
};
use crate::pve::{call, reply};
use crate::sys::config::read_secret;
use crate::sys::entropy;
pub(super) use args::Tun;
pub(super) use args::{CreateCoordinator, CreateRelay, CreateSubnetRouter, NodeArgs};
use making::Making;
pub(super) use making::{How, architecture, image_failure};
use report::summary;
pub(super) use report::{Report, Timed, dry_run_text, dry_run_value};

/// Runs `create-coordinator`.
pub(super) async fn coordinator(args: CreateCoordinator, output: &Output) -> Result<(), Failure> {
    let tried = format!("make coordinator {}", args.guest.shown_id());
    let wrong = |e: OptionError| refusal(&tried, &Refusal::Option(e));
    let options = args.guest.check().map_err(wrong)?;
    let url = args.url.as_deref().map(|text| server_url("--url", text)).transpose().map_err(wrong)?;
    let base_domain = args.base_domain.as_deref().map(|text| base_domain("--base-domain", text)).transpose().map_err(wrong)?;
    let asked = Asked { url, base_domain, trusted_proxies: args.trusted_proxies };
    let session = Session::for_guest(&args.guest.connect, options.vmid, output).await?;
    let how = args.guest.how(output);
    let report = make_coordinator(&session, &options, asked, how).await?;
    if let Some(report) = report {
        output.result(&report, summary(&report));
    }
    Ok(())
}

/// What a coordinator is asked to be.
pub(super) struct Asked {
    pub(super) url: Option<String>,
    pub(super) base_domain: Option<String>,
    pub(super) trusted_proxies: Vec<ipnet::IpNet>,
}

/// Makes the coordinator, unless another one is known.
pub(super) async fn make_coordinator(
    session: &Session,
    options: &GuestOptions,
    asked: Asked,
    how: How<'_>,
) -> Result<Option<Report>, Failure> {
    let tried = format!("make coordinator {}", options.vmid);
    let known = session.config.coordinator.as_ref();
    if let Some(other) = known.filter(|c| c.vmid != Some(options.vmid)) {
        let at = other.vmid.map_or_else(|| other.lan_url.clone(), |vmid| format!("container {vmid}"));
        let config = session.store.directory().join("config.toml");
        let next = format!("remove it first (pvemesh destroy ID), or take [coordinator] out of {}", config.display());
        return Err(Failure::new(tried, format!("a coordinator is known already: {at}"), next).exit(Exit::Conflict));
    }
    let seed = entropy::seed().map_err(|e| Failure::new(&tried, e, "this system has no randomness"))?;
    let admin_key = session.store.admin_key(seed).map_err(config_failure)?.public();
    let Asked { url, base_domain, trusted_proxies } = asked;
    let role = Role::Coordinator { url, base_domain, admin_key, trusted_proxies };
    let is_known = known.is_some();
    Making { session, options, role, mesh: None, is_known, how, tried }.run().await
}

/// Runs `create-relay`.
pub(super) async fn relay(args: CreateRelay, output: &Output) -> Result<(), Failure> {
    let tried = format!("make relay {}", args.guest.shown_id());
    let wrong = |e: OptionError| refusal(&tried, &Refusal::Option(e));
    let options = args.guest.check().map_err(wrong)?;
    let address = args.address.as_deref().map(|text| relay_address("--address", text)).transpose().map_err(wrong)?;
    let session = Session::for_guest(&args.guest.connect, options.vmid, output).await?;
    let Some((coordinator, mesh)) = session.mesh().await? else { return Err(no_coordinator(&session, &tried, options.vmid).await) };
    let role = Role::Relay { coordinator, address };
    let how = args.guest.how(output);
    let making = Making { session: &session, options: &options, role, mesh: Some(&*mesh), is_known: true, how, tried };
    if let Some(report) = making.run().await? {
        output.result(&report, summary(&report));
    }
    Ok(())
}

/// Runs `create-exit-node`.
pub(super) async fn exit_node(args: NodeArgs, output: &Output) -> Result<(), Failure> {
    node(args, NodeKind::ExitNode, output).await
}

/// Runs `create-node`.
pub(super) async fn member(args: NodeArgs, output: &Output) -> Result<(), Failure> {
    node(args, NodeKind::Member, output).await
}

/// Runs `create-subnet-router`.
pub(super) async fn subnet_router(args: CreateSubnetRouter, output: &Output) -> Result<(), Failure> {
    let tried = format!("make subnet router {}", args.node.guest.shown_id());
    let (auto, named): (Vec<String>, Vec<String>) = args.route.into_iter().partition(|text| text == "auto");
    let routes = routes("--route", &named).map_err(|e| refusal(tried, &Refusal::Option(e)))?;
    let (snat, gateway) = (args.snat_subnet_routes, args.lan_gateway);
    node(args.node, NodeKind::SubnetRouter { routes, lan: !auto.is_empty(), snat, gateway }, output).await
}

async fn node(args: NodeArgs, kind: NodeKind, output: &Output) -> Result<(), Failure> {
    let what = match kind {
        NodeKind::Member => "node",
        NodeKind::ExitNode => "exit node",
        NodeKind::SubnetRouter { .. } => "subnet router",
    };
    let tried = format!("make {what} {}", args.guest.shown_id());
    let wrong = |e: OptionError| refusal(&tried, &Refusal::Option(e));
    let options = args.guest.check().map_err(wrong)?;
    let endpoints = endpoints("--endpoint", &args.endpoint).map_err(wrong)?;
    let with_coordinator =
        args.with_coordinator.as_deref().map(|text| text.parse::<Vmid>().map_err(|e| OptionError::new("--with-coordinator", e)));
    let with_coordinator = with_coordinator.transpose().map_err(wrong)?;
    let other = match (&args.login_server, &args.auth_key_file) {
        (Some(url), Some(file)) => {
            let login_server = server_url("--login-server", url).map_err(wrong)?;
            let unread = |e| Failure { tried: "read the join key (--auth-key-file)".to_owned(), ..config_failure(e) };
            let text = read_secret(file).map_err(unread)?;
            Some(Join::Other { login_server, auth_key: auth_key("--auth-key-file", text.expose()).map_err(wrong)? })
        }
        _ => None,
    };
    let mut session = Session::for_guest(&args.guest.connect, options.vmid, output).await?;
    let other = match other {
        None if session.config.coordinator.is_none() && with_coordinator.is_none() => elsewhere(&session)?,
        other => other,
    };
    let (join, mesh) = match other {
        Some(join) => (join, None),
        None => {
            if session.config.coordinator.is_none() {
                first_coordinator(&mut session, &args, &options, with_coordinator, &tried, output).await?;
            }
            match session.mesh().await? {
                Some((known, mesh)) => (Join::Ours(known), Some(mesh)),
                None => return Err(no_coordinator(&session, &tried, options.vmid).await),
            }
        }
    };
    let role = Role::Node { kind, join, endpoints, userspace: args.tun.map(|tun| tun == Tun::Userspace) };
    let how = args.guest.how(output);
    let making = Making { session: &session, options: &options, role, mesh: mesh.as_deref(), is_known: true, how, tried };
    if let Some(report) = making.run().await? {
        output.result(&report, summary(&report));
    }
    Ok(())
}

/// The coordinator of somebody else that was set up to be joined.
fn elsewhere(session: &Session) -> Result<Option<Join>, Failure> {
    let Some(join) = &session.config.join else { return Ok(None) };
    let text = read_secret(&join.auth_key_file).map_err(config_failure)?;
    let key = auth_key("auth_key_file", text.expose()).map_err(|e| refusal("read the join key", &Refusal::Option(e)))?;
    Ok(Some(Join::Other { login_server: join.login_server.clone(), auth_key: key }))
}

/// Makes a coordinator with nothing but a number, at the end of a first set-up.
pub(super) async fn first_of_all(connect: &ConnectArgs, vmid: Vmid, output: &Output) -> Result<(), Failure> {
    let tried = format!("make coordinator {vmid}");
    let texts = GuestTexts { vmid: vmid.to_string(), ..GuestTexts::default() };
    let options = texts.check().map_err(|e| refusal(tried, &Refusal::Option(e)))?;
    let session = Session::for_guest(connect, vmid, output).await?;
    let asked = Asked { url: None, base_domain: None, trusted_proxies: Vec::new() };
    let report = make_coordinator(&session, &options, asked, How { dry_run: false, image: None, way: &WayArgs::default(), output }).await?;
    if let Some(report) = report {
        output.result(&report, summary(&report));
    }
    Ok(())
}

/// Makes the coordinator that a node needs, where the admin said so.
async fn first_coordinator(
    session: &mut Session,
    args: &NodeArgs,
    options: &GuestOptions,
    with: Option<Vmid>,
    tried: &str,
    output: &Output,
) -> Result<(), Failure> {
    let Some(vmid) = with else { return Err(no_coordinator(session, tried, options.vmid).await) };
    if vmid == options.vmid {
        let error = OptionError::new("--with-coordinator", "the coordinator needs a number of its own");
        return Err(refusal(tried, &Refusal::Option(error)));
    }
    if args.guest.dry_run {
        let next = format!("pvemesh create-coordinator {vmid} --dry-run shows the coordinator; the node's steps depend on it");
        return Err(Failure::new(tried, "a dry run makes no coordinator, and without one a node cannot be planned", next).exit(Exit::Usage));
    }
    let texts = GuestTexts {
        vmid: vmid.to_string(),
        node: args.guest.node.clone(),
        storage: args.guest.storage.clone(),
        template_storage: args.guest.template_storage.clone(),
        bridge: args.guest.bridge.clone(),
        dns: args.guest.dns.clone(),
        ..GuestTexts::default()
    };
    let options = texts.check().map_err(|e| refusal(tried, &Refusal::Option(e)))?;
    let how = args.guest.how(output);
    let asked = Asked { url: None, base_domain: None, trusted_proxies: Vec::new() };
    let report = make_coordinator(session, &options, asked, how).await?;
    if let Some(report) = report {
        output.note(summary(&report));
    }
    session.config = session.store.load().map_err(config_failure)?;
    Ok(())
}

async fn no_coordinator(session: &Session, tried: &str, wanted: Vmid) -> Failure {
    let free = free_vmid(session, wanted).await.map_or_else(|| "ID".to_owned(), |vmid| vmid.to_string());
    let next = format!(
        "make one: pvemesh create-coordinator {free}   (or add --with-coordinator {free}; to join another one: --login-server URL --auth-key-file FILE)"
    );
    Failure::new(tried, "no coordinator is known, and a node needs one to join", next).exit(Exit::Conflict)
}

async fn free_vmid(session: &Session, except: Vmid) -> Option<Vmid> {
    let guests = reply::guests(&session.executor.call(&call::guests().ok()?).await.ok()?).ok()?;
    (100..1_000_000_u32).filter_map(|n| Vmid::try_from(n).ok()).find(|vmid| *vmid != except && guests.iter().all(|g| g.vmid != *vmid))
}
