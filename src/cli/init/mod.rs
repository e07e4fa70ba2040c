//! `pvemesh init`: how Proxmox is reached from this machine, and who may do what there.
//!
//! What was typed is checked as a whole, then tried, and saved only when it worked. What is not given stays as it is.

mod checked;
mod contact;
mod coordinator;
mod role;
mod show;

use std::path::PathBuf;

use super::connect::{call_failure, config_failure};
use super::hosts::ways;
use super::{Exit, Failure, Output, ask};
use crate::pve::{Fingerprint, Version, call, reply};
use crate::sys::config::{Config, Pve, Store};
use crate::sys::pve::{CallError, Executor, Pvesh};
use checked::Checked;

/// Without options, asks on the terminal; settings that are there already are kept unless given again.
#[derive(Debug, clap::Args)]
pub(super) struct Init {
    /// What the host or cluster is called here, where there are several; an unknown name adds one.
    #[arg(long)]
    name: Option<String>,
    /// The address of a Proxmox host, `https://HOST[:8006]`. Given several times, the others are hosts of the same cluster, tried in this order.
    #[arg(long)]
    url: Vec<String>,
    /// The user to log in as, `root@pam` for what needs it (passing /dev/net/tun through does).
    #[arg(long, value_name = "USER@REALM")]
    user: Option<String>,
    /// A file with the password, readable by its owner only; `-` reads it from standard input and keeps it in the configuration's directory.
    #[arg(long, value_name = "FILE", conflicts_with = "token_file")]
    password_file: Option<PathBuf>,
    /// A file with an API token, `USER@REALM!NAME=SECRET`.
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// The SHA-256 fingerprint of the host's certificate.
    #[arg(long, value_name = "HEX", conflicts_with_all = ["ca_file", "trust_on_first_use"])]
    fingerprint: Option<String>,
    /// A PEM file with the authority that signed the host's certificate, as /etc/pve/pve-root-ca.pem of the host.
    #[arg(long, value_name = "FILE", conflicts_with = "trust_on_first_use")]
    ca_file: Option<PathBuf>,
    /// Believe the certificate that the host shows now, and from now on only it and what the cluster's own authority signs.
    #[arg(long)]
    trust_on_first_use: bool,
    /// The code of a second factor, if the user has one: six digits, or a recovery key.
    #[arg(long, value_name = "CODE")]
    otp: Option<String>,
    /// A file with that code; `-` reads it from standard input.
    #[arg(long, value_name = "FILE", conflicts_with = "otp")]
    otp_file: Option<PathBuf>,
    /// The coordinator of somebody else that new guests join (Headscale, Tailscale, or ours elsewhere).
    #[arg(long, value_name = "URL", requires = "auth_key_file")]
    login_server: Option<String>,
    /// A file with the join key for --login-server, good for several uses.
    #[arg(long, value_name = "FILE", requires = "login_server")]
    auth_key_file: Option<PathBuf>,
    /// Show what is set up, and change nothing. No secret is shown.
    #[arg(long, conflicts_with_all = ["url", "user", "password_file", "token_file", "print_role", "create_role", "login_server"])]
    show: bool,
    /// Print the least role an API token needs, and the commands that make role, user and token.
    #[arg(long)]
    print_role: bool,
    /// Make role, user and token on the host, and keep the token in a file here (needs root, or rights to change rights).
    #[arg(long, conflicts_with = "print_role")]
    create_role: bool,
    /// The token that --print-role and --create-role are about.
    #[arg(long, value_name = "USER@REALM!NAME", default_value = role::DEFAULT_TOKEN)]
    token_name: String,
    /// The Proxmox VE version that --print-role is about; that of the host set up, else the newest known.
    #[arg(long, value_name = "VERSION", requires = "print_role")]
    pve_version: Option<String>,
}

#[derive(serde::Serialize)]
struct Report {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    place: String,
    version: String,
    identity: String,
    may_pass_tun: bool,
    fingerprint: Option<Fingerprint>,
    /// How the certificate is believed from now on.
    trust: &'static str,
    configuration: Option<PathBuf>,
}

/// Runs the command.
pub(super) async fn run(args: Init, output: &Output) -> Result<(), Failure> {
    let store = Store::open().map_err(config_failure)?;
    let mut config = store.load().map_err(config_failure)?;
    if args.show {
        let shown = show::Shown::of(&config, &store);
        output.result(&shown, shown.text());
        return Ok(());
    }
    if args.print_role || args.create_role {
        return role::run(&args, output).await;
    }
    if args.is_bare() && ways(&config).is_empty() && Pvesh::is_here() {
        let report = probe(&Pvesh::default(), None).await?;
        output.result(&report, format!("{}\nnothing to set up: on a Proxmox host, root needs no credentials", describe(&report)));
        return Ok(());
    }
    let interactive = ask::is_possible() && !output.json();
    let whole = interactive && args.is_bare() && ways(&config).is_empty();
    let at = target(&args, &config)?;
    let old = at.and_then(|at| slot(&mut config, at).cloned());
    if let Some(join) = coordinator::given(&args)? {
        if config.coordinator.is_some() {
            let happened = "a coordinator of ours is known already, and new guests join it";
            return Err(Failure::new(
                "set up a coordinator",
                happened,
                "pvemesh destroy ID removes it; create-* --login-server joins another once",
            )
            .exit(Exit::Conflict));
        }
        config.join = Some(join);
        if args.is_about_coordinator_only() && (old.is_some() || Pvesh::is_here()) {
            store.save(&config).map_err(config_failure)?;
            output.result(&serde_json::json!({ "join": config.join }), "new guests join it from now on");
            return Ok(());
        }
    }
    let checked = Checked::new(&args, old.as_ref(), interactive)?;
    let contact = contact::establish(&args, checked, old.unwrap_or_default(), &store, output, interactive).await?;
    let report = Report {
        name: contact.pve.name.clone(),
        trust: contact.trust,
        configuration: Some(store.directory().join("config.toml")),
        ..probe(&contact.https, contact.pve.fingerprint).await?
    };
    contact.keep_files(&store)?;
    let name = contact.pve.name.clone();
    match at.and_then(|at| slot(&mut config, at)) {
        Some(place) => *place = contact.pve,
        None if name.is_none() => config.pve = Some(contact.pve),
        None => config.host.push(contact.pve),
    }
    store.save(&config).map_err(config_failure)?;
    output.result(&report, describe(&report));
    if whole && config.coordinator.is_none() && config.join.is_none() {
        coordinator::ask(name.as_deref(), &store, config, output).await?;
    }
    Ok(())
}

impl Init {
    /// Nothing was given that says what to set up.
    fn is_bare(&self) -> bool {
        self.url.is_empty() && !self.is_about_access() && self.login_server.is_none() && self.name.is_none()
    }

    fn is_about_access(&self) -> bool {
        self.user.is_some()
            || self.password_file.is_some()
            || self.token_file.is_some()
            || self.fingerprint.is_some()
            || self.ca_file.is_some()
            || self.trust_on_first_use
    }

    fn is_about_coordinator_only(&self) -> bool {
        self.url.is_empty() && !self.is_about_access() && self.login_server.is_some()
    }
}

/// Which entry of the configuration is meant; none if it is a new one. The first one counts as 0 if it has the old form.
fn target(args: &Init, config: &Config) -> Result<Option<usize>, Failure> {
    let all = ways(config);
    match &args.name {
        Some(name) => Ok(all.iter().position(|(known, _)| known == name)),
        None if all.len() > 1 => {
            let names: Vec<&str> = all.iter().map(|(name, _)| name.as_str()).collect();
            let next = format!("say which: --name {}", names.join(" or --name "));
            Err(Failure::new("set up the way to Proxmox", "several hosts or clusters are set up", next).exit(Exit::Usage))
        }
        None => Ok((!all.is_empty()).then_some(0)),
    }
}

fn slot(config: &mut Config, at: usize) -> Option<&mut Pve> {
    config.pve.iter_mut().chain(&mut config.host).nth(at)
}

async fn version(executor: &dyn Executor) -> Result<Version, CallError> {
    Ok(reply::version(&executor.call(&call::version()?).await?)?)
}

async fn probe(executor: &dyn Executor, fingerprint: Option<Fingerprint>) -> Result<Report, Failure> {
    let version = version(executor).await.map_err(|e| call_failure("ask Proxmox for its version", &e))?;
    let principal = executor.principal();
    Ok(Report {
        name: None,
        place: executor.place(),
        version: version.to_string(),
        may_pass_tun: principal.is_root() && version >= Version::DEVICES,
        identity: principal.to_string(),
        fingerprint,
        trust: "none is needed",
        configuration: None,
    })
}

fn describe(report: &Report) -> String {
    let tun = if report.may_pass_tun {
        "it may pass /dev/net/tun through, so it can make mesh guests"
    } else {
        "it may NOT pass /dev/net/tun through: that takes root@pam with a password (or root on the host) and Proxmox VE 8.1; with a golden \
         container that root made once (pvemesh image golden 9000), a token makes them all the same"
    };
    let mut text = format!("{}: Proxmox VE {}, as {}\n{tun}", report.place, report.version, report.identity);
    if let Some(path) = &report.configuration {
        text.push_str(&format!("\nits certificate is believed by {}\nsaved in {}", report.trust, path.display()));
    }
    text
}

/// The end of the file names of an entry's secrets.
fn suffix(name: Option<&str>) -> String {
    name.map(|name| format!("-{name}")).unwrap_or_default()
}
