//! What goes wrong in real life: the coordinator restarts, a machine is cloned.

use super::{Act, Row, in_company};
use crate::coordinator::Which;
use crate::member::copy_state;
use crate::scene::{NAMES, Outcome, Scene, with};
use crate::see;
use crate::traffic::{self, Conversation};
use crate::wait::{seconds, secs, stays, until};

pub const ACT: Act = Act {
    name: "faults",
    plays: in_company,
    seconds: 60,
    rows: &[
        Row { sentence: "a restart of the coordinator breaks no connection between peers", play: restart_connection },
        Row { sentence: "after a restart of the coordinator the streams are back within 5 s", play: restart_streams },
        Row { sentence: "two machines with one node key are one node, and the real one works when the clone is gone", play: clone },
    ],
};

fn restart_connection(scene: &mut Scene) -> Outcome {
    over_tls(scene)?;
    scene.acquainted(0, 1)?;
    let (machine, peer) = (scene.machine(0)?, scene.seen(0, 1)?.v4()?);
    until("the peer answers", secs(10), || traffic::tcp(&machine, peer).map(|()| true))?;
    let talk = Conversation::start(&machine, peer);
    scene.coordinator.stop();
    stays("the peer answers while the coordinator is away", secs(2), || traffic::tcp(&machine, peer).map(|()| true))?;
    scene.coordinator.start()?;
    stays("the peer answers when the coordinator is back", secs(3), || traffic::tcp(&machine, peer).map(|()| true))?;
    let worst = talk.end()?;
    see!(worst < secs(1), "a byte took {}", seconds(worst));
    with(format!("worst pause {:.0} ms", worst.as_secs_f64() * 1000.0))
}

/// As phones and laptops have it. Over plain HTTP to a private address tailscaled waits ten seconds after a refused connection: it has
/// no second way, and goes on waiting for one.
fn over_tls(scene: &mut Scene) -> crate::Done {
    if scene.coordinator.url().starts_with("http:") {
        scene.coordinator.stop();
        scene.coordinator.secure(&scene.internet.authority.clone());
        scene.coordinator.start()?;
    }
    Ok(())
}

fn restart_streams(scene: &mut Scene) -> Outcome {
    over_tls(scene)?;
    scene.acquainted(0, 1)?;
    scene.coordinator.stop();
    scene.coordinator.start()?;
    let start = std::time::Instant::now();
    let id = scene.coordinator.node(NAMES[1])?.id;
    scene.coordinator.rename(id, "after-restart")?;
    for n in [0, 1] {
        until(&format!("{} has heard", NAMES[n]), secs(40), || {
            let status = scene.at(n)?.status()?;
            Ok(if n == 1 { status.own()?.name() == "after-restart" } else { status.find("after-restart").is_some() })
        })?;
    }
    let time = start.elapsed();
    scene.coordinator.rename(id, NAMES[1])?;
    until("the old name is back", secs(5), || Ok(scene.at(0)?.status()?.find(NAMES[1]).is_some()))?;
    see!(time <= secs(5), "it took {}", seconds(time));
    with(seconds(time))
}

fn clone(scene: &mut Scene) -> Outcome {
    scene.acquainted(0, 1)?;
    let nodes = scene.coordinator.nodes()?.len();
    let key = scene.at(0)?.status()?.own()?.public_key.clone();
    let state = scene.at(0)?.state_dir();
    scene.member(2)?.stop();
    copy_state(&state, &scene.at(2)?.state_dir())?;
    scene.member(2)?.start()?;
    scene.at(2)?.becomes("Running", secs(15))?;
    // Both claim to be alpha now, and whoever came last has the stream.
    let own = scene.at(2)?.status()?.own()?.clone();
    see!(own.public_key == key, "the clone has another key");
    stays("there is one node", secs(2), || {
        let status = scene.at(1)?.status()?;
        let named = status.peer.values().filter(|p| p.name().starts_with(NAMES[0])).count();
        Ok(named == 1 && scene.coordinator.nodes()?.len() == nodes)
    })?;
    scene.member(2)?.stop();
    until("alpha is online again", secs(30), || Ok(scene.seen(1, 0)?.online))?;
    if scene.coordinator.which() == Which::Headscale {
        // It keeps the disco key and the home relay that the clone has told: there the real one has to speak first.
        let (machine, peer) = (scene.machine(0)?, scene.seen(0, 1)?.v4()?);
        until("alpha reaches its peer", secs(40), || traffic::tcp(&machine, peer).map(|()| true))?;
    }
    let (machine, address) = (scene.machine(1)?, scene.seen(1, 0)?.v4()?);
    let time = until("alpha is reached again", secs(40), || traffic::tcp(&machine, address).map(|()| true))?;
    with(format!("reached again after {}", seconds(time)))
}
