//! Which coordinator new guests join: one made now, one of somebody else, or one made later.

use super::{Init, suffix};
use crate::cli::connect::{ConnectArgs, config_failure, refusal};
use crate::cli::{Failure, Output, ask, create};
use crate::ident::Vmid;
use crate::plan::Refusal;
use crate::plan::options::{auth_key, server_url};
use crate::sys::config::{Config, JoinElsewhere, Store, read_secret};

const TRIED: &str = "set up a coordinator";

/// The coordinator of somebody else, from the options.
pub(super) fn given(args: &Init) -> Result<Option<JoinElsewhere>, Failure> {
    let (Some(url), Some(file)) = (&args.login_server, &args.auth_key_file) else { return Ok(None) };
    let wrong = |e| refusal(TRIED, &Refusal::Option(e));
    let login_server = server_url("--login-server", url).map_err(wrong)?;
    let file = std::path::absolute(file).map_err(|e| Failure::new(TRIED, format!("{}: {e}", file.display()), "check the path"))?;
    let text = read_secret(&file).map_err(config_failure)?;
    auth_key("--auth-key-file", text.expose()).map_err(wrong)?;
    Ok(Some(JoinElsewhere { login_server, auth_key_file: file }))
}

/// Asks at the end of a first set-up.
pub(super) async fn ask(name: Option<&str>, store: &Store, mut config: Config, output: &Output) -> Result<(), Failure> {
    let question = "coordinator: a free number (VMID) makes one now, an address (https://...) joins that one, empty leaves it for later";
    let answer = ask::line(output, question)?;
    if answer.is_empty() {
        output.note("later: pvemesh create-coordinator 100");
        return Ok(());
    }
    let wrong = |e| refusal(TRIED, &Refusal::Option(e));
    if !answer.contains("://") {
        let vmid: Vmid = answer.parse().map_err(|e| wrong(crate::plan::options::OptionError::new("number", e)))?;
        let connect = ConnectArgs { otp: None, otp_file: None, host: name.map(ToOwned::to_owned) };
        return create::first_of_all(&connect, vmid, output).await;
    }
    let login_server = server_url("coordinator", &answer).map_err(wrong)?;
    let key = ask::unseen("its join key, good for several uses:").map_err(|e| Failure::new(TRIED, e, "use --auth-key-file"))?;
    let key = auth_key("join key", key.expose()).map_err(wrong)?;
    let auth_key_file = store.save_secret(&format!("join-key{}", suffix(None)), &key).map_err(config_failure)?;
    config.join = Some(JoinElsewhere { login_server, auth_key_file });
    store.save(&config).map_err(config_failure)?;
    output.note("new guests join it from now on");
    Ok(())
}
