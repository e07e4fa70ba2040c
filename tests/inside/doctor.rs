//! What doctor names in real containers.

use std::process::Command;

use crate::enroll::with_coordinator;
use crate::site::Site;

fn codes(site: &Site, words: &str, exit: i32) -> Vec<String> {
    let ran = site.run(&format!("doctor {words} --ssh root@pve --json"));
    assert_eq!(ran.code, Some(exit), "{ran:?}");
    let mut codes: Vec<String> =
        ran.json()["findings"].as_array().unwrap().iter().map(|finding| finding["code"].as_str().unwrap().to_owned()).collect();
    codes.sort();
    codes
}

/// Runs a command of this machine in the network of a container.
fn in_network(site: &Site, id: u32, words: &[&str]) {
    let pid = site.standin.pid(id).unwrap().to_string();
    let status = Command::new("nsenter").args(["-t", &pid, "-n"]).args(words).status().unwrap();
    assert!(status.success(), "{words:?}");
}

/// The node's process of a container, seen from here.
fn node_process(site: &Site, id: u32) -> String {
    let name = format!("{}-{id}", site.namespace);
    let found = std::fs::read_dir("/proc").unwrap().flatten().find_map(|entry| {
        let line = std::fs::read(entry.path().join("cmdline")).ok()?;
        let groups = std::fs::read_to_string(entry.path().join("cgroup")).ok()?;
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        (groups.contains(&name) && line.contains("node run")).then(|| entry.file_name().to_string_lossy().into_owned())
    });
    found.expect("the node runs")
}

#[test]
fn what_is_wrong_in_a_real_container_is_named() {
    let Some(site) = with_coordinator() else { return };
    site.run("create-exit-node 101 --name exit-1 --ip 192.168.60.101/24 --gw 192.168.60.1 --ip6 none --dns 192.168.60.1").succeeded();
    assert_eq!(codes(&site, "101", 0), Vec::<String>::new());
    // Without a way in, that is said and is no fault.
    let blind = site.run("doctor 101 --json");
    assert_eq!(blind.succeeded().json()["findings"][0]["code"], "not-entered");
    site.run("doctor 777").failed(5, &["no guest 777"]);

    in_network(&site, 101, &["ip", "link", "set", "eth0", "mtu", "1300"]);
    assert_eq!(codes(&site, "101", 1), ["mtu-small"]);
    in_network(&site, 101, &["ip", "link", "set", "eth0", "mtu", "1500"]);

    // A node that hangs puts nothing right any more.
    let pid = node_process(&site, 101);
    Command::new("kill").args(["-STOP", &pid]).status().unwrap();
    in_network(&site, 101, &["sh", "-c", "echo 0 > /proc/sys/net/ipv4/ip_forward"]);
    std::fs::write(site.rootfs(101, "/etc/resolv.conf"), "# nothing\n").unwrap();
    let found = codes(&site, "101", 1);
    for code in ["node-down", "forwarding-off", "dns-none"] {
        assert!(found.iter().any(|c| c == code), "{code}: {found:?}");
    }
    Command::new("kill").args(["-CONT", &pid]).status().unwrap();

    // A clone runs beside the original. (Proxmox clones what runs from snapshots only.)
    site.stop(101);
    site.api("POST", "/nodes/pve/lxc/101/clone", &[("newid", "201"), ("hostname", "copy"), ("full", "1")]);
    site.start(101);
    site.start(201);
    site.wait("the copy says who it is", 30, || codes_any(&site).iter().any(|c| c == "copied"));
    let all = codes_any(&site);
    println!("with a clone: {all:?}");
    site.stop(201);

    without_nftables(&site);

    // Its device is taken away.
    site.api("PUT", "/nodes/pve/lxc/101/config", &[("delete", "dev0")]);
    site.stop(101);
    assert!(codes_any(&site).iter().any(|c| c == "stopped"));
    site.start(101);
    site.wait("the missing device is named", 20, || codes_any(&site).iter().any(|c| c == "tun-missing"));
    site.run("doctor 101 --ssh root@pve").failed(1, &["found"]);
}

/// The container's programs get no netfilter socket, as on a kernel that has none to give.
fn without_nftables(site: &Site) {
    let usual = std::fs::read_to_string("/usr/share/lxc/config/common.seccomp").unwrap();
    let profile = site.path("no-netfilter.seccomp");
    // socket(AF_NETLINK, ..., NETLINK_NETFILTER) ends with EPROTONOSUPPORT.
    std::fs::write(&profile, usual + "\nsocket errno 93 [0,16,SCMP_CMP_EQ] [2,12,SCMP_CMP_EQ]\n").unwrap();
    site.standin.edit(101, |config| config.add_raw("lxc.seccomp.profile", &profile.display().to_string()));
    site.stop(101);
    site.start(101);
    site.wait("the missing packet filter is named", 30, || codes_any(site).iter().any(|code| code == "no-nftables"));
    let ran = site.run("doctor 101 --ssh root@pve --json");
    let findings = ran.json()["findings"].as_array().unwrap().clone();
    let found = findings.iter().find(|finding| finding["code"] == "no-nftables").unwrap();
    assert!(
        ran.code == Some(1) && found["severity"] == "fault" && found["what"].as_str().unwrap().contains("the kernel has no nf_tables"),
        "{found}"
    );
    assert!(found["fix"].as_str().unwrap().contains("modprobe nf_tables"), "{found}");
    site.standin.edit(101, |config| config.drop_raw("lxc.seccomp.profile"));
    site.stop(101);
    site.start(101);
    site.wait("it is well again", 30, || !codes_any(site).iter().any(|code| code == "no-nftables" || code == "node-down"));
}

fn codes_any(site: &Site) -> Vec<String> {
    let ran = site.run("doctor --ssh root@pve --json");
    ran.json()["findings"].as_array().unwrap().iter().map(|finding| finding["code"].as_str().unwrap().to_owned()).collect()
}
