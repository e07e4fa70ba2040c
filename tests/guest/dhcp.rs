//! The DHCP client against a real server, dnsmasq.

use std::process::{Child, Stdio};
use std::time::Duration;

use pvemesh::sys::dhcp::{Client, Event};

use crate::netns::{Netns, has, root, wait_for};

/// A LAN: a host with the server, a guest with the client, and the server's files.
pub(crate) struct Lan {
    pub(crate) guest: Netns,
    pub(crate) host: Netns,
    directory: tempfile::TempDir,
    server: Option<Child>,
}

impl Lan {
    pub(crate) fn new() -> Self {
        let (host, guest) = (Netns::new("dhcpd"), Netns::new("dhcpc"));
        host.run(&format!(
            "ip link add lan0 type veth peer name eth0 netns {} && ip link set lan0 up && ip addr add 192.168.77.1/24 dev lan0",
            guest.name
        ));
        Self { guest, host, directory: tempfile::tempdir().unwrap(), server: None }
    }

    /// Starts dnsmasq; `options` are further arguments.
    pub(crate) fn serve(&mut self, range: &str, options: &[&str]) {
        let file = |name: &str| self.directory.path().join(name).display().to_string();
        let mut command = self.host.command("dnsmasq");
        command.args([
            "--keep-in-foreground",
            "--conf-file=/dev/null",
            "--port=0",
            "--interface=lan0",
            "--bind-interfaces",
            "--no-ping",
            "--user=root",
        ]);
        command
            .arg(format!("--dhcp-leasefile={}", file("leases")))
            .arg(format!("--pid-file={}", file("pid")))
            .arg(format!("--dhcp-range={range}"));
        self.server = Some(command.args(options).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
        wait_for("dnsmasq to listen", 5, || self.host.run("ss -lnu").contains(":67").then_some(()));
    }

    pub(crate) fn leases(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("leases")).unwrap_or_default()
    }

    fn stop(&mut self) {
        if let Some(mut server) = self.server.take() {
            // `ip netns exec` becomes the program, so this is dnsmasq itself.
            let _ = server.kill();
            let _ = server.wait();
        }
    }
}

impl Drop for Lan {
    fn drop(&mut self) {
        self.stop();
    }
}

fn hardware(netns: &Netns) -> [u8; 6] {
    let text = netns.run("cat /sys/class/net/eth0/address");
    let bytes: Vec<u8> = text.trim().split(':').map(|pair| u8::from_str_radix(pair, 16).unwrap()).collect();
    bytes.try_into().unwrap()
}

#[test]
fn a_lease_is_got_from_a_real_server_even_if_it_starts_later() {
    if !root() || !has("dnsmasq") {
        return;
    }
    let mut lan = Lan::new();
    lan.guest.run("ip link set eth0 up");
    let mac = hardware(&lan.guest);
    let name = lan.guest.name.clone();
    std::thread::scope(|scope| {
        let lan = &mut lan;
        let client = scope.spawn(move || {
            let netns = std::fs::File::open(format!("/run/netns/{name}")).unwrap();
            use std::os::fd::AsFd as _;
            rustix::thread::move_into_link_name_space(netns.as_fd(), Some(rustix::thread::LinkNameSpaceType::Network)).unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let mut client = Client::start("eth0", mac, "guest-1".parse().unwrap(), [1; 32]).await.unwrap();
                tokio::time::timeout(Duration::from_secs(20), client.next()).await.unwrap()
            })
        });
        lan.serve("192.168.77.50,192.168.77.60,255.255.255.0,120", &["--dhcp-option=6,192.168.77.1,9.9.9.9", "--domain=home.arpa"]);
        let Event::Bound(lease) = client.join().unwrap() else { panic!("no lease") };
        assert!("192.168.77.0/24".parse::<ipnet::Ipv4Net>().unwrap().contains(&lease.address.addr()));
        assert_eq!((lease.address.prefix_len(), lease.router), (24, Some("192.168.77.1".parse().unwrap())));
        assert_eq!(lease.nameservers, ["192.168.77.1".parse::<std::net::Ipv4Addr>().unwrap(), "9.9.9.9".parse().unwrap()]);
        assert_eq!((lease.domain.as_deref(), lease.length), (Some("home.arpa"), Some(Duration::from_secs(120))));
        assert!(lan.leases().contains("guest-1"), "{}", lan.leases());
    });
}
