//! Carries out the steps within a guest.

use std::time::Duration;

use super::inside::{Inside, InsideError, Push, Run, Source, run_well};
use super::mesh::Mesh;
use super::notes;
use super::provision::{StepError, Unwatched, until};
use super::{Executor, observe};
use crate::ident::{NodeId, NodeName, Secret, Vmid, is_mesh_address};
use crate::plan::enroll;
use crate::plan::inside::{Content, Deed, InsideAction, is_successor_name};
use crate::plan::render;
use crate::pve::reply::ContainerConfig;
use crate::settings::Guest;
use crate::wire::admin::NodeInfo;

/// How long a service manager may take to start or stop something.
pub(super) const SERVICE_LIMIT: Duration = Duration::from_secs(60);
/// How often giving the new node the old one's name is tried: by then the old one is gone, so giving up is no way back.
const SUCCESSION_TRIES: u32 = 5;

/// Said where a guest would have to be entered and cannot be.
pub(super) const NO_WAY: &str = "there is no way into the container from here; as root on its host, or with --ssh root@HOST, there is";

/// What the steps work with.
pub(super) struct Doer<'a> {
    pub(super) executor: &'a dyn Executor,
    pub(super) inside: Option<&'a dyn Inside>,
    pub(super) mesh: Option<&'a dyn Mesh>,
}

/// What a step found out for later ones.
pub(super) struct Known<'a> {
    pub(super) join_key: Option<&'a Secret>,
    pub(super) addresses: &'a [std::net::IpAddr],
    /// The node that has joined in the place of another.
    pub(super) successor: &'a mut Option<NodeInfo>,
}

impl Doer<'_> {
    pub(super) fn inside(&self) -> Result<&dyn Inside, StepError> {
        self.inside.ok_or(StepError::Missing(NO_WAY))
    }

    pub(super) fn mesh(&self) -> Result<&dyn Mesh, StepError> {
        self.mesh.ok_or(StepError::Missing("the coordinator is not known"))
    }

    /// Does it.
    pub(super) async fn act(&self, action: &InsideAction, known: Known<'_>) -> Result<(), StepError> {
        let vmid = action.vmid;
        match &action.deed {
            Deed::Program { source, to } => put_program(self.inside()?, vmid, source, to).await?,
            Deed::Write { program, to, mode, content } => {
                let bytes = match content {
                    Content::Text(text) => text.clone().into_bytes(),
                    Content::Settings(guest) => render::guest(&with_key(guest, known.join_key))?.into_bytes(),
                };
                let run = Run::new([program.as_str(), "inside", "write", to, "--mode", &format!("{mode:o}")]).input(bytes);
                run_well(self.inside()?, vmid, &run).await?;
            }
            Deed::Run { commands, with_key } => {
                let last = commands.len().saturating_sub(1);
                for (number, command) in commands.iter().enumerate() {
                    let mut run = Run::new(command.clone()).limit(SERVICE_LIMIT);
                    if *with_key && number == last {
                        let key = known.join_key.ok_or(StepError::Missing("there is no join key"))?;
                        run = run.input(key.expose());
                    }
                    run_well(self.inside()?, vmid, &run).await?;
                }
            }
            Deed::Remove { program, paths } => {
                let run = Run::new([program.as_str(), "inside", "remove"].into_iter().chain(paths.iter().map(String::as_str)));
                run_well(self.inside()?, vmid, &run).await?;
            }
            Deed::Approve { name, routes } => {
                let node = self.node(name).await?;
                self.mesh()?.approve_routes(node.id, routes).await?;
            }
            Deed::AwaitSuccessor { name, before, limit_secs } => {
                *known.successor = Some(self.successor(name, before, Duration::from_secs(*limit_secs)).await?);
            }
            Deed::Succeed { old, name, addresses } => {
                let successor = known.successor.take().ok_or(StepError::Missing("no node has joined in its place"))?;
                self.succeed(*old, successor.id, name, addresses).await?;
            }
            Deed::Notes { ours } => {
                let mut more = String::new();
                for address in known.addresses.iter().filter(|address| is_mesh_address(**address)) {
                    more.push_str(&format!("- address in the mesh: `{address}`\n"));
                }
                let config = observe::container_config(self.executor, &action.host, vmid).await?;
                enroll::joined_notes(&config.unwrap_or_default().description, ours.as_deref(), &more)?;
                // That it can be composed is known by now; should the owner have written too much meanwhile, his text stays.
                let compose = |config: &ContainerConfig| {
                    enroll::joined_notes(&config.description, ours.as_deref(), &more).unwrap_or_else(|_| config.description.clone())
                };
                notes::rewrite(self.executor, &action.host, vmid, &compose, &mut Unwatched).await?;
            }
        }
        Ok(())
    }

    async fn node(&self, name: &NodeName) -> Result<NodeInfo, StepError> {
        let nodes = self.mesh()?.nodes().await?;
        nodes.into_iter().find(|node| node.name == *name).ok_or(StepError::Missing("the coordinator does not know the node"))
    }

    async fn successor(&self, name: &NodeName, before: &[NodeId], limit: Duration) -> Result<NodeInfo, StepError> {
        let mesh = self.mesh()?;
        until(limit, || async {
            let nodes = mesh.nodes().await?;
            Ok(match nodes.into_iter().find(|node| !before.contains(&node.id) && is_successor_name(&node.name, name)) {
                Some(node) if node.online => Ok(node),
                Some(_) => Err("it has joined with its new keys but is not connected".to_owned()),
                None => Err("the coordinator has not heard of a node with new keys".to_owned()),
            })
        })
        .await
    }

    /// The new node is in and online; the old one goes, and the new one takes its name and address.
    async fn succeed(&self, old: NodeId, new: NodeId, name: &NodeName, addresses: &[std::net::IpAddr]) -> Result<(), StepError> {
        self.mesh()?.delete_node(old).await?;
        self.name_successor(new, name, addresses).await
    }

    pub(super) async fn name_successor(&self, new: NodeId, name: &NodeName, addresses: &[std::net::IpAddr]) -> Result<(), StepError> {
        let mesh = self.mesh()?;
        let mut tries = 0;
        loop {
            tries += 1;
            let done = async {
                mesh.rename_node(new, name).await?;
                match addresses.iter().find_map(|address| if let std::net::IpAddr::V4(v4) = address { Some(*v4) } else { None }) {
                    Some(v4) => mesh.set_address(new, v4).await,
                    None => Ok(()),
                }
            };
            match done.await {
                Ok(()) => return Ok(()),
                Err(error) if tries == SUCCESSION_TRIES => return Err(error.into()),
                Err(error) => tracing::warn!(%error, "the new node does not have the old one's name and address yet"),
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }
}

/// Puts a program into its place: beside it at first, where it has to run and to be what was sent; then by a rename, for a program that runs
/// cannot be written over. The old one is kept.
pub(super) async fn put_program(inside: &dyn Inside, vmid: Vmid, source: &std::path::Path, to: &str) -> Result<(), InsideError> {
    let beside = push_beside(inside, vmid, source, to).await?;
    let keep = format!("{to}.before");
    run_well(inside, vmid, &Run::new([&*beside, "inside", "place", &*beside, to, "--keep", &*keep])).await.map(drop)
}

/// Pushes a program beside its place; gives where it is.
pub(super) async fn push_beside(inside: &dyn Inside, vmid: Vmid, source: &std::path::Path, to: &str) -> Result<String, InsideError> {
    let beside = format!("{to}.new");
    let directory = to.rsplit_once('/').map_or("/", |(directory, _)| directory);
    // Only the last resort may be missing; where there is no `mkdir`, the directory is there.
    let _ = inside.run(vmid, &Run::new(["mkdir", "-p", directory])).await;
    let push = Push { source: Source::File(source.to_owned()), to: beside.clone(), mode: 0o755, owner: (0, 0) };
    inside.push(vmid, &push).await?;
    Ok(beside)
}

fn with_key(guest: &Guest, key: Option<&Secret>) -> Guest {
    let mut guest = guest.clone();
    if let (Some(node), Some(key)) = (guest.node.as_mut(), key) {
        node.auth_key = Some(key.clone());
    }
    guest
}
