//! The Proxmox host's side: the stand-in in its namespace, and the `pvesh` command that reaches it.

use std::fs::{File, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use crate::namespaces::{self, HOME, INET, PVE, inside};
use crate::run::Done;
use crate::standin::cluster::Host;
use crate::standin::lxc::{Lxc, missing, until};
use crate::standin::{Options, Standin, Version};
use crate::{measure, network, sweep};

/// The password of root@pam, also written to `password` in the state directory.
pub const PASSWORD: &str = "lab-root-password";

/// Makes the lab: what an earlier one left is removed first.
pub fn up(dir: &Path, version: Version, hosts: u8) -> Done {
    if let Some(why) = missing() {
        return Err(why);
    }
    sweep::down(dir)?;
    std::fs::create_dir_all(dir).map_err(|e| e.to_string())?;
    namespaces::make()?;
    network::make()?;
    let program = std::env::current_exe().map_err(|e| e.to_string())?;
    let background = |namespace: &str, program: &Path, arguments: &[&str], log: &str| -> Done {
        let log = File::create(dir.join(log)).map_err(|e| e.to_string())?;
        let errors = log.try_clone().map_err(|e| e.to_string())?;
        let mut command = inside(namespace, program);
        command.arg("--dir").arg(dir).args(arguments).stdin(Stdio::null()).stdout(log).stderr(errors);
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        command.spawn().map(drop).map_err(|e| format!("{}: {e}", program.display()))
    };
    background(INET, &program, &["web"], "web.log")?;
    background(
        PVE,
        &program,
        &["host", "--pve-version", &format!("{}.{}", version.0, version.1), "--hosts", &hosts.to_string()],
        "standin.log",
    )?;
    name_server(dir)?;
    secret(&dir.join("password"), PASSWORD)?;
    let bin = dir.join("bin");
    std::fs::create_dir_all(&bin).map_err(|e| e.to_string())?;
    let script = format!("#!/bin/sh\nexec {} pvesh --socket {} -- \"$@\"\n", program.display(), dir.join("pve/pvesh.sock").display());
    std::fs::write(bin.join("pvesh"), script).map_err(|e| e.to_string())?;
    std::fs::set_permissions(bin.join("pvesh"), Permissions::from_mode(0o755)).map_err(|e| e.to_string())?;
    let script = crate::standin::pct::script(&dir.join("pve"), "pvl", Some(&Path::new("/run/netns").join(PVE)), false);
    std::fs::write(bin.join("pct"), script).map_err(|e| e.to_string())?;
    std::fs::set_permissions(bin.join("pct"), Permissions::from_mode(0o755)).map_err(|e| e.to_string())?;
    let web = || measure::within(INET, || std::net::TcpStream::connect((network::WEB_ADDRESS, 80)).is_ok()).unwrap_or(false);
    if !until(Duration::from_secs(10), web) {
        return Err("the web server did not start (web.log)".to_owned());
    }
    let ready = until(Duration::from_secs(10), || dir.join("pve/fingerprint").exists());
    let log = || std::fs::read_to_string(dir.join("standin.log")).unwrap_or_default();
    if ready { Ok(()) } else { Err(format!("the stand-in did not start: {}", log())) }
}

/// DHCP and router advertisements on the home's LAN.
fn name_server(dir: &Path) -> Done {
    let arguments = [
        "--conf-file=/dev/null",
        "--no-hosts",
        "--port=0",
        "--interface=lan0",
        "--bind-interfaces",
        "--user=root",
        "--pid-file=",
        "--keep-in-foreground",
        "--dhcp-range=192.168.50.150,192.168.50.199,1h",
        "--dhcp-option=option:dns-server,192.168.50.1",
        "--dhcp-authoritative",
        "--enable-ra",
        "--dhcp-range=::,constructor:lan0,ra-only",
    ];
    let mut command = inside(HOME, "dnsmasq");
    command.args(arguments).arg(format!("--dhcp-leasefile={}", dir.join("leases").display()));
    let log = File::create(dir.join("dnsmasq.log")).map_err(|e| e.to_string())?;
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().map(drop).map_err(|e| format!("dnsmasq: {e}"))
}

/// Writes a file that only root reads.
pub fn secret(path: &Path, text: &str) -> Done {
    let _ = std::fs::remove_file(path);
    let mut options = File::options();
    std::os::unix::fs::OpenOptionsExt::mode(options.write(true).create_new(true), 0o600);
    options.open(path).and_then(|mut f| std::io::Write::write_all(&mut f, text.as_bytes())).map_err(|e| format!("{}: {e}", path.display()))
}

/// The stand-in's own process: serves until it is told to stop, then removes its containers.
pub fn serve(dir: &Path, version: Version, hosts: u8) -> Done {
    let pve = dir.join("pve");
    let others = (2..=hosts).map(|n| Host { version, ..Host::new(&format!("pve{n}")) }).collect();
    let options = Options {
        listen: "127.0.0.1:8006".parse().expect("an address"),
        version,
        others,
        password: PASSWORD.to_owned(),
        hold_back: Duration::from_secs(1),
        backend: Box::new(Lxc::new(&pve, "pvl", None)),
        ..Options::new(&pve)
    };
    let standin = Standin::start(options).map_err(|e| format!("start the stand-in: {e}"))?;
    std::fs::write(pve.join("fingerprint"), standin.fingerprint()).map_err(|e| e.to_string())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|e| e.to_string())?;
    runtime.block_on(async {
        use tokio::signal::unix::{SignalKind, signal};
        let Ok(mut ended) = signal(SignalKind::terminate()) else { return };
        ended.recv().await;
    });
    drop(standin);
    Ok(())
}

/// `pvemesh-lab status`.
pub fn status(dir: &Path) -> Done {
    for namespace in namespaces::existing() {
        println!("{namespace}: {} processes", namespaces::processes(namespace).len());
    }
    let homes = std::fs::read_dir(dir.join("pve/containers")).into_iter().flatten().flatten();
    for home in homes.filter(|h| h.file_name().to_string_lossy().parse::<u32>().is_ok()) {
        println!("container {}", home.file_name().to_string_lossy());
    }
    let left = sweep::traces(dir);
    println!("{}", if left.is_empty() { "the lab is down".to_owned() } else { format!("{} traces:\n{}", left.len(), left.join("\n")) });
    Ok(())
}
