//! Rendering: golden files, and round trips of arbitrary and hostile settings.

use proptest::prelude::*;
use pvemesh::ident::{MachinePublic, NodeName, Secret, Vmid};
use pvemesh::plan::render::{self, Notes};
use pvemesh::settings::{Acme, CertificateFiles, Coordinator, EmbeddedRelay, Front, Guest, Ipv4Setup, Ipv6Setup, Network, Node, Relay};

fn network() -> Network {
    Network {
        interface: "eth0".to_owned(),
        ipv4: Ipv4Setup::Dhcp,
        gateway4: None,
        ipv6: Ipv6Setup::Auto,
        gateway6: None,
        nameservers: Vec::new(),
    }
}

fn member() -> Node {
    Node {
        login_server: "http://192.168.1.10:8080".to_owned(),
        server_key: None,
        auth_key: Some(Secret::new("golden-join-key")),
        port: 41641,
        endpoints: Vec::new(),
        advertise_exit_node: false,
        advertise_routes: Vec::new(),
        accept_routes: false,
        accept_dns: true,
        snat_subnet_routes: true,
        userspace: false,
        lan_gateway: false,
    }
}

fn guest(vmid: u32, hostname: &str) -> Guest {
    Guest {
        vmid: Vmid::try_from(vmid).unwrap(),
        hostname: hostname.parse().unwrap(),
        network: network(),
        node: None,
        coordinator: None,
        relay: None,
    }
}

fn exit_node() -> Guest {
    let node = Node {
        server_key: Some(MachinePublic::from_bytes([0x5a; 32])),
        endpoints: vec!["203.0.113.7:41641".parse().unwrap()],
        advertise_exit_node: true,
        ..member()
    };
    Guest { node: Some(node), ..guest(101, "exit-1") }
}

fn subnet_router() -> Guest {
    let network = Network {
        ipv4: Ipv4Setup::Fixed("192.168.1.102/24".parse().unwrap()),
        gateway4: Some("192.168.1.1".parse().unwrap()),
        ipv6: Ipv6Setup::Fixed("2001:db8::102/64".parse().unwrap()),
        gateway6: Some("fe80::1".parse().unwrap()),
        nameservers: vec!["192.168.1.1".parse().unwrap(), "2001:db8::1".parse().unwrap()],
        ..network()
    };
    let node = Node { advertise_routes: vec!["192.168.1.0/24".parse().unwrap()], accept_routes: true, ..member() };
    Guest { network, node: Some(node), ..guest(102, "router") }
}

fn coordinator() -> Guest {
    let coordinator = Coordinator {
        url: "http://192.168.1.10:8080".to_owned(),
        listen: "[::]:8080".parse().unwrap(),
        admin_keys: vec![MachinePublic::from_bytes([0x11; 32])],
        base_domain: "mesh.internal".to_owned(),
        front: Front::default(),
        relay: EmbeddedRelay::default(),
    };
    Guest { coordinator: Some(coordinator), ..guest(100, "coordinator") }
}

fn relay() -> Guest {
    let relay = Relay {
        hostname: "relay-1".to_owned(),
        verify_url: "http://192.168.1.10:8080/verify".to_owned(),
        listen: "[::]:443".parse().unwrap(),
        stun: "[::]:3478".parse().unwrap(),
    };
    Guest { relay: Some(relay), ..guest(104, "relay-1") }
}

/// Compares with the file under `tests/guest/golden`; `UPDATE_GOLDEN=1` writes it instead.
fn golden(name: &str, text: &str) {
    let path = format!("{}/tests/guest/golden/{name}", env!("CARGO_MANIFEST_DIR"));
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, text).unwrap();
    }
    assert_eq!(text, std::fs::read_to_string(&path).unwrap(), "differs from {name}; UPDATE_GOLDEN=1 accepts it");
}

#[test]
fn every_role_renders_as_its_golden_file_and_reads_back() {
    let plain = Guest { node: Some(Node { auth_key: None, ..member() }), ..guest(103, "web") };
    let both = Guest { node: exit_node().node, ..coordinator() };
    for (name, guest) in [
        ("exit-node.toml", exit_node()),
        ("subnet-router.toml", subnet_router()),
        ("coordinator.toml", coordinator()),
        ("node.toml", plain),
        ("both.toml", both),
        ("relay.toml", relay()),
    ] {
        let text = render::guest(&guest).unwrap();
        golden(name, &text);
        assert_eq!(Guest::from_toml(&text).unwrap(), guest);
    }
}

#[test]
fn notes_render_as_their_golden_file_and_hold_no_markup_from_values() {
    let notes = Notes {
        vmid: Vmid::try_from(101).unwrap(),
        name: "exit-1".parse().unwrap(),
        role: "exit node".to_owned(),
        coordinator: "http://192.168.1.10:8080".to_owned(),
        offers: vec!["0.0.0.0/0".parse().unwrap(), "::/0".parse().unwrap(), "192.168.1.0/24".parse().unwrap()],
        version: "0.1.0".to_owned(),
        told: None,
    };
    golden("notes.md", &render::notes(&notes).unwrap());
    let hostile = Notes { role: "<script>\n# x".to_owned(), coordinator: "`|<img src=x>|\n# y`".to_owned(), ..notes.clone() };
    let text = render::notes(&hostile).unwrap();
    assert!(!text.contains("<script>") && !text.contains("\n# x") && !text.contains("\n# y"), "{text}");
    assert!(text.contains("| coordinator | `<img src=x># y` |"), "{text}");
    assert!(render::notes(&Notes { coordinator: "x".repeat(9000), ..notes }).is_err());
}

#[test]
fn a_refused_configuration_is_named_by_line_and_not_quoted() {
    let text = render::guest(&exit_node()).unwrap();
    let wrong = text.replace("auth_key = ", "auth_kay = ");
    let error = Guest::from_toml(&wrong).unwrap_err();
    assert!(error.to_string().contains("auth_kay"), "{error}");
    assert!(error.line > 1);
    for broken in [wrong, text.replace("\"golden-join-key\"", "\"golden-join-key"), text.replace("port = 41641", "port = \"many\"")] {
        assert_ne!(broken, text);
        let error = Guest::from_toml(&broken).unwrap_err();
        assert!(!format!("{error} {error:?}").contains("golden-join-key"), "{error}");
    }
}

fn hostile() -> impl Strategy<Value = String> {
    let nasty = prop::sample::select(vec![
        "\"",
        "'",
        "\n",
        "\r\n",
        "\\",
        "\u{0}",
        "\u{7f}",
        "\u{202e}",
        "\"\"\"",
        "'''",
        "{{ auth_key }}",
        "{% if x %}",
        "{#",
        "#}",
        "]\n[node]",
        "=",
        "#",
        "é",
        "💣",
        "\u{feff}",
        "\t",
    ]);
    prop_oneof![any::<String>(), prop::collection::vec(nasty, 0..6).prop_map(|parts| parts.concat())]
}

prop_compose! {
    fn any_guest()(
        vmid in 100u32..1_000_000_000, host in hostile(), interface in hostile(), v4 in any::<Option<(u32, u32)>>(), fixed in 0u8..3,
        v6 in any::<u128>(), length in 0u8..=128, servers in prop::collection::vec(any::<std::net::IpAddr>(), 0..3),
        login in hostile(), key in prop::option::of(hostile()), server_key in any::<Option<[u8; 32]>>(), port in any::<u16>(),
        endpoints in prop::collection::vec(any::<std::net::SocketAddrV4>(), 0..3), flags in any::<(bool, bool, bool)>(),
        url in hostile(), listen in any::<std::net::SocketAddrV4>(), domain in hostile(),
    ) -> Guest {
        let network = Network {
            interface,
            ipv4: match (fixed, v4) {
                (0, _) => Ipv4Setup::None,
                (_, Some((address, _))) => Ipv4Setup::Fixed(ipnet::Ipv4Net::new(address.into(), length / 4).unwrap()),
                _ => Ipv4Setup::Dhcp,
            },
            gateway4: v4.map(|(_, gateway)| gateway.into()),
            ipv6: match fixed {
                0 => Ipv6Setup::None,
                1 => Ipv6Setup::Auto,
                _ => Ipv6Setup::Fixed(ipnet::Ipv6Net::new(v6.into(), length).unwrap()),
            },
            gateway6: flags.2.then(|| v6.into()),
            nameservers: servers,
        };
        let node = Node {
            login_server: login,
            server_key: server_key.map(MachinePublic::from_bytes),
            auth_key: key.map(Secret::new),
            port,
            endpoints: endpoints.into_iter().map(Into::into).collect(),
            advertise_exit_node: flags.0,
            advertise_routes: vec!["192.168.0.0/16".parse().unwrap(), "fd00::/8".parse().unwrap()],
            accept_routes: flags.1,
            accept_dns: flags.2,
            snat_subnet_routes: flags.0,
            userspace: flags.2,
            lan_gateway: flags.2,
        };
        let (login_text, verify_url) = (url.clone(), domain.clone());
        let coordinator = Coordinator {
            relay: EmbeddedRelay { enabled: !flags.2, region: if flags.1 { 950 } else { 900 }, ..EmbeddedRelay::default() },
            front: Front {
                certificate: flags.0.then(|| CertificateFiles { chain: url.clone().into(), key: domain.clone().into() }),
                acme: flags.1.then(|| Acme { domain: domain.clone(), email: Some(url.clone()), directory: None, ca: None }),
                listen_http: flags.2.then(|| listen.into()),
                trusted_proxies: if flags.2 { vec!["10.0.0.0/8".parse().unwrap()] } else { vec![] },
            },
            url,
            listen: listen.into(),
            admin_keys: server_key.map(MachinePublic::from_bytes).into_iter().collect(),
            base_domain: domain,
        };
        let relay = Relay { hostname: login_text, verify_url, listen: listen.into(), stun: listen.into() };
        Guest {
            vmid: Vmid::try_from(vmid).unwrap(),
            hostname: NodeName::sanitised(&host),
            network,
            node: flags.0.then_some(node),
            coordinator: flags.1.then_some(coordinator),
            relay: flags.2.then_some(relay),
        }
    }
}

proptest! {
    #[test]
    fn any_settings_read_back_as_they_were(guest in any_guest()) {
        let text = render::guest(&guest).unwrap();
        prop_assert_eq!(Guest::from_toml(&text).unwrap(), guest);
    }

    #[test]
    fn a_mangled_configuration_never_panics(cut in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut bytes = render::guest(&exit_node()).unwrap().into_bytes();
        let at = cut.index(bytes.len());
        bytes[at] = byte;
        let _ = Guest::from_toml(&String::from_utf8_lossy(&bytes));
    }
}
