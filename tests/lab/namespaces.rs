//! The network namespaces by name.

use std::path::Path;
use std::process::{Command, ExitCode};

use crate::run::{Done, quietly};

/// The Proxmox host.
pub const PVE: &str = "pvl-pve";
/// The home's router.
pub const HOME: &str = "pvl-home";
/// The internet, its web server included.
pub const INET: &str = "pvl-inet";
/// The cafe's router.
pub const CAFE: &str = "pvl-cafe";
/// The laptop in the cafe.
pub const LAPTOP: &str = "pvl-laptop";
/// All of them.
pub const ALL: [&str; 5] = [INET, HOME, PVE, CAFE, LAPTOP];

const NETNS_DIR: &str = "/run/netns";
/// Left there when the lab itself made the directory of namespaces.
const MADE: &str = "/run/netns.pvl";

/// A command in a namespace; file systems, control groups included, stay this machine's.
pub fn inside(namespace: &str, program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net={NETNS_DIR}/{namespace}")).arg("--").arg(program);
    command
}

/// Makes all namespaces, loopback up.
pub fn make() -> Done {
    if !Path::new(NETNS_DIR).exists() {
        std::fs::write(MADE, "").map_err(|e| e.to_string())?;
    }
    for namespace in ALL {
        quietly(&format!("ip netns add {namespace}"))?;
        quietly(&format!("ip -n {namespace} link set lo up"))?;
    }
    Ok(())
}

/// The lab's namespaces that exist.
pub fn existing() -> Vec<&'static str> {
    ALL.into_iter().filter(|n| Path::new(NETNS_DIR).join(n).exists()).collect()
}

/// Processes in a namespace.
pub fn processes(namespace: &str) -> Vec<u32> {
    let listed = quietly(&format!("ip netns pids {namespace}")).unwrap_or_default();
    listed.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

/// Removes the namespaces, and their directory if the lab made it.
pub fn remove() {
    for namespace in existing() {
        let _ = quietly(&format!("ip netns del {namespace}"));
    }
    if Path::new(MADE).exists() && std::fs::read_dir(NETNS_DIR).is_ok_and(|mut d| d.next().is_none()) {
        let _ = quietly(&format!("umount {NETNS_DIR}"));
        let _ = std::fs::remove_dir(NETNS_DIR);
        let _ = std::fs::remove_file(MADE);
    }
}

/// `laptop` is `pvl-laptop`.
pub fn full(name: &str) -> String {
    if name.starts_with("pvl-") { name.to_owned() } else { format!("pvl-{name}") }
}

/// `pvemesh-lab exec`.
pub fn exec(name: &str, words: &[String]) -> ExitCode {
    let name = full(name);
    if !existing().contains(&name.as_str()) {
        eprintln!("pvemesh-lab: no namespace {name} (pvemesh-lab up makes: {})", ALL.join(" "));
        return ExitCode::FAILURE;
    }
    let Some((program, rest)) = words.split_first() else { return ExitCode::FAILURE };
    match inside(&name, program).args(rest).status() {
        Ok(status) => status.code().and_then(|c| u8::try_from(c).ok()).map_or(ExitCode::FAILURE, ExitCode::from),
        Err(error) => {
            eprintln!("pvemesh-lab: {program}: {error}");
            ExitCode::FAILURE
        }
    }
}
