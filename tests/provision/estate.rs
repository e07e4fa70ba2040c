//! A host with a coordinator and nodes that really run: the stand-in's containers are processes of this machine, each with the files of
//! its guest, and what their init does with a delivered configuration is done for them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use pvemesh::plan::options::KnownCoordinator;
use pvemesh::sys::config::Store;
use serde_json::{Value, json};

use crate::standin::backend::{Backend, Stop};
use crate::standin::guest_config::Config;
use crate::standin::{Options, TaskLog};
use crate::world::World;

const PROGRAM: &str = env!("CARGO_BIN_EXE_pvemesh");

struct Guest {
    /// The node in it; none in a guest of the admin's.
    node: Option<Child>,
    mac: String,
    post_stop: Option<PathBuf>,
}

impl Drop for Guest {
    fn drop(&mut self) {
        if let Some(node) = &mut self.node {
            let _ = node.kill();
            let _ = node.wait();
        }
    }
}

/// Containers that are processes.
#[derive(Clone, Default)]
pub struct Processes {
    dir: PathBuf,
    running: Arc<Mutex<BTreeMap<u32, Guest>>>,
}

impl Processes {
    fn root(&self, id: u32) -> PathBuf {
        self.dir.join(format!("containers/{id}/rootfs"))
    }

    /// As the appliance's init takes over what was delivered.
    fn deliver(&self, id: u32, config: &Config) {
        let variable =
            |name: &str| config.environment().into_iter().find_map(|pair| pair.strip_prefix(name)?.strip_prefix('=')).map(str::to_owned);
        let root = self.root(id);
        std::fs::create_dir_all(root.join("var/lib/pvemesh")).unwrap();
        let _ = pvemesh::sys::init::read_config(&root, variable("PVEMESH_CONFIG").as_deref());
        if let Some(text) = variable("PVEMESH_RENEWAL") {
            let text = base64::engine::general_purpose::STANDARD.decode(text).unwrap();
            std::fs::write(root.join("var/lib/pvemesh/renewal.toml"), text).unwrap();
        }
    }

    pub fn node_pid(&self, id: u32) -> Option<u32> {
        self.running.lock().unwrap().get(&id)?.node.as_ref().map(Child::id)
    }
}

impl Backend for Processes {
    fn create(&self, id: u32, _: &Config, _: &Path, _: &TaskLog) -> Result<(), String> {
        std::fs::create_dir_all(self.root(id)).map_err(|e| e.to_string())
    }

    fn start(&self, id: u32, config: &Config, post_stop: Option<&Path>) -> Result<(), String> {
        self.deliver(id, config);
        let place = self.root(id).join("var/lib/pvemesh");
        let mac = config.family("net").first().and_then(|(_, keys)| keys.get("hwaddr").cloned()).unwrap_or_default();
        let node = place.join("guest.toml").exists().then(|| {
            let log = std::fs::File::options().create(true).append(true).open(self.root(id).join("console")).unwrap();
            Command::new(PROGRAM)
                .args(["node", "--socket"])
                .arg(self.root(id).join("n.sock"))
                .args(["run", "--tun", "userspace", "--port", "0", "--state-dir"])
                .arg(place.join("node"))
                .arg("--guest-config")
                .arg(place.join("guest.toml"))
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(log)
                .spawn()
                .unwrap()
        });
        self.running.lock().unwrap().insert(id, Guest { node, mac, post_stop: post_stop.map(Path::to_owned) });
        Ok(())
    }

    fn stop(&self, id: u32, _: Stop) -> bool {
        let stopped = self.running.lock().unwrap().remove(&id);
        if let Some(script) = stopped.as_ref().and_then(|guest| guest.post_stop.clone()) {
            std::thread::spawn(move || {
                Command::new(script).arg(id.to_string()).arg("post-stop").stdout(Stdio::null()).stderr(Stdio::null()).status()
            });
        }
        true
    }

    fn destroy(&self, id: u32) {
        self.stop(id, Stop::Kill);
        let _ = std::fs::remove_dir_all(self.dir.join(format!("containers/{id}")));
    }

    fn pid(&self, id: u32) -> Option<u32> {
        self.running.lock().unwrap().contains_key(&id).then_some(10_000 + id)
    }

    fn interfaces(&self, id: u32) -> Value {
        let mac = self.running.lock().unwrap().get(&id).map(|guest| guest.mac.to_lowercase()).unwrap_or_default();
        let last = id % 250;
        json!([
            { "name": "lo", "hwaddr": "00:00:00:00:00:00", "inet": "127.0.0.1/8" },
            { "name": "docker0", "hwaddr": "02:42:00:00:00:01", "inet": "172.17.0.1/16" },
            { "name": "eth0", "hwaddr": mac, "inet": format!("192.168.50.{last}/24") }
        ])
    }

    fn memory(&self, _: u32) -> u64 {
        884_736
    }

    fn clear(&self) {
        self.running.lock().unwrap().clear();
    }
}

/// A coordinator on loopback, a host, and an admin who knows both.
pub struct Estate {
    coordinator: Child,
    pub world: World,
    pub guests: Processes,
    name: String,
}

impl Drop for Estate {
    fn drop(&mut self) {
        let _ = self.coordinator.kill();
        let _ = self.coordinator.wait();
    }
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

impl Estate {
    /// On the host itself, so that new nodes get the hook.
    pub fn new() -> Self {
        let estate = Self::remote("pve");
        host_files(&estate.world);
        estate
    }

    /// From another machine than the host, which has this name: nobody calls a hook.
    pub fn remote(name: &str) -> Self {
        Self::with(name, |_| {})
    }

    /// As [`Self::remote`], with something of the host's its own way.
    pub fn with(name: &str, change: impl FnOnce(&mut Options)) -> Self {
        let mut guests = Processes::default();
        let world = World::with(|options: &mut Options| {
            name.clone_into(&mut options.node);
            guests.dir.clone_from(&options.dir);
            options.backend = Box::new(guests.clone());
            change(options);
        });
        world.init();
        let store = Store::at(world.path("config"));
        let key = store.admin_key([7; 32]).unwrap().public();
        let url = format!("http://127.0.0.1:{}", free_port());
        let log = std::fs::File::create(world.path("coordinator.log")).unwrap();
        let coordinator = Command::new(PROGRAM)
            .args(["coordinator", "serve", "--no-relay", "--url", &url, "--listen", url.trim_start_matches("http://")])
            .args(["--admin-key", &key.to_string(), "--state-dir"])
            .arg(world.path("coordinator"))
            .arg("--socket")
            .arg(world.path("c.sock"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let estate = Self { coordinator, world, guests, name: name.to_owned() };
        estate.world.wait("the coordinator answers", || estate.info().is_some());
        let server_key = estate.info().unwrap()["server_key"].as_str().unwrap().parse().unwrap();
        store.remember(KnownCoordinator { vmid: None, lan_url: url.clone(), url, server_key }).unwrap();
        estate
    }

    fn info(&self) -> Option<Value> {
        let ran = self.world.run("coordinator info --json --socket {dir}/c.sock");
        (ran.code == Some(0)).then(|| ran.json())
    }

    /// The node of this name, as the coordinator sees it.
    pub fn node(&self, name: &str) -> Option<Value> {
        let nodes = self.world.run("coordinator nodes list --json --socket {dir}/c.sock").succeeded().json();
        nodes["nodes"].as_array().unwrap().iter().find(|node| node["name"] == name).cloned()
    }

    pub fn wait_online(&self, name: &str) -> Value {
        self.world.wait(&format!("{name} is online"), || self.node(name).is_some_and(|node| node["online"] == true));
        self.node(name).unwrap()
    }

    pub fn create(&self, id: u32) -> Value {
        let ran = self.world.run(&format!("create-exit-node {id} --image {{dir}}/image.tar.gz --tun userspace --json"));
        ran.succeeded().json()
    }

    pub fn call(&self, method: &str, path: &str, parameters: &[(&str, &str)]) {
        self.world.call(method, path, parameters);
    }

    /// The coordinator's process.
    pub fn coordinator_pid(&self) -> rustix::process::Pid {
        rustix::process::Pid::from_child(&self.coordinator)
    }

    pub fn node_name(&self) -> &str {
        &self.name
    }

    pub fn start(&self, id: u32) {
        self.call("POST", &format!("/nodes/{}/lxc/{id}/status/start", self.name), &[]);
    }

    pub fn stop(&self, id: u32) {
        self.call("POST", &format!("/nodes/{}/lxc/{id}/status/stop", self.name), &[]);
        self.world.wait("the guest stops", || !self.world.standin.is_running(id));
    }

    pub fn sync(&self) -> Value {
        self.world.run("sync --json").succeeded().json()
    }

    /// Every change there is to make is made.
    pub fn at_rest(&self) {
        self.world.wait("there is nothing left to do", || self.sync()["changed"] == false);
    }

    pub fn notes(&self, id: u32) -> String {
        self.world.standin.config(id).unwrap().get("description").unwrap_or_default().to_owned()
    }
}

/// The host's own files: a root with the cluster's file system in it, and this machine's temporary files at their usual place.
pub fn host_files(world: &World) {
    let root = world.path("root");
    std::fs::create_dir_all(root.join("etc/pve/qemu-server")).unwrap();
    std::os::unix::fs::symlink(world.standin.cluster_files().join("nodes/pve/lxc"), root.join("etc/pve/lxc")).unwrap();
    let first = world.dir.path().components().nth(1).unwrap();
    std::os::unix::fs::symlink(Path::new("/").join(first), root.join(first)).unwrap();
}
