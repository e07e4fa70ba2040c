//! Going where nothing is seen by the machine: PID and mount namespaces that end with this program and take every process, network
//! namespace and mount of the stages with them.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::Done;

/// Why this cannot run here, if it cannot.
pub fn lacking() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("the interop matrix needs root: it makes network namespaces".to_owned());
    }
    if !Path::new("/dev/net/tun").exists() {
        return Some("the interop matrix needs /dev/net/tun".to_owned());
    }
    let there = |program: &str| Command::new("sh").args(["-c", &format!("command -v {program}")]).stdout(Stdio::null()).status();
    let missing = ["go", "cargo", "ip", "unshare", "nsenter", "dnsmasq", "nft"].into_iter().find(|p| !there(p).is_ok_and(|s| s.success()));
    missing.map(|program| format!("the interop matrix needs `{program}`"))
}

/// Runs this program again, inside; says whether all went well there.
pub fn again() -> Done<bool> {
    let work = tempfile::Builder::new().prefix("pvemesh-interop-").tempdir().map_err(|e| e.to_string())?;
    let own = std::env::current_exe().map_err(|e| e.to_string())?;
    let mut command = Command::new("unshare");
    command.args(["--pid", "--fork", "--kill-child", "--mount", "--mount-proc", "--propagation", "private", "--"]);
    command.arg(own).arg("--inside").arg(work.path()).args(std::env::args_os().skip(1));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|e| e.to_string())?;
    runtime.block_on(async {
        use tokio::signal::unix::{SignalKind, signal};
        let mut child = tokio::process::Command::from(command).kill_on_drop(true).spawn().map_err(|e| format!("unshare: {e}"))?;
        let (mut int, mut term) =
            (signal(SignalKind::interrupt()).map_err(|e| e.to_string())?, signal(SignalKind::terminate()).map_err(|e| e.to_string())?);
        tokio::select! {
            ended = child.wait() => return ended.map(|status| status.success()).map_err(|e| e.to_string()),
            _ = int.recv() => {}
            _ = term.recv() => {}
        }
        // `--kill-child`: with unshare goes the whole inside.
        let _ = child.kill().await;
        Err("interrupted; nothing is left behind".to_owned())
    })
}

/// The first process of a PID namespace gets only the signals it asks for.
pub fn exit_on_signals() {
    std::thread::spawn(|| {
        let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else { return };
        runtime.block_on(async {
            use tokio::signal::unix::{SignalKind, signal};
            let (Ok(mut int), Ok(mut term)) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate())) else { return };
            tokio::select! { _ = int.recv() => {} _ = term.recv() => {} }
            std::process::exit(130);
        });
    });
}

/// Hides what programs would find of this machine, and what they would leave there.
pub fn hide() -> Done {
    for place in ["/run", "/var/lib"] {
        crate::machine::run(&["mount", "-t", "tmpfs", "-o", "mode=755", "none", place])?;
    }
    std::fs::create_dir_all("/run/netns").map_err(|e| e.to_string())
}
