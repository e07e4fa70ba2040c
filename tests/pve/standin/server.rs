//! The listeners: HTTPS for everybody, and a Unix socket for the `pvesh` stand-in, where everybody is root.

use std::io::{BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use rustls::{ServerConfig, ServerConnection, StreamOwned};

use super::access::Caller;
use super::calls::Calls;
use super::certificates::{Authority, Certificates};
use super::cluster::Host;
use super::faults::{Fault, Faults};
use super::http::{self, MAX_REQUESTS, Reply};
use super::{Context, Core, Inner, Inside, Options, Standin, Version, api};

/// Idle time after which a connection is closed.
const IDLE: Duration = Duration::from_secs(5);

pub fn start(options: Options, hosts: Vec<Host>) -> std::io::Result<Standin> {
    let certificates = Arc::new(Certificates::new(Arc::new(Authority::new()?), &options.node)?);
    let shown: Arc<dyn rustls::server::ResolvesServerCert> = certificates.clone();
    let tls = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(std::io::Error::other)?;
    let tls = Arc::new(tls.with_no_client_auth().with_cert_resolver(shown));

    let socket = options.dir.join("pvesh.sock");
    let _ = std::fs::remove_file(&socket);
    let local = UnixListener::bind(&socket)?;
    let listener = TcpListener::bind(options.listen)?;
    let address = listener.local_addr()?;
    let mut inner = Inner { next_pid: 15_000, ..Inner::default() };
    inner.access.add_user("root@pam", &options.password);
    let (faults, fingerprint) = (Faults::default(), certificates.fingerprint());
    let core = Arc::new(Core {
        options,
        inner: Mutex::new(inner),
        changed: Condvar::new(),
        hosts,
        faults,
        calls: Calls::default(),
        fingerprint,
        certificates,
    });
    let stopping = Arc::new(AtomicBool::new(false));

    let (shared, ended) = (core.clone(), stopping.clone());
    std::thread::spawn(move || {
        for stream in listener.incoming().take_while(|_| !ended.load(Ordering::SeqCst)).flatten() {
            if !shared.faults.is_serving() {
                continue;
            }
            let (core, tls) = (shared.clone(), tls.clone());
            std::thread::spawn(move || secure(&core, tls, stream));
        }
    });
    let (shared, ended) = (core.clone(), stopping.clone());
    std::thread::spawn(move || {
        for stream in local.incoming().take_while(|_| !ended.load(Ordering::SeqCst)).flatten() {
            if !shared.faults.is_serving() {
                continue;
            }
            let core = shared.clone();
            std::thread::spawn(move || local_root(&core, stream));
        }
    });
    Ok(Standin { inside: Inside { core }, address, socket, stopping })
}

fn secure(core: &Arc<Core>, tls: Arc<ServerConfig>, stream: TcpStream) {
    let _ = stream.set_read_timeout(Some(IDLE));
    let _ = stream.set_nodelay(true);
    if let Ok(connection) = ServerConnection::new(tls) {
        serve(core, StreamOwned::new(connection, stream), None);
    }
}

fn local_root(core: &Arc<Core>, stream: UnixStream) {
    let _ = stream.set_read_timeout(Some(IDLE));
    serve(core, stream, Some(Caller("root@pam".to_owned())));
}

fn serve(core: &Arc<Core>, stream: impl Read + Write, caller: Option<Caller>) {
    let mut stream = BufReader::new(stream);
    let most = if core.entry().version >= Version::V8_4 { http::MAX_BODY } else { http::MAX_BODY_BEFORE_8_4 };
    for served in 1.. {
        let mut with_message = core.entry().version >= Version::V8_4;
        let (reply, drop_it) = match http::read(&mut stream, most) {
            Ok(Some(request)) => {
                // What came before a restart is not answered after it.
                if !core.faults.is_serving() {
                    return;
                }
                let _answering = core.calls.note(&request, caller.is_some());
                let path = http::percent_decode(&request.path);
                let host = core.entry().name.clone();
                let mut context = Context { core: core.clone(), caller: Caller(String::new()), host, task_fault: None };
                let answered = match core.faults.take(&request.method, &path) {
                    Some(Fault::DropBefore) => return,
                    Some(Fault::DropAfter) => (api::answer(&mut context, &request, caller.clone()), true),
                    Some(Fault::Answer(status, reason)) => (Reply::empty(status, &reason), false),
                    Some(Fault::TaskFails(text)) => {
                        context.task_fault = Some(text);
                        (api::answer(&mut context, &request, caller.clone()), false)
                    }
                    Some(Fault::Slow(time)) => {
                        std::thread::sleep(time);
                        (api::answer(&mut context, &request, caller.clone()), false)
                    }
                    Some(Fault::Restart(time)) => {
                        core.faults.restart(time);
                        return;
                    }
                    Some(Fault::Meanwhile(change)) => {
                        change(&Inside { core: core.clone() });
                        (api::answer(&mut context, &request, caller.clone()), false)
                    }
                    None => (api::answer(&mut context, &request, caller.clone()), false),
                };
                // A reply of another host is passed on as it wrote it.
                with_message = context.host().version >= Version::V8_4;
                answered
            }
            Ok(None) | Err(Err(_)) => return,
            Err(Ok(refusal)) => (refusal, false),
        };
        if drop_it {
            return;
        }
        if reply.held_back {
            std::thread::sleep(core.options.hold_back);
        }
        let keep_alive = reply.status < 400 && served < MAX_REQUESTS;
        if reply.write(stream.get_mut(), keep_alive, with_message).is_err() || !keep_alive {
            return;
        }
    }
}
