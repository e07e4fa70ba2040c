//! What a policy allows gets through, and nothing else.

use std::io::Write as _;
use std::process::{Command, Stdio};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use pvemesh::filter::{Departure, Filter, FilterConfig, Flows, Last};
use pvemesh::wire::control::FilterRule;
use serde_json::{Value, json};

use super::{Act, Row, in_company};
use crate::Done;
use crate::coordinator::Which;
use crate::member::Kind;
use crate::scene::{Clients, NAMES, Outcome, Scene, holds, with};
use crate::see;
use crate::traffic::{self, ECHO};
use crate::wait::{secs, until};

pub const ACT: Act = Act {
    name: "policy",
    plays: in_company,
    seconds: 25,
    rows: &[
        Row { sentence: "a policy opens the ports it names, both ways, and closes all others", play: ports },
        Row { sentence: "a policy for one direction lets answers through and nothing else", play: one_way },
        Row { sentence: "who is refused a connection learns from the other that its policy does", play: told },
    ],
};

pub const FILTER: Act = Act {
    name: "filter",
    plays: |cast| cast.clients == Clients::Ours && cast.coordinator == Which::Ours,
    seconds: 5,
    rows: &[
        Row { sentence: "our packet filter and tailscaled's judge 10,000 packets alike", play: alike },
        Row { sentence: "and with shields-up on both sides, where answers alone come in", play: alike_with_shields_up },
    ],
};

fn refused(what: &str, attempt: impl Fn() -> Done) -> Done {
    until(&format!("{what} is refused"), secs(10), || Ok(attempt().is_err())).map(drop)
}

fn passes(what: &str, attempt: impl Fn() -> Done) -> Done {
    until(&format!("{what} passes"), secs(10), || attempt().map(|()| true)).map(drop)
}

fn ports(scene: &mut Scene) -> Outcome {
    scene.acquainted(0, 1)?;
    scene.coordinator.set_policy(&json!([{ "action": "accept", "src": ["*"], "dst": [format!("*:{ECHO}")] }]))?;
    for (a, b) in [(0, 1), (1, 0)] {
        let (machine, peer) = (scene.machine(a)?, scene.seen(a, b)?.v4()?);
        passes(&format!("TCP from {}", NAMES[a]), || traffic::tcp(&machine, peer))?;
        passes(&format!("UDP from {}", NAMES[a]), || traffic::udp(&machine, peer))?;
    }
    scene.coordinator.set_policy(&json!([{ "action": "accept", "src": ["*"], "dst": ["*:9"] }]))?;
    for (a, b) in [(0, 1), (1, 0)] {
        let (machine, peer) = (scene.machine(a)?, scene.seen(a, b)?.v4()?);
        refused(&format!("TCP from {}", NAMES[a]), || traffic::tcp(&machine, peer))?;
        refused(&format!("UDP from {}", NAMES[a]), || traffic::udp(&machine, peer))?;
        let pinged = || machine.run(&["ping", "-c", "1", "-W", "2", &peer.to_string()]).map(drop);
        passes(&format!("ping from {}", NAMES[a]), pinged)?;
    }
    holds()
}

fn one_way(scene: &mut Scene) -> Outcome {
    scene.acquainted(0, 1)?;
    for (a, b) in [(0, 1), (1, 0)] {
        let (source, target) = (scene.coordinator.node(NAMES[a])?.addresses, scene.coordinator.node(NAMES[b])?.addresses);
        let to: Vec<String> = target.iter().filter(|address| address.is_ipv4()).map(|address| format!("{address}:*")).collect();
        scene.coordinator.set_policy(&json!([{ "action": "accept", "src": source, "dst": to }]))?;
        let (there, back) = (scene.machine(a)?, scene.machine(b)?);
        let address = |addresses: &[std::net::IpAddr]| addresses.iter().copied().find(std::net::IpAddr::is_ipv4).ok_or("no address");
        let (from, to) = (address(&source)?, address(&target)?);
        passes(&format!("TCP from {}", NAMES[a]), || traffic::tcp(&there, to))?;
        passes(&format!("UDP from {}", NAMES[a]), || traffic::udp(&there, to))?;
        refused(&format!("TCP from {}", NAMES[b]), || traffic::tcp(&back, from))?;
        refused(&format!("UDP from {}", NAMES[b]), || traffic::udp(&back, from))?;
    }
    holds()
}

fn told(scene: &mut Scene) -> Outcome {
    scene.acquainted(0, 1)?;
    scene.coordinator.set_policy(&json!([{ "action": "accept", "src": ["*"], "dst": ["*:9"] }]))?;
    for (a, b) in [(0, 1), (1, 0)] {
        let (machine, peer) = (scene.machine(a)?, scene.seen(a, b)?.v4()?);
        let log = machine.home().join("tailscaled.log");
        let kind = scene.cast.kind(a);
        until(&format!("{} is told by {}", NAMES[a], NAMES[b]), secs(15), || {
            let attempt = traffic::tcp(&machine, peer);
            see!(attempt.is_err(), "a connection came about");
            let (said, expected) = match kind {
                Kind::Ours => (scene.at(a)?.tell(&["status"])?, format!("refused by its filter: TCP {ECHO}, ")),
                // It keeps it for itself, but for a line in its log.
                Kind::Stock => (std::fs::read_to_string(&log).map_err(|e| e.to_string())?, format!("{peer}:{ECHO} rejected due to acl")),
            };
            Ok(said.contains(&expected))
        })?;
    }
    holds()
}

/// Numbers that look random, the same in every run with one seed (xorshift, Marsaglia 2003).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) as usize % sides
    }

    fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.roll(choices.len())]
    }
}

const OWN: [&str; 2] = ["100.64.0.1", "fd7a:115c:a1e0::1"];
const LAN: &str = "192.168.50.0/24";

fn rule(dice: &mut Dice) -> Value {
    let sources = ["*", "100.64.0.2", "100.64.0.2-100.64.0.5", "100.64.0.0/29", "fd7a:115c:a1e0::/125", "fd7a:115c:a1e0::3", "10.0.0.0/8"];
    let targets = ["*", OWN[0], OWN[1], LAN, "192.168.50.128/25", "fd7a:115c:a1e0::/64"];
    let ports = [(0, 65535), (22, 22), (0, 22), (20, 80), (80, 443)];
    let mut to = Vec::new();
    for _ in 0..=dice.roll(2) {
        let (first, last) = dice.of(&ports);
        to.push(json!({ "IP": dice.of(&targets), "Ports": { "First": first, "Last": last } }));
    }
    let from: Vec<&str> = (0..=dice.roll(2)).map(|_| dice.of(&sources)).collect();
    let protocols: &[i32] = dice.of(&[&[][..], &[6], &[17], &[6, 17], &[132], &[47], &[1]]);
    json!({ "SrcIPs": from, "DstPorts": to, "IPProto": protocols })
}

/// A packet, well made or not; out or in.
fn packet(dice: &mut Dice) -> (bool, Vec<u8>) {
    let out = dice.roll(4) == 0;
    let v4 = dice.roll(3) != 0;
    let body = body(dice, v4);
    let far = if v4 {
        ["100.64.0.2", "100.64.0.5", "100.64.0.9", "10.1.2.3"]
    } else {
        ["fd7a:115c:a1e0::2", "fd7a:115c:a1e0::3", "fd7a:115c:a1e0::9", "2001:db8::1"]
    };
    let near =
        if v4 { [OWN[0], "192.168.50.7", "192.168.50.200", "192.168.51.1"] } else { [OWN[1], "fd7a:115c:a1e0::7", "fe80::1", "ff02::1"] };
    let (far, near) = (dice.of(&far), dice.of(&near));
    let (from, to) = if out { (near, far) } else { (far, near) };
    let (protocol, contents) = body;
    let mut bytes = header(v4, protocol, contents.len(), from, to);
    if v4 && to == OWN[0] && dice.roll(4) == 0 {
        // A fragment: the first, one that overlaps its header, or a later one. (To elsewhere tailscaled lets later ones in.)
        let field: u16 = dice.of(&[0x2000, 1, 5, 9, 10, 11, 0x2000 | 100]);
        bytes[6..8].copy_from_slice(&field.to_be_bytes());
    }
    bytes.extend(contents);
    if dice.roll(16) == 0 {
        bytes.truncate(1 + dice.roll(bytes.len() - 1));
    }
    (out, bytes)
}

fn body(dice: &mut Dice, v4: bool) -> (u8, Vec<u8>) {
    let ports: [u16; 5] = [22, 53, 80, 443, 40_000];
    let (source, target) = (dice.of(&ports).to_be_bytes(), dice.of(&ports).to_be_bytes());
    let mut contents = [source, target].concat();
    let protocol = dice.of(&[6, 6, 17, 17, 132, if v4 { 1 } else { 58 }, 47, 2]);
    match protocol {
        6 => contents.extend([0, 0, 0, 0, 0, 0, 0, 0, 0x50, dice.of(&[0x02, 0x10, 0x12, 0x04, 0xc2]), 0, 0, 0, 0, 0, 0]),
        17 => contents.extend([0, 8, 0, 0]),
        // Not 12: tailscaled takes 18 for the parameter problem.
        1 => contents = vec![dice.of(&[0, 3, 5, 8, 11, 13]), 0, 0, 0, 0, 0, 0, 0],
        58 => contents = vec![dice.of(&[1, 2, 3, 4, 128, 129, 135]), 0, 0, 0, 0, 0, 0, 0],
        _ => contents.extend([0; 8]),
    }
    (protocol, contents)
}

fn header(v4: bool, protocol: u8, length: usize, from: &str, to: &str) -> Vec<u8> {
    let mut bytes;
    if v4 {
        let whole = u16::try_from(20 + length).unwrap().to_be_bytes();
        bytes = vec![0x45, 0, whole[0], whole[1], 0, 0, 0, 0, 64, protocol, 0, 0];
        for address in [from, to] {
            bytes.extend(address.parse::<std::net::Ipv4Addr>().unwrap().octets());
        }
    } else {
        let length = u16::try_from(length).unwrap().to_be_bytes();
        bytes = vec![0x60, 0, 0, 0, length[0], length[1], protocol, 64];
        for address in [from, to] {
            bytes.extend(address.parse::<std::net::Ipv6Addr>().unwrap().octets());
        }
    }
    bytes
}

/// Some rules and packets as both filters are asked about them.
struct Case {
    rules: Vec<FilterRule>,
    shields_up: bool,
    question: Value,
    packets: Vec<(bool, Vec<u8>)>,
}

impl Case {
    fn new(dice: &mut Dice, shields_up: bool) -> Done<Self> {
        let written: Vec<Value> = (0..dice.roll(8)).map(|_| rule(dice)).collect();
        let packets: Vec<(bool, Vec<u8>)> = (0..100).map(|_| packet(dice)).collect();
        let shown: Vec<Value> = packets.iter().map(|(out, bytes)| json!({ "Out": out, "Bytes": STANDARD.encode(bytes) })).collect();
        let networks = [&format!("{}/32", OWN[0]), &format!("{}/128", OWN[1]), LAN];
        let rules = serde_json::from_value(json!(written)).map_err(|e| e.to_string())?;
        let question = json!({ "Rules": written, "Networks": networks, "ShieldsUp": shields_up, "Packets": shown });
        Ok(Self { rules, shields_up, question, packets })
    }

    fn judged(&self) -> String {
        let filter = Filter::new(&FilterConfig {
            rules: self.rules.clone(),
            addresses: OWN.iter().map(|address| address.parse::<std::net::IpAddr>().unwrap().into()).collect(),
            subnets: vec![LAN.parse().unwrap()],
            shields_up: self.shields_up,
            ..FilterConfig::default()
        });
        let mut flows = Flows::default();
        let mut verdict = |(out, bytes): &(bool, Vec<u8>)| {
            if *out {
                if let Departure::Flow(flow) = filter.departure(bytes) {
                    flows.sent(flow);
                }
                return 'o';
            }
            if filter.admit(bytes, &mut Last::default(), |flow| flows.answers(flow)).is_ok() { 'y' } else { 'n' }
        };
        self.packets.iter().map(&mut verdict).collect()
    }
}

fn alike(scene: &mut Scene) -> Outcome {
    judge(scene, false)
}

fn alike_with_shields_up(scene: &mut Scene) -> Outcome {
    judge(scene, true)
}

fn judge(scene: &mut Scene, shields_up: bool) -> Outcome {
    const CASES: usize = 140;
    let seed = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(1, |t| t.as_secs() | 1);
    let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let cases = (0..CASES).map(|_| Case::new(&mut dice, shields_up)).collect::<Done<Vec<_>>>()?;
    let mut judge = Command::new(&scene.programs.judge);
    let mut judge = judge.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().map_err(|e| format!("judge: {e}"))?;
    let questions: String = cases.iter().map(|case| format!("{}\n", case.question)).collect();
    let mut input = judge.stdin.take().ok_or("no input")?;
    let asking = std::thread::spawn(move || input.write_all(questions.as_bytes()));
    let output = judge.wait_with_output().map_err(|e| e.to_string())?;
    asking.join().map_err(|_| "the asking panicked")?.map_err(|e| format!("ask the judge: {e}"))?;
    let answers = String::from_utf8(output.stdout).map_err(|e| e.to_string())?;
    see!(answers.lines().count() == CASES, "the judge answered {} of {CASES} cases", answers.lines().count());
    let (mut count, mut let_in, mut answers_let_in) = (0, 0, 0);
    for (case, answer) in cases.iter().zip(answers.lines()) {
        for ((ours, stock), (_, bytes)) in
            case.judged().chars().zip(answer.chars()).zip(&case.packets).filter(|((ours, _), _)| *ours != 'o')
        {
            see!(ours == stock, "seed {seed}: we say {ours}, tailscaled {stock} of {bytes:02x?} by {}", case.question["Rules"]);
            count += 1;
            let_in += usize::from(ours == 'y');
            // UDP and SCTP come in with shields-up only if something was sent before that they answer.
            answers_let_in += usize::from(ours == 'y' && matches!(bytes.get(if bytes[0] >> 4 == 4 { 9 } else { 6 }), Some(17 | 132)));
        }
    }
    see!(count >= 10_000 && let_in > 500 && let_in < count - 500, "{let_in} of {count} were let in");
    see!(answers_let_in > 20, "{answers_let_in} datagrams were let in, too few to say anything of answers");
    with(format!("{count} packets, {let_in} let in, {answers_let_in} of UDP and SCTP"))
}
