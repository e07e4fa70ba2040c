//! `pvemesh init`: how Proxmox is reached from this machine.

use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};

use super::connect::{build, call_failure, config_failure, token};
use super::{Exit, Failure, Output};
use crate::ident::Secret;
use crate::pve::{Fingerprint, Version, call, reply};
use crate::sys::config::{Pve, Store, read_secret};
use crate::sys::pve::{CallError, Credentials, Executor, Https, Pvesh, probe_fingerprint};

/// Without options, asks on the terminal; settings that are there already are kept unless given again.
#[derive(Debug, clap::Args)]
pub(super) struct Init {
    /// The address of a Proxmox host, `https://HOST[:8006]`.
    #[arg(long)]
    url: Option<String>,
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
    /// Believe the certificate that the host shows now, and only that one from now on.
    #[arg(long)]
    trust_on_first_use: bool,
    /// The six digits of a second factor (TOTP), if the user has one.
    #[arg(long, value_name = "CODE")]
    otp: Option<String>,
}

#[derive(serde::Serialize)]
struct Report {
    place: String,
    version: String,
    identity: String,
    may_pass_tun: bool,
    fingerprint: Option<Fingerprint>,
    configuration: Option<PathBuf>,
}

/// Runs the command.
pub(super) async fn run(args: Init, output: &Output) -> Result<(), Failure> {
    let store = Store::open().map_err(config_failure)?;
    let mut config = store.load().map_err(config_failure)?;
    let asked = [args.url.is_some(), args.user.is_some(), args.fingerprint.is_some(), args.ca_file.is_some(), args.token_file.is_some()];
    if config.pve.is_none() && !asked.contains(&true) && Pvesh::is_here() {
        let pvesh = Pvesh::default();
        let report = probe(&pvesh, None, None).await?;
        output.result(&report, format!("{}\nnothing to set up: on a Proxmox host, root needs no credentials", describe(&report)));
        return Ok(());
    }
    let (pve, https) = set_up(&args, config.pve.take(), &store, output).await?;
    let fingerprint = pve.fingerprint;
    let report = probe(&https, fingerprint, Some(store.directory().join("config.toml"))).await?;
    config.pve = Some(pve);
    store.save(&config).map_err(config_failure)?;
    output.result(&report, describe(&report));
    Ok(())
}

async fn set_up(args: &Init, old: Option<Pve>, store: &Store, output: &Output) -> Result<(Pve, Https), Failure> {
    let tried = "set up the way to Proxmox";
    let interactive = std::io::stdin().is_terminal() && std::io::stderr().is_terminal() && !output.json();
    let same_place = args.url.is_none();
    let old = old.unwrap_or_else(|| Pve {
        url: String::new(),
        user: None,
        password_file: None,
        token_file: None,
        fingerprint: None,
        ca_file: None,
    });
    let url = match args.url.clone().or_else(|| Some(old.url.clone()).filter(|url| !url.is_empty())) {
        Some(url) => url,
        None if interactive => ask(output, "address of a Proxmox host (https://HOST:8006)")?,
        None => return Err(missing(tried, "--url")),
    };
    let url = Https::parse_url(&url).map_err(|e| call_failure(tried, &e))?;
    let given = args.fingerprint.as_deref().map(str::parse::<Fingerprint>).transpose();
    let given = given.map_err(|e| Failure::new(tried, format!("--fingerprint: {e}"), "copy it from the host").exit(Exit::Usage))?;
    let mut pve = Pve { url: url.to_string(), user: None, password_file: None, token_file: None, fingerprint: given, ca_file: None };
    pve.ca_file = args.ca_file.as_deref().map(absolute).transpose()?;
    if pve.fingerprint.is_none() && pve.ca_file.is_none() && same_place && !args.trust_on_first_use {
        pve.fingerprint = old.fingerprint;
        pve.ca_file = old.ca_file.clone();
    }
    if args.trust_on_first_use {
        let seen = probe_fingerprint(&url).await.map_err(|e| call_failure(tried, &e))?;
        output.note(format!("the certificate of {url} has the fingerprint {seen}; it is believed from now on, and no other"));
        pve.fingerprint = Some(seen);
    }
    let credentials = credentials(args, &mut pve, &old, store, output, interactive)?;
    let https = build(&pve, credentials.clone())?;
    match https.log_in().await.and(version(&https).await) {
        Ok(_) => Ok((pve, https)),
        Err(CallError::CertificateUntrusted { seen, place, .. }) if interactive => {
            output.note(format!("the certificate of {place} is signed by nobody this machine knows; its fingerprint is\n  {seen}"));
            output.note("compare it on the host: openssl x509 -noout -fingerprint -sha256 -in /etc/pve/local/pve-ssl.pem");
            if ask(output, "believe it from now on? (yes/no)")? != "yes" {
                return Err(Failure::new(tried, "the certificate was not accepted", "nothing was saved").exit(Exit::Denied));
            }
            pve.fingerprint = Some(seen);
            let https = build(&pve, credentials)?;
            https.log_in().await.map_err(|e| call_failure("log in to Proxmox", &e))?;
            Ok((pve, https))
        }
        Err(error) => Err(call_failure("log in to Proxmox", &error)),
    }
}

async fn version(executor: &dyn Executor) -> Result<Version, CallError> {
    Ok(reply::version(&executor.call(&call::version()?).await?)?)
}

fn credentials(args: &Init, pve: &mut Pve, old: &Pve, store: &Store, output: &Output, interactive: bool) -> Result<Credentials, Failure> {
    let tried = "set up the way to Proxmox";
    let keep_old = args.user.is_none() && args.password_file.is_none();
    if let Some(file) = args.token_file.as_ref().or(old.token_file.as_ref().filter(|_| keep_old)) {
        let file = absolute(file)?;
        let credentials = token(&file)?;
        pve.token_file = Some(file);
        return Ok(credentials);
    }
    let user = match args.user.clone().or_else(|| old.user.clone()) {
        Some(user) => user,
        None if interactive => {
            Some(ask(output, "user (empty for root@pam)")?).filter(|u| !u.is_empty()).unwrap_or_else(|| "root@pam".to_owned())
        }
        None => "root@pam".to_owned(),
    };
    let fits = user.len() <= 64
        && user.split_once('@').is_some_and(|(n, r)| !n.is_empty() && !r.is_empty())
        && user.bytes().all(|b| b.is_ascii_graphic());
    if !fits || user.contains('!') {
        let happened = "--user: it is USER@REALM, as in root@pam; tokens go into --token-file";
        return Err(Failure::new(tried, happened, "give it another value").exit(Exit::Usage));
    }
    let same_user = old.user.as_ref() == Some(&user);
    let file = args.password_file.clone().or_else(|| old.password_file.clone().filter(|_| same_user));
    let password = match file {
        Some(file) if file == Path::new("-") => keep(store, pve, &first_line()?)?,
        Some(file) => {
            let file = absolute(&file)?;
            let password = read_secret(&file).map_err(config_failure)?;
            pve.password_file = Some(file);
            password
        }
        None if interactive => {
            output.note(format!("the password is kept in {} (mode 0600)", store.directory().join("password").display()));
            let typed = unseen(output, &format!("password of {user}:")).map_err(|e| Failure::new(tried, e, "use --password-file"))?;
            if typed.expose().is_empty() {
                return Err(Failure::new(tried, "no password was typed", "run it again").exit(Exit::Usage));
            }
            keep(store, pve, &typed)?
        }
        None => return Err(missing(tried, "--password-file")),
    };
    pve.user = Some(user.clone());
    Ok(Credentials::Password { user, password, otp: args.otp.clone().map(Secret::new) })
}

fn keep(store: &Store, pve: &mut Pve, password: &Secret) -> Result<Secret, Failure> {
    pve.password_file = Some(store.save_secret("password", password).map_err(config_failure)?);
    Ok(password.clone())
}

fn first_line() -> Result<Secret, Failure> {
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).map_err(|e| Failure::new("read the password from standard input", e, "pipe it in"))?;
    let password = line.trim_end_matches(['\n', '\r']);
    if password.is_empty() {
        return Err(Failure::new("read the password from standard input", "there is none", "pipe it in").exit(Exit::Usage));
    }
    Ok(Secret::new(password))
}

fn ask(output: &Output, question: &str) -> Result<String, Failure> {
    output.note(format!("{question}:"));
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).map_err(|e| Failure::new("read an answer", e, "give it as an option"))?;
    Ok(line.trim().to_owned())
}

/// Asks for a line that the terminal does not show. It stops showing before the question is there, so that nothing typed early is seen.
fn unseen(output: &Output, question: &str) -> std::io::Result<Secret> {
    use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};
    let before = tcgetattr(std::io::stdin())?;
    let mut silent = before.clone();
    silent.local_modes.remove(LocalModes::ECHO);
    tcsetattr(std::io::stdin(), OptionalActions::Now, &silent)?;
    output.note(question);
    let mut line = String::new();
    let read = std::io::stdin().read_line(&mut line);
    tcsetattr(std::io::stdin(), OptionalActions::Now, &before)?;
    read?;
    Ok(Secret::new(line.trim_end_matches(['\n', '\r'])))
}

fn absolute(path: &Path) -> Result<PathBuf, Failure> {
    std::path::absolute(path).map_err(|e| Failure::new(format!("find {}", path.display()), e, "check the path").exit(Exit::Usage))
}

fn missing(tried: &str, option: &str) -> Failure {
    Failure::new(tried, format!("{option} is missing and there is no terminal to ask on"), format!("give {option}")).exit(Exit::Usage)
}

async fn probe(executor: &dyn Executor, fingerprint: Option<Fingerprint>, configuration: Option<PathBuf>) -> Result<Report, Failure> {
    let version = version(executor).await.map_err(|e| call_failure("ask Proxmox for its version", &e))?;
    let identity = executor.identity();
    Ok(Report {
        place: executor.place(),
        version: version.to_string(),
        may_pass_tun: identity.is_root() && version >= Version::DEVICES,
        identity: identity.to_string(),
        fingerprint,
        configuration,
    })
}

fn describe(report: &Report) -> String {
    let tun = if report.may_pass_tun {
        "it may pass /dev/net/tun through, so it can make mesh guests"
    } else {
        "it may NOT pass /dev/net/tun through: that takes root@pam with a password (or root on the host) and Proxmox VE 8.1"
    };
    let mut text = format!("{}: Proxmox VE {}, as {}\n{tun}", report.place, report.version, report.identity);
    if let Some(path) = &report.configuration {
        text.push_str(&format!("\nsaved in {}", path.display()));
    }
    text
}
