//! Programs of one host of the cluster, where a test wants hosts apart ([`Options::tools`]): in namespaces of their own, in which the host has
//! its name, the cluster's files are at `/etc/pve`, and its storages and `/run` are its own.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Core, Inside, Options};

/// Where a host has what is its own.
pub fn home(options: &Options, host: &str) -> PathBuf {
    if host == options.node { options.dir.clone() } else { options.dir.join("hosts").join(host) }
}

/// Lines of a shell that make the place; what it is for comes after them.
fn set_up(core: &Core, host: &str) -> String {
    let (options, home) = (&core.options, home(&core.options, host));
    let own = home.display();
    let mut lines = format!("hostname {host}; mount --bind {own}/etc /etc; mount --bind {own}/run /run");
    let storages = core.host(host).map(|host| host.storages.as_slice()).unwrap_or_default();
    for storage in storages.iter().filter(|s| s.kind == "dir" && !options.shared.contains(&s.name) && host != options.node) {
        let place = Path::new("storage").join(&storage.name);
        lines += &format!("; mount --bind {} {}", home.join(&place).display(), options.dir.join(&place).display());
    }
    lines + "; exec \"$@\""
}

/// A program on a host, with nothing of the environment here but what Proxmox gives its own programs.
pub fn command(core: &Core, host: &str, program: &Path) -> Command {
    let Some(tools) = &core.options.tools else { return Command::new(program) };
    let mut command = Command::new("/usr/bin/unshare");
    command.args(["--mount", "--uts", "--propagation", "private", "/bin/sh", "-ec", &set_up(core, host), "sh"]).arg(program);
    command.env_clear().env("PATH", format!("{}:/sbin:/bin:/usr/sbin:/usr/bin", tools.display())).env("LC_ALL", "C");
    command.current_dir("/");
    command
}

/// A script that runs another one on a host, for who only takes a file; the other one itself where hosts are not apart.
pub fn wrapped(core: &Core, host: &str, id: u32, program: PathBuf) -> PathBuf {
    use std::os::unix::fs::PermissionsExt as _;
    let Some(tools) = &core.options.tools else { return program };
    let path = home(&core.options, host).join(format!("run/post-stop-{id}"));
    let (set_up, shown) = (set_up(core, host), program.display());
    let inner = format!("/usr/bin/unshare --mount --uts --propagation private /bin/sh -ec '{set_up}' sh {shown} \"$@\"");
    let text = format!("#!/bin/sh\nexec env -i PATH={}:/sbin:/bin:/usr/sbin:/usr/bin LC_ALL=C {inner}\n", tools.display());
    let written = std::fs::write(&path, text).and_then(|()| std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)));
    written.map_or(program, |()| path)
}

impl Inside {
    /// A program on a host, as its root would run it.
    pub fn on_host(&self, host: &str, program: &Path) -> Command {
        command(&self.core, host, program)
    }
}
