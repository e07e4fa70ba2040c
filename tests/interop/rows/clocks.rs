//! Clients whose wall clock is wrong by a day.

use super::{Act, Row, alone};
use crate::scene::{NAMES, Outcome, Scene, holds};
use crate::see;
use crate::traffic;
use crate::wait::{secs, stays, until};

pub const ACT: Act = Act {
    name: "wrong clocks",
    plays: alone,
    seconds: 40,
    rows: &[
        Row { sentence: "a node whose clock is a day ahead joins, stays, and reaches its peers", play: ahead },
        Row { sentence: "a node whose clock is a day behind joins, stays, and reaches its peers", play: behind },
        Row { sentence: "a node whose clock became right again goes on", play: corrected },
    ],
};

fn ahead(scene: &mut Scene) -> Outcome {
    scene.offsets = ["", "24h", "-24h", ""];
    wrong(scene, 1)
}

fn behind(scene: &mut Scene) -> Outcome {
    wrong(scene, 2)
}

fn wrong(scene: &mut Scene, n: usize) -> Outcome {
    scene.acquainted(0, n)?;
    for (from, to) in [(0, n), (n, 0)] {
        let (machine, address) = (scene.machine(from)?, scene.seen(from, to)?.v4()?);
        until("it crosses", secs(15), || traffic::tcp(&machine, address).map(|()| true))?;
    }
    stays("it is online", secs(3), || Ok(scene.at(n)?.running()? && scene.seen(0, n)?.online))?;
    // Our node tells its user how wrong the clock is. Nothing else is to be wrong.
    let health = scene.at(n)?.status()?.health;
    see!(health.iter().all(|line| line.contains("clock is 24 hours")), "it complains: {health:?}");
    holds()
}

/// A day back: WireGuard's time stamps are then older than those that its peers have seen.
fn corrected(scene: &mut Scene) -> Outcome {
    scene.acquainted(0, 1)?;
    let before = scene.at(1)?.status()?.own()?.clone();
    scene.put_right(1)?;
    scene.member(1)?.becomes("Running", secs(15))?;
    let after = scene.at(1)?.status()?.own()?.clone();
    see!(before.addresses == after.addresses, "{} is another node now", NAMES[1]);
    // It is the other that begins: no handshake of its own would be newer than those of tomorrow.
    let (machine, address) = (scene.machine(0)?, after.v4()?);
    until("it is reached again", secs(30), || traffic::tcp(&machine, address).map(|()| true))?;
    holds()
}
