//! The coordinators that are measured, each a process of its own with its state in a temporary directory.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use pvemesh::ident::Secret;
use pvemesh::sys::admin::LocalAdmin;
use pvemesh::sys::dial::fetch_server_key;
use pvemesh::wire::admin::CreateKey;
use serde_json::Value;
use tempfile::TempDir;

use crate::node::Place;

/// How long a coordinator may take to answer for the first time.
const START: Duration = Duration::from_secs(30);
/// A relay map, so that no coordinator goes looking for one.
const DERP_MAP: &str = "regions:\n  900:\n    regionid: 900\n    regioncode: own\n    regionname: Own\n    nodes:\n      - name: 900a\n        regionid: 900\n        hostname: relay.bench.invalid\n";

/// The keys nodes join with.
#[derive(Debug)]
pub struct Keys {
    /// Reusable.
    pub lasting: Secret,
    /// Reusable, for ephemeral nodes.
    pub passing: Secret,
}

/// A coordinator under measurement.
pub trait Subject {
    fn name(&self) -> &'static str;
    fn server(&self) -> &Server;
    async fn keys(&self) -> Keys;

    /// Where nodes connect to.
    async fn place(&self) -> Place {
        let begun = Instant::now();
        loop {
            match fetch_server_key(&self.server().url).await {
                Ok(server) => return Place { url: self.server().url.clone(), server },
                Err(error) if begun.elapsed() > START => panic!("{} does not start: {error}", self.name()),
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    }
}

/// The process.
#[derive(Debug)]
pub struct Server {
    child: Child,
    pub url: String,
    dir: TempDir,
}

impl Server {
    fn start(program: &Path, dir: TempDir, url: String, args: &[&str]) -> Self {
        let log = std::fs::File::create(dir.path().join("log")).unwrap();
        let child = Command::new(program)
            .args(args)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap_or_else(|e| panic!("cannot start {}: {e}", program.display()));
        Self { child, url, dir }
    }

    fn proc(&self, file: &str) -> String {
        std::fs::read_to_string(format!("/proc/{}/{file}", self.child.id())).unwrap_or_default()
    }

    /// Seconds of CPU time so far.
    pub fn cpu(&self) -> f64 {
        let stat = self.proc("stat");
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let ticks = |n: usize| fields.get(n).and_then(|text| text.parse::<f64>().ok()).unwrap_or(0.0);
        (ticks(11) + ticks(12)) / 100.0
    }

    /// Resident memory in KiB: now, and the most there was.
    pub fn memory(&self) -> (u64, u64) {
        let status = self.proc("status");
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            line.split_whitespace().next()?.parse().ok()
        };
        (field("VmRSS:").unwrap_or(0), field("VmHWM:").unwrap_or(0))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A port that was free a moment ago.
fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Ours.
#[derive(Debug)]
pub struct Pvemesh(Server);

impl Pvemesh {
    pub fn start(binary: &Path) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (listen, at) = (format!("127.0.0.1:{}", free_port()), |name: &str| dir.path().join(name));
        let url = format!("http://{listen}");
        let (state, socket, derp) = (at("state"), at("socket"), at("derp.json"));
        let map = r#"{"Regions":{"900":{"RegionID":900,"RegionCode":"own","RegionName":"Own","Nodes":[{"Name":"900a","RegionID":900,"HostName":"relay.bench.invalid"}]}}}"#;
        std::fs::write(&derp, map).unwrap();
        let args = [
            "coordinator",
            "serve",
            "--url",
            &url,
            "--listen",
            &listen,
            "--base-domain",
            "mesh.test",
            "--no-relay",
            "--derp-map",
            text(&derp),
        ];
        let args = [args.as_slice(), &["--state-dir", text(&state), "--socket", text(&socket)]].concat();
        Self(Server::start(binary, dir, url.clone(), &args))
    }
}

impl Subject for Pvemesh {
    fn name(&self) -> &'static str {
        "pvemesh"
    }

    fn server(&self) -> &Server {
        &self.0
    }

    async fn keys(&self) -> Keys {
        let admin = LocalAdmin::connect(&self.0.dir.path().join("socket"));
        let make = async |ephemeral| {
            let wanted = CreateKey {
                user: "bench".to_owned(),
                reusable: true,
                ephemeral,
                expires_in_secs: 24 * 3600,
                tags: Vec::new(),
                approve_routes: Vec::new(),
                only_for: None,
                address: None,
            };
            admin.create_key(&wanted).await.unwrap().key
        };
        Keys { lasting: make(false).await, passing: make(true).await }
    }
}

/// Headscale: SQLite, plain HTTP, no policy, one relay in a local file.
#[derive(Debug)]
pub struct Headscale {
    server: Server,
    program: PathBuf,
}

impl Headscale {
    pub fn start(program: &Path) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (port, metrics) = (free_port(), free_port());
        let (at, url) = (dir.path().display().to_string(), format!("http://127.0.0.1:{port}"));
        std::fs::write(dir.path().join("derp.yaml"), DERP_MAP).unwrap();
        let config = format!(
            "server_url: {url}\nlisten_addr: 127.0.0.1:{port}\nmetrics_listen_addr: 127.0.0.1:{metrics}\n\
             noise: {{private_key_path: {at}/noise.key}}\nprefixes: {{v4: 100.64.0.0/10, v6: 'fd7a:115c:a1e0::/48', allocation: sequential}}\n\
             derp: {{server: {{enabled: false}}, urls: [], paths: [{at}/derp.yaml], auto_update_enabled: false}}\n\
             disable_check_updates: true\nephemeral_node_inactivity_timeout: 30m\n\
             database: {{type: sqlite, sqlite: {{path: {at}/db.sqlite, write_ahead_log: true}}}}\n\
             log: {{level: error, format: text}}\npolicy: {{mode: file, path: ''}}\n\
             dns: {{magic_dns: true, base_domain: mesh.test, override_local_dns: false, nameservers: {{global: []}}}}\n\
             unix_socket: {at}/socket\nunix_socket_permission: '0770'\nlogtail: {{enabled: false}}\n"
        );
        std::fs::write(dir.path().join("config.yaml"), config).unwrap();
        let file = format!("{at}/config.yaml");
        Self { server: Server::start(program, dir, url, &["serve", "-c", &file]), program: program.to_owned() }
    }

    fn ask(&self, args: &[&str]) -> Value {
        let config = self.server.dir.path().join("config.yaml");
        let done = Command::new(&self.program).args(args).args(["-o", "json", "-c", text(&config)]).output().unwrap();
        assert!(done.status.success(), "headscale {args:?}: {}", String::from_utf8_lossy(&done.stderr));
        serde_json::from_slice(&done.stdout).unwrap()
    }
}

impl Subject for Headscale {
    fn name(&self) -> &'static str {
        "headscale"
    }

    fn server(&self) -> &Server {
        &self.server
    }

    async fn keys(&self) -> Keys {
        let user = self.ask(&["users", "create", "bench"])["id"].clone();
        let user = user.as_str().map_or_else(|| user.to_string(), str::to_owned);
        let make = |more: &[&str]| {
            let args = [&["preauthkeys", "create", "-u", &user, "--reusable", "-e", "24h"], more].concat();
            Secret::new(self.ask(&args)["key"].as_str().unwrap())
        };
        Keys { lasting: make(&[]), passing: make(&["--ephemeral"]) }
    }
}
