//! The router against the kernel: what it sets, that it is idempotent, and that it leaves nothing.

use std::io::{BufRead as _, BufReader};
use std::process::Stdio;

use pvemesh::node::RouterConfig;
use pvemesh::sys::router::{Changed, Router, RouterError, clean_leftovers, is_interface_name};

use crate::netns::{Netns, assert_same, has, root};

const TUN: &str = "pvemesh0";

fn config(routes: &[&str], local: &[&str], forward: bool) -> RouterConfig {
    let nets = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
    RouterConfig {
        interface: TUN.to_owned(),
        addresses: nets(&["100.64.0.1/32", "fd7a:115c:a1e0::1/128"]),
        routes: nets(routes),
        local_routes: nets(local),
        lan_first: true,
        forward,
        masquerade: forward,
        lan_gateway: false,
        shields_up: false,
        mtu: 1280,
    }
}

/// A machine on a LAN with strict reverse-path checks, and its TUN.
fn machine() -> Netns {
    let netns = Netns::new("host");
    netns.run("ip link add eth0 type veth peer name lan0 && ip link set lan0 up && ip link set eth0 up && ip addr add 192.168.1.2/24 dev eth0 && ip route add default via 192.168.1.1");
    netns.run("ip addr add 2001:db8::2/64 dev eth0 nodad && ip -6 route add default via 2001:db8::1");
    netns.run("for d in eth0 all; do echo 1 > /proc/sys/net/ipv4/conf/$d/rp_filter; done; echo 1 > /proc/sys/net/ipv6/conf/eth0/accept_ra");
    netns.run(&format!("ip tuntap add mode tun {TUN}"));
    netns
}

#[test]
fn apply_sets_up_a_node_and_clear_leaves_the_machine_as_it_was() {
    if !root() || !has("nft") {
        return;
    }
    let netns = machine();
    // Up and at its MTU beforehand: link state and MTU are the engine's interface's own and go away with it.
    netns.run(&format!("ip link set {TUN} mtu 1280 up; echo 1 > /proc/sys/net/ipv6/conf/{TUN}/addr_gen_mode; ip -6 addr flush dev {TUN}"));
    netns.run("mkdir -p /run/pvemesh");
    let before = netns.dump();
    netns.enter(async || {
        let mut router = Router::new().await.unwrap();
        router
            .apply(&config(&["100.64.0.2/32", "fd7a:115c:a1e0::2/128", "0.0.0.0/0", "::/0", "10.0.0.0/8"], &["10.1.0.0/16"], true))
            .await
            .unwrap();

        let rules = netns.run("ip rule; ip -6 rule");
        for rule in [
            "5210:\tfrom all fwmark 0x80000/0xff0000 lookup main proto 52",
            "5230:\tfrom all fwmark 0x80000/0xff0000 lookup default proto 52",
            "5250:\tfrom all fwmark 0x80000/0xff0000 unreachable proto 52",
            "5260:\tfrom all lookup main suppress_prefixlength 7 proto 52",
            "5270:\tfrom all lookup 52 proto 52",
        ] {
            assert_eq!(rules.matches(rule).count(), 2, "{rule} in both families:\n{rules}");
        }
        assert!(rules.contains("to 100.64.0.0/10 lookup 52 suppress_prefixlength 0"), "{rules}");
        let routes = netns.run("ip route show table 52; ip -6 route show table 52");
        for route in [
            "default dev pvemesh0",
            "10.0.0.0/8 dev pvemesh0",
            "100.64.0.2 dev pvemesh0",
            "throw 10.1.0.0/16",
            "fd7a:115c:a1e0::2 dev pvemesh0",
        ] {
            assert!(routes.contains(route), "{route}:\n{routes}");
        }
        assert_eq!(routes.matches("default dev pvemesh0").count(), 2, "{routes}");
        // The LAN is reached directly, the internet and the mesh through the tunnel, marked packets beside it.
        let way = |to: &str| netns.run(&format!("ip route get {to}"));
        assert!(way("192.168.1.77").contains("dev eth0"));
        assert!(way("198.51.100.1").contains("dev pvemesh0"));
        assert!(way("100.64.0.2").contains("dev pvemesh0"));
        assert!(way("10.2.0.1").contains("dev pvemesh0"));
        assert!(way("10.1.0.1").contains("dev eth0"), "{}", way("10.1.0.1"));
        assert!(way("198.51.100.1 mark 0x80000").contains("dev eth0"));
        assert!(way("2001:db8:5::1").contains("dev pvemesh0"));
        assert!(way("2001:db8::77").contains("dev eth0"));
        assert!(way("2001:db8:5::1 mark 0x80000").contains("dev eth0"));
        let sysctl = |path: &str| netns.run(&format!("cat /proc/sys/net/{path}")).trim().to_owned();
        assert_eq!(sysctl("ipv4/ip_forward") + &sysctl("ipv6/conf/all/forwarding"), "11");
        assert_eq!(sysctl("ipv6/conf/eth0/accept_ra") + &sysctl("ipv4/conf/eth0/rp_filter"), "22");
        assert!(netns.run("ip -6 route show default").contains("2001:db8::1"), "forwarding lost the IPv6 default route");
        let ruleset = netns.run("nft list ruleset");
        for line in [
            "oifname \"pvemesh0\" tcp flags syn tcp option maxseg size set rt mtu",
            "iifname \"pvemesh0\" meta mark set meta mark & 0xff04ffff | 0x00040000",
            "oifname != \"pvemesh0\" meta mark & 0x00ff0000 == 0x00040000 masquerade",
            "type filter hook forward priority filter; policy accept;",
            "type nat hook postrouting priority srcnat; policy accept;",
        ] {
            assert!(ruleset.contains(line), "{line}:\n{ruleset}");
        }

        // Again: nothing changes. With less: the rest goes.
        let full = netns.dump();
        let changed = router
            .apply(&config(&["100.64.0.2/32", "fd7a:115c:a1e0::2/128", "0.0.0.0/0", "::/0", "10.0.0.0/8"], &["10.1.0.0/16"], true))
            .await
            .unwrap();
        assert!(changed.is_nothing(), "{changed}");
        assert_same(&full, &netns.dump());
        router.apply(&config(&["100.64.0.3/32"], &[], false)).await.unwrap();
        let routes = netns.run("ip route show table 52; ip -6 route show table 52");
        assert!(routes.lines().count() == 1 && routes.starts_with("100.64.0.3 dev pvemesh0 proto 52 scope link"), "{routes}");
        assert_eq!(netns.run("nft list ruleset"), "");
        assert_eq!(sysctl("ipv4/ip_forward") + &sysctl("ipv4/conf/eth0/rp_filter"), "01");
        // What somebody removed is repaired.
        netns.run("ip rule del pref 5270; ip route flush table 52");
        router.apply(&config(&["100.64.0.3/32"], &[], true)).await.unwrap();
        assert!(netns.run("ip rule").contains("5270:"));
        assert!(netns.run("ip route show table 52").contains("100.64.0.3 dev pvemesh0"));
        router.clear().await.unwrap();
        netns.run(&format!("ip addr flush dev {TUN}"));
    });
    assert_same(&before, &netns.dump());
}

#[test]
fn mesh_addresses_win_over_a_carriers_block_and_an_exit_node_over_other_vpns_halves_but_never_over_the_lan() {
    if !root() {
        return;
    }
    let netns = machine();
    // A modem whose local network is the whole block, another VPN's halves, a LAN that lies inside an accepted route.
    netns.run("ip addr add 100.100.0.2/10 dev eth0; ip route add 0.0.0.0/1 via 192.168.1.9; ip route add 128.0.0.0/1 via 192.168.1.9");
    netns.run("ip -6 route add 2000::/3 via 2001:db8::9");
    netns.enter(async || {
        let mut router = Router::new().await.unwrap();
        let routes = ["100.64.0.2/32", "fd7a:115c:a1e0::2/128", "192.168.0.0/16", "192.168.1.77/32", "0.0.0.0/0", "::/0"];
        router.apply(&config(&routes, &[], false)).await.unwrap();
        let way = |to: &str| netns.run(&format!("ip route get {to}"));
        for (to, device) in [
            ("100.64.0.2", "pvemesh0"),
            ("100.100.0.1", "eth0"),
            ("192.168.1.77", "eth0"),
            ("192.168.2.77", "pvemesh0"),
            ("9.9.9.9", "pvemesh0"),
            ("203.0.113.9", "pvemesh0"),
            ("2a00::1", "pvemesh0"),
            ("fd7a:115c:a1e0::2", "pvemesh0"),
            ("9.9.9.9 mark 0x80000", "eth0"),
        ] {
            assert!(way(to).contains(&format!("dev {device}")), "{to}: {}", way(to));
        }
        router.clear().await.unwrap();
        assert!(way("100.64.0.2").contains("dev eth0"));
    });
}

#[test]
fn a_changed_kind_of_route_replaces_the_old_one_in_both_families() {
    if !root() {
        return;
    }
    let netns = machine();
    netns.enter(async || {
        let mut router = Router::new().await.unwrap();
        for (routes, local, words) in
            [(vec!["10.0.0.0/8", "fd00::/8"], vec![], "dev pvemesh0"), (vec![], vec!["10.0.0.0/8", "fd00::/8"], "throw")]
        {
            for _ in 0..2 {
                router.apply(&config(&routes, &local, false)).await.unwrap();
                for family in ["-4", "-6"] {
                    let listed = netns.run(&format!("ip {family} route show table 52"));
                    assert_eq!(listed.lines().count(), 1, "{listed}");
                    assert!(listed.contains(words), "{listed}");
                }
            }
        }
        router.clear().await.unwrap();
    });
}

/// Tells the test below to be the node that gets killed.
const VICTIM: &str = "PVEMESH_TEST_ROUTER_VICTIM";

#[test]
fn a_killed_node_leaves_nothing_after_cleaning_and_other_programs_rules_stay() {
    if std::env::var_os(VICTIM).is_some() {
        return victim();
    }
    if !root() || !has("nft") {
        return;
    }
    let netns = machine();
    netns.run("ip rule add pref 5205 lookup main; ip route add 10.9.0.0/16 dev eth0 table 52; ip rule add pref 5271 lookup 52");
    netns.run(&format!("ip link del {TUN}"));
    let before = netns.dump();
    let name = "router::a_killed_node_leaves_nothing_after_cleaning_and_other_programs_rules_stay";
    let program = std::env::current_exe().unwrap().display().to_string();
    let mut node = netns.command(&program).args(["--exact", name, "--nocapture"]).env(VICTIM, "1").stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(node.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains("set up")), "the node did not come up");
    let full = netns.dump();
    assert!(full.contains("5270:") && full.contains("masquerade") && full.contains("dev pvemesh0 table 52"), "{full}");
    // `ip netns exec` has become the program, so this is the node.
    node.kill().unwrap();
    node.wait().unwrap();
    let left = netns.dump();
    assert!(left.contains("5270:") && !left.contains("masquerade") && !left.contains("pvemesh0"), "{left}");
    netns.enter(async || clean_leftovers(TUN).await.unwrap());
    assert_same(&before, &netns.dump());
    netns.enter(async || clean_leftovers(TUN).await.unwrap());
    assert_same(&before, &netns.dump());
}

fn victim() {
    let mut device = tun::Configuration::default();
    device.tun_name(TUN);
    let _device = tun::create(&device).unwrap();
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
        let mut router = Router::new().await.unwrap();
        router.apply(&config(&["100.64.0.2/32", "0.0.0.0/0", "::/0"], &["10.1.0.0/16"], true)).await.unwrap();
        println!("set up");
        std::future::pending::<()>().await;
    });
}

#[test]
fn a_plain_table_left_by_an_older_kernel_is_replaced_and_removed() {
    if !root() || !has("nft") {
        return;
    }
    let netns = machine();
    netns.run("nft add table inet pvemesh; nft add chain inet pvemesh stale; nft add table inet other");
    netns.enter(async || {
        let mut router = Router::new().await.unwrap();
        router.apply(&config(&[], &[], true)).await.unwrap();
        let ruleset = netns.run("nft list ruleset");
        assert!(!ruleset.contains("stale") && ruleset.contains("masquerade"), "{ruleset}");
        drop(router);
        assert!(netns.run("nft list tables").contains("pvemesh"), "an unowned table stays after a kill");
        clean_leftovers(TUN).await.unwrap();
    });
    assert_eq!(netns.run("nft list tables").trim(), "table inet other");
}

#[test]
fn a_table_without_an_owner_that_another_program_takes_away_is_noticed_and_put_back() {
    if !root() || !has("nft") {
        return;
    }
    let netns = machine();
    netns.enter(async || {
        for harm in ["nft flush ruleset", "nft flush table inet pvemesh", "nft delete table inet pvemesh"] {
            // A table that is there already cannot get an owner, as none can on old kernels.
            netns.run("nft add table inet pvemesh");
            let mut router = Router::new().await.unwrap();
            router.apply(&config(&[], &[], true)).await.unwrap();
            assert!(router.apply(&config(&[], &[], true)).await.unwrap().is_nothing());
            assert!(!netns.run("nft list ruleset").contains("flags owner"));
            netns.run(harm);
            let changed = router.apply(&config(&[], &[], true)).await.unwrap();
            assert_eq!(changed, Changed { firewall: true, ..Changed::default() }, "{harm}");
            let ruleset = netns.run("nft list ruleset");
            assert!(ruleset.contains("iifname \"pvemesh0\" meta mark set") && ruleset.contains("masquerade"), "{harm}: {ruleset}");
            assert!(router.apply(&config(&[], &[], true)).await.unwrap().is_nothing());
            router.clear().await.unwrap();
        }
    });
}

#[test]
fn a_second_node_in_the_same_network_is_told_so_and_changes_nothing() {
    if !root() {
        return;
    }
    let netns = machine();
    netns.enter(async || {
        let mut first = Router::new().await.unwrap();
        first.apply(&config(&[], &[], true)).await.unwrap();
        let table = netns.run("nft list table inet pvemesh");
        let error = Router::new().await.unwrap().apply(&config(&[], &[], true)).await.unwrap_err();
        assert!(error.to_string().contains("another process"), "{error}");
        assert_eq!(netns.run("nft list table inet pvemesh"), table);
        first.clear().await.unwrap();
    });
}

#[test]
fn a_machine_without_ipv6_gets_ipv4_alone() {
    if !root() {
        return;
    }
    let netns = Netns::new("v4only");
    netns.run(&format!("sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1; ip tuntap add mode tun {TUN}"));
    netns.enter(async || {
        let mut router = Router::new().await.unwrap();
        router.apply(&config(&["100.64.0.2/32", "fd7a:115c:a1e0::2/128"], &[], false)).await.unwrap();
        assert!(netns.run("ip route show table 52").contains("100.64.0.2"));
        router.clear().await.unwrap();
    });
    assert_eq!(netns.run("ip route show table 52"), "");
}

#[test]
fn a_missing_interface_and_an_impossible_name_are_told() {
    for name in ["", "..", "a/b", "../../x", "sixteen-letters-", "a b", "a\n"] {
        assert!(!is_interface_name(name), "{name:?}");
    }
    if !root() {
        return;
    }
    let netns = Netns::new("none");
    netns.enter(async || {
        let mut router = Router::new().await.unwrap();
        assert!(matches!(router.apply(&config(&[], &[], false)).await, Err(RouterError::NoInterface(_))));
        let hostile = RouterConfig { interface: "../../../tmp".to_owned(), ..config(&[], &[], true) };
        assert!(matches!(router.apply(&hostile).await, Err(RouterError::Name(_))));
    });
}
