//! `pvemesh init --print-role` and `--create-role`: the least an API token needs, and how it gets it.
//!
//! What is in the role comes from the same table as the check before every run (`pve::privilege`).

use super::{Init, suffix, version};
use crate::cli::connect::{ConnectArgs, Session, call_failure, config_failure};
use crate::cli::{Exit, Failure, Output};
use crate::ident::Secret;
use crate::pve::privilege::{self, Granted};
use crate::pve::{ErrorKind, Request, Version, access};
use crate::sys::pve::{CallError, Executor};

/// The token unless another one is asked for.
pub(super) const DEFAULT_TOKEN: &str = "pvemesh@pve!mesh";
const ROLE: &str = "PVEMesh";
const COMMENT: &str = "pvemesh: makes and manages mesh guests";
/// What is printed where no host is set up.
const NEWEST: Version = Version::new(9, 1, 0);

/// A token's name, in its parts.
struct Token<'a> {
    user: &'a str,
    name: &'a str,
}

impl<'a> Token<'a> {
    fn parse(text: &'a str) -> Result<Self, Failure> {
        let wrong = || {
            let happened = "--token-name: it is USER@REALM!NAME, of letters, digits, dots, dashes and underscores, as in pvemesh@pve!mesh";
            Failure::new("print the role", happened, "give it another value").exit(Exit::Usage)
        };
        let clean = |part: &str, first_is_letter: bool| {
            (2..=32).contains(&part.len())
                && (!first_is_letter || part.starts_with(|c: char| c.is_ascii_alphabetic()))
                && part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
        };
        let (user, name) = text.split_once('!').ok_or_else(wrong)?;
        let (account, realm) = user.split_once('@').ok_or_else(wrong)?;
        if clean(account, false) && clean(realm, true) && clean(name, true) { Ok(Self { user, name }) } else { Err(wrong()) }
    }
}

/// Runs either of the two.
pub(super) async fn run(args: &Init, output: &Output) -> Result<(), Failure> {
    let token = Token::parse(&args.token_name)?;
    if args.print_role {
        let about = about(args, output).await?;
        let role = privilege::role(about);
        output.result(&value(&token, about, &role), text(&token, about, &role));
        return Ok(());
    }
    create(args, &token, output).await
}

/// The version the role is for: the one asked for, the set-up host's, or the newest.
async fn about(args: &Init, output: &Output) -> Result<Version, Failure> {
    if let Some(text) = &args.pve_version {
        let wrong = |e| Failure::new("print the role", format!("--pve-version: {e}"), "as in 8.4 or 9.1").exit(Exit::Usage);
        return text.parse().map_err(wrong);
    }
    let newest = |why: String| {
        output.note(format!("{why}; this is the role for Proxmox VE {NEWEST} (--pve-version says which)"));
        NEWEST
    };
    let session = match Session::open(&connect(args)).await {
        Ok(session) => session,
        Err(failure) => return Ok(newest(failure.happened)),
    };
    Ok(version(&*session.executor).await.unwrap_or_else(|error| newest(error.to_string())))
}

fn connect(args: &Init) -> ConnectArgs {
    ConnectArgs { otp: args.otp.clone(), otp_file: args.otp_file.clone(), host: args.name.clone() }
}

fn privileges(role: &[Granted]) -> String {
    let mut names: Vec<&str> = role.iter().map(|granted| granted.privilege).collect();
    names.sort_unstable();
    names.join(" ")
}

/// The access control paths at which the role is given; at each, only the privileges of its kind have a meaning.
fn paths(role: &[Granted]) -> Vec<&'static str> {
    let mut paths: Vec<&'static str> = role.iter().map(|granted| granted.path).collect();
    paths.dedup();
    paths
}

fn commands(token: &Token<'_>, role: &[Granted]) -> Vec<String> {
    let Token { user, name } = token;
    let mut commands =
        vec![format!("pveum role add {ROLE} -privs \"{}\"", privileges(role)), format!("pveum user add {user} -comment \"{COMMENT}\"")];
    commands.extend(paths(role).into_iter().map(|path| format!("pveum acl modify {path} -users {user} -roles {ROLE}")));
    commands.push(format!("pveum user token add {user} {name} -privsep 0"));
    commands
}

fn text(token: &Token<'_>, version: Version, role: &[Granted]) -> String {
    let mut text = format!("# what pvemesh needs with an API token on Proxmox VE {version}; run these as root on a host of the cluster:\n");
    text.push_str(&commands(token, role).join("\n"));
    text.push_str("\n# the last one shows the token's secret, once; keep the line USER@REALM!NAME=SECRET in a file of mode 600, then:\n");
    text.push_str("#   pvemesh init --url https://HOST:8006 --token-file FILE\n#\n# what each privilege is for:\n");
    for granted in role {
        text.push_str(&format!("#   {:<26} on {}\n", granted.privilege, granted.path));
        for call in &granted.calls {
            text.push_str(&format!("#       {call}\n"));
        }
    }
    text.push_str(if version >= Version::ENVIRONMENT {
        "#\n# A token passes no device through, whatever its role. For nodes with /dev/net/tun, as root, once: pvemesh image golden 9000"
    } else {
        "#\n# A token passes no device through, whatever its role, and before Proxmox VE 9.1 a clone of a container that has one cannot be\n\
         # configured: with a token, make nodes with --tun userspace"
    });
    text
}

fn value(token: &Token<'_>, version: Version, role: &[Granted]) -> serde_json::Value {
    serde_json::json!({
        "version": version.to_string(), "role": ROLE, "privileges": role, "user": token.user,
        "token": format!("{}!{}", token.user, token.name), "commands": commands(token, role),
    })
}

async fn create(args: &Init, token: &Token<'_>, output: &Output) -> Result<(), Failure> {
    let tried = "make the role and the token";
    let session = Session::open(&connect(args)).await?;
    let executor = &*session.executor;
    let failed = |error: CallError| {
        let denied = error.kind() == Some(ErrorKind::Denied);
        let mut failure = call_failure(tried, &error);
        if denied {
            failure.next =
                "log in as root@pam (pvemesh init --user root@pam), or have root run what pvemesh init --print-role shows".to_owned();
        }
        failure
    };
    let about = version(executor).await.map_err(failed)?;
    let role = privilege::role(about);
    let file = session.store.directory().join(format!("token{}", suffix(args.name.as_deref())));
    if file.exists() {
        let next = "remove it (and the token in Proxmox: pveum user token remove) to make a new one";
        return Err(Failure::new(tried, format!("{} is there already", file.display()), next).exit(Exit::Conflict));
    }
    let mut done = Vec::new();
    let wanted = privileges(&role);
    let there = access::privileges_of(&executor.call(&access::roles()).await.map_err(failed)?, ROLE);
    let request = match &there {
        None => Some(access::add_role(ROLE, &wanted)),
        Some(held) if held.iter().map(String::as_str).eq(wanted.split(' ')) => None,
        Some(_) => Some(access::change_role(ROLE, &wanted)),
    };
    let has_user = access::has_user(&executor.call(&access::users()).await.map_err(failed)?, token.user);
    let mut requests: Vec<Request> = request.into_iter().collect();
    requests.extend((!has_user).then(|| access::add_user(token.user, COMMENT)));
    requests.extend(paths(&role).into_iter().map(|path| access::grant(path, token.user, ROLE)));
    for request in &requests {
        executor.call(request).await.map_err(failed)?;
        done.push(request.to_string());
    }
    let secret = secret_of(executor, token).await.map_err(failed)?;
    let line = Secret::new(format!("{}!{}={}", token.user, token.name, secret.expose()));
    let name = format!("token{}", suffix(args.name.as_deref()));
    let file = session.store.save_secret(&name, &line).map_err(config_failure)?;
    let text = format!(
        "role {ROLE}, user {} and token {} are there; the token is in {}\nnext: pvemesh init --url https://HOST:8006 --token-file {}",
        token.user,
        token.name,
        file.display(),
        file.display()
    );
    output.result(&serde_json::json!({ "role": ROLE, "user": token.user, "token_file": file, "calls": done }), text);
    Ok(())
}

async fn secret_of(executor: &dyn Executor, token: &Token<'_>) -> Result<Secret, CallError> {
    let reply = executor.call(&access::add_token(token.user, token.name, COMMENT)).await?;
    let garbled = || CallError::Garbled { place: executor.place(), why: "the new token has no secret".to_owned() };
    access::token_secret(&reply).map(Secret::new).ok_or_else(garbled)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_s_name_cannot_smuggle_a_second_command() {
        for bad in ["pvemesh@pve", "a!b", "x@pve!mesh; rm", "x y@pve!mesh", "@pve!mesh", "root@pam!-x", "root@pam!$(id)", "root@p/am!mesh"]
        {
            assert!(Token::parse(bad).is_err(), "{bad}");
        }
        assert!(Token::parse(DEFAULT_TOKEN).is_ok() && Token::parse("root@pam!t1").is_ok());
    }

    #[test]
    fn the_commands_are_those_of_proxmox() {
        let role = privilege::role(NEWEST);
        let commands = commands(&Token::parse(DEFAULT_TOKEN).unwrap(), &role);
        assert!(commands.first().unwrap().starts_with("pveum role add PVEMesh -privs \"Datastore."), "{commands:?}");
        for path in ["/vms", "/storage", "/sdn/zones"] {
            let line = format!("pveum acl modify {path} -users pvemesh@pve -roles PVEMesh");
            assert!(commands.contains(&line), "{commands:?}");
        }
        assert_eq!(commands.last().unwrap(), "pveum user token add pvemesh@pve mesh -privsep 0");
    }
}
