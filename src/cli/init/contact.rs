//! The first contact: certificate, login, and the cluster's authority to believe from then on.

use std::path::Path;
use std::sync::Arc;

use super::checked::{Checked, is_user};
use super::{Init, suffix, version};
use crate::cli::ask::{self, Code, secret_from};
use crate::cli::connect::{build, call_failure, config_failure, token};
use crate::cli::hosts::name_of;
use crate::cli::{Exit, Failure, Output};
use crate::ident::Secret;
use crate::pve::{Fingerprint, access};
use crate::sys::config::{Pve, Store};
use crate::sys::pve::{CallError, Credentials, Executor as _, Https, SecondFactor, Trust, probe_fingerprint, probe_trust};

const TRIED: &str = "set up the way to Proxmox";
const COMPARE: &str = "openssl x509 -noout -fingerprint -sha256 -in /etc/pve/local/pve-ssl.pem";

/// A way that works.
pub(super) struct Contact {
    /// As it will be saved.
    pub(super) pve: Pve,
    /// Open.
    pub(super) https: Https,
    /// How the certificate is believed, in words.
    pub(super) trust: &'static str,
    /// A secret that was typed or piped in, and the name of the file it goes to.
    typed: Option<(String, Secret)>,
    /// The cluster's authority, PEM, and the name of its file.
    authority: Option<(String, String)>,
}

impl Contact {
    /// Writes what belongs to the settings into files of its own.
    pub(super) fn keep_files(&self, store: &Store) -> Result<(), Failure> {
        if let Some((name, secret)) = &self.typed {
            store.save_secret(name, secret).map_err(config_failure)?;
        }
        if let Some((name, pem)) = &self.authority {
            store.save_secret(name, &Secret::new(pem.trim_end())).map_err(config_failure)?;
        }
        Ok(())
    }
}

/// Tries the settings: those given, else those there were, else those typed.
pub(super) async fn establish(
    args: &Init,
    checked: Checked,
    old: Pve,
    store: &Store,
    output: &Output,
    interactive: bool,
) -> Result<Contact, Failure> {
    let mut pve = Pve { name: args.name.clone().or_else(|| old.name.clone()), ..Pve::default() };
    (pve.url, pve.also) = addresses(&checked, &old, output)?;
    let seen = trust(args, &checked, &mut pve, &old, output, interactive).await?;
    let code = Arc::new(Code::new(args.otp.as_deref(), args.otp_file.as_ref())?);
    let (credentials, typed) = credentials(&checked, &mut pve, &old, store, output, &code)?;
    let https = first_contact(&pve, &credentials).await?;
    let mut contact = Contact { trust: words(&pve), pve, https, typed, authority: None };
    contact.pve.fingerprint = contact.https.certificate().or(seen).filter(|_| contact.pve.ca_file.is_none());
    if contact.pve.ca_file.is_none() && (contact.pve.cluster_ca.is_some() || seen.is_some() || contact.trust == PINNED) {
        pin_the_cluster(&mut contact, store, output).await?;
    } else if contact.trust == SYSTEM {
        // A certificate of a public authority is renewed by its own rules.
        contact.pve.fingerprint = None;
    }
    Ok(contact)
}

const SYSTEM: &str = "the authorities of this system";
const PINNED: &str = "its fingerprint alone";
const CLUSTER: &str = "the cluster's own authority, so that a renewed certificate is believed too";

fn words(pve: &Pve) -> &'static str {
    match (&pve.cluster_ca, &pve.fingerprint, &pve.ca_file) {
        (Some(_), _, _) => CLUSTER,
        (None, Some(_), _) => PINNED,
        (None, None, Some(_)) => "the authority given with --ca-file",
        (None, None, None) => SYSTEM,
    }
}

fn addresses(checked: &Checked, old: &Pve, output: &Output) -> Result<(String, Vec<String>), Failure> {
    if let Some((first, more)) = checked.addresses.split_first() {
        return Ok((first.clone(), more.to_vec()));
    }
    if !old.url.is_empty() {
        return Ok((old.url.clone(), old.also.clone()));
    }
    let typed = ask::line(output, "address of a Proxmox host (https://HOST:8006)")?;
    let url = Https::parse_url(&typed).map_err(|e| call_failure(TRIED, &e))?;
    Ok((url.to_string(), Vec::new()))
}

/// Decides which certificate is believed; on a terminal, an unknown one is shown first. Gives the one accepted just now.
async fn trust(
    args: &Init,
    checked: &Checked,
    pve: &mut Pve,
    old: &Pve,
    output: &Output,
    interactive: bool,
) -> Result<Option<Fingerprint>, Failure> {
    if let Some(given) = checked.fingerprint {
        pve.fingerprint = Some(given);
        return Ok(Some(given));
    }
    if let Some(file) = &checked.ca_file {
        pve.ca_file = Some(file.clone());
        return Ok(None);
    }
    let url = Https::parse_url(&pve.url).map_err(|e| call_failure(TRIED, &e))?;
    if args.trust_on_first_use {
        let seen = probe_fingerprint(&url).await.map_err(|e| call_failure(TRIED, &e))?;
        output.note(format!("the certificate of {url} has the fingerprint {seen}; it is believed from now on"));
        pve.fingerprint = Some(seen);
        return Ok(Some(seen));
    }
    if pve.url == old.url {
        (pve.cluster_ca, pve.fingerprint, pve.ca_file) = (old.cluster_ca.clone(), old.fingerprint, old.ca_file.clone());
        return Ok(None);
    }
    if !interactive {
        return Ok(None);
    }
    // Before any password is typed: is it known to the system's authorities?
    match probe_trust(&url, &Trust::System).await {
        Err(CallError::CertificateUntrusted { seen, place, .. }) => {
            output.note(format!("the certificate of {place} is signed by nobody this machine knows; its fingerprint is\n  {seen}"));
            output.note(format!("compare it on the host: {COMPARE}"));
            if ask::line(output, "believe it from now on? (yes/no)")? != "yes" {
                return Err(Failure::new(TRIED, "the certificate was not accepted", "nothing was saved").exit(Exit::Denied));
            }
            pve.fingerprint = Some(seen);
            Ok(Some(seen))
        }
        Err(error @ CallError::Unreachable { .. }) => Err(call_failure(TRIED, &error)),
        _ => Ok(None),
    }
}

type Typed = Option<(String, Secret)>;

fn credentials(
    checked: &Checked,
    pve: &mut Pve,
    old: &Pve,
    store: &Store,
    output: &Output,
    code: &Arc<Code>,
) -> Result<(Credentials, Typed), Failure> {
    let keep_token = checked.user.is_none() && checked.password_file.is_none();
    if let Some(file) = checked.token_file.as_ref().or(old.token_file.as_ref().filter(|_| keep_token)) {
        pve.token_file = Some(file.clone());
        return Ok((token(file)?, None));
    }
    let user = match checked.user.clone().or_else(|| old.user.clone()) {
        Some(user) => user,
        None if ask::is_possible() && !output.json() && checked.password_file.is_none() => {
            let typed = ask::line(output, "user (empty for root@pam; USER@REALM!NAME for an API token)")?;
            if typed.is_empty() { "root@pam".to_owned() } else { typed }
        }
        None => "root@pam".to_owned(),
    };
    let end = suffix(pve.name.as_deref());
    if user.contains('!') {
        return typed_token(&user, pve, store, output, &end);
    }
    if !is_user(&user) {
        return Err(Failure::new(TRIED, "the user is USER@REALM, as in root@pam", "run it again").exit(Exit::Usage));
    }
    let file = checked.password_file.clone().or_else(|| old.password_file.clone().filter(|_| old.user.as_ref() == Some(&user)));
    let name = format!("password{end}");
    let (password, typed) = match file {
        Some(file) if file != Path::new("-") => {
            let password = secret_from(&file, "the password")?;
            pve.password_file = Some(file);
            (password, None)
        }
        given => {
            let kept = store.directory().join(&name);
            let password = match given {
                Some(file) => secret_from(&file, "the password")?,
                None => hidden(output, &format!("password of {user}:"), &kept, "--password-file")?,
            };
            pve.password_file = Some(kept);
            (password.clone(), Some((name, password)))
        }
    };
    pve.user = Some(user.clone());
    let second: Arc<dyn SecondFactor> = Arc::<Code>::clone(code);
    Ok((Credentials::Password { user, password, second: Some(second) }, typed))
}

fn typed_token(id: &str, pve: &mut Pve, store: &Store, output: &Output, end: &str) -> Result<(Credentials, Typed), Failure> {
    let clean = id.bytes().all(|b| b.is_ascii_graphic() && b != b'=');
    if !clean || !id.split_once('!').is_some_and(|(user, name)| is_user(user) && !name.is_empty()) {
        return Err(Failure::new(TRIED, "a token is USER@REALM!NAME", "run it again").exit(Exit::Usage));
    }
    let name = format!("token{end}");
    let kept = store.directory().join(&name);
    let secret = hidden(output, &format!("secret of {id}:"), &kept, "--token-file")?;
    pve.token_file = Some(kept);
    let line = Secret::new(format!("{id}={}", secret.expose()));
    Ok((Credentials::Token { id: id.to_owned(), secret }, Some((name, line))))
}

fn hidden(output: &Output, question: &str, kept: &Path, option: &str) -> Result<Secret, Failure> {
    output.note(format!("it is kept in {} (mode 0600)", kept.display()));
    let typed = ask::unseen(question).map_err(|e| Failure::new(TRIED, e, format!("use {option}")))?;
    if typed.expose().is_empty() {
        return Err(Failure::new(TRIED, "nothing was typed", "run it again").exit(Exit::Usage));
    }
    Ok(typed)
}

/// Logs in at the first address that answers.
async fn first_contact(pve: &Pve, credentials: &Credentials) -> Result<Https, Failure> {
    let mut last = None;
    for address in std::iter::once(&pve.url).chain(&pve.also) {
        let https = build(pve, address, credentials.clone())?;
        let logged_in = match https.log_in().await {
            Ok(()) => version(&https).await.map(|_| ()),
            Err(error) => Err(error),
        };
        match logged_in {
            Ok(()) => return Ok(https),
            Err(error @ CallError::Unreachable { .. }) => last = Some(error),
            Err(error) => return Err(call_failure("log in to Proxmox", &error)),
        }
    }
    let error = last.unwrap_or_else(|| CallError::Setup("there is no address".to_owned()));
    Err(call_failure("log in to Proxmox", &error))
}

/// Takes the cluster's authority, if the certificate just seen is signed by it: from then on a renewed one is believed, and hosts of the
/// same cluster are. A certificate of the admin's own stays pinned by itself.
async fn pin_the_cluster(contact: &mut Contact, store: &Store, output: &Output) -> Result<(), Failure> {
    let Ok(reply) = contact.https.call(&access::certificates()).await else { return Ok(()) };
    let Some(pem) = access::cluster_authority(&reply) else { return Ok(()) };
    let name = format!("cluster-ca{}.pem", suffix(contact.pve.name.as_deref()));
    // Tried from a file beside the one in force, which must survive a failure.
    let trial = store.save_secret(&format!("{name}.trial"), &Secret::new(pem.trim_end())).map_err(config_failure)?;
    let url = Https::parse_url(&contact.https.place()).map_err(|e| call_failure(TRIED, &e))?;
    let believed = probe_trust(&url, &Trust::Cluster { file: trial.clone(), last: None }).await.is_ok();
    let _ = std::fs::remove_file(&trial);
    if believed {
        contact.pve.cluster_ca = Some(store.directory().join(&name));
        contact.authority = Some((name, pem.to_owned()));
        contact.trust = CLUSTER;
    } else {
        contact.pve.cluster_ca = None;
        let place = name_of(&contact.pve);
        output.note(format!("the certificate of {place} is not signed by its cluster's authority; only this very certificate is believed"));
    }
    Ok(())
}
