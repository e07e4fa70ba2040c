//! Where no direct way is: through stock derper and through our relay.

use serde_json::Value;

use super::{Act, Row, in_company};
use crate::coordinator::Which;
use crate::internet::Internet;
use crate::scene::{NAMES, Outcome, Scene, holds, with};
use crate::wait::{secs, until};
use crate::{Done, see, traffic};

pub const ACT: Act = Act {
    name: "relays",
    plays: |cast| in_company(cast) && cast.coordinator == Which::Ours,
    seconds: 45,
    rows: &[
        Row { sentence: "stock derper carries TCP and UDP where no direct way is", play: derper },
        Row { sentence: "our relay does, known by the certificate that the relay map names (`sha256-raw`)", play: pinned },
        Row { sentence: "our relay does, by a certificate that an authority vouches for", play: certified },
        Row { sentence: "`netcheck` finds our relay by STUN", play: netcheck },
        Row { sentence: "a relay that is killed is left for another region's", play: killed },
    ],
};

/// Stock clients whose home is gone from the map take their time.
const LIMIT: std::time::Duration = secs(60);

/// STUN and DNS pass, nothing else by UDP.
const APART: &str = "table inet apart { chain out { type filter hook output priority 0; oifname eth0 udp dport != { 53, 3478 } drop; }; }";

/// Both are there and cannot reach each other.
fn apart(scene: &mut Scene) -> Done {
    for n in [0, 1] {
        scene.joined(n)?;
        let machine = scene.machine(n)?;
        if machine.run(&["nft", "list", "table", "inet", "apart"]).is_err() {
            machine.run(&["nft", APART])?;
        }
    }
    scene.acquainted(0, 1)
}

/// Everything crosses, and both clients say that this relay carries it.
fn carried(scene: &mut Scene, code: &str) -> Outcome {
    apart(scene)?;
    let mut worst = std::time::Duration::ZERO;
    for (a, b) in [(0, 1), (1, 0)] {
        let (machine, to) = (scene.machine(a)?, scene.seen(a, b)?.v4()?);
        let time = until(&format!("it crosses by {code}"), LIMIT, || {
            traffic::tcp(&machine, to)?;
            traffic::udp(&machine, to)?;
            let said = scene.at(a)?.ping(NAMES[b]).unwrap_or_else(|said| said);
            if said.contains(code) { Ok(true) } else { Err(said) }
        })?;
        worst = worst.max(time);
    }
    with(format!("after {}", crate::wait::seconds(worst)))
}

fn derper(scene: &mut Scene) -> Outcome {
    carried(scene, "lab90")
}

fn pinned(scene: &mut Scene) -> Outcome {
    let programs = scene.programs.clone();
    let map = scene.internet.own_relay(&programs, false)?;
    let text = map.to_string();
    see!(text.contains("sha256-raw"), "the relay map does not name the certificate: {text}");
    scene.coordinator.set_relays(&map)?;
    carried(scene, "own-903")
}

fn certified(scene: &mut Scene) -> Outcome {
    let programs = scene.programs.clone();
    let map = scene.internet.own_relay(&programs, true)?;
    let text = map.to_string();
    see!(!text.contains("sha256-raw") && !text.contains("Insecure"), "the relay map asks for less: {text}");
    scene.coordinator.set_relays(&map)?;
    carried(scene, "own-904")
}

fn netcheck(scene: &mut Scene) -> Outcome {
    for n in [0, 1] {
        until("netcheck knows the relay", secs(15), || {
            let said = scene.at(n)?.tell(&["netcheck"])?;
            let (udp, home) = (said.contains("UDP: true") || said.contains("UDP          yes"), said.contains("own-904"));
            if udp && home { Ok(true) } else { Err(said) }
        })?;
    }
    holds()
}

fn killed(scene: &mut Scene) -> Outcome {
    let mut map = Internet::derp_map();
    let own: Value = scene.internet.region_of(904)?;
    let regions = map["Regions"].as_object_mut().ok_or("no regions")?;
    regions.insert("904".to_owned(), own);
    // All are equally near: this one is to be everybody's home.
    map["HomeParams"] = serde_json::json!({ "RegionScore": { "904": 0.1 } });
    scene.coordinator.set_relays(&map)?;
    carried(scene, "own-904")?;
    scene.internet.kill_relay(904)?;
    carried(scene, "lab90")
}
