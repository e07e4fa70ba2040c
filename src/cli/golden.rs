//! `pvemesh image golden`: the container that API tokens clone, made by root.

use std::path::PathBuf;

use super::connect::{ConnectArgs, Session, call_failure, config_failure, refusal};
use super::create::{architecture, image_failure};
use super::interrupt::Interrupt;
use super::progress::Progress;
use super::ways::WayArgs;
use super::{Exit, Failure, Output, carry};
use crate::plan::create::{Image, Plan};
use crate::plan::golden::{self, Golden as There, Outcome};
use crate::plan::mark::RunId;
use crate::plan::options::{GuestOptions, GuestTexts};
use crate::plan::{Action, Refusal};
use crate::sys::entropy;
use crate::sys::pve::{Images as _, Provisioner, Stock, observe};

/// Makes a template with /dev/net/tun and the appliance image, or replaces it by one of this version. API tokens clone it, since Proxmox lets
/// them pass no device through themselves.
#[derive(Debug, clap::Args)]
pub(super) struct Golden {
    /// The number it has, or gets (VMID).
    #[arg(value_name = "ID")]
    vmid: String,
    /// The Proxmox node to make it on; its clones are made there, too. Chosen if absent.
    #[arg(long)]
    node: Option<String>,
    /// The storage for its root volume; chosen if absent.
    #[arg(long)]
    storage: Option<String>,
    /// The storage the image is uploaded to; chosen if absent.
    #[arg(long)]
    template_storage: Option<String>,
    /// The appliance image to use, made with `pvemesh image build`; built from this very program if absent.
    #[arg(long, value_name = "FILE")]
    image: Option<PathBuf>,
    /// Print the decisions and every call, and change nothing.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    connect: ConnectArgs,
}

/// Runs the command.
pub(super) async fn run(args: Golden, output: &Output) -> Result<(), Failure> {
    let tried = format!("make golden container {}", args.vmid.escape_default().take(20).collect::<String>());
    let texts = GuestTexts {
        vmid: args.vmid.clone(),
        node: args.node.clone(),
        storage: args.storage.clone(),
        template_storage: args.template_storage.clone(),
        ..GuestTexts::default()
    };
    let options = texts.check().map_err(|e| refusal(&tried, &Refusal::Option(e)))?;
    let session = Session::for_guest(&args.connect, options.vmid, output).await?;
    let mut progress = Progress::new(output);
    let lock = if args.dry_run { None } else { Some(session.store.lock(options.vmid).map_err(config_failure)?) };
    if lock.is_some() {
        carry::recover(&session, &WayArgs::default(), None, options.vmid, output, &mut progress).await?;
    }
    let stock = progress.during("prepare the image", || Stock::prepare(&session.store, args.image.as_deref()));
    let stock = stock.map_err(|e| image_failure(&tried, &e))?;
    let plan = match planned(&session, &options, &stock, &tried).await? {
        Outcome::AlreadyThere(there) => {
            output.result(&value(&there, false), format!("golden container {} is there with this image: nothing to do", there.vmid));
            return Ok(());
        }
        Outcome::Plan(plan) => plan,
    };
    if args.dry_run {
        output.result(&dry_value(&plan), dry_text(&plan));
        return Ok(());
    }
    for choice in &plan.choices {
        output.note(format!("  {:<17} {}  ({})", choice.what, choice.value, choice.why));
    }
    let door = session.door()?;
    let mut interrupt = Interrupt::listen(output)?;
    let provisioner = Provisioner {
        executor: &*session.executor,
        door: &door,
        mesh: None,
        inside: None,
        images: &stock,
        store: &session.store,
        watch: &mut progress,
        interrupted: interrupt.requested(),
    };
    provisioner.run(&plan).await.map_err(|error| carry::failed(output, &tried, &error))?;
    drop(lock);
    let config = observe::container_config(&*session.executor, &plan.host, plan.vmid).await.map_err(|e| call_failure(&tried, &e))?;
    let Some(there) = config.and_then(|config| There::read(plan.vmid, &plan.host, &config)) else {
        return Err(
            Failure::new(tried, "it was made and is not there any more", "did somebody remove it? run it again").exit(Exit::Conflict)
        );
    };
    let text = format!(
        "golden container {} is ready on {}: API tokens make nodes from it, as in `pvemesh create-exit-node 101`",
        there.vmid, there.host
    );
    output.result(&value(&there, true), text);
    Ok(())
}

async fn planned(session: &Session, options: &GuestOptions, stock: &Stock, tried: &str) -> Result<Outcome, Failure> {
    let observed = observe::observe(&*session.executor, options.vmid, Vec::new()).await.map_err(|e| call_failure(tried, &e))?;
    let image = Image::new(env!("CARGO_PKG_VERSION"), &stock.shared().sha256, architecture(tried)?);
    let random = entropy::bytes::<16>().map_err(|e| Failure::new(tried, e, "this system has no randomness"))?;
    golden::plan(options, &observed, &image, RunId::new(u128::from_be_bytes(random))).map_err(|e| refusal(tried, &e))
}

fn value(there: &There, changed: bool) -> serde_json::Value {
    serde_json::json!({
        "vmid": there.vmid, "node": there.host, "version": there.version, "image": there.image, "usable": there.usable, "changed": changed
    })
}

fn dry_value(plan: &Plan) -> serde_json::Value {
    let calls: Vec<String> = plan.steps.iter().map(|step| Action::to_string(&step.action)).collect();
    serde_json::json!({ "vmid": plan.vmid, "node": plan.host, "dry_run": true, "choices": plan.choices, "calls": calls })
}

fn dry_text(plan: &Plan) -> String {
    let mut text = format!("would make golden container {} on {}\n", plan.vmid, plan.host);
    for choice in &plan.choices {
        text.push_str(&format!("  {:<17} {}  ({})\n", choice.what, choice.value, choice.why));
    }
    for (number, step) in plan.steps.iter().enumerate() {
        text.push_str(&format!("{:>3}. {}\n     {}\n", number + 1, step.title, step.action));
    }
    text.push_str("nothing was changed");
    text
}
