//! Pings of all kinds, for the user and for the coordinator, and what a node learns of connections that were refused.

use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::mpsc;
use std::time::Duration;

use pvemesh::filter::Filter;
use pvemesh::ident::{DiscoPrivate, DiscoPublic, NodeId, NodePrivate, NodePublic};
use pvemesh::node::PeerConfig;
use pvemesh::sys::control::Event;
use pvemesh::sys::engine::{Engine, EngineOptions, TunOffload};
use pvemesh::wire::control::{PingKind, PingResponse};
use serde_json::{Value, json};

use super::client::{Session, identity};
use super::scripted::{Asked, MAP, Piece, Reply, Scripted, ordinary};
use super::world::{Machine, World, possible, text, wait_for};

fn report(machine: &Machine, arguments: &[&str]) -> Value {
    let out = machine.node(&[&["--json", "ping"], arguments].concat());
    assert!(out.status.success(), "{arguments:?}: {}", text(&out.stderr));
    serde_json::from_slice(&out.stdout).unwrap()
}

fn set_policy(world: &World, policy: &Value) {
    let file = world.coordinator.path("policy.json");
    std::fs::write(&file, policy.to_string()).unwrap();
    world.admin(&["policy", "set", file.to_str().unwrap()]);
}

fn connects(from: &Machine, to: SocketAddr) -> bool {
    from.inside(move || TcpStream::connect_timeout(&to, Duration::from_millis(300)).is_ok()).join().unwrap()
}

/// An exit node and a laptop that are in, and the exit node's status.
fn joined() -> (World, Value) {
    let world = World::new();
    world.start_exit_node();
    let exit = world.exit.wait_until_running();
    let key = world.key(&[]);
    let up = ["--login-server", "http://10.9.1.1:8080", "--auth-key-file", &key, "--hostname", "laptop"];
    assert!(world.laptop.up(&up).status.success());
    world.laptop.wait_until_running();
    (world, exit)
}

#[test]
fn a_node_is_pinged_by_its_mesh_program_its_system_and_its_peer_api() {
    if !possible() {
        return;
    }
    let (world, exit) = joined();
    let address = exit["TailscaleIPs"][0].as_str().unwrap();
    let ports: Vec<u16> = pvemesh::node::peer_api::ports(address.parse().unwrap()).collect();
    let report = |arguments: &[&str]| report(&world.laptop, arguments);
    for node in ["exit-1", address, exit["TailscaleIPs"][1].as_str().unwrap()] {
        let tsmp = report(&["--tsmp", node]);
        assert_eq!((&tsmp["received"], &tsmp["sent"], tsmp["path"].as_str()), (&1.into(), &1.into(), Some("direct")), "{tsmp}");
        assert!(tsmp["peer_api_port"].as_u64().is_some_and(|port| port >= 0x8000), "{tsmp}");
        assert!(tsmp["rtt_ms"][0].as_f64().is_some_and(|ms| ms > 0.0 && ms < 5000.0), "{tsmp}");
    }
    let port = report(&["--tsmp", "exit-1"])["peer_api_port"].as_u64().unwrap();
    assert!(ports.contains(&u16::try_from(port).unwrap()));
    let hit = report(&["--peerapi", "exit-1"]);
    assert_eq!((&hit["received"], hit["via"].as_str()), (&1.into(), Some(&*format!("http://{address}:{port}/"))), "{hit}");
    assert_eq!(report(&["--icmp", "-c", "2", "exit-1"])["received"], 2);

    let shown = text(&world.laptop.node(&["ping", "--tsmp", "exit-1"]).stdout);
    assert!(shown.starts_with(&format!("pong from exit-1 ({address}) via TSMP in ")), "{shown}");
    assert!(shown.trim_end().ends_with(&format!("ms; its peer API is at port {port}")), "{shown}");
    let shown = text(&world.laptop.node(&["ping", "--peerapi", "exit-1"]).stdout);
    assert!(shown.starts_with(&format!("hit the peer API of exit-1 ({address}) at http://{address}:{port}/ in ")), "{shown}");
    // The laptop offers nothing to others, and one kind is enough.
    let shown = text(&world.exit.node(&["ping", "--tsmp", "laptop"]).stdout);
    assert!(shown.trim_end().ends_with("ms; it has no peer API"), "{shown}");
    let out = world.exit.node(&["ping", "--peerapi", "laptop"]);
    assert!(!out.status.success() && text(&out.stderr).contains("laptop tells of no peer API"), "{}", text(&out.stderr));
    assert!(!world.laptop.node(&["ping", "--tsmp", "--icmp", "exit-1"]).status.success());
    // Nobody is there, and that is said.
    let out = world.laptop.node(&["ping", "--tsmp", "100.64.7.7"]);
    assert!(!out.status.success() && text(&out.stderr).contains("no node has 100.64.7.7"), "{}", text(&out.stderr));
}

#[test]
fn a_connection_that_a_policy_or_shields_refuse_has_its_reason_in_the_status() {
    if !possible() {
        return;
    }
    let (world, exit) = joined();
    let own = |status: &Value, n: usize| status["TailscaleIPs"][n].as_str().unwrap().parse::<IpAddr>().unwrap();
    let (v4, v6) = (own(&exit, 0), own(&exit, 1));
    let _open = world.exit.inside(move || std::net::TcpListener::bind((v4, 22)).unwrap()).join().unwrap();
    wait_for("the way to the exit node", || connects(&world.laptop, (v4, 22).into()).then_some(()));
    set_policy(&world, &json!({ "acls": [{ "action": "accept", "src": ["*"], "dst": ["*:22"] }] }));
    let refused = |machine: &Machine| {
        let status = machine.status().unwrap();
        let peer =
            status["Peer"].as_object().unwrap().values().find(|peer| peer["DNSName"].as_str().unwrap().starts_with("exit-1.")).cloned();
        let list = peer.unwrap()["Refused"].as_array().cloned().unwrap_or_default();
        list.iter().map(|one| (one["Protocol"].to_string(), one["To"].to_string(), one["Reason"].to_string())).collect::<Vec<_>>()
    };
    for (to, why, change) in [
        (SocketAddr::new(v4, 23), "the policy does not allow it", None),
        (SocketAddr::new(v6, 24), "the policy does not allow it", None),
        (SocketAddr::new(v4, 22), "the node lets no connections in", Some("--shields-up=true")),
    ] {
        if let Some(change) = change {
            assert!(connects(&world.laptop, to), "it is open until then");
            assert!(world.exit.node(&["set", change]).status.success());
        }
        let expected = (json!("TCP").to_string(), json!(to.to_string()).to_string(), json!(why).to_string());
        wait_for(&format!("{expected:?}"), || {
            connects(&world.laptop, to);
            refused(&world.laptop).contains(&expected).then_some(())
        });
    }
    let shown = text(&world.laptop.node(&["status"]).stdout);
    let line = shown.lines().find(|line| line.contains("exit-1")).unwrap().to_owned();
    for part in ["refused by its filter: TCP 22, ", " s ago", "TCP 23", "TCP 24", "(the node lets no connections in)"] {
        assert!(line.contains(part), "{line}");
    }
    let whois = text(&world.laptop.node(&["whois", &v4.to_string()]).stdout);
    assert!(whois.contains("Note:       refused by its filter: TCP 22, "), "{whois}");
    // Whether the node is there at all, its mesh program says all the same.
    assert_eq!(report(&world.laptop, &["--tsmp", "exit-1"])["received"], 1);
}

#[tokio::test]
async fn what_comes_of_the_coordinators_pings_is_told_kind_by_kind_where_it_says() {
    let url = std::sync::Arc::new(std::sync::OnceLock::<String>::new());
    let own = url.clone();
    let server = Scripted::start(move |asked| {
        if !asked.is_stream() {
            return ordinary(asked);
        }
        let outside = own.get().unwrap();
        let ask = |rest: &str| Piece::Message(format!(r#"{{"KeepAlive":true,"PingRequest":{{"IP":"100.64.0.2",{rest}}}}}"#));
        Reply::Stream(vec![
            Piece::Message(MAP.to_owned()),
            ask(r#""URL":"https://other.name/inside","URLIsNoise":true,"Types":"TSMP,peerapi""#),
            ask(&format!(r#""URL":"{outside}/outside","Types":"disco,what,disco""#)),
            ask(r#""URL":"http://127.0.0.1:1/elsewhere","Types":"TSMP""#),
            Piece::Silence,
        ])
    })
    .await;
    url.set(server.url.clone()).unwrap();
    let mut session = Session::start(&identity(&server.url, None), "alpha");
    let mut asked = Vec::new();
    while asked.len() < 3 {
        let (kind, answer) = session
            .take("a ping", |event| match event {
                Event::Ping { kind, address, answer } => {
                    assert_eq!(address, "100.64.0.2".parse::<IpAddr>().unwrap());
                    Some((kind, answer))
                }
                _ => None,
            })
            .await;
        asked.push(kind);
        let response = PingResponse { kind, latency_seconds: 0.5, peer_api_port: 7, ip: "100.64.0.2".to_owned(), ..Default::default() };
        answer.send(response).unwrap();
    }
    asked.sort_by_key(|kind| *kind as u8);
    assert_eq!(asked, [PingKind::Disco, PingKind::Tsmp, PingKind::PeerApi]);
    server.until("all answers", |asked| (asked.iter().filter(|a| a.path.contains("side")).count() == 3).then_some(())).await;
    let told = |path: &str| server.of(|asked| asked.path == path).iter().map(|a| (a.connection, a.json())).collect::<Vec<_>>();
    let expected = |kind: &str| json!({ "Type": kind, "IP": "100.64.0.2", "LatencySeconds": 0.5, "PeerAPIPort": 7 });
    assert_eq!(told("/inside"), [(1, expected("TSMP")), (1, expected("peerapi"))]);
    let outside = server.of(|asked| asked.path == "/outside");
    assert_eq!((outside.len(), outside[0].connection, &outside[0].method), (1, 0, &http::Method::POST));
}

const PEER: u8 = 9;

/// A peer by hand: a packet engine that lets nothing in, and knows this node.
fn peer(machine: &Machine, node: NodePublic, disco: DiscoPublic) -> Engine {
    let start = move || {
        let key = NodePrivate::from_seed([PEER; 32]);
        let disco_key = DiscoPrivate::from_seed([PEER; 32]);
        let engine = Engine::start(EngineOptions {
            interface: "peer0".into(),
            mtu: 1280,
            port: 41641,
            key,
            disco: disco_key,
            mark: None,
            offload: TunOffload::TcpAndUdp,
        })
        .unwrap();
        engine.set_filter(Filter::default());
        engine.set_peers(&[PeerConfig {
            v4: None,
            id: NodeId(1),
            key: node,
            disco: Some(disco),
            name: "node".to_owned(),
            allowed_ips: vec!["100.64.0.1/32".parse().unwrap()],
            endpoints: vec!["10.9.1.2:41641".parse().unwrap()],
            home: None,
            ends: None,
        }]);
        engine
    };
    machine.inside(start).join().unwrap()
}

#[test]
fn a_node_pings_for_its_coordinator_and_says_what_came_of_it() {
    if !possible() {
        return;
    }
    let (coordinator, mut node) = (Machine::new("c"), Machine::new("n"));
    coordinator.cable("eth0", "10.9.1.1/24", &node, "eth0", "10.9.1.2/24");
    let (heard, news) = mpsc::channel::<Asked>();
    let (started, ready) = mpsc::channel();
    let _server = coordinator.inside(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async move {
            let key = NodePrivate::from_seed([PEER; 32]).public();
            let disco = DiscoPrivate::from_seed([PEER; 32]).public();
            let map = format!(
                r#"{{"Node":{{"ID":1,"Name":"a.x.","Addresses":["100.64.0.1/32"],"MachineAuthorized":true}},"Peers":[{{"ID":2,"Name":"peer.x.",
                    "Key":"{key}","DiscoKey":"{disco}","Addresses":["100.64.0.2/32"],"AllowedIPs":["100.64.0.2/32"],"Endpoints":["10.9.1.1:41641"]}}]}}"#
            );
            let listener = tokio::net::TcpListener::bind("10.9.1.1:8080").await.unwrap();
            let server = Scripted::detached("http://10.9.1.1:8080".to_owned(), move |asked| {
                let _ = heard.send(asked.clone());
                if !asked.is_stream() {
                    return ordinary(asked);
                }
                let ask = |ip: &str, types: &str, id: u8| {
                    let rest = format!(r#""URL":"https://x/told?{id}","URLIsNoise":true,"Types":"{types}","IP":"{ip}""#);
                    Piece::Message(format!(r#"{{"KeepAlive":true,"PingRequest":{{{rest}}}}}"#))
                };
                Reply::Stream(vec![
                    Piece::Message(map.clone()),
                    // The node takes the map in, and the peer is told of the node.
                    Piece::Pause(Duration::from_secs(1)),
                    ask("100.64.0.2", "TSMP,disco", 1),
                    ask("100.64.0.2", "peerapi", 2),
                    ask("100.64.0.1", "TSMP", 3),
                    ask("10.9.1.1", "ICMP", 4),
                    Piece::Silence,
                ])
            });
            started.send(()).unwrap();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                tokio::spawn(server.serve(stream));
            }
        })
    });
    ready.recv().unwrap();
    node.run_node(&[]);
    wait_for("the node's socket", || node.path("node.sock").exists().then_some(()));
    let out = node.up(&["--login-server", "http://10.9.1.1:8080"]);
    assert!(out.status.success(), "{}", text(&out.stderr));
    let limit = Duration::from_secs(20);
    let stream = std::iter::from_fn(|| news.recv_timeout(limit).ok()).find(Asked::is_stream).expect("a map stream").json();
    let _peer = peer(
        &coordinator,
        serde_json::from_value(stream["NodeKey"].clone()).unwrap(),
        serde_json::from_value(stream["DiscoKey"].clone()).unwrap(),
    );
    let mut told: Vec<(String, Value)> = Vec::new();
    while told.len() < 5 {
        let asked = news.recv_timeout(limit).unwrap_or_else(|_| panic!("{told:#?}"));
        if asked.path.starts_with("/told") {
            told.push((asked.path.clone(), asked.json()));
        }
    }
    let of =
        |path: &str, kind: &str| told.iter().find(|(at, json)| at == path && json["Type"] == kind).map(|(_, json)| json.clone()).unwrap();
    for kind in ["TSMP", "disco"] {
        let told = of("/told?1", kind);
        assert_eq!(
            (&told["Endpoint"], &told["NodeName"], &told["NodeIP"]),
            (&json!("10.9.1.1:41641"), &json!("peer"), &json!("100.64.0.2")),
            "{told}"
        );
        assert!(
            told["LatencySeconds"].as_f64().is_some_and(|seconds| seconds > 0.0 && seconds < 5.0) && told.get("Err").is_none(),
            "{told}"
        );
    }
    assert!(of("/told?2", "peerapi")["Err"].as_str().unwrap().contains("tells of no peer API"));
    assert_eq!(of("/told?3", "TSMP")["IsLocalIP"], true);
    assert!(of("/told?4", "ICMP")["Err"].as_str().unwrap().contains("no other node has the address 10.9.1.1"), "nobody else is pinged");
}
