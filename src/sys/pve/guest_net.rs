//! A container's addresses seen from its host, where the API does not tell them (before PVE 8.1).

use std::process::Stdio;

use serde_json::Value;
use tokio::process::Command;

use super::CallError;
use crate::pve::reply::{self, GuestInterface};

/// The interfaces in the network of a process: what `ip` prints there. Needs root on the host of the container and nothing inside it.
///
/// # Errors
/// If the host's tools (util-linux, iproute2: both are part of Proxmox VE) cannot be run, or the process is gone.
pub(super) async fn interfaces(pid: u32) -> Result<Vec<GuestInterface>, CallError> {
    let failed = |why: String| CallError::Unreachable { place: format!("the network of process {pid}"), why };
    let mut command = Command::new("nsenter");
    command.args(["--target", &pid.to_string(), "--net", "--", "ip", "-json", "address"]);
    let output = command.stdin(Stdio::null()).kill_on_drop(true).output().await.map_err(|e| failed(format!("nsenter: {e}")))?;
    if !output.status.success() {
        return Err(failed(String::from_utf8_lossy(&output.stderr).chars().take(200).collect()));
    }
    let value: Value = serde_json::from_slice(&output.stdout).map_err(|e| failed(e.to_string()))?;
    Ok(reply::ip_addresses(&value)?)
}
