//! An admin away from home: a machine of its own network, which reaches the Proxmox host through the mesh and in no other way.

use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use crate::site::{Ran, Site, program, read, shell};

/// The machine, with a node of the mesh on it.
pub struct Admin<'s> {
    site: &'s Site,
    namespace: String,
    node: Child,
}

impl<'s> Admin<'s> {
    /// A machine that reaches these addresses of the LAN directly, as if a router's ports were forwarded to them, and joins the mesh.
    pub fn new(site: &'s Site, reached: &[&str]) -> Self {
        let namespace = format!("{}a", site.namespace);
        let mut lines = format!(
            "ip netns add {namespace}; ip link add adm0 type veth peer name up0; ip link set adm0 netns {namespace}; \
             ip addr add 10.70.0.1/24 dev up0; ip link set up0 up; echo 1 > /proc/sys/net/ipv4/ip_forward; \
             ip -n {namespace} link set lo up; ip -n {namespace} addr add 10.70.0.2/24 dev adm0; ip -n {namespace} link set adm0 up;"
        );
        for address in reached {
            lines.push_str(&format!("ip -n {namespace} route add {address} via 10.70.0.1;"));
        }
        shell(&lines);
        // `ssh` to the host needs a connection to it, which is made as `ssh` would make one; what is run then is run there.
        let host = host(site);
        let ssh = format!(
            "#!/bin/bash\nwhile [ $# -gt 2 ]; do shift; done\n\
             timeout 3 bash -c 'exec 3<>/dev/tcp/{host}' 2>/dev/null || {{ echo \"ssh: connect to host $1 port 22: No route to host\" >&2; exit 255; }}\n\
             export PATH={}:$PATH\n\
             exec nsenter --net=/run/netns/{} sh -c \"$2\"\n",
            site.path("bin").display(),
            site.namespace
        );
        std::fs::create_dir(site.path("admin")).unwrap();
        std::fs::set_permissions(site.path("admin"), std::fs::Permissions::from_mode(0o700)).unwrap();
        site.script("admin/ssh", &ssh);
        let key = site.run("keys create --json");
        std::fs::write(site.path("admin/key"), key.succeeded().json()["key"].as_str().unwrap()).unwrap();
        std::fs::set_permissions(site.path("admin/key"), std::fs::Permissions::from_mode(0o600)).unwrap();
        let log = std::fs::File::create(site.path("admin/log")).unwrap();
        let mut command = Self::command_in(site, &namespace, "node run --tun adm-mesh --port 0");
        let node = command.stdout(Stdio::null()).stderr(log).spawn().unwrap();
        let admin = Self { site, namespace, node };
        site.wait("the admin's node listens", 20, || admin.path("node.sock").exists());
        let up = format!(
            "node up --login-server http://192.168.60.100:8080 --auth-key-file {} --hostname laptop --accept-routes --accept-dns=false",
            admin.path("key").display()
        );
        admin.run(&up).succeeded();
        admin
    }

    fn path(&self, name: &str) -> PathBuf {
        self.site.path("admin").join(name)
    }

    fn command_in(site: &Site, namespace: &str, words: &str) -> Command {
        let mut command = site.command("/usr/bin/nsenter");
        command.arg(format!("--net=/run/netns/{namespace}")).arg(program()).args(words.split_whitespace());
        let path = format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", site.path("admin").display());
        command.env("PATH", path).env("PVEMESH_SOCKET", site.path("admin/node.sock")).env("PVEMESH_STATE_DIR", site.path("admin/state"));
        command
    }

    /// A command of ours on this machine.
    pub fn command(&self, words: &str) -> Command {
        Self::command_in(self.site, &self.namespace, words)
    }

    pub fn run(&self, words: &str) -> Ran {
        let ran = read(self.command(words).output().unwrap());
        println!("admin$ pvemesh {words}\n{}{}", ran.out, ran.err);
        ran
    }

    /// Whether the way to the host is there.
    pub fn reaches_the_host(&self) -> bool {
        let mut command = self.site.command("/usr/bin/nsenter");
        let connect = format!("exec 3<>/dev/tcp/{}", host(self.site));
        command.arg(format!("--net=/run/netns/{}", self.namespace)).args(["timeout", "2", "bash", "-c", &connect]);
        command.output().unwrap().status.success()
    }
}

/// The host's address and port, as bash connects to it.
fn host(site: &Site) -> String {
    site.standin.url().trim_start_matches("https://").trim_end_matches('/').replace(':', "/")
}

impl Drop for Admin<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("--- the admin's node\n{}", std::fs::read_to_string(self.path("log")).unwrap_or_default());
            for words in ["ip rule", "ip route show table 52", "ip route"] {
                let ran = Command::new("ip").args(["netns", "exec", &self.namespace]).args(words.split(' ')).output();
                println!("admin$ {words}\n{}", ran.map(|ran| String::from_utf8_lossy(&ran.stdout).into_owned()).unwrap_or_default());
            }
            self.run("node status");
            self.run("node ping -c 2 way-in");
        }
        let _ = self.node.kill().and_then(|()| self.node.wait());
        let _ = Command::new("ip").args(["netns", "del", &self.namespace]).status();
    }
}
