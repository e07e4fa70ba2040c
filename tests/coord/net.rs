//! A real coordinator over loopback, in this process or as the program itself, and real clients.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use pvemesh::ident::{MachinePrivate, MachinePublic, NodePrivate, NodePublic, Secret};
use pvemesh::settings;
use pvemesh::sys::admin::{AdminError, LocalAdmin};
use pvemesh::sys::coordinator::{Coordinator, Options};
use pvemesh::sys::dial::{BodyStream, ControlConnection, DialError, fetch_server_key};
use pvemesh::wire::admin::CreateKey;
use pvemesh::wire::control::frame::Deframer;
use pvemesh::wire::control::{MAP_PATH, MapRequest, MapResponse, REGISTER_PATH, RegisterAuth, RegisterRequest, RegisterResponse, json};
use tempfile::TempDir;

use crate::world::{hostinfo, key_wanted};

/// Longest any single step may take.
pub const LIMIT: Duration = Duration::from_secs(20);

pub async fn within<T>(what: &str, work: impl Future<Output = T>) -> T {
    tokio::time::timeout(LIMIT, work).await.unwrap_or_else(|_| panic!("{what} took longer than {LIMIT:?}"))
}

pub fn admin_key() -> MachinePrivate {
    MachinePrivate::from_seed([200; 32])
}

pub fn options(dir: &Path) -> Options {
    Options {
        settings: settings::Coordinator {
            url: "http://coord.example.test:8080".to_owned(),
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            admin_keys: vec![admin_key().public()],
            base_domain: "mesh.test".to_owned(),
            front: settings::Front::default(),
            relay: settings::EmbeddedRelay::off(),
        },
        state_dir: dir.join("state"),
        socket: dir.join("run/coordinator.sock"),
        derp_map: None,
        lifetimes: pvemesh::sys::coordinator::Lifetimes::default(),
    }
}

/// A coordinator in this process.
pub struct Running {
    pub dir: TempDir,
    pub coordinator: Coordinator,
}

impl Running {
    pub async fn start() -> Self {
        Self::start_in(tempfile::tempdir().unwrap()).await
    }

    pub async fn start_in(dir: TempDir) -> Self {
        Self::start_with(dir, |_| {}).await
    }

    pub async fn start_with(dir: TempDir, change: impl FnOnce(&mut Options)) -> Self {
        let mut options = options(dir.path());
        change(&mut options);
        let coordinator = Coordinator::start(options).await.unwrap();
        Self { dir, coordinator }
    }

    /// Stops it and starts it again on the same state.
    pub async fn restart(self) -> Self {
        let begun = std::time::Instant::now();
        self.coordinator.stop().await;
        assert!(begun.elapsed() < Duration::from_secs(5), "stopping took {:?}", begun.elapsed());
        Self::start_in(self.dir).await
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.coordinator.address())
    }

    pub fn admin(&self) -> LocalAdmin {
        LocalAdmin::connect(&self.dir.path().join("run/coordinator.sock"))
    }

    pub async fn key(&self, change: impl FnOnce(&mut CreateKey)) -> Secret {
        new_key(&self.admin(), change).await
    }

    /// Node `n`, joined with a key of its own.
    pub async fn joined(&self, n: u8, name: &str) -> Client {
        let client = Client::connect(&self.url(), n).await;
        let answer = client.register(Some(&self.key(|_| {}).await), name).await;
        assert_eq!((answer.error.as_str(), answer.auth_url.as_str()), ("", ""));
        client
    }
}

pub async fn new_key(admin: &LocalAdmin, change: impl FnOnce(&mut CreateKey)) -> Secret {
    let mut wanted = key_wanted();
    change(&mut wanted);
    within("making a key", admin.create_key(&wanted)).await.unwrap().key
}

/// A node's control connection.
pub struct Client {
    pub connection: ControlConnection,
    pub node: NodePublic,
}

impl Client {
    pub async fn connect(url: &str, n: u8) -> Self {
        Self::connect_with(url, &MachinePrivate::from_seed([n; 32]), NodePrivate::from_seed([n; 32]).public()).await
    }

    pub async fn connect_with(url: &str, machine: &MachinePrivate, node: NodePublic) -> Self {
        let connect = async {
            let server: MachinePublic = fetch_server_key(url).await?;
            ControlConnection::connect(url, &server, machine).await
        };
        Self { connection: within("connecting", connect).await.unwrap(), node }
    }

    pub fn registration(&self, auth: Option<&Secret>, name: &str) -> RegisterRequest {
        RegisterRequest {
            version: 130,
            node_key: self.node,
            auth: auth.map(|key| RegisterAuth { auth_key: key.clone() }),
            hostinfo: Some(hostinfo(name)),
            ..RegisterRequest::default()
        }
    }

    pub async fn register(&self, auth: Option<&Secret>, name: &str) -> RegisterResponse {
        self.send_registration(&self.registration(auth, name)).await
    }

    pub async fn send_registration(&self, request: &RegisterRequest) -> RegisterResponse {
        within("registering", self.connection.post_json(REGISTER_PATH, request)).await.unwrap()
    }

    pub async fn report(&self, change: impl FnOnce(&mut MapRequest)) -> Result<(), DialError> {
        let mut request = MapRequest { version: 130, node_key: self.node, omit_peers: true, ..MapRequest::default() };
        change(&mut request);
        within("a lite update", self.connection.post(MAP_PATH, &request)).await
    }

    pub async fn stream(&self, compress: &str) -> Stream {
        let request = MapRequest {
            version: 130,
            node_key: self.node,
            stream: true,
            keep_alive: true,
            compress: compress.to_owned(),
            ..MapRequest::default()
        };
        let body = within("opening a stream", self.connection.post_stream(MAP_PATH, &request)).await.unwrap();
        Stream { body, deframer: Deframer::default(), zstd: compress == "zstd" }
    }
}

/// An open map stream.
pub struct Stream {
    body: BodyStream,
    deframer: Deframer,
    zstd: bool,
}

impl Stream {
    /// The next message; `None` at the end of the stream.
    pub async fn next(&mut self) -> Option<MapResponse> {
        within("the next map message", async {
            loop {
                if let Some(message) = self.deframer.next_message().unwrap() {
                    let text = if self.zstd { zstd::bulk::decompress(&message, 1 << 20).unwrap() } else { message };
                    return Some(json::from_slice(&text).unwrap());
                }
                match self.body.next().await {
                    Ok(Some(bytes)) => self.deframer.push(&bytes),
                    Ok(None) | Err(_) => return None,
                }
            }
        })
        .await
    }

    /// Reads on until a message is as wanted.
    pub async fn until(&mut self, what: &str, wanted: impl Fn(&MapResponse) -> bool) -> MapResponse {
        within(what, async {
            loop {
                let message = self.next().await.unwrap_or_else(|| panic!("the stream ended before {what}"));
                if wanted(&message) {
                    return message;
                }
            }
        })
        .await
    }
}

/// The program itself, as its own process.
pub struct Process {
    child: Child,
    pub socket: PathBuf,
    pub url: String,
    port: u16,
}

impl Process {
    /// Starts `pvemesh coordinator serve` on a port and waits until it answers.
    pub async fn start(dir: &Path, port: u16) -> Self {
        Self::start_at(dir, port, &format!("http://127.0.0.1:{port}"), |_| {}).await
    }

    /// As [`Self::start`], with the address clients are told and more arguments.
    pub async fn start_at(dir: &Path, port: u16, url: &str, change: impl FnOnce(&mut Command)) -> Self {
        let (url, socket) = (url.to_owned(), dir.join("run/c.sock"));
        let mut command = Command::new(env!("CARGO_BIN_EXE_pvemesh"));
        command
            .args([
                "coordinator",
                "serve",
                "--url",
                &url,
                "--listen",
                &format!("127.0.0.1:{port}"),
                "--base-domain",
                "mesh.test",
                "--no-relay",
            ])
            .args(["--state-dir".as_ref(), dir.join("state").as_os_str(), "--socket".as_ref(), socket.as_os_str()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        change(&mut command);
        let process = Self { child: command.spawn().unwrap(), socket, url, port };
        let admin = process.admin();
        within("the coordinator's start", async {
            while let Err(error) = admin.info().await {
                assert!(matches!(error, AdminError::Unreachable { .. }), "{error}");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await;
        process
    }

    pub fn admin(&self) -> LocalAdmin {
        LocalAdmin::connect(&self.socket)
    }

    /// Where it listens, without TLS; clients may be told another address.
    pub fn listening(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub fn resident_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    /// What it has computed so far.
    pub fn cpu_time(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        // The fields behind the name in brackets; user and system time are the 14th and 15th of all, in hundredths of a second.
        let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
        let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
        Duration::from_millis(ticks * 10)
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    pub fn signal(&mut self, signal: rustix::process::Signal) {
        let pid = i32::try_from(self.child.id()).unwrap();
        rustix::process::kill_process(rustix::process::Pid::from_raw(pid).unwrap(), signal).unwrap();
    }

    /// SIGKILL.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// SIGTERM; gives how long it took, and what it wrote.
    pub async fn terminate(mut self) -> (Duration, std::process::ExitStatus, String) {
        let begun = std::time::Instant::now();
        self.signal(rustix::process::Signal::TERM);
        let status = within("its end", async {
            loop {
                if let Some(status) = self.child.try_wait().unwrap() {
                    return status;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await;
        let mut log = String::new();
        std::io::Read::read_to_string(&mut self.child.stderr.take().unwrap(), &mut log).unwrap();
        (begun.elapsed(), status, log)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A port that was free a moment ago.
pub fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}
