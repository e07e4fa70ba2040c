//! A node in real distributions of others: Debian with systemd, with OpenRC and with runit, each from Debian's packages.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use crate::enroll::with_coordinator;
use crate::site::{Ran, Site};
use crate::standin::lxc::until;
use crate::upgrade::good;

/// Where `make test-deps` puts them.
fn template(flavour: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("target/guests/{flavour}.tar.zst"))
}

/// A distribution, and the number of its container.
struct Guest {
    flavour: &'static str,
    id: u32,
    /// Prints something once its services have been started.
    is_up: &'static str,
    /// Prints what its service manager knows of ours, and nothing if that is nothing.
    known: &'static str,
}

static GUESTS: [Guest; 3] = [
    Guest {
        flavour: "systemd",
        id: 105,
        is_up: "systemctl is-system-running | grep -E 'running|degraded'",
        known: "systemctl list-units --all --full --no-legend 'pvemesh*'; systemctl list-unit-files --no-legend 'pvemesh*'",
    },
    Guest {
        flavour: "openrc",
        id: 106,
        is_up: "rc-status -r | grep default",
        known: "rc-status -a 2>/dev/null | grep pvemesh; rc-update show | grep pvemesh",
    },
    Guest { flavour: "runit", id: 107, is_up: "pgrep -x runsvdir", known: "pgrep -fa 'runsv [p]vemesh'; ls /etc/service/ | grep pvemesh" },
];

struct Enrolled<'a> {
    site: &'a Site,
    guest: &'static Guest,
}

impl Enrolled<'_> {
    fn id(&self) -> String {
        self.guest.id.to_string()
    }

    fn shell(&self, line: &str) -> Ran {
        self.site.pct(&["exec", &self.id(), "--", "sh", "-c", line])
    }

    fn make(&self) {
        let (flavour, id) = (self.guest.flavour, self.guest.id);
        let cache = self.site.standin.storage_dir("local").join("template/cache");
        std::fs::copy(template(flavour), cache.join(format!("debian-{flavour}.tar.zst"))).unwrap();
        let vmid = self.id();
        let template = format!("local:vztmpl/debian-{flavour}.tar.zst");
        let net = format!("name=eth0,bridge=vmbr0,ip=192.168.60.{id}/24,gw=192.168.60.1,host-managed=1");
        let params = [
            ("vmid", vmid.as_str()),
            ("ostemplate", &template),
            ("hostname", flavour),
            ("ostype", "debian"),
            ("arch", "amd64"),
            ("unprivileged", "1"),
            ("rootfs", "local-lvm:1"),
            ("memory", "512"),
            ("net0", &net),
        ];
        self.site.api("POST", "/nodes/pve/lxc", &params);
        self.start();
    }

    fn start(&self) {
        self.site.start(self.guest.id);
        self.site.wait(&format!("{} is up", self.guest.flavour), 60, || self.shell(self.guest.is_up).code == Some(0));
    }

    /// Every name below these directories but what belongs to the distribution's own running.
    fn files(&self) -> BTreeSet<String> {
        let listed = self.shell("find /etc /usr /opt /root /var/lib /var/spool | sort");
        let own = ["/var/lib/systemd", "/var/lib/private", "/etc/.updated"];
        listed.succeeded().out.lines().filter(|path| !own.iter().any(|own| path.starts_with(own))).map(str::to_owned).collect()
    }

    fn run(&self, words: &str) -> Ran {
        self.site.run(&format!("{words} --ssh root@pve"))
    }

    fn facts(&self) -> Option<Value> {
        let said = self.site.pct(&["exec", &self.id(), "--keep-env", "0", "--", "/usr/local/bin/pvemesh", "node", "self-check"]);
        serde_json::from_str(&said.out).ok()
    }

    fn connected(&self) -> bool {
        let online = self.site.nodes().as_array().unwrap().iter().any(|node| node["name"] == self.guest.flavour && node["online"] == true);
        online && self.facts().is_some_and(|facts| facts["node"]["coordinator_online"] == true)
    }

    fn await_connected(&self, when: &str) {
        if !until(Duration::from_secs(60), || self.connected()) {
            let around =
                self.shell("cat /var/lib/pvemesh/log; journalctl -u pvemesh -n 40 --no-pager; ls -l /dev/net; ip addr; ip route; ps ax");
            panic!("{} is not connected {when}: {:#?}\n{}{}", self.guest.flavour, self.facts(), around.out, around.err);
        }
    }

    /// A service that does not start; everything is as it was then.
    fn fails_to_start(&self) {
        let (breaks, mends) = match self.guest.flavour {
            "systemd" => (
                "mkdir -p /etc/systemd/system/pvemesh.service.d; printf '[Service]\\nExecStartPre=/bin/false\\nRestart=no\\n' > /etc/systemd/system/pvemesh.service.d/x.conf",
                "rm -r /etc/systemd/system/pvemesh.service.d; systemctl daemon-reload",
            ),
            "openrc" => ("mkdir -p /etc/conf.d; echo 'rc_need=nobody' > /etc/conf.d/pvemesh", "rm -r /etc/conf.d"),
            _ => return,
        };
        self.shell(breaks).succeeded();
        let before = self.files();
        let failed = self.run(&format!("enroll {}", self.guest.id));
        failed.failed(1, &["start the service", "what had been made was taken back"]);
        assert_eq!(self.files(), before);
        assert_eq!(self.shell("pgrep -fa '[p]vemesh.node.run'").out, "");
        self.shell(mends).succeeded();
    }

    fn put_in(&self) -> String {
        let made = self.run(&format!("enroll {} --json", self.guest.id));
        let report = made.succeeded().json();
        let service = report["choices"].as_array().unwrap().iter().find(|choice| choice["what"] == "service").unwrap();
        assert_eq!(service["value"], self.guest.flavour);
        self.await_connected("when put in");
        report["mesh_addresses"][0].as_str().unwrap().to_owned()
    }

    fn reaches(&self, address: &str) {
        let pid = self.site.standin.pid(self.guest.id).unwrap().to_string();
        let ping =
            || Command::new("nsenter").args(["-t", &pid, "-n", "ping", "-c1", "-W2", "-q", address]).output().unwrap().status.success();
        self.site.wait(&format!("{} reaches {address}", self.guest.flavour), 30, ping);
    }

    fn lives(&self) {
        let id = self.guest.id;
        assert_eq!(self.run(&format!("enroll {id} --json")).succeeded().json()["changed"], json!(false));
        let said = self.run(&format!("logs {id} --lines 60"));
        assert!(said.succeeded().out.contains("the node runs"), "{said:?}");

        self.site.stop(id);
        self.start();
        self.await_connected("after a restart of its container");

        // Whatever ends the process, it comes back.
        let first = self.shell("pgrep -f '[p]vemesh.node.run'").succeeded().out.clone();
        self.shell("pkill -KILL -f '[p]vemesh.node.run'").succeeded();
        self.site.wait("another process is there", 30, || {
            let now = self.shell("pgrep -f '[p]vemesh.node.run'").out;
            !now.is_empty() && now != first
        });
        self.await_connected("after its process was killed");

        let old = self.facts().unwrap();
        let new = good(self.site, self.guest.flavour);
        let done = self.run(&format!("upgrade {id} --to {} --json", new.display()));
        assert_eq!(done.succeeded().json()["guests"][0]["outcome"], "upgraded");
        let after = self.facts().unwrap();
        assert_ne!(after["program"]["running"], old["program"]["running"]);
        assert_eq!((&after["program"]["installed"], &after["program"]["trial"]), (&after["program"]["running"], &json!(false)));

        let keys = self.run(&format!("rekey {id} --json"));
        assert_eq!(keys.succeeded().json()["name"], self.guest.flavour);
        self.await_connected("with new keys");
        assert_ne!(self.facts().unwrap()["node"]["key"], old["node"]["key"]);

        let route = format!("10.{id}.0.0/16");
        self.run(&format!("enroll {id} --route {route}")).succeeded();
        self.site.wait("the route is carried", 30, || {
            let nodes = self.site.nodes();
            nodes.as_array().unwrap().iter().any(|node| node["name"] == self.guest.flavour && node["carried_routes"] == json!([route]))
        });
    }

    fn taken_out(&self, before: &BTreeSet<String>) {
        self.run(&format!("unenroll {} --yes", self.guest.id)).succeeded();
        let after = self.files();
        let left: Vec<_> = after.symmetric_difference(before).collect();
        assert!(left.is_empty(), "{}: {left:?}", self.guest.flavour);
        assert_eq!(
            self.shell("pgrep -fa '[p]vemesh.node|sv/[p]vemesh|runsv [p]vemesh|supervise.*[p]vemesh'").out,
            "",
            "{}",
            self.guest.flavour
        );
        assert_eq!(self.shell(self.guest.known).out, "", "{}", self.guest.flavour);
        assert_eq!(self.shell("ls -d /run/pvemesh* /run/*/pvemesh* /run/*/*/pvemesh* 2>/dev/null").out, "", "{}", self.guest.flavour);
        // Nor does anything of it come back.
        self.site.stop(self.guest.id);
        self.start();
        assert_eq!(self.shell("pgrep -fa '[p]vemesh'").out, "", "{}", self.guest.flavour);
    }
}

#[test]
fn a_node_lives_under_every_service_manager() {
    if let Some(absent) = GUESTS.iter().find(|guest| !template(guest.flavour).exists()) {
        println!("skipped: Debian with {} is not there (make test-deps makes it, from Debian's packages)", absent.flavour);
        return;
    }
    let Some(site) = with_coordinator() else { return };
    let put_in = together(&site, &|this| {
        this.make();
        let before = this.files();
        this.fails_to_start();
        (before, this.put_in())
    });
    together(&site, &|this| {
        let others = put_in.iter().filter(|(id, _)| **id != this.guest.id);
        others.for_each(|(_, (_, address))| this.reaches(address));
    });
    together(&site, &|this| {
        this.lives();
        this.taken_out(&put_in[&this.guest.id].0);
    });
    assert_eq!(site.nodes(), json!([]));
}

/// Does this in all guests at once, for most of the time each waits for something; gives what came of it.
fn together<T: Send>(site: &Site, work: &(dyn Fn(&Enrolled<'_>) -> T + Sync)) -> BTreeMap<u32, T> {
    std::thread::scope(|scope| {
        let at_work: Vec<_> = GUESTS.iter().map(|guest| (guest, scope.spawn(move || work(&Enrolled { site, guest })))).collect();
        let ended: Vec<_> = at_work.into_iter().map(|(guest, thread)| (guest, thread.join())).collect();
        ended.into_iter().map(|(guest, done)| (guest.id, done.unwrap_or_else(|_| panic!("{} failed, see above", guest.flavour)))).collect()
    })
}
