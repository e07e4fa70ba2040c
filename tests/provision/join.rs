//! Joining a coordinator of ours: keys minted, revoked and nodes removed, with a coordinator on paper.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::BoxFuture;
use pvemesh::ident::{MachinePublic, NodeId, NodeName, NodePublic, Secret};
use pvemesh::plan::create::{self, Image as PlannedImage, Outcome, Plan};
use pvemesh::plan::mark::RunId;
use pvemesh::plan::options::{GuestTexts, Join, KnownCoordinator, NodeKind, Role};
use pvemesh::pve::call::Arch;
use pvemesh::sys::config::Store;
use pvemesh::sys::image::{Image, ImageError};
use pvemesh::sys::pve::{
    Credentials, Door, Executor, Findings, Https, HttpsOptions, Images, Mesh, MeshError, Provisioner, Pvesh, RunError, Trust, Watch,
    observe,
};
use pvemesh::wire::admin::{CoordinatorInfo, CreateKey, CreatedKey, NodeInfo};
use pvemesh::wire::control::DerpRegion;

use crate::standin::faults::Fault;
use crate::standin::{Standin, Version};
use crate::world::{PASSWORD, World};

#[derive(Debug, Default)]
struct Ledger {
    keys: Vec<CreateKey>,
    revoked: Vec<i64>,
    deleted: Vec<i64>,
    relays: Vec<DerpRegion>,
    removed: Vec<i32>,
}

/// A coordinator that sees the node as soon as the container runs.
struct PaperMesh {
    ledger: Mutex<Ledger>,
    standin: Arc<Standin>,
    joins: bool,
}

type Answer<'a, T> = BoxFuture<'a, Result<T, MeshError>>;

impl Mesh for PaperMesh {
    fn server_key(&self) -> MachinePublic {
        MachinePublic::from_bytes([9; 32])
    }

    fn info(&self) -> Answer<'_, CoordinatorInfo> {
        Box::pin(async { Err(MeshError("not asked".to_owned())) })
    }

    fn create_key<'a>(&'a self, key: &'a CreateKey) -> Answer<'a, CreatedKey> {
        Box::pin(async {
            let mut ledger = self.ledger.lock().unwrap();
            ledger.keys.push(key.clone());
            let id = i64::try_from(ledger.keys.len()).unwrap();
            Ok(CreatedKey { id, key: Secret::new("tskey-minted"), expires: "2030-01-01T00:00:00Z".parse().unwrap() })
        })
    }

    fn revoke_key(&self, id: i64) -> Answer<'_, ()> {
        Box::pin(async move {
            self.ledger.lock().unwrap().revoked.push(id);
            Ok(())
        })
    }

    fn nodes(&self) -> Answer<'_, Vec<NodeInfo>> {
        Box::pin(async {
            let there = self.joins && self.standin.is_running(101);
            Ok(there.then(|| node(7, "exit-1")).into_iter().collect())
        })
    }

    fn delete_node(&self, id: NodeId) -> Answer<'_, ()> {
        Box::pin(async move {
            self.ledger.lock().unwrap().deleted.push(id.0);
            Ok(())
        })
    }

    fn relays(&self) -> Answer<'_, Vec<DerpRegion>> {
        Box::pin(async { Ok(self.ledger.lock().unwrap().relays.clone()) })
    }

    fn add_relay<'a>(&'a self, region: &'a DerpRegion) -> Answer<'a, DerpRegion> {
        Box::pin(async {
            let given = DerpRegion { region_id: 901, ..region.clone() };
            self.ledger.lock().unwrap().relays.push(given.clone());
            Ok(given)
        })
    }

    fn remove_relay(&self, number: i32) -> Answer<'_, ()> {
        Box::pin(async move {
            let mut ledger = self.ledger.lock().unwrap();
            ledger.relays.retain(|region| region.region_id != number);
            ledger.removed.push(number);
            Ok(())
        })
    }
}

fn node(id: i64, name: &str) -> NodeInfo {
    let value = serde_json::json!({
        "id": id, "name": name, "fqdn": format!("{name}.mesh.internal"), "user": "pvemesh", "key": NodePublic::from_bytes([3; 32]),
        "addresses": ["100.64.0.7"], "online": true, "tags": ["tag:exit-node"], "advertised_routes": [], "approved_routes": [], "os": "linux"
    });
    serde_json::from_value(value).unwrap()
}

struct NoDoor;

impl Door for NoDoor {
    fn open<'a>(&'a self, _: &'a str, _: Option<MachinePublic>) -> Answer<'a, Box<dyn Mesh>> {
        Box::pin(async { Err(MeshError("closed".to_owned())) })
    }

    fn meet_relay<'a>(&'a self, address: SocketAddr, host: &'a str) -> Answer<'a, String> {
        Box::pin(async move { Ok(format!("sha256-raw:of {host} at {address}")) })
    }
}

struct OneImage(Image);

impl Images for OneImage {
    fn shared(&self) -> &Image {
        &self.0
    }

    fn personal(&self, guest_toml: &str) -> Result<Image, ImageError> {
        assert!(guest_toml.contains("tskey-minted"), "the join key belongs into it");
        let path = self.0.path.with_file_name("personal.tar.gz");
        std::fs::write(&path, guest_toml).unwrap();
        Ok(Image { size: 1, sha256: sha256(guest_toml.as_bytes()), path })
    }
}

struct Quiet;

impl Watch for Quiet {
    fn begin(&mut self, _: &str) {}
    fn line(&mut self, _: &str) {}
    fn end(&mut self, _: Duration, _: bool) {}
}

struct Run {
    plan: Plan,
    outcome: Result<Findings, RunError>,
    ledger: Ledger,
}

type Injected<'a> = Option<(&'a str, &'a str, u32, Fault)>;

pub fn https(world: &World) -> Https {
    let credentials = Credentials::Password { user: "root@pam".to_owned(), password: Secret::new(PASSWORD), second: None };
    let trust = Trust::Fingerprint(world.standin.fingerprint().parse().unwrap());
    Https::new(HttpsOptions { url: Https::parse_url(&world.standin.url()).unwrap(), trust, credentials }).unwrap()
}

fn run(world: World, joins: bool, fault: Injected<'_>) -> (Run, Arc<Standin>, tempfile::TempDir) {
    run_through(&https(&world), world, joins, fault)
}

fn run_relay(world: World, address: Option<&str>, fault: Injected<'_>) -> (Run, Arc<Standin>, tempfile::TempDir) {
    let address = address.map(str::to_owned);
    run_role(&https(&world), world, false, fault, |coordinator| Role::Relay { coordinator, address })
}

fn run_through(executor: &dyn Executor, world: World, joins: bool, fault: Injected<'_>) -> (Run, Arc<Standin>, tempfile::TempDir) {
    run_role(executor, world, joins, fault, |known| Role::Node {
        kind: NodeKind::ExitNode,
        join: Join::Ours(known),
        endpoints: Vec::new(),
        userspace: None,
    })
}

fn run_role(
    executor: &dyn Executor,
    world: World,
    joins: bool,
    fault: Injected<'_>,
    role: impl FnOnce(KnownCoordinator) -> Role,
) -> (Run, Arc<Standin>, tempfile::TempDir) {
    let World { standin, dir } = world;
    let standin = Arc::new(standin);
    let mesh = PaperMesh { ledger: Mutex::default(), standin: Arc::clone(&standin), joins };
    let store = Store::at(dir.path().join("config"));
    let image: PathBuf = dir.path().join("image.tar.gz");
    let sha256 = sha256(&std::fs::read(&image).unwrap());
    let images = OneImage(Image { size: 1, sha256: sha256.clone(), path: image });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (plan, outcome) = runtime.block_on(async {
        let options = GuestTexts { vmid: "101".to_owned(), ..GuestTexts::default() }.check().unwrap();
        let known = KnownCoordinator {
            vmid: Some("100".parse().unwrap()),
            lan_url: "http://192.168.50.100:8080".to_owned(),
            url: "http://192.168.50.100:8080".to_owned(),
            server_key: MachinePublic::from_bytes([9; 32]),
        };
        let role = role(known);
        let observed = observe::observe(executor, options.vmid, Vec::new()).await.unwrap();
        let planned = PlannedImage::new("0.1.0", &sha256, Arch::Amd64);
        let Outcome::Plan(plan) = create::create(&options, &role, &observed, &planned, RunId::new(5)).unwrap() else {
            panic!("nothing is there")
        };
        if let Some((method, path, nth, fault)) = fault {
            standin.faults().on(method, path, nth, fault);
        }
        let mut watch = Quiet;
        let mut never = Box::pin(std::future::pending());
        let provisioner = Provisioner {
            executor,
            door: &NoDoor,
            mesh: Some(&mesh),
            inside: None,
            images: &images,
            store: &store,
            watch: &mut watch,
            interrupted: &mut never,
        };
        let outcome = provisioner.run(&plan).await;
        (plan, outcome)
    });
    let ledger = mesh.ledger.into_inner().unwrap();
    (Run { plan, outcome, ledger }, standin, dir)
}

fn sha256(bytes: &[u8]) -> String {
    use sha2::Digest as _;
    sha2::Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

#[test]
fn the_join_key_is_single_use_short_lived_and_for_this_node_alone() {
    let (run, standin, _dir) = run(World::new(), true, None);
    let findings = run.outcome.unwrap();
    assert_eq!(findings.mesh_addresses, ["100.64.0.7".parse::<std::net::IpAddr>().unwrap()]);
    let [key] = run.ledger.keys.as_slice() else { panic!("one key: {:?}", run.ledger) };
    assert!(!key.reusable && !key.ephemeral && key.expires_in_secs <= 15 * 60);
    assert_eq!(key.only_for, Some(run.plan.name.clone()));
    assert_eq!(key.tags, ["tag:exit-node"]);
    assert_eq!(key.approve_routes.iter().map(ToString::to_string).collect::<Vec<_>>(), ["0.0.0.0/0", "::/0"]);
    assert!(run.ledger.revoked.is_empty() && run.ledger.deleted.is_empty());
    assert!(standin.is_running(101));
}

#[test]
fn a_failure_before_the_start_revokes_the_key() {
    let fault = Fault::TaskFails("unable to create CT 101 - no space left on device".to_owned());
    let (run, standin, _dir) = run(World::new(), true, Some(("POST", "/nodes/pve/lxc", 1, fault)));
    let error = run.outcome.unwrap_err();
    assert!(error.left.is_empty(), "{error:?}");
    assert_eq!((run.ledger.revoked, run.ledger.deleted), (vec![1], Vec::new()));
    assert!(standin.guests().is_empty());
}

#[test]
fn a_failure_after_it_joined_removes_the_node_the_container_and_the_key_in_this_order() {
    // The last change of all: writing the notes.
    let fault = Fault::Answer(500, "no".to_owned());
    let (run, standin, _dir) = run(World::new(), true, Some(("PUT", "/lxc/101/config", 3, fault)));
    let error = run.outcome.unwrap_err();
    let name: NodeName = "exit-1".parse().unwrap();
    assert_eq!(
        error.undone,
        [
            format!("remove node {name} from the coordinator"),
            "remove container 101 from pve".to_owned(),
            "revoke join key 1".to_owned(),
            format!("remove {}", image_volume(&run.plan)),
        ]
    );
    assert_eq!((run.ledger.revoked, run.ledger.deleted), (vec![1], vec![7]));
    assert!(standin.guests().is_empty());
}

#[test]
fn a_relay_is_told_to_the_mesh_with_its_certificate_and_its_address() {
    let (run, standin, _dir) = run_relay(World::new(), None, None);
    run.outcome.unwrap();
    assert!(standin.is_running(101) && run.ledger.keys.is_empty());
    let [region] = run.ledger.relays.as_slice() else { panic!("one relay: {:?}", run.ledger) };
    let node = &region.nodes[0];
    assert_eq!((region.region_code.as_str(), node.host_name.as_str()), ("relay-1", "relay-1"));
    assert_eq!((node.ipv4.as_str(), node.ipv6.as_str(), node.derp_port, node.stun_port), ("192.168.50.101", "none", 0, 0));
    assert_eq!(node.cert_name, "sha256-raw:of relay-1 at 192.168.50.101:443");
}

#[test]
fn a_relay_reached_from_outside_is_told_under_that_name() {
    let (run, _standin, _dir) = run_relay(World::new(), Some("relay.example.org"), None);
    run.outcome.unwrap();
    let node = &run.ledger.relays[0].nodes[0];
    assert_eq!((node.host_name.as_str(), node.ipv4.as_str(), node.ipv6.as_str()), ("relay.example.org", "", ""));
    assert_eq!(node.cert_name, "sha256-raw:of relay.example.org at 192.168.50.101:443");
}

#[test]
fn a_failure_after_a_relay_was_told_takes_it_out_of_the_map_again() {
    let fault = Fault::Answer(500, "no".to_owned());
    let (run, standin, _dir) = run_relay(World::new(), None, Some(("PUT", "/lxc/101/config", 3, fault)));
    let error = run.outcome.unwrap_err();
    assert_eq!(error.undone[..2], ["take relay relay-1 out of the relay map".to_owned(), "remove container 101 from pve".to_owned()]);
    assert_eq!((run.ledger.removed, run.ledger.relays), (vec![901], Vec::new()));
    assert!(standin.guests().is_empty());
}

#[test]
fn before_9_1_a_personal_image_carries_the_configuration_and_is_gone_afterwards() {
    let (run, standin, dir) = run(World::with(|options| options.version = Version(8, 4)), true, None);
    run.outcome.unwrap();
    assert!(standin.is_running(101));
    assert!(templates(&standin).is_empty(), "{:?}", templates(&standin));
    assert!(standin.config(101).unwrap().get("env").is_none());
    assert!(!dir.path().join("personal.tar.gz").exists(), "the local one is secret, too");
}

#[test]
fn on_the_host_itself_everything_goes_through_pvesh_and_no_secret_into_an_argument() {
    let Some(lab) = lab() else {
        println!("skipped: the example pvemesh-lab is not built");
        return;
    };
    let world = World::new();
    let script = world.path("pvesh");
    let arguments = world.path("arguments");
    let text = format!(
        "#!/bin/sh\nprintf '%s\\n' \"$*\" >> {}\nexec {} pvesh --socket {} -- \"$@\"\n",
        arguments.display(),
        lab.display(),
        world.standin.socket().display()
    );
    std::fs::write(&script, text).unwrap();
    std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    let pvesh = Pvesh::new(&script, "/var/tmp");
    let (run, standin, _dir) = run_through(&pvesh, world, true, None);
    let said = std::fs::read_to_string(&arguments).unwrap();
    run.outcome.unwrap_or_else(|e| panic!("{e:?}\n{said}"));
    assert!(standin.is_running(101));
    assert!(templates(&standin).is_empty(), "{:?}", templates(&standin));
    assert!(said.contains("create /nodes/pve/lxc ") && !said.contains("tskey-minted") && !said.contains("--env"), "{said}");
}

/// The lab's program, where cargo puts examples.
pub fn lab() -> Option<PathBuf> {
    let here = std::env::current_exe().unwrap();
    Some(here.parent()?.parent()?.join("examples/pvemesh-lab")).filter(|path| path.exists())
}

fn templates(standin: &Standin) -> Vec<PathBuf> {
    std::fs::read_dir(standin.storage_dir("local").join("template/cache")).unwrap().map(|e| e.unwrap().path()).collect()
}

fn image_volume(plan: &Plan) -> String {
    let upload = plan.steps.iter().find_map(|s| s.undo.as_ref().map(ToString::to_string).filter(|u| u.contains("vztmpl"))).unwrap();
    upload.trim_start_matches("remove ").to_owned()
}
