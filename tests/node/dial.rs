//! The ways to a coordinator, on the real ports of a network namespace: plain HTTP first, TLS beside it, and whose certificate counts.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use pvemesh::ident::{MachinePrivate, MachinePublic};
use pvemesh::sys::dial::Dialer;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;
use tokio_rustls::rustls::{ServerConfig, crypto};

use super::client::machine;
use super::scripted::{Scripted, ordinary};
use super::world::{Machine, possible};

const URL: &str = "https://127.0.0.1";

/// What is behind port 80.
#[derive(Clone, Copy)]
enum Plain {
    Coordinator,
    Redirect,
    Silence,
    Nothing,
}

/// Connections that came to each port.
#[derive(Default)]
struct Count {
    plain: AtomicUsize,
    tls: AtomicUsize,
}

impl Count {
    fn take(&self) -> (usize, usize) {
        (self.plain.swap(0, Ordering::Relaxed), self.tls.swap(0, Ordering::Relaxed))
    }
}

/// A coordinator with a certificate of its own making, in the namespace of the thread.
struct Site {
    count: Arc<Count>,
    authority: tempfile::NamedTempFile,
    server: Arc<Scripted>,
    tls: TlsAcceptor,
}

impl Site {
    fn new() -> Self {
        let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
        let authority = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(authority.path(), made.cert.pem()).unwrap();
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let settings = ServerConfig::builder_with_provider(Arc::new(crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .unwrap();
        let server = Arc::new(Scripted::detached(URL.to_owned(), ordinary));
        Self { count: Arc::default(), authority, server, tls: TlsAcceptor::from(Arc::new(settings)) }
    }

    async fn serve_tls(&self) {
        let listener = listen(443).await;
        let (server, count, tls) = (self.server.clone(), self.count.clone(), self.tls.clone());
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                count.tls.fetch_add(1, Ordering::Relaxed);
                let (server, tls) = (server.clone(), tls.clone());
                tokio::spawn(async move {
                    if let Ok(stream) = tls.accept(stream).await {
                        server.serve(stream).await;
                    }
                });
            }
        });
    }

    async fn serve_plain(&self, plain: Plain) -> Option<tokio::task::JoinHandle<()>> {
        if matches!(plain, Plain::Nothing) {
            return None;
        }
        let listener = listen(80).await;
        let (server, count) = (self.server.clone(), self.count.clone());
        Some(tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                count.plain.fetch_add(1, Ordering::Relaxed);
                let server = server.clone();
                tokio::spawn(async move {
                    match plain {
                        Plain::Coordinator => server.serve(stream).await,
                        Plain::Redirect => {
                            let _ = stream.read(&mut [0; 4096]).await;
                            let reply = "HTTP/1.1 301 Moved Permanently\r\nLocation: https://127.0.0.1/ts2021\r\nContent-Length: 0\r\n\r\n";
                            let _ = stream.write_all(reply.as_bytes()).await;
                        }
                        Plain::Silence | Plain::Nothing => tokio::time::sleep(Duration::from_secs(60)).await,
                    }
                });
            }
        }))
    }

    fn dialer(&self) -> Dialer {
        Dialer::new(Some(self.authority.path().to_owned()))
    }
}

/// A listener at a port that an ended task may not have let go yet.
async fn listen(port: u16) -> TcpListener {
    let free = async {
        loop {
            match TcpListener::bind(("127.0.0.1", port)).await {
                Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => tokio::time::sleep(Duration::from_millis(10)).await,
                result => return result.unwrap(),
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(5), free).await.expect("the port becomes free")
}

fn server_key() -> MachinePublic {
    MachinePrivate::from_seed([7; 32]).public()
}

/// Runs something asynchronous in a network namespace of its own.
fn inside<F: Future<Output = ()>>(what: &str, job: impl FnOnce() -> F + Send + 'static) {
    if !possible() {
        return;
    }
    let machine = Machine::new(what);
    let thread = machine.inside(|| tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(job()));
    thread.join().unwrap();
}

#[test]
fn a_coordinator_is_reached_over_port_80_or_443_whichever_answers() {
    inside("d", || async {
        let site = Site::new();
        site.serve_tls().await;
        for (plain, expected, waits) in [
            (Plain::Coordinator, (1, 0), false),
            (Plain::Redirect, (1, 1), false),
            (Plain::Nothing, (0, 1), false),
            (Plain::Silence, (1, 1), true),
        ] {
            let listening = site.serve_plain(plain).await;
            let mut attempts = 0;
            // Plain HTTP has a head start of half a second, which an answer or a refusal cuts short; a busy machine may need several attempts to show it.
            let connection = loop {
                let begun = Instant::now();
                let connection = site.dialer().open(URL, &server_key(), &machine(1)).await.unwrap();
                let took = begun.elapsed();
                assert_eq!(site.count.take(), expected);
                if (took >= Duration::from_millis(500)) == waits {
                    break connection;
                }
                attempts += 1;
                assert!(attempts < 5, "{took:?}");
            };
            assert_eq!(connection.ends().1.port(), if expected.1 == 0 { 80 } else { 443 });
            assert!(connection.head("/x").await.is_ok());
            if let Some(listening) = listening {
                listening.abort();
                let _ = listening.await;
            }
        }
    });
}

#[test]
fn a_connection_that_did_not_last_is_followed_by_one_over_tls() {
    inside("d", || async {
        let site = Site::new();
        site.serve_tls().await;
        site.serve_plain(Plain::Coordinator).await;
        let dialer = site.dialer();
        dialer.open(URL, &server_key(), &machine(1)).await.unwrap();
        assert_eq!(site.count.take(), (1, 0));
        dialer.open(URL, &server_key(), &machine(1)).await.unwrap();
        assert_eq!(site.count.take(), (0, 1));
    });
}

#[test]
fn the_key_is_taken_from_a_trusted_certificate_only_and_a_known_key_needs_none() {
    inside("d", || async {
        let site = Site::new();
        site.serve_tls().await;
        let stranger = Dialer::default();
        let error = stranger.fetch_server_key(URL).await.unwrap_err().to_string();
        assert!(error.contains("UnknownIssuer"), "{error}");
        assert_eq!(site.dialer().fetch_server_key(URL).await.unwrap(), server_key());
        stranger.open(URL, &server_key(), &machine(1)).await.unwrap();
        let other = MachinePrivate::from_seed([8; 32]).public();
        assert!(stranger.open(URL, &other, &machine(1)).await.is_err());
        for wrong in ["/nonexistent/ca.pem", "/etc/hostname"] {
            let error = Dialer::new(Some(wrong.into())).fetch_server_key(URL).await.unwrap_err().to_string();
            assert!(error.contains(wrong), "{error}");
        }
    });
}
