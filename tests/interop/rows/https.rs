//! The coordinator behind TLS, as phones need it.

use super::{Act, Row, alone};
use crate::authority::BUNDLE;
use crate::member::Join;
use crate::scene::{NAMES, Outcome, Scene, holds};
use crate::see;
use crate::wait::{secs, until};

pub const ACT: Act = Act {
    name: "HTTPS",
    plays: alone,
    seconds: 25,
    rows: &[
        Row { sentence: "a node joins over HTTPS by a certificate that its machine trusts", play: trusted },
        Row { sentence: "trap_32 a node refuses a coordinator whose certificate nobody vouches for", play: untrusted },
    ],
};

fn trusted(scene: &mut Scene) -> Outcome {
    scene.coordinator.stop();
    scene.coordinator.secure(&scene.internet.authority.clone());
    scene.coordinator.start()?;
    see!(scene.coordinator.url().starts_with("https://"), "the coordinator is at {}", scene.coordinator.url());
    scene.acquainted(0, 1)?;
    holds()
}

fn untrusted(scene: &mut Scene) -> Outcome {
    scene.member(2)?.stop();
    let bundle = scene.machine(2)?.home().join(BUNDLE);
    std::fs::write(&bundle, "").map_err(|e| format!("{}: {e}", bundle.display()))?;
    scene.afresh(2)?;
    let (url, key) = (scene.coordinator.url(), scene.single_use_key()?);
    let name = format!("--hostname={}", NAMES[2]);
    let up = scene.member(2)?.up(&Join { url: &url, key: Some(&key), flags: &[&name, "--timeout=5s"] });
    see!(up.is_err(), "it was let in");
    see!(scene.coordinator.nodes()?.iter().all(|node| node.name != NAMES[2]), "the coordinator has got to know it");
    until("its health tells of the certificate", secs(10), || {
        let status = scene.at(2)?.status()?;
        let said = format!("{:?} {up:?}", status.health).to_lowercase();
        if said.contains("certificate") || said.contains("tls") { Ok(true) } else { Err(said) }
    })?;
    holds()
}
