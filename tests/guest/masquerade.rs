//! Masquerade, seen from the other side: a client behind the TUN, the node, and a server on the internet that tells who asked.

use std::io::{Read as _, Write as _};
use std::time::Duration;

use pvemesh::node::RouterConfig;
use pvemesh::sys::router::Router;

use crate::netns::{Netns, has, root};

/// A client whose packets come in by an interface called `pvemesh0`, a node, a server.
fn world() -> (Netns, Netns, Netns) {
    let (client, node, server) = (Netns::new("client"), Netns::new("node"), Netns::new("server"));
    node.run(&format!(
        "ip link add pvemesh0 type veth peer name c0 netns {} && ip link add eth0 type veth peer name s0 netns {}",
        client.name, server.name
    ));
    node.run("ip link set eth0 up; ip addr add 203.0.113.2/24 dev eth0; ip addr add 2001:db8:1::2/64 dev eth0 nodad");
    node.run("ip addr add 10.99.0.1/30 dev pvemesh0 && ip link set pvemesh0 up");
    client.run("ip link set c0 up; ip addr add 100.64.0.2/32 dev c0; ip addr add fd7a:115c:a1e0::2/128 dev c0 nodad");
    client.run("ip route add default dev c0 && ip -6 route add default dev c0");
    server.run("ip link set s0 up; ip addr add 203.0.113.1/24 dev s0; ip addr add 2001:db8:1::1/64 dev s0 nodad");
    // The pair stands in for a TUN, which has no neighbours to ask for: either side answers for everything.
    for (netns, device) in [(&client, "c0"), (&node, "pvemesh0")] {
        netns.run(&format!("echo 1 > /proc/sys/net/ipv4/conf/{device}/proxy_arp; echo 0 > /proc/sys/net/ipv4/conf/{device}/rp_filter"));
    }
    let mac = |netns: &Netns, device: &str| netns.run(&format!("cat /sys/class/net/{device}/address")).trim().to_owned();
    let (of_client, of_node) = (mac(&client, "c0"), mac(&node, "pvemesh0"));
    client.run(&format!("ip neigh add 203.0.113.1 lladdr {of_node} dev c0; ip -6 neigh add 2001:db8:1::1 lladdr {of_node} dev c0"));
    node.run(&format!(
        "ip neigh add 100.64.0.2 lladdr {of_client} dev pvemesh0; ip -6 neigh add fd7a:115c:a1e0::2 lladdr {of_client} dev pvemesh0"
    ));
    (client, node, server)
}

/// Connects from the client to the server's address; who the server saw, or nothing if no connection came about.
fn seen_by_server(client: &Netns, server: &Netns, address: &str) -> Option<std::net::IpAddr> {
    let listener = server.enter(async || std::net::TcpListener::bind((address, 80)).unwrap());
    listener.set_nonblocking(true).unwrap();
    let connected = client.enter(async || {
        let target = std::net::SocketAddr::new(address.parse().unwrap(), 80);
        std::net::TcpStream::connect_timeout(&target, Duration::from_millis(800))
    });
    let mut stream = connected.ok()?;
    let (mut other, from) = crate::netns::wait_for("the connection", 5, || listener.accept().ok());
    // Both directions carry data.
    stream.write_all(b"ping").unwrap();
    let mut bytes = [0; 4];
    other.set_nonblocking(false).unwrap();
    other.read_exact(&mut bytes).unwrap();
    other.write_all(b"pong").unwrap();
    stream.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"pong");
    Some(from.ip())
}

#[test]
fn forwarded_packets_of_both_families_leave_with_the_nodes_own_address() {
    if !root() || !has("ip") {
        return;
    }
    let (client, node, server) = world();
    let config = RouterConfig {
        interface: "pvemesh0".to_owned(),
        addresses: vec!["100.64.0.1/32".parse().unwrap(), "fd7a:115c:a1e0::1/128".parse().unwrap()],
        routes: vec!["100.64.0.2/32".parse().unwrap(), "fd7a:115c:a1e0::2/128".parse().unwrap()],
        local_routes: Vec::new(),
        lan_first: true,
        forward: true,
        masquerade: true,
        lan_gateway: false,
        shields_up: false,
        mtu: 1280,
    };
    assert_eq!(seen_by_server(&client, &server, "203.0.113.1"), None, "nothing forwards yet");
    node.enter(async || {
        let mut router = Router::new().await.unwrap();
        router.apply(&config).await.unwrap();
        assert_eq!(seen_by_server(&client, &server, "203.0.113.1"), Some("203.0.113.2".parse().unwrap()));
        assert_eq!(seen_by_server(&client, &server, "2001:db8:1::1"), Some("2001:db8:1::2".parse().unwrap()));
        // Without masquerade the server would have to know the way back; it does not, so nothing comes about.
        router.apply(&RouterConfig { masquerade: false, ..config.clone() }).await.unwrap();
        assert_eq!(seen_by_server(&client, &server, "203.0.113.1"), None);
        server.run("ip route add 100.64.0.0/10 via 203.0.113.2");
        assert_eq!(seen_by_server(&client, &server, "203.0.113.1"), Some("100.64.0.2".parse().unwrap()));
        router.clear().await.unwrap();
    });
    assert_eq!(seen_by_server(&client, &server, "203.0.113.1"), None, "forwarding stopped");
}
