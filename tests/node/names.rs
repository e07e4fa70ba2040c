//! Names on a machine: the resolver on 100.100.100.100, and the machine's file that leads to it.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{Name, RData, Record, RecordType};

use super::world::{Machine, World, possible, text, wait_for};

const RESOLVER: &str = "100.100.100.100:53";

fn question(name: &str, kind: RecordType) -> Vec<u8> {
    let mut message = Message::new(4711, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message.to_vec().unwrap()
}

/// Asks from a machine by UDP; `None` if nothing comes back.
pub(crate) fn ask(machine: &Machine, name: &str, kind: RecordType) -> Option<Message> {
    ask_at(machine, RESOLVER, name, kind, Duration::from_secs(5))
}

/// The same at this address, for so long.
pub(crate) fn ask_at(machine: &Machine, resolver: &str, name: &str, kind: RecordType, patience: Duration) -> Option<Message> {
    let (question, resolver) = (question(name, kind), resolver.parse::<SocketAddr>().unwrap());
    let asked = machine.inside(move || {
        let socket = UdpSocket::bind(if resolver.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }).ok()?;
        socket.set_read_timeout(Some(patience)).ok()?;
        socket.send_to(&question, resolver).ok()?;
        let mut buffer = [0; 4096];
        let (length, _) = socket.recv_from(&mut buffer).ok()?;
        Message::from_vec(&buffer[..length]).ok()
    });
    asked.join().unwrap()
}

/// Asks by TCP for IPv4 addresses, twice on one connection.
pub(crate) fn ask_by_tcp(machine: &Machine, resolver: &str, name: &str) -> Message {
    let (question, resolver) = (question(name, RecordType::A), resolver.parse::<SocketAddr>().unwrap());
    let answer = machine.inside(move || {
        let mut stream = TcpStream::connect_timeout(&resolver, Duration::from_secs(5)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let mut message = Vec::new();
        for _ in 0..2 {
            stream.write_all(&u16::try_from(question.len()).unwrap().to_be_bytes()).unwrap();
            stream.write_all(&question).unwrap();
        }
        for _ in 0..2 {
            let mut length = [0; 2];
            stream.read_exact(&mut length).unwrap();
            message = vec![0; usize::from(u16::from_be_bytes(length))];
            stream.read_exact(&mut message).unwrap();
        }
        Message::from_vec(&message).unwrap()
    });
    answer.join().unwrap()
}

pub(crate) fn addresses(message: &Message) -> Vec<Ipv4Addr> {
    message.answers.iter().filter_map(|record| if let RData::A(a) = &record.data { Some(a.0) } else { None }).collect()
}

pub(crate) fn up(world: &World, machine: &Machine, name: &str) -> Ipv4Addr {
    up_as(world, machine, name, &[])
}

fn up_as(world: &World, machine: &Machine, name: &str, key: &[&str]) -> Ipv4Addr {
    let key = world.key(key);
    let out = machine.up(&["--login-server", "http://10.9.1.1:8080", "--auth-key-file", &key, "--hostname", name]);
    assert!(out.status.success(), "{}", text(&out.stderr));
    text(&out.stdout).lines().next().unwrap().parse().unwrap()
}

/// A server that answers every question with 192.0.2.7.
pub(crate) fn start_name_server(machine: &Machine, address: &'static str) {
    let (ready, started) = std::sync::mpsc::channel();
    machine.inside(move || {
        let socket = UdpSocket::bind(address).unwrap();
        ready.send(()).unwrap();
        let mut buffer = [0; 4096];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            let mut message = Message::from_vec(&buffer[..length]).unwrap();
            message.metadata.message_type = MessageType::Response;
            let name = message.queries[0].name().clone();
            message.add_answer(Record::from_rdata(name, 60, RData::A(A([192, 0, 2, 7].into()))));
            let _ = socket.send_to(&message.to_vec().unwrap(), from);
        }
    });
    started.recv().unwrap();
}

/// Runs a node on a machine whose `/etc` is a directory of the test's; the directory, and the process.
pub(crate) fn run_with_own_etc(machine: &mut Machine, resolv_conf: &str) -> (PathBuf, String) {
    let etc = machine.path("etc");
    std::fs::create_dir_all(&etc).unwrap();
    std::fs::write(etc.join("resolv.conf"), resolv_conf).unwrap();
    std::fs::write(etc.join("nsswitch.conf"), "hosts: files dns\n").unwrap();
    for file in ["passwd", "group"] {
        std::fs::copy(format!("/etc/{file}"), etc.join(file)).unwrap();
    }
    let pid = machine.run_node_after(&format!("mount --bind {} /etc", etc.display()));
    (etc, pid)
}

#[test]
fn names_are_answered_by_udp_and_tcp_appear_with_a_node_and_vanish_with_it() {
    if !possible() {
        return;
    }
    let world = World::new();
    up(&world, &world.laptop, "laptop");
    assert_eq!(ask(&world.laptop, "nas.mesh.internal.", RecordType::A).unwrap().metadata.response_code, ResponseCode::NXDomain);
    let nas = up(&world, &world.exit, "nas");
    let joined = Instant::now();
    wait_for("the name", || (addresses(&ask(&world.laptop, "NAS.mesh.internal.", RecordType::A)?) == [nas]).then_some(()));
    println!("known {:?} after it has joined", joined.elapsed());

    let [a, b, c, d] = nas.octets();
    // This network is beside the machine's own, whose programs could not reach the resolver.
    assert!(!std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default().contains("pvemesh"));
    let reverse = ask(&world.laptop, &format!("{d}.{c}.{b}.{a}.in-addr.arpa."), RecordType::PTR).unwrap();
    assert!(matches!(&reverse.answers[0].data, RData::PTR(name) if name.0.to_ascii() == "nas.mesh.internal."), "{reverse:?}");
    assert_eq!(addresses(&ask_by_tcp(&world.laptop, RESOLVER, "nas.mesh.internal.")), [nas]);
    // What leaves for others has the node's own address, not the resolver's.
    assert_eq!(world.laptop.sh(&format!("ip -o route get {nas} | grep -o 'src [0-9.]*'")).trim().matches("100.100.100.100").count(), 0);

    assert!(world.exit.node(&["logout"]).status.success());
    world.admin(&["nodes", "delete", "nas"]);
    let gone = Instant::now();
    wait_for("the name is gone", || {
        (ask(&world.laptop, "nas.mesh.internal.", RecordType::A)?.metadata.response_code == ResponseCode::NXDomain).then_some(())
    });
    println!("unknown {:?} after it was removed", gone.elapsed());
}

#[test]
fn other_names_are_asked_of_the_coordinators_servers_and_silence_is_told() {
    if !possible() {
        return;
    }
    let world = World::new();
    start_name_server(&world.coordinator, "10.9.1.1:53");
    world.admin(&["dns", "nameservers", "add", "10.9.1.1"]);
    world.admin(&["dns", "set", "--override", "on"]);
    up(&world, &world.laptop, "laptop");
    let answer = wait_for("an answer", || ask(&world.laptop, "example.com.", RecordType::A).filter(|answer| !answer.answers.is_empty()));
    assert_eq!((answer.metadata.id, addresses(&answer)), (4711, vec![[192, 0, 2, 7].into()]));
}

/// What the client has of a name, and of an address backwards.
fn both_ways(machine: &Machine, name: &str, address: &str) -> Option<(Vec<Ipv4Addr>, String)> {
    let reverse = pvemesh::ident::reverse_name(address.parse().unwrap());
    let found = ask(machine, &reverse, RecordType::PTR)?;
    let name_of = found.answers.iter().find_map(|record| if let RData::PTR(name) = &record.data { Some(name.0.to_ascii()) } else { None });
    Some((addresses(&ask(machine, name, RecordType::A)?), name_of.unwrap_or_default()))
}

#[test]
fn a_guest_without_a_client_has_a_name_at_once_in_both_directions_and_only_as_long_as_it_is_recorded() {
    if !possible() {
        return;
    }
    let world = World::new();
    start_name_server(&world.coordinator, "10.9.1.1:53");
    world.admin(&["dns", "nameservers", "add", "10.9.1.1"]);
    world.admin(&["dns", "set", "--override", "on"]);
    up(&world, &world.laptop, "laptop");
    let (name, address) = ("printer.mesh.internal.", "192.168.50.8");
    let known = Some((vec![address.parse().unwrap()], name.to_owned()));
    assert_ne!(both_ways(&world.laptop, name, address), known);
    let soon = |what: &str, condition: &dyn Fn() -> bool| {
        let start = Instant::now();
        wait_for(what, || condition().then_some(()));
        println!("{what}: {:?}", start.elapsed());
        assert!(start.elapsed() < Duration::from_secs(4), "{what}");
    };
    world.admin(&["dns", "hosts", "add", "printer", address, "fd50::8"]);
    soon("known", &|| both_ways(&world.laptop, name, address) == known);
    let v6 = ask(&world.laptop, &pvemesh::ident::reverse_name("fd50::8".parse().unwrap()), RecordType::PTR).unwrap();
    assert_eq!(v6.answers.len(), 1, "{v6:?}");
    // Its neighbours are somebody else's.
    assert_eq!(addresses(&ask(&world.laptop, "9.50.168.192.in-addr.arpa.", RecordType::A).unwrap()), [Ipv4Addr::new(192, 0, 2, 7)]);

    // A node by this name gets another one.
    up(&world, &world.exit, "printer");
    wait_for("the other name", || (addresses(&ask(&world.laptop, "printer-1.mesh.internal.", RecordType::A)?).len() == 1).then_some(()));
    assert_eq!(both_ways(&world.laptop, name, address), known);

    world.admin(&["dns", "hosts", "remove", "printer"]);
    soon("unknown", &|| {
        ask(&world.laptop, name, RecordType::A).is_some_and(|answer| answer.metadata.response_code == ResponseCode::NXDomain)
    });
    assert_ne!(both_ways(&world.laptop, name, address), known);
}

/// The machine's file is in a directory of the test's, which is its `/etc`.
#[test]
fn the_machines_file_leads_to_the_mesh_while_the_node_runs_and_is_given_back() {
    if !possible() {
        return;
    }
    let mut world = World::new();
    let nas = up(&world, &world.exit, "nas");
    let before = "search home.lan\nnameserver 192.0.2.53\n";
    let (etc, pid) = run_with_own_etc(&mut world.laptop, before);
    up(&world, &world.laptop, "laptop");
    let now = || std::fs::read_to_string(etc.join("resolv.conf")).unwrap();
    wait_for("the machine asks us", || now().contains("nameserver 100.100.100.100").then_some(()));
    assert!(now().contains("search mesh.internal home.lan"), "{}", now());
    let found = std::process::Command::new("nsenter").args(["-t", &pid, "-n", "-m", "getent", "ahostsv4", "nas"]).output().unwrap();
    assert!(text(&found.stdout).starts_with(&nas.to_string()), "{}{}", text(&found.stdout), text(&found.stderr));

    // Somebody else writes it, as DHCP and Proxmox do: ours is back, and theirs is what is given back.
    let other = "nameserver 192.0.2.54\n";
    std::fs::write(etc.join("resolv.conf"), other).unwrap();
    wait_for("the machine asks us again", || now().contains("nameserver 100.100.100.100").then_some(()));
    assert!(world.laptop.node(&["set", "--accept-dns=false"]).status.success());
    wait_for("the file is given back", || (now() == other).then_some(()));
    assert!(world.laptop.node(&["set", "--accept-dns=true"]).status.success());
    wait_for("the machine asks us once more", || now().contains("nameserver 100.100.100.100").then_some(()));
    assert!(world.laptop.node(&["down"]).status.success());
    wait_for("the file is given back", || (now() == other).then_some(()));
    assert!(!etc.join("resolv.conf.before-pvemesh").exists());
}

/// What an HTTP server says to a request of these lines, and a body.
fn http(machine: &Machine, to: SocketAddr, head: &str, body: Vec<u8>) -> String {
    let head = format!("{head}Connection: close\r\nContent-Length: {}\r\n\r\n", body.len());
    let said = machine.inside(move || {
        let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(5)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        // Who says no need not read it all.
        let _ = stream.write_all(&[head.as_bytes(), &body].concat());
        let mut said = Vec::new();
        let _ = stream.read_to_end(&mut said);
        said
    });
    text(&said.join().unwrap())
}

#[test]
fn names_of_the_internet_are_resolved_where_the_exit_node_is_and_only_for_those_who_may_use_it() {
    if !possible() {
        return;
    }
    let mut world = World::new();
    // Only the exit node reaches this server, which is its machine's own.
    start_name_server(&world.web, "203.0.113.1:53");
    run_with_own_etc(&mut world.exit, "nameserver 203.0.113.1\n");
    world.start_exit_node();
    let exit = world.exit.wait_until_running();
    let address: Ipv4Addr = exit["Self"]["TailscaleIPs"][0].as_str().unwrap().parse().unwrap();
    let laptop = up_as(&world, &world.laptop, "laptop", &["--user", "guest"]);
    let without = ask(&world.laptop, "example.com.", RecordType::A).unwrap();
    assert_eq!(without.metadata.response_code, ResponseCode::ServFail, "the laptop has no server of its own");
    assert!(world.laptop.node(&["set", "--exit-node", "exit-1"]).status.success());
    let answer = wait_for("an answer", || ask(&world.laptop, "example.com.", RecordType::A).filter(|answer| !answer.answers.is_empty()));
    assert_eq!((answer.metadata.id, addresses(&answer)), (4711, vec![[192, 0, 2, 7].into()]));
    let query = world.laptop.node(&["dns", "query", "example.com"]);
    assert!(text(&query.stderr).contains("/dns-query"), "{}", text(&query.stderr));
    // The mesh's own names are not asked for anywhere.
    assert_eq!(addresses(&ask(&world.laptop, "exit-1.mesh.internal.", RecordType::A).unwrap()), [address]);

    // As stock clients ask, and as a web page would.
    let to = SocketAddr::new(address.into(), pvemesh::node::peer_api::ports(address.into()).next().unwrap());
    let post = |origin: &str, body: &[u8]| {
        let head = format!("POST /dns-query HTTP/1.1\r\nHost: {to}\r\nContent-Type: application/dns-message\r\n{origin}");
        http(&world.laptop, to, &head, body.to_vec())
    };
    let question = question("example.org.", RecordType::A);
    assert!(post("", &question).starts_with("HTTP/1.1 200"), "{}", post("", &question));
    assert!(post("Origin: http://evil.example\r\n", &question).starts_with("HTTP/1.1 403"));
    assert!(post("", &question[..9]).starts_with("HTTP/1.1 400"));
    // Little enough to be read with the head: a connection that is closed over unread bytes may lose its answer.
    assert!(post("", &vec![0; 5000]).starts_with("HTTP/1.1 413"));
    assert!(http(&world.laptop, to, &format!("GET / HTTP/1.1\r\nHost: {to}\r\n"), Vec::new()).starts_with("HTTP/1.1 200"));

    // A node that may reach the exit node's machine but not the internet through it knocks in vain.
    let policy = world.coordinator.path("policy.hujson");
    std::fs::write(&policy, format!(r#"{{"acls":[{{"action":"accept","src":["{laptop}"],"dst":["{address}:22"]}}]}}"#)).unwrap();
    world.admin(&["policy", "set", policy.to_str().unwrap()]);
    wait_for("the refusal", || post("", &question).starts_with("HTTP/1.1 403").then_some(()));
}
