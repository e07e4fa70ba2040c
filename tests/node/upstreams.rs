//! Whom the resolver asks: itself never, not even by way of others, and servers by HTTPS.

use std::io::{BufRead as _, BufReader, Read as _};
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use hickory_proto::op::{Message, MessageType, ResponseCode};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{RData, Record, RecordType};
use rustls_pki_types::PrivateKeyDer;

use super::names::{addresses, ask, run_with_own_etc, start_name_server, up};
use super::world::{Machine, World, possible, wait_for};

fn code(machine: &Machine, name: &str) -> Option<ResponseCode> {
    ask(machine, name, RecordType::A).map(|answer| answer.metadata.response_code)
}

#[test]
fn a_machine_whose_servers_are_the_resolver_itself_gets_a_failure_at_once() {
    if !possible() {
        return;
    }
    let mut world = World::new();
    let own = "nameserver 100.100.100.100\nnameserver fd7a:115c:a1e0::53\nnameserver ::ffff:100.100.100.100\n";
    run_with_own_etc(&mut world.laptop, own);
    let laptop = up(&world, &world.laptop, "laptop");
    let failed = |what: &str| {
        let start = Instant::now();
        assert_eq!(code(&world.laptop, "example.com."), Some(ResponseCode::ServFail), "{what}");
        assert!(start.elapsed() < Duration::from_secs(3), "{what}: {:?}", start.elapsed());
    };
    failed("the machine's");
    for server in ["100.100.100.100", "fd7a:115c:a1e0::53", "::ffff:100.100.100.100"] {
        world.admin(&["dns", "nameservers", "add", server]);
    }
    world.admin(&["dns", "set", "--override", "on"]);
    wait_for("the coordinator's servers", || {
        let out = world.laptop.node(&["--json", "dns", "status"]);
        let status: serde_json::Value = serde_json::from_slice(&out.stdout).ok()?;
        (status["Resolvers"].as_array()?.len() == 3).then_some(())
    });
    failed("the coordinator's");
    assert_eq!(addresses(&ask(&world.laptop, "laptop.mesh.internal.", RecordType::A).unwrap()), [laptop]);
}

/// A forwarder on the machine that asks whom `/etc/resolv.conf` names, as dnsmasq does: we ask it, it asks us.
#[test]
fn a_circle_through_a_forwarder_of_the_machines_ends_and_does_not_grow() {
    if !possible() {
        return;
    }
    let mut world = World::new();
    let forwarded = Arc::new(AtomicUsize::new(0));
    let (ready, started) = std::sync::mpsc::channel();
    let (count, namespace) = (forwarded.clone(), std::fs::File::open(world.laptop.namespace()).unwrap());
    let namespace = Arc::new(namespace);
    world.laptop.inside(move || {
        let socket = Arc::new(UdpSocket::bind("127.0.0.1:53").unwrap());
        ready.send(()).unwrap();
        let mut buffer = [0; 4096];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            let number = u16::try_from(count.fetch_add(1, Ordering::Relaxed) + 1).unwrap_or_default();
            let mut question = buffer[..length].to_vec();
            let (socket, namespace) = (socket.clone(), namespace.clone());
            std::thread::spawn(move || {
                let network = rustix::thread::LinkNameSpaceType::Network;
                rustix::thread::move_into_link_name_space(std::os::fd::AsFd::as_fd(&*namespace), Some(network)).unwrap();
                let asked = [question[0], question[1]];
                question[..2].copy_from_slice(&number.to_be_bytes());
                let up = UdpSocket::bind("0.0.0.0:0").unwrap();
                up.set_read_timeout(Some(Duration::from_secs(6))).unwrap();
                up.send_to(&question, "100.100.100.100:53").unwrap();
                let mut reply = [0; 4096];
                if let Ok(length) = up.recv(&mut reply) {
                    reply[..2].copy_from_slice(&asked);
                    let _ = socket.send_to(&reply[..length], from);
                }
            });
        }
    });
    started.recv().unwrap();
    run_with_own_etc(&mut world.laptop, "nameserver 127.0.0.1\n");
    let laptop = up(&world, &world.laptop, "laptop");
    wait_for("names", || (addresses(&ask(&world.laptop, "laptop.mesh.internal.", RecordType::A)?) == [laptop]).then_some(()));
    forwarded.store(0, Ordering::Relaxed);
    let start = Instant::now();
    assert_eq!(code(&world.laptop, "example.com."), Some(ResponseCode::ServFail));
    println!("{} questions in the circle, over after {:?}", forwarded.load(Ordering::Relaxed), start.elapsed());
    assert!(forwarded.load(Ordering::Relaxed) <= 4);
    assert_eq!(addresses(&ask(&world.laptop, "laptop.mesh.internal.", RecordType::A).unwrap()), [laptop]);
}

/// One request of DNS over HTTPS (RFC 8484): the answer to any question is 192.0.2.99.
fn serve_one(stream: impl std::io::Read + std::io::Write) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if stream.read_line(&mut head)? == 0 {
            return Ok(());
        }
    }
    let lower = head.to_ascii_lowercase();
    let header =
        |name: &str| lower.lines().find_map(|line| line.strip_prefix(name)).map(|value| value.trim().to_owned()).unwrap_or_default();
    assert!(head.starts_with("POST /dns-query HTTP/1.1\r\n") && header("content-type:") == "application/dns-message", "{head}");
    let mut body = vec![0; header("content-length:").parse().unwrap()];
    stream.read_exact(&mut body)?;
    let mut message = Message::from_vec(&body).unwrap();
    assert_eq!(message.metadata.id, 0, "so that caches know it again");
    message.metadata.message_type = MessageType::Response;
    let name = message.queries[0].name().clone();
    message.add_answer(Record::from_rdata(name, 60, RData::A(A([192, 0, 2, 99].into()))));
    let body = message.to_vec().unwrap();
    let head = format!("HTTP/1.1 200 OK\r\nContent-Type: application/dns-message\r\nContent-Length: {}\r\n\r\n", body.len());
    stream.get_mut().write_all(&[head.as_bytes(), &body].concat())?;
    stream.get_mut().flush()
}

#[test]
fn a_server_by_https_is_asked_by_its_name_and_only_with_a_certificate_for_it() {
    if !possible() {
        return;
    }
    let mut world = World::new();
    let made = rcgen::generate_simple_self_signed(vec!["dns.test".to_owned()]).unwrap();
    // The machine's own server knows the names of both servers: 192.0.2.7.
    start_name_server(&world.coordinator, "10.9.2.1:53");
    world.coordinator.sh("ip link set lo up; ip addr add 192.0.2.7/32 dev lo");
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let builder = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()));
    let builder = builder.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
    let config = Arc::new(builder.with_single_cert(vec![made.cert.der().clone()], key).unwrap());
    let (ready, started) = std::sync::mpsc::channel();
    world.coordinator.inside(move || {
        let listener = TcpListener::bind("192.0.2.7:443").unwrap();
        ready.send(()).unwrap();
        for stream in listener.incoming().map_while(Result::ok) {
            let connection = rustls::ServerConnection::new(config.clone()).unwrap();
            std::thread::spawn(move || serve_one(rustls::StreamOwned::new(connection, stream)));
        }
    });
    started.recv().unwrap();
    let trusted = world.laptop.path("etc/ssl/certs");
    std::fs::create_dir_all(&trusted).unwrap();
    std::fs::write(trusted.join("ca-certificates.crt"), made.cert.pem()).unwrap();
    run_with_own_etc(&mut world.laptop, "nameserver 10.9.2.1\n");
    up(&world, &world.laptop, "laptop");
    assert_eq!(addresses(&ask(&world.laptop, "example.com.", RecordType::A).unwrap()), [Ipv4Addr::new(192, 0, 2, 7)], "the machine's own");

    world.admin(&["dns", "nameservers", "add", "https://dns.test/dns-query"]);
    world.admin(&["dns", "set", "--override", "on"]);
    wait_for("the answer by HTTPS", || {
        (addresses(&ask(&world.laptop, "example.com.", RecordType::A)?) == [Ipv4Addr::new(192, 0, 2, 99)]).then_some(())
    });
    // Another name at the same address, which the certificate is not for.
    world.admin(&["dns", "nameservers", "add", "https://other.test/dns-query"]);
    world.admin(&["dns", "nameservers", "remove", "https://dns.test/dns-query"]);
    wait_for("the refusal", || (code(&world.laptop, "example.com.")? == ResponseCode::ServFail).then_some(()));
    assert_eq!(code(&world.laptop, "example.org."), Some(ResponseCode::ServFail));
}
