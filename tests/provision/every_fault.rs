//! Every step of making a guest meets every fault: the run ends well, or everything is as it was before; then the same run succeeds.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::BoxFuture;
use pvemesh::ident::{MachinePublic, NodeId, NodePublic, Secret};
use pvemesh::plan::create::{self, Image as PlannedImage, Outcome};
use pvemesh::plan::mark::RunId;
use pvemesh::plan::options::{GuestTexts, Join, KnownCoordinator, NodeKind, Role};
use pvemesh::pve::call::Arch;
use pvemesh::pve::{ApiError, ErrorKind};
use pvemesh::sys::config::Store;
use pvemesh::sys::image::{Image, ImageError};
use pvemesh::sys::pve::{Door, Executor, GuestConfigs, Images, Mesh, MeshError, Provisioner, Pvesh, RunError, Watch, observe};
use pvemesh::wire::admin::{CoordinatorInfo, CreateKey, CreatedKey, NodeInfo};
use pvemesh::wire::control::DerpRegion;
use serde_json::{Value, json};

use crate::join::{https, lab};
use crate::standin::faults::Fault;
use crate::standin::guest_config::Config;
use crate::standin::{Inside, Version};
use crate::world::World;

/// What the coordinator has: the join keys that are good, its nodes by number, and the relays it was told of.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct Book {
    keys: BTreeSet<i64>,
    nodes: BTreeMap<i64, String>,
    relays: BTreeMap<i32, String>,
    joined: bool,
}

/// A coordinator on paper. The guest joins as soon as it runs, once.
#[derive(Clone)]
struct Coordinator(Arc<Mutex<Book>>, Inside);

type Answer<'a, T> = BoxFuture<'a, Result<T, MeshError>>;

fn node(id: i64, name: &str) -> NodeInfo {
    let value = json!({
        "id": id, "name": name, "fqdn": format!("{name}.mesh.internal"), "user": "pvemesh", "key": NodePublic::from_bytes([3; 32]),
        "addresses": ["100.64.0.7"], "online": true, "tags": [], "advertised_routes": [], "approved_routes": [], "os": "linux"
    });
    serde_json::from_value(value).unwrap()
}

impl Mesh for Coordinator {
    fn server_key(&self) -> MachinePublic {
        MachinePublic::from_bytes([9; 32])
    }

    fn info(&self) -> Answer<'_, CoordinatorInfo> {
        let value = json!({ "server_key": self.server_key(), "version": "0.1.0", "base_domain": "mesh.internal", "nodes": 0, "online": 0, "url": "http://x" });
        Box::pin(async move { serde_json::from_value(value).map_err(|e| MeshError(e.to_string())) })
    }

    fn create_key<'a>(&'a self, _: &'a CreateKey) -> Answer<'a, CreatedKey> {
        Box::pin(async {
            let mut book = self.0.lock().unwrap();
            let id = book.keys.last().map_or(1, |last| last + 1);
            book.keys.insert(id);
            Ok(CreatedKey { id, key: Secret::new("tskey-minted"), expires: "2030-01-01T00:00:00Z".parse().unwrap() })
        })
    }

    fn revoke_key(&self, id: i64) -> Answer<'_, ()> {
        Box::pin(async move {
            self.0.lock().unwrap().keys.remove(&id);
            Ok(())
        })
    }

    fn nodes(&self) -> Answer<'_, Vec<NodeInfo>> {
        Box::pin(async {
            let mut book = self.0.lock().unwrap();
            if self.1.is_running(101) && !book.joined {
                book.joined = true;
                let id = book.nodes.last_key_value().map_or(1, |(last, _)| last + 1);
                book.nodes.insert(id, "exit-1".to_owned());
            }
            Ok(book.nodes.iter().map(|(id, name)| node(*id, name)).collect())
        })
    }

    fn delete_node(&self, id: NodeId) -> Answer<'_, ()> {
        Box::pin(async move {
            self.0.lock().unwrap().nodes.remove(&id.0);
            Ok(())
        })
    }

    fn relays(&self) -> Answer<'_, Vec<DerpRegion>> {
        Box::pin(async {
            let book = self.0.lock().unwrap();
            let region = |(id, code): (&i32, &String)| DerpRegion { region_id: *id, region_code: code.clone(), ..DerpRegion::default() };
            Ok(book.relays.iter().map(region).collect())
        })
    }

    fn add_relay<'a>(&'a self, region: &'a DerpRegion) -> Answer<'a, DerpRegion> {
        Box::pin(async {
            let mut book = self.0.lock().unwrap();
            let region_id = book.relays.last_key_value().map_or(900, |(last, _)| last + 1);
            book.relays.insert(region_id, region.region_code.clone());
            Ok(DerpRegion { region_id, ..region.clone() })
        })
    }

    fn remove_relay(&self, number: i32) -> Answer<'_, ()> {
        Box::pin(async move {
            self.0.lock().unwrap().relays.remove(&number);
            Ok(())
        })
    }
}

impl Door for Coordinator {
    fn open<'a>(&'a self, _: &'a str, _: Option<MachinePublic>) -> Answer<'a, Box<dyn Mesh>> {
        Box::pin(async { Ok(Box::new(self.clone()) as Box<dyn Mesh>) })
    }

    fn meet_relay<'a>(&'a self, _: SocketAddr, host: &'a str) -> Answer<'a, String> {
        Box::pin(async move { Ok(format!("sha256-raw:of {host}")) })
    }
}

struct OneImage(Image);

impl Images for OneImage {
    fn shared(&self) -> &Image {
        &self.0
    }

    fn personal(&self, guest_toml: &str) -> Result<Image, ImageError> {
        let path = self.0.path.with_file_name("personal.tar.gz");
        std::fs::write(&path, guest_toml).unwrap();
        Ok(Image { size: 1, sha256: sha256(guest_toml.as_bytes()), path })
    }
}

fn sha256(bytes: &[u8]) -> String {
    use sha2::Digest as _;
    sha2::Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

struct Quiet;

impl Watch for Quiet {
    fn begin(&mut self, _: &str) {}
    fn line(&mut self, _: &str) {}
    fn end(&mut self, _: Duration, _: bool) {}
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Made {
    ExitNode,
    Coordinator,
    Relay,
}

/// How Proxmox is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Https,
    /// As root on the host.
    Pvesh,
}

/// A place with something in it already: somebody's container and template, and a node in the mesh.
struct Place {
    world: World,
    coordinator: Coordinator,
    executor: Box<dyn Executor>,
    image: String,
}

/// Everything that a run may leave.
#[derive(Debug, PartialEq)]
struct State {
    guests: BTreeMap<u32, Config>,
    templates: Vec<String>,
    book: Book,
    journal: bool,
    settings: String,
    images: Vec<String>,
}

impl Place {
    fn new(version: Version, way: Way) -> Self {
        let world = World::with(|options| options.version = version);
        let mut theirs = Config::default();
        theirs.set("hostname", "debian");
        world.standin.add_guest(900, theirs);
        std::fs::write(world.standin.storage_dir("local").join("template/cache/debian.tar.zst"), "theirs").unwrap();
        let book = Book { nodes: BTreeMap::from([(1, "laptop".to_owned())]), ..Book::default() };
        let coordinator = Coordinator(Arc::new(Mutex::new(book)), (*world.standin).clone());
        let image = sha256(&std::fs::read(world.path("image.tar.gz")).unwrap());
        let executor: Box<dyn Executor> = match way {
            Way::Https => Box::new(https(&world)),
            Way::Pvesh => Box::new(pvesh(&world)),
        };
        Self { world, coordinator, executor, image }
    }

    fn state(&self) -> State {
        let ids = self.world.standin.guests();
        let names = |dir: &std::path::Path| {
            let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
            let mut names: Vec<String> = entries.map(|e| e.file_name().into_string().unwrap()).filter(|n| n.contains("personal")).collect();
            names.sort();
            names
        };
        State {
            guests: ids.into_iter().map(|id| (id, self.world.standin.config(id).unwrap())).collect(),
            templates: self.world.templates(),
            // Whether a guest has ever joined is the guest's matter.
            book: Book { joined: false, ..self.coordinator.0.lock().unwrap().clone() },
            journal: self.world.path("config/101.journal").exists(),
            settings: std::fs::read_to_string(self.world.path("config/config.toml")).unwrap_or_default(),
            images: names(self.world.dir.path()),
        }
    }

    fn run(&self, made: Made) -> Result<(), Box<RunError>> {
        self.coordinator.0.lock().unwrap().joined = made != Made::ExitNode;
        let store = Store::at(self.world.path("config"));
        let images = OneImage(Image { size: 1, sha256: self.image.clone(), path: self.world.path("image.tar.gz") });
        let known = KnownCoordinator {
            vmid: Some("100".parse().unwrap()),
            lan_url: "http://192.168.50.100:8080".to_owned(),
            url: "http://192.168.50.100:8080".to_owned(),
            server_key: self.coordinator.server_key(),
        };
        let role = match made {
            Made::ExitNode => Role::Node { kind: NodeKind::ExitNode, join: Join::Ours(known), endpoints: Vec::new(), userspace: None },
            Made::Coordinator => Role::Coordinator {
                url: None,
                base_domain: None,
                admin_key: MachinePublic::from_bytes([8; 32]),
                trusted_proxies: Vec::new(),
            },
            Made::Relay => Role::Relay { coordinator: known, address: None },
        };
        let executor = &*self.executor;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let options = GuestTexts { vmid: "101".to_owned(), ..GuestTexts::default() }.check().unwrap();
            let mesh = self.coordinator.nodes().await.unwrap().into_iter().map(|n| (n.id, n.name)).collect();
            let mesh = if made == Made::Coordinator { Vec::new() } else { mesh };
            let observed = observe::observe(executor, options.vmid, mesh).await.unwrap();
            let planned = PlannedImage::new("0.1.0", &self.image, Arch::Amd64);
            let run = RunId::new(rand_like());
            let Outcome::Plan(plan) = create::create(&options, &role, &observed, &planned, run).unwrap() else {
                panic!("nothing is there")
            };
            let (mut watch, mut never) = (Quiet, Box::pin(std::future::pending()));
            let provisioner = Provisioner {
                executor,
                door: &self.coordinator,
                mesh: (made != Made::Coordinator).then_some(&self.coordinator as &dyn Mesh),
                inside: None,
                images: &images,
                store: &store,
                watch: &mut watch,
                interrupted: &mut never,
            };
            provisioner.run(&plan).await.map(drop).map_err(Box::new)
        })
    }
}

/// A number that no other run of this program has.
fn rand_like() -> u128 {
    static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(1);
    u128::from(NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed))
}

/// One of each kind of the recorded refusals, and what a way to Proxmox does.
fn faults() -> Vec<(String, Fault)> {
    let all: Value = serde_json::from_str(include_str!("../fixtures/pve/observed-9.1.json")).unwrap();
    let mut by_kind: BTreeMap<String, (u16, String)> = BTreeMap::new();
    for case in all["errors"].as_array().unwrap() {
        let (status, reason) = (case["status"].as_u64().unwrap() as u16, case["reason"].as_str().unwrap().to_owned());
        let kind = ApiError::read(status, Some(&reason), b"").kind();
        // A ticket that is refused is answered with a new login; that is a row of its own.
        if status >= 400 && status != 401 {
            by_kind.entry(format!("{kind:?}")).or_insert((status, reason));
        }
    }
    assert!(by_kind.len() >= 10, "only {:?}", by_kind.keys());
    let mut rows: Vec<_> = by_kind.into_values().map(|(status, reason)| (reason.clone(), Fault::Answer(status, reason))).collect();
    let lock = "can't lock file '/run/lock/lxc/pve-config-101.lock' - got timeout";
    for (status, text) in [(595, "No route to host"), (596, "Connection timed out"), (500, lock), (500, "cluster not ready - no quorum?")] {
        rows.push((text.to_owned(), Fault::Answer(status, text.to_owned())));
    }
    rows.push(("dropped before".to_owned(), Fault::DropBefore));
    rows.push(("dropped after".to_owned(), Fault::DropAfter));
    rows.push(("the task fails".to_owned(), Fault::TaskFails("something went wrong".to_owned())));
    rows.push(("the API restarts".to_owned(), Fault::Restart(Duration::from_millis(900))));
    rows.push(("the ticket expires".to_owned(), Fault::meanwhile(|pve| pve.access(|access| access.expire_tickets()))));
    rows.push(("the storages are full".to_owned(), Fault::meanwhile(|pve| full(pve, 10))));
    rows
}

/// What is met over the transport: `pvesh` needs no ticket, and the daemon may go away without its noticing.
fn faults_of(way: Way) -> Vec<(String, Fault)> {
    let met = |fault: &Fault| match (way, fault) {
        (Way::Https, _) | (Way::Pvesh, Fault::Answer(..) | Fault::TaskFails(_) | Fault::DropAfter) => true,
        (Way::Pvesh, _) => false,
    };
    let mut rows = faults();
    rows.retain(|(name, fault)| met(fault) || name.contains("full"));
    rows
}

/// The host's own tool, which speaks to the stand-in.
fn pvesh(world: &World) -> Pvesh {
    Pvesh::new(world.pvesh(), "/var/tmp").with_files(GuestConfigs::at(world.standin.cluster_files(), world.standin.lock_files()))
}

fn full(pve: &Inside, bytes: u64) {
    ["local", "local-lvm"].into_iter().for_each(|storage| pve.set_room("pve", storage, bytes));
}

/// Goes through the table for one kind of guest; `shard` of `shards`, so that it can be done side by side.
fn table(made: Made, version: Version, way: Way, (shard, shards): (usize, usize)) -> (u32, u32) {
    let clean = Place::new(version, way);
    clean.run(made).unwrap_or_else(|e| panic!("{e:?}"));
    let writes: Vec<String> = clean.world.standin.calls().writes().iter().map(|call| call.line()).collect();
    assert!(writes.len() >= 5, "{writes:?}");
    let rows = faults_of(way);
    // Of the recorded refusals every write meets one half by `pvesh`, and its neighbour the other: they are the same as by HTTPS.
    let every = |nth: usize, row: usize| way == Way::Https || !matches!(rows[row].1, Fault::Answer(..)) || (nth + row).is_multiple_of(2);
    let (every, rows) = (&every, &rows);
    let cells = (1..=writes.len()).flat_map(|nth| (0..rows.len()).filter(move |row| every(nth, *row)).map(move |row| (nth, &rows[row])));
    let (mut ended_well, mut taken_back) = (0, 0);
    for (at, (nth, (name, fault))) in cells.enumerate() {
        if at % shards != shard {
            continue;
        }
        let cell = format!("{name} at {nth} ({}) of {made:?} on {version:?} by {way:?}", writes[nth - 1]);
        let place = Place::new(version, way);
        let before = place.state();
        place.world.standin.faults().on_write(u32::try_from(nth).unwrap(), fault.clone());
        let outcome = place.run(made);
        assert!(place.world.standin.faults().is_empty(), "{cell}: it did not happen");
        assert!(place.world.standin.settle(Duration::from_secs(10)), "{cell}");
        full(&place.world.standin, 1 << 40);
        match outcome {
            Ok(()) => {
                ended_well += 1;
                assert_eq!(place.world.standin.guests(), [101, 900], "{cell}");
                assert!(place.world.standin.is_running(101) && !place.state().journal, "{cell}");
            }
            Err(error) => {
                taken_back += 1;
                assert_eq!(error.left, Vec::<String>::new(), "{cell}: {error:?}");
                assert_eq!(place.state(), before, "{cell}: {error:?}");
                place.run(made).unwrap_or_else(|e| panic!("{cell}: a later run: {e:?}"));
                assert_eq!(place.world.standin.guests(), [101, 900], "{cell}");
            }
        }
    }
    (ended_well, taken_back)
}

/// Side by side: each cell waits more than it works.
fn whole_table(made: Made, version: Version, way: Way) {
    const SHARDS: usize = 8;
    std::thread::scope(|scope| {
        let all: Vec<_> = (0..SHARDS).map(|shard| scope.spawn(move || table(made, version, way, (shard, SHARDS)))).collect();
        let counts: Vec<_> = all.into_iter().map(|one| one.join().unwrap()).collect();
        let (ended_well, taken_back) = counts.iter().fold((0, 0), |(a, b), (c, d)| (a + c, b + d));
        println!("{made:?} on {version:?} by {way:?}: {ended_well} ended well, {taken_back} were taken back");
        let (least_well, least_back) = if way == Way::Https { (5, 50) } else { (1, 40) };
        assert!(ended_well > least_well && taken_back > least_back, "{ended_well} and {taken_back}");
    });
}

#[test]
fn an_exit_node_is_made_or_nothing_is_left_whatever_happens_at_whichever_step() {
    whole_table(Made::ExitNode, Version::V9_1, Way::Https);
}

#[test]
fn an_exit_node_with_an_image_of_its_own_is_made_or_nothing_is_left() {
    whole_table(Made::ExitNode, Version(8, 4), Way::Https);
}

#[test]
fn a_coordinator_is_made_or_nothing_is_left_whatever_happens_at_whichever_step() {
    whole_table(Made::Coordinator, Version::V9_1, Way::Https);
}

#[test]
fn a_relay_is_made_or_nothing_is_left_whatever_happens_at_whichever_step() {
    whole_table(Made::Relay, Version::V9_1, Way::Https);
}

#[test]
fn on_the_host_an_exit_node_is_made_or_nothing_is_left_whatever_pvesh_says() {
    if lab().is_none() {
        println!("skipped: the example pvemesh-lab is not built");
        return;
    }
    whole_table(Made::ExitNode, Version::V9_1, Way::Pvesh);
}

#[test]
fn what_takes_a_run_back_is_tried_again_when_it_meets_a_fault_itself() {
    let lock = "can't lock file '/run/lock/lxc/pve-config-101.lock' - got timeout".to_owned();
    for (name, fault) in [
        ("before", Fault::DropBefore),
        ("after", Fault::DropAfter),
        ("unreachable", Fault::Answer(595, "No route to host".to_owned())),
        ("locked", Fault::Answer(500, lock.clone())),
        ("task", Fault::TaskFails(lock.clone())),
        ("restart", Fault::Restart(Duration::from_millis(1500))),
        (
            "backup",
            Fault::meanwhile(|pve| {
                pve.set_lock(101, Some("backup"));
                let pve = pve.clone();
                std::thread::spawn(move || {
                    std::thread::sleep(Duration::from_millis(1500));
                    pve.set_lock(101, None);
                });
            }),
        ),
    ] {
        let place = Place::new(Version::V9_1, Way::Https);
        let before = place.state();
        let faults = place.world.standin.faults();
        faults.on("POST", "/status/start", 1, Fault::TaskFails("no".to_owned()));
        faults.on("DELETE", "/lxc/101", 1, fault);
        let error = place.run(Made::ExitNode).unwrap_err();
        assert!(faults.is_empty(), "{name}");
        assert!(place.world.standin.settle(Duration::from_secs(10)));
        assert_eq!(error.left, Vec::<String>::new(), "{name}: {error:?}");
        assert_eq!(place.state(), before, "{name}");
    }
    assert_eq!(ErrorKind::of(&lock), ErrorKind::Busy);
}
