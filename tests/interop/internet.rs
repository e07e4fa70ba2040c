//! A stage's internet: one bridge with a name server, two stock relays, a web server, and the machines on it. No NAT.
//!
//! | | |
//! |---|---|
//! | 10.7.0.1, fd99::1 | the coordinator, the name server (it knows no name at all) |
//! | 10.7.0.2 and .3 | stock derpers, regions 901 and 902, STUN included |
//! | 10.7.0.4 and .5 | our relays, regions 903 and 904, where a row asks for them |
//! | 10.7.0.11 ... | clients |
//! | 203.0.113.80 | a web server that tells callers their address |

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::Done;
use crate::authority::{Authority, BUNDLE};
use crate::machine::{Machine, Process};
use crate::programs::Programs;
use crate::traffic;
use crate::wait::secs;

/// The coordinator's machine.
pub const CENTRE: &str = "10.7.0.1";
/// The first relay's region; clients prefer either.
pub const REGIONS: [u16; 2] = [901, 902];

/// Where the relay of a region is, in both families.
pub fn relay_addresses(region: i64) -> (String, String) {
    (format!("10.7.0.{}", region - 899), format!("fd99::{}", region - 899))
}
/// Out on the internet.
pub const WEB: &str = "203.0.113.80";
const FIRST_CLIENT: usize = 11;

#[derive(Debug)]
pub struct Internet {
    stage: String,
    home: PathBuf,
    /// The middle: bridge, coordinator, name server, web server.
    pub centre: Machine,
    pub authority: Authority,
    clients: usize,
    _services: Vec<Process>,
    _relays: Vec<Machine>,
    /// Ours, by region, each with the relay map it has printed.
    own_relays: BTreeMap<usize, (Process, Machine, Value)>,
}

impl Internet {
    pub fn new(programs: &Programs, stage: &str, home: &Path) -> Done<Self> {
        let centre = Machine::new(stage, "centre", home, CENTRE)?;
        // A fixed address: otherwise it would change with each new port, and the others would go on sending to the old one.
        centre.ip("link add br0 address 02:00:0a:07:00:01 type bridge")?;
        centre.ip(&format!("addr add {CENTRE}/24 dev br0"))?;
        centre.ip("addr add fd99::1/64 dev br0 nodad")?;
        centre.ip("link set br0 up")?;
        centre.ip(&format!("addr add {WEB}/32 dev lo"))?;
        let names = centre.home().join("dnsmasq.pid");
        let mut dns = centre.command("dnsmasq");
        dns.args(["--conf-file=/dev/null", "--no-hosts", "--no-resolv", "--keep-in-foreground", "--user=root", "--address=/#/"]);
        dns.args(["--log-queries", "--log-facility=-"]);
        dns.arg(format!("--pid-file={}", names.display()));
        let dns = centre.spawn(dns, "dnsmasq")?;
        traffic::tell_address(&centre, WEB)?;
        let mut internet = Self {
            stage: stage.to_owned(),
            home: home.to_owned(),
            authority: Authority::new(centre.home())?,
            centre,
            clients: 0,
            _services: vec![dns],
            _relays: Vec::new(),
            own_relays: BTreeMap::new(),
        };
        for (n, region) in REGIONS.iter().enumerate() {
            let relay = internet.plug(&format!("relay{region}"), 2 + n)?;
            let certificates = relay.home().join("certificates");
            std::fs::create_dir_all(&certificates).map_err(|e| e.to_string())?;
            let mut derper = relay.command(&programs.derper);
            derper.args(["-a", ":443", "-http-port", "80", "-certmode", "manual", "-hostname", &format!("10.7.0.{}", 2 + n), "-certdir"]);
            derper.arg(&certificates).arg("-c").arg(relay.home().join("derper.json"));
            let mut derper = relay.spawn(derper, "derper")?;
            derper.ready("the relay listens", secs(20), || traffic::connects(&relay, "127.0.0.1:443"))?;
            internet._services.push(derper);
            internet._relays.push(relay);
        }
        Ok(internet)
    }

    /// The addresses from which the name server has been asked for IPv4 addresses of a name.
    pub fn askers(&self, name: &str) -> Done<Vec<String>> {
        let log = std::fs::read_to_string(self.centre.home().join("dnsmasq.log")).map_err(|e| e.to_string())?;
        let asked = format!("query[A] {name} from ");
        let mut askers: Vec<String> =
            log.lines().filter_map(|line| line.split_once(&asked)).map(|(_, from)| from.trim().to_owned()).collect();
        askers.sort();
        askers.dedup();
        Ok(askers)
    }

    /// Starts a relay of ours in region 903, or 904 with a certificate of the authority's, and gives what it says of itself for the map.
    pub fn own_relay(&mut self, programs: &Programs, certified: bool) -> Done<Value> {
        let n = if certified { 5 } else { 4 };
        let (region, address) = (899 + n, format!("10.7.0.{n}"));
        let machine = self.plug(&format!("relay{region}"), n)?;
        let mut relay = machine.command(&programs.pvemesh);
        relay.args(["relay", "serve", "--hostname", &address, "--region", &region.to_string()]);
        relay.args(["--verify-url", &format!("http://{CENTRE}:{}/verify", crate::coordinator::PORT), "--state-dir"]);
        relay.arg(machine.home().join("relay"));
        if certified {
            let (chain, key) = (machine.home().join("relay.crt"), machine.home().join("relay.key"));
            self.authority.certify(&address, &chain, &key)?;
            relay.arg("--tls-cert").arg(chain).arg("--tls-key").arg(key);
        }
        let mut relay = machine.spawn(relay, "relay")?;
        let mut map = Value::Null;
        let log = relay.log.clone();
        relay.ready("the relay says where it is", secs(20), || {
            let text = std::fs::read_to_string(&log).map_err(|e| e.to_string())?;
            let said = text.find('{').zip(text.rfind('}')).and_then(|(start, end)| serde_json::from_str(&text[start..=end]).ok());
            map = said.unwrap_or_default();
            Ok(map.is_object())
        })?;
        self.own_relays.insert(region, (relay, machine, map.clone()));
        Ok(map)
    }

    /// What one of our relays says of itself: its region.
    pub fn region_of(&self, region: usize) -> Done<Value> {
        let (_, _, map) = self.own_relays.get(&region).ok_or_else(|| format!("there is no relay {region}"))?;
        Ok(map["Regions"][region.to_string()].clone())
    }

    /// Kills one of our relays.
    pub fn kill_relay(&mut self, region: usize) -> Done {
        let (relay, ..) = self.own_relays.get_mut(&region).ok_or_else(|| format!("there is no relay {region}"))?;
        relay.kill();
        Ok(())
    }

    /// A client's machine.
    pub fn client(&mut self, name: &str) -> Done<Machine> {
        self.clients += 1;
        let machine = self.plug(name, FIRST_CLIENT + self.clients - 1)?;
        std::fs::write(machine.home().join(BUNDLE), &self.authority.certificate).map_err(|e| format!("{BUNDLE}: {e}"))?;
        Ok(machine)
    }

    /// A machine on the bridge.
    fn plug(&mut self, name: &str, n: usize) -> Done<Machine> {
        let machine = Machine::new(&self.stage, name, &self.home, CENTRE)?;
        self.centre.ip(&format!("link add p{n} type veth peer name eth0 netns {}", machine.namespace()))?;
        self.centre.ip(&format!("link set p{n} master br0 up"))?;
        machine.ip(&format!("addr add 10.7.0.{n}/24 dev eth0"))?;
        machine.ip(&format!("addr add fd99::{n}/64 dev eth0 nodad"))?;
        machine.ip("link set eth0 up")?;
        machine.ip(&format!("route add default via {CENTRE}"))?;
        machine.ip("-6 route add default via fd99::1")?;
        Ok(machine)
    }

    /// A machine behind another one, at 192.168.77.2; the other is its router.
    pub fn behind(&self, router: &Machine, name: &str) -> Done<Machine> {
        let machine = Machine::new(&self.stage, name, &self.home, CENTRE)?;
        router.ip(&format!("link add lan0 type veth peer name eth0 netns {}", machine.namespace()))?;
        for (machine, link, n) in [(router, "lan0", 1), (&machine, "eth0", 2)] {
            machine.ip(&format!("addr add 192.168.77.{n}/24 dev {link}"))?;
            machine.ip(&format!("addr add fd77::{n}/64 dev {link} nodad"))?;
            machine.ip(&format!("link set {link} up"))?;
        }
        machine.ip("route add default via 192.168.77.1")?;
        machine.ip("-6 route add default via fd77::1")?;
        Ok(machine)
    }

    /// The map of the relays, as the wire has it.
    pub fn derp_map() -> Value {
        let region = |n: usize, id: u16| {
            let node = json!({
                "Name": format!("{id}a"), "RegionID": id, "HostName": format!("10.7.0.{}", 2 + n), "IPv4": format!("10.7.0.{}", 2 + n),
                "IPv6": format!("fd99::{}", 2 + n), "InsecureForTests": true, "CanPort80": true,
            });
            json!({ "RegionID": id, "RegionCode": format!("lab{id}"), "RegionName": format!("Lab {id}"), "Nodes": [node] })
        };
        let regions: serde_json::Map<String, Value> = REGIONS.iter().enumerate().map(|(n, id)| (id.to_string(), region(n, *id))).collect();
        json!({ "Regions": regions })
    }
}
