//! A certificate by ACME, from a real authority's test server (pebble) that this test runs on loopback.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use pvemesh::ident::MachinePrivate;
use pvemesh::settings::Acme;
use pvemesh::sys::relay::{Admission, Options as RelayOptions, Relay, Tls};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::client::TlsStream;

use crate::net::*;
use crate::raw::{self, Tunnel};
use crate::tls;

/// The authority's test server, as the Go module proxy has it.
const PEBBLE: &str = "github.com/letsencrypt/pebble/v2/cmd/pebble@v2.10.1";

/// Builds the authority, once for all runs. `Err`: why this machine cannot.
fn pebble() -> Result<PathBuf, String> {
    let bin = Path::new(env!("CARGO_TARGET_TMPDIR")).join("pebble-bin");
    let program = bin.join("pebble");
    if !program.exists() {
        let built = Command::new("go").args(["install", PEBBLE]).env("GOBIN", &bin).output().map_err(|e| format!("no Go: {e}"))?;
        if !built.status.success() {
            return Err(format!("pebble does not build: {}", String::from_utf8_lossy(&built.stderr)));
        }
    }
    Ok(program)
}

/// Answers every question of the authority for an address with 127.0.0.1 and has nothing else to say. It asks over TCP.
async fn names(listener: TcpListener) {
    while let Ok((mut stream, _)) = listener.accept().await {
        while let Ok(length) = stream.read_u16().await {
            let mut question = vec![0; usize::from(length)];
            stream.read_exact(&mut question).await.unwrap();
            // Header (12 bytes), the name's labels up to an empty one, type and class.
            let end = question[12..].iter().position(|byte| *byte == 0).unwrap() + 13;
            let (asked, kind) = (&question[12..end + 4], u16::from_be_bytes([question[end], question[end + 1]]));
            let mut answer = question[..2].to_vec();
            answer.extend([0x84, 0, 0, 1, 0, u8::from(kind == 1), 0, 0, 0, 0]);
            answer.extend(asked);
            if kind == 1 {
                answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 1, 0, 4, 127, 0, 0, 1]);
            }
            stream.write_u16(u16::try_from(answer.len()).unwrap()).await.unwrap();
            stream.write_all(&answer).await.unwrap();
        }
    }
}

struct Authority {
    child: Child,
    directory: String,
}

impl Drop for Authority {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Authority {
    /// Starts it; it looks for challenges' answers on `tls_port` and gives certificates for so many seconds. Its own is `ca.pem` in `dir`.
    async fn start(program: &Path, dir: &Path, tls_port: u16, validity: u32) -> Self {
        let own = rcgen::generate_simple_self_signed(vec!["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
        std::fs::write(dir.join("ca.pem"), own.cert.pem()).unwrap();
        std::fs::write(dir.join("ca.key"), own.signing_key.serialize_pem()).unwrap();
        let (port, management) = (free_port(), free_port());
        let config = serde_json::json!({ "pebble": {
            "listenAddress": format!("127.0.0.1:{port}"), "managementListenAddress": format!("127.0.0.1:{management}"),
            "certificate": dir.join("ca.pem"), "privateKey": dir.join("ca.key"), "httpPort": 1, "tlsPort": tls_port,
            "ocspResponderURL": "", "externalAccountBindingRequired": false,
            "profiles": { "default": { "description": "the only one", "validityPeriod": validity } },
        }});
        std::fs::write(dir.join("pebble.json"), config.to_string()).unwrap();
        let dns = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let names_at = dns.local_addr().unwrap().to_string();
        tokio::spawn(names(dns));
        let child = Command::new(program)
            .arg("-config")
            .arg(dir.join("pebble.json"))
            .args(["-dnsserver", &names_at])
            .env("PEBBLE_VA_NOSLEEP", "1")
            .env("PEBBLE_WFE_NONCEREJECT", "0")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let authority = Self { child, directory: format!("https://localhost:{port}/dir") };
        within("the authority's start", async {
            for port in [port, management] {
                while TcpStream::connect(("127.0.0.1", port)).await.is_err() {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
        })
        .await;
        // Its root is made anew at each start, and told on the other port.
        let ca = CertificateDer::from_pem_file(dir.join("ca.pem")).unwrap();
        let management = SocketAddr::from(([127, 0, 0, 1], management));
        let mut stream = tls::connect_for(&[b"http/1.1"], management, "localhost", &[ca]).await.unwrap();
        let request = b"GET /roots/0 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
        stream.write_all(request).await.unwrap();
        let mut answer = String::new();
        let _ = within("the authority's root", stream.read_to_string(&mut answer)).await;
        let pem = &answer[answer.find("-----BEGIN").unwrap()..];
        std::fs::write(dir.join("root.pem"), pem).unwrap();
        authority
    }
}

/// A coordinator that has its certificate from this authority.
fn settings(authority: &Authority, dir: &Path, port: u16) -> impl Fn(&mut pvemesh::sys::coordinator::Options) + use<> {
    let (directory, ca) = (authority.directory.clone(), dir.join("ca.pem"));
    move |options| {
        options.settings.url = format!("https://{}", tls::NAME);
        options.settings.listen = SocketAddr::from(([127, 0, 0, 1], port));
        options.settings.front.acme = Some(Acme {
            domain: tls::NAME.to_owned(),
            email: Some("admin@example.test".to_owned()),
            directory: Some(directory.clone()),
            ca: Some(ca.clone()),
        });
    }
}

/// Waits until the server shows a certificate of this root. Until there is one the handshake fails, quickly.
async fn connected(server: SocketAddr, root: &CertificateDer<'static>) -> TlsStream<TcpStream> {
    loop {
        if let Ok(stream) = tls::connect(server, tls::NAME, std::slice::from_ref(root)).await {
            return stream;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_certificate_is_had_by_acme_kept_and_served_again_after_a_restart_without_the_authority() {
    let program = match tokio::task::spawn_blocking(pebble).await.unwrap() {
        Ok(program) => program,
        Err(why) => return println!("skipped: {why}"),
    };
    let dir = tempfile::tempdir().unwrap();
    let port = free_port();
    let authority = Authority::start(&program, dir.path(), port, 3600).await;
    let root = CertificateDer::from_pem_file(dir.path().join("root.pem")).unwrap();
    let settings = settings(&authority, dir.path(), port);
    let server = Running::start_with(dir, &settings).await;
    let first = within("the certificate", connected(server.coordinator.address(), &root)).await;
    let shown = tls::shown(&first);
    let (noise, _) = raw::upgrade(first, &server.coordinator.server_key(), &MachinePrivate::from_seed([1; 32]), 145).await;
    assert_eq!(Tunnel::over(noise).await.post("/machine/none", "").await.status, 501);

    use std::os::unix::fs::PermissionsExt as _;
    let kept = server.dir.path().join("state/acme");
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&kept), 0o700);
    let files = within("certificate and account on disk", async {
        loop {
            let files: Vec<PathBuf> = std::fs::read_dir(&kept).unwrap().map(|entry| entry.unwrap().path()).collect();
            if files.len() == 2 && files.iter().all(|file| file.extension().is_none()) {
                return files;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    assert!(files.iter().all(|file| mode(file) == 0o600), "{files:?}");

    let dir = server.dir;
    server.coordinator.stop().await;
    drop(authority);
    let server = Running::start_with(dir, &settings).await;
    let again = within("the kept certificate", connected(server.coordinator.address(), &root)).await;
    assert_eq!(tls::shown(&again), shown);
}

#[tokio::test]
async fn a_relay_of_its_own_has_its_certificate_by_acme_too() {
    let program = match tokio::task::spawn_blocking(pebble).await.unwrap() {
        Ok(program) => program,
        Err(why) => return println!("skipped: {why}"),
    };
    let dir = tempfile::tempdir().unwrap();
    let port = free_port();
    let authority = Authority::start(&program, dir.path(), port, 3600).await;
    let root = CertificateDer::from_pem_file(dir.path().join("root.pem")).unwrap();
    let relay = Relay::start(RelayOptions {
        listen: Some(SocketAddr::from(([127, 0, 0, 1], port))),
        tls: Tls::Acme(Acme {
            domain: tls::NAME.to_owned(),
            email: None,
            directory: Some(authority.directory.clone()),
            ca: Some(dir.path().join("ca.pem")),
        }),
        listen_http: None,
        stun: None,
        state_dir: dir.path().join("relay"),
        admission: Admission::Anyone,
        mesh: None,
        rate: None,
    })
    .await
    .unwrap();
    assert_eq!(relay.pin(), None, "a relay map names no certificate that changes");
    let mut stream = within("the certificate", connected(relay.address().unwrap(), &root)).await;
    let upgrade = format!("GET /derp HTTP/1.1\r\nHost: {}\r\nUpgrade: DERP\r\nConnection: Upgrade\r\n\r\n", tls::NAME);
    stream.write_all(upgrade.as_bytes()).await.unwrap();
    let mut answer = [0; 12];
    within("the upgrade", stream.read_exact(&mut answer)).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 101");
}

#[tokio::test]
async fn a_certificate_is_renewed_before_it_ends() {
    let program = match tokio::task::spawn_blocking(pebble).await.unwrap() {
        Ok(program) => program,
        Err(why) => return println!("skipped: {why}"),
    };
    let dir = tempfile::tempdir().unwrap();
    let port = free_port();
    // Renewed when a third of the time is left: after 10 s.
    let authority = Authority::start(&program, dir.path(), port, 15).await;
    let root = CertificateDer::from_pem_file(dir.path().join("root.pem")).unwrap();
    let settings = settings(&authority, dir.path(), port);
    let server = Running::start_with(dir, &settings).await;
    let first = tls::shown(&within("the certificate", connected(server.coordinator.address(), &root)).await);
    within("another certificate", async {
        while tls::shown(&connected(server.coordinator.address(), &root).await) == first {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    })
    .await;
}
