//! Two nodes with each other: what they see, and what crosses.

use super::{Act, Row, in_company};
use crate::member::Kind;
use crate::scene::{NAMES, Outcome, Scene, holds, with};
use crate::traffic;
use crate::wait::{secs, until};
use crate::{Done, see};

pub const ACT: Act = Act {
    name: "two nodes",
    plays: in_company,
    seconds: 40,
    rows: &[
        Row { sentence: "two nodes see each other with name, addresses and owner's suffix", play: see_each_other },
        Row { sentence: "TCP by 100.x, both ways", play: tcp4 },
        Row { sentence: "UDP by 100.x, both ways", play: udp4 },
        Row { sentence: "TCP by IPv6, both ways", play: tcp6 },
        Row { sentence: "UDP by IPv6, both ways", play: udp6 },
        Row { sentence: "`ping` answers, both ways, by a direct path", play: ping },
        Row { sentence: "`ping --tsmp` answers, both ways, inside the tunnel", play: ping_inside },
        Row { sentence: "`netcheck` finds the relays by UDP", play: netcheck },
        Row { sentence: "`status --json` warns of nothing", play: health },
    ],
};

fn see_each_other(scene: &mut Scene) -> Outcome {
    scene.acquainted(0, 1)?;
    for (a, b) in [(0, 1), (1, 0)] {
        let (own, seen) = (scene.at(b)?.status()?, scene.seen(a, b)?);
        see!(own.own()?.addresses == seen.addresses, "{} knows {} by {:?}", NAMES[a], NAMES[b], seen.addresses);
        see!(own.own()?.public_key == seen.public_key, "{} knows another key of {}", NAMES[a], NAMES[b]);
        see!(own.suffix == crate::coordinator::DOMAIN, "the suffix is {:?}", own.suffix);
    }
    holds()
}

fn crosses(scene: &mut Scene, v6: bool, send: impl Fn(&crate::machine::Machine, std::net::IpAddr) -> Done) -> Outcome {
    scene.acquainted(0, 1)?;
    for (a, b) in [(0, 1), (1, 0)] {
        let peer = scene.seen(a, b)?;
        let to = if v6 { peer.v6()? } else { peer.v4()? };
        let machine = scene.machine(a)?;
        until("it crosses", secs(10), || send(&machine, to).map(|()| true))?;
    }
    holds()
}

fn tcp4(scene: &mut Scene) -> Outcome {
    crosses(scene, false, traffic::tcp)
}

fn udp4(scene: &mut Scene) -> Outcome {
    crosses(scene, false, traffic::udp)
}

fn tcp6(scene: &mut Scene) -> Outcome {
    crosses(scene, true, traffic::tcp)
}

fn udp6(scene: &mut Scene) -> Outcome {
    crosses(scene, true, traffic::udp)
}

fn ping(scene: &mut Scene) -> Outcome {
    scene.acquainted(0, 1)?;
    for (a, b) in [(0, 1), (1, 0)] {
        let said = scene.at(a)?.ping(NAMES[b])?;
        see!(said.contains("pong") && said.contains(" via 10.7.0.") || said.contains(" via [fd99"), "ping says {said:?}");
    }
    holds()
}

fn ping_inside(scene: &mut Scene) -> Outcome {
    scene.acquainted(0, 1)?;
    for (a, b) in [(0, 1), (1, 0)] {
        let peer = scene.seen(a, b)?;
        for to in [peer.v4()?, peer.v6()?] {
            let said = scene.at(a)?.tell(&["ping", "--tsmp", "--c=3", "--timeout=3s", &to.to_string()])?;
            see!(said.contains("pong from") && said.contains(" via TSMP in "), "ping --tsmp says {said:?}");
        }
    }
    holds()
}

fn netcheck(scene: &mut Scene) -> Outcome {
    for n in [0, 1] {
        scene.joined(n)?;
        match scene.cast.kind(n) {
            Kind::Stock => {
                let said = scene.at(n)?.tell(&["netcheck"])?;
                see!(said.contains("UDP: true") && said.contains("Nearest DERP: Lab"), "netcheck says {said:?}");
            }
            Kind::Ours => until("netcheck knows the relays", secs(10), || {
                let said = scene.at(n)?.tell(&["netcheck"])?;
                let well = said.contains("UDP          yes") && said.contains("home relay   lab9") && !said.contains("no answer");
                if well { Ok(true) } else { Err(said) }
            })
            .map(drop)?,
        }
    }
    holds()
}

fn health(scene: &mut Scene) -> Outcome {
    scene.acquainted(0, 1)?;
    let mut worst = std::time::Duration::ZERO;
    for n in [0, 1] {
        let time = until("no warnings are left", secs(15), || {
            let status = scene.at(n)?.status()?;
            if status.health.is_empty() { Ok(true) } else { Err(status.health.join("; ")) }
        })?;
        worst = worst.max(time);
    }
    if worst > secs(1) { with(format!("after {}", crate::wait::seconds(worst))) } else { holds() }
}
