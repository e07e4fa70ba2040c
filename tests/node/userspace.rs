//! Nodes without a TUN and without rights: as subnet router and exit node for others, and with a proxy for their own programs.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::chown;
use std::time::{Duration, Instant};

use super::subnet::{BULK, DEVICE, DEVICE_V6, LAN, PORT, addresses, by_icmp, by_tcp, by_udp, join, network, serve};
use super::world::{Machine, World, possible, text, wait_for};

const PROXY: &str = "127.0.0.1:1055";
/// An unprivileged user that every system has.
const NOBODY: u32 = 65_534;

/// Starts a node that has no right at all and no device: another user, without capabilities, with nothing in /dev/net.
fn run_without_rights(machine: &mut Machine, arguments: &str) {
    let state = machine.path("state");
    std::fs::create_dir(&state).unwrap();
    for path in [&state, state.parent().unwrap()] {
        chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
    }
    // As any container has it whose root may ping.
    machine.sh("echo '0 2147483647' > /proc/sys/net/ipv4/ping_group_range");
    let script = format!(
        "mount -t tmpfs none /dev/net && exec setpriv --reuid {NOBODY} --regid {NOBODY} --clear-groups --bounding-set -all --inh-caps -all \
         {} node --socket {} run --tun userspace --state-dir {} {arguments}",
        super::world::PROGRAM,
        machine.path("node.sock").display(),
        state.display(),
    );
    let log = std::fs::File::create(machine.path("run.log")).unwrap();
    let mut command = machine.command("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-ec", &script]).stderr(log);
    machine.children.push(command.spawn().unwrap());
    wait_for("the node's socket", || machine.path("node.sock").exists().then_some(()));
}

fn rights(machine: &Machine) -> String {
    let child = machine.children.last().unwrap().id();
    let status = std::fs::read_to_string(format!("/proc/{child}/status")).unwrap();
    status.lines().filter(|line| line.starts_with("CapEff") || line.starts_with("Uid")).map(str::to_owned).collect::<Vec<_>>().join(" ")
}

#[test]
fn a_node_without_tun_and_rights_serves_as_subnet_router_and_exit_node() {
    if !possible() {
        return;
    }
    let mut world = World::new();
    let device = network(&world.exit, 7);
    serve(&device);
    world.exit.sh("echo 0 > /proc/sys/net/ipv4/ip_forward");
    run_without_rights(&mut world.exit, "-v");
    assert!(rights(&world.exit).ends_with("CapEff:\t0000000000000000"), "{}", rights(&world.exit));
    let before = world.exit.traces();
    let offers = ["--advertise-routes", LAN, "--advertise-exit-node"];
    let status = join(&world, &world.exit, "router", &["--approve-routes", LAN, "--approve-exit-node"], &offers);
    assert_eq!((&status["TUN"], &status["Interface"]), (&false.into(), &"".into()));
    join(&world, &world.laptop, "laptop", &[], &["--accept-routes"]);

    wait_for("the way to the device", || by_udp(&world.laptop, DEVICE));
    for (to, router) in [(DEVICE, "10.9.7.1"), (DEVICE_V6, "fd00:7::1")] {
        let router: Option<IpAddr> = router.parse().ok();
        let start = Instant::now();
        assert_eq!((by_tcp(&world.laptop, to), by_udp(&world.laptop, to), by_icmp(&world.laptop, to)), (router, router, true), "{to}");
        println!("{BULK} bytes there and back by {to}, a datagram and an echo after {:?}", start.elapsed());
    }
    // What is closed there is closed here, and what does not exist is not open.
    let refused = |to: &str| {
        let to: SocketAddr = to.parse().unwrap();
        let begun = Instant::now();
        let error = world.laptop.inside(move || TcpStream::connect_timeout(&to, Duration::from_secs(5)).unwrap_err()).join().unwrap();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused, "{to}");
        assert!(begun.elapsed() < Duration::from_secs(4), "{to}: {:?}", begun.elapsed());
    };
    refused("10.9.7.9:7001");
    refused("[fd00:7::9]:7001");

    // This machine's own programs, those that listen on the loopback address, too.
    world.exit.tell_callers("127.0.0.1:7002");
    let own = addresses(&status);
    assert_eq!(world.laptop.seen_by(&SocketAddr::new(own[0], 7002).to_string()).as_deref(), Some("127.0.0.1"));
    assert_eq!(world.laptop.seen_by(&SocketAddr::new(own[1], 7002).to_string()).as_deref(), Some("127.0.0.1"));
    assert!(by_icmp(&world.laptop, &own[0].to_string()) && by_icmp(&world.laptop, &own[1].to_string()));

    assert_eq!(world.seen_by_web(), None);
    assert!(world.laptop.node(&["set", "--exit-node", "router"]).status.success());
    assert_eq!(wait_for("the exit", || world.seen_by_web()), "203.0.113.2");
    // An exit node leads to the internet, not into its own networks beyond what it offers.
    assert_eq!(world.laptop.seen_by("203.0.113.1:80"), None);

    assert_eq!(world.exit.traces(), before, "nothing of the machine's routing is touched");
    assert!(world.exit.node(&["down"]).status.success());
    assert_eq!(world.seen_by_web(), None);
}

/// A stream to `host` through the proxy by SOCKS5 (RFC 1928), or the reply code.
fn by_socks(host: &str, port: u16) -> Result<TcpStream, u8> {
    let mut stream = TcpStream::connect(PROXY).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(12))).unwrap();
    stream.write_all(&[5, 1, 0]).unwrap();
    let mut greeted = [0; 2];
    stream.read_exact(&mut greeted).unwrap();
    assert_eq!(greeted, [5, 0]);
    let mut request = vec![5, 1, 0];
    match host.parse() {
        Ok(IpAddr::V4(ip)) => request.extend([&[1][..], &ip.octets()].concat()),
        Ok(IpAddr::V6(ip)) => request.extend([&[4][..], &ip.octets()].concat()),
        Err(_) => request.extend([&[3, u8::try_from(host.len()).unwrap()], host.as_bytes()].concat()),
    }
    request.extend(port.to_be_bytes());
    stream.write_all(&request).unwrap();
    let mut reply = [0; 10];
    stream.read_exact(&mut reply).unwrap();
    if reply[1] == 0 { Ok(stream) } else { Err(reply[1]) }
}

fn rest(mut stream: TcpStream) -> String {
    let mut read = Vec::new();
    stream.read_to_end(&mut read).unwrap();
    text(&read)
}

fn on<T: Send + 'static>(machine: &Machine, job: impl FnOnce() -> T + Send + 'static) -> T {
    machine.inside(job).join().unwrap()
}

/// Serves HTTP at an address: the request's head comes back.
fn mirror_requests(machine: &Machine, address: &'static str) {
    let (told, ready) = std::sync::mpsc::channel();
    machine.inside(move || {
        let listener = TcpListener::bind(address).unwrap();
        told.send(()).unwrap();
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let mut head = Vec::new();
            let mut byte = [0];
            while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|count| count == 1) {
                head.push(byte[0]);
            }
            let _ = stream.write_all(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", head.len()).as_bytes());
            let _ = stream.write_all(&head);
        }
    });
    ready.recv().unwrap();
}

#[test]
fn local_programs_reach_the_mesh_and_the_internet_behind_it_by_the_proxy() {
    if !possible() {
        return;
    }
    let mut world = World::new();
    let device = network(&world.exit, 7);
    serve(&device);
    let offers = ["--advertise-routes", LAN, "--advertise-exit-node"];
    let exit = addresses(&join(&world, &world.exit, "exit-1", &["--approve-routes", LAN, "--approve-exit-node"], &offers));
    world.exit.tell_callers("0.0.0.0:7002");
    mirror_requests(&world.exit, "0.0.0.0:8080");
    run_without_rights(&mut world.laptop, &format!("--socks5-server {PROXY} --outbound-http-proxy-listen {PROXY}"));
    let status = join(&world, &world.laptop, "laptop", &[], &["--accept-routes"]);
    assert_eq!(status["Proxies"], serde_json::json!([PROXY]));
    assert!(text(&world.laptop.node(&["status"]).stdout).contains(&format!("(SOCKS5 or HTTP) on {PROXY}")));
    let own = addresses(&status)[0].to_string();

    for host in ["exit-1", "exit-1.mesh.internal", "EXIT-1.mesh.internal.", &exit[0].to_string()] {
        let name = host.to_owned();
        assert_eq!(on(&world.laptop, move || by_socks(&name, 7002).map(rest)), Ok(own.clone()), "{host}");
    }
    let by_v6 = exit[1].to_string();
    serve(&world.exit);
    let seen = on(&world.laptop, move || {
        let mut stream = by_socks(&by_v6, PORT).unwrap();
        let sent: Vec<u8> = (0..BULK).map(|n| u8::try_from(n % 251).unwrap()).collect();
        let mut writer = stream.try_clone().unwrap();
        let bytes = sent.clone();
        let writing = std::thread::spawn(move || {
            writer.write_all(&bytes).unwrap();
            writer.shutdown(std::net::Shutdown::Write).unwrap();
        });
        let mut back = Vec::new();
        stream.read_to_end(&mut back).unwrap();
        writing.join().unwrap();
        assert!(back[40..] == sent, "{} of {} bytes came back", back.len(), sent.len() + 40);
        text(&back[..40]).trim().to_owned()
    });
    assert_eq!(seen, addresses(&status)[1].to_string());
    assert_eq!(on(&world.laptop, || by_socks(DEVICE, PORT).map(drop)), Ok(()), "a network behind the other node");
    assert_eq!(on(&world.laptop, || by_socks("exit-1", 7999).map(drop)), Err(5), "connection refused");
    assert_eq!(on(&world.laptop, || by_socks("nobody.mesh.internal", 80).map(drop)), Err(4), "host unreachable");
    assert_eq!(on(&world.laptop, || by_socks("127.0.0.1", 1055).map(drop)), Err(2), "not allowed");

    // HTTP, as programs do it that know `http_proxy`.
    let talk = |request: &str| {
        let request = request.to_owned();
        on(&world.laptop, move || {
            let mut stream = TcpStream::connect(PROXY).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(12))).unwrap();
            stream.write_all(request.as_bytes()).unwrap();
            rest(stream)
        })
    };
    let got = talk("GET http://exit-1:8080/a?b HTTP/1.1\r\nHost: ignored\r\nProxy-Connection: x\r\nConnection: close\r\nX-Mine: 1\r\n\r\n");
    assert!(got.starts_with("HTTP/1.1 200 OK\r\n") && got.contains("GET /a?b HTTP/1.1\r\n"), "{got}");
    assert!(got.contains("Host: exit-1:8080\r\n") && got.contains("X-Mine: 1\r\n") && !got.contains("Proxy-Connection"), "{got}");
    let got = talk("CONNECT exit-1:7002 HTTP/1.1\r\nHost: exit-1:7002\r\n\r\n");
    assert!(got.starts_with("HTTP/1.1 200 OK\r\n") && got.ends_with(&format!("\r\n\r\n{own}")), "{got}");
    assert!(talk("GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").starts_with("HTTP/1.1 400"));
    assert!(talk("CONNECT exit-1:7999 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").starts_with("HTTP/1.1 502"));

    // A proxy at the loopback address is no peer's, though other programs there are.
    world.laptop.tell_callers("127.0.0.1:7002");
    assert_eq!(world.exit.seen_by(&format!("{own}:7002")).as_deref(), Some("127.0.0.1"));
    let proxy: SocketAddr = format!("{own}:1055").parse().unwrap();
    let error = on(&world.exit, move || TcpStream::connect_timeout(&proxy, Duration::from_secs(5)).unwrap_err());
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);

    // The internet: by this machine itself, where there is no way, then by the exit node.
    let web = || on(&world.laptop, || by_socks("192.0.2.80", 80).map(rest));
    assert!(web().is_err());
    assert!(world.laptop.node(&["set", "--exit-node", "exit-1"]).status.success());
    assert_eq!(wait_for("the exit", || web().ok()), "203.0.113.2");
}

#[test]
fn two_nodes_without_tun_reach_each_other_and_a_restart_does_not_lose_the_proxy() {
    if !possible() {
        return;
    }
    let mut world = World::new();
    run_without_rights(&mut world.exit, "");
    run_without_rights(&mut world.laptop, &format!("--socks5-server {PROXY}"));
    join(&world, &world.exit, "nas", &[], &[]);
    join(&world, &world.laptop, "laptop", &[], &[]);
    world.exit.tell_callers("127.0.0.1:7002");
    let seen = || on(&world.laptop, || by_socks("nas", 7002).map(rest));
    assert_eq!(wait_for("the other node", || seen().ok()), "127.0.0.1");
    // Another key is another engine, and another stack.
    let key = world.key(&[]);
    let out = world.laptop.up(&["--force-reauth", "--auth-key-file", &key, "--tun", "userspace"]);
    assert!(out.status.success(), "{}", text(&out.stderr));
    assert_eq!(wait_for("the other node again", || seen().ok()), "127.0.0.1");
}

#[test]
fn a_proxy_needs_a_free_address_and_userspace_mode() {
    if !possible() {
        return;
    }
    let machine = Machine::new("p");
    machine.tell_callers("127.0.0.1:1055");
    let state = machine.path("state").to_str().unwrap().to_owned();
    let run = |arguments: &[&str]| machine.node(&[&["run", "--state-dir", &state], arguments].concat());
    let out = run(&["--tun", "userspace", "--socks5-server", PROXY]);
    assert!(!out.status.success() && text(&out.stderr).contains(PROXY) && text(&out.stderr).contains("in use"), "{}", text(&out.stderr));
    let out = run(&["--socks5-server", PROXY]);
    assert!(out.status.code() == Some(2) && text(&out.stderr).contains("--tun userspace"), "{}", text(&out.stderr));
}
