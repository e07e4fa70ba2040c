//! Registration by join key: the right outcome for each kind of key.

use super::{Act, Row, alone};
use crate::coordinator::Wish;
use crate::member::Join;
use crate::scene::{NAMES, Outcome, Scene, holds};
use crate::see;
use crate::wait::{secs, until};

pub const ACT: Act = Act {
    name: "join keys",
    plays: alone,
    seconds: 60,
    rows: &[
        Row { sentence: "a single-use key lets one node in and refuses the second, which says so", play: single_use },
        Row { sentence: "trap_20 a restarted node whose key was used up stays in", play: restart },
        Row { sentence: "a reusable key lets two nodes in", play: reusable },
        Row { sentence: "a node with an ephemeral key is gone once it logs out", play: ephemeral },
        Row { sentence: "a tagged key makes a tagged node whose own key does not expire", play: tagged },
        Row { sentence: "an expired key is refused, and the node says so", play: expired },
        Row { sentence: "a revoked key is refused, and the node says so", play: revoked },
    ],
};

/// Joins with a key that must not let it in.
fn refused(scene: &mut Scene, n: usize, key: &str, words: &[&str]) -> Outcome {
    scene.afresh(n)?;
    let before = scene.coordinator.nodes()?.len();
    let url = scene.coordinator.url();
    let name = format!("--hostname={}", NAMES[n]);
    let up = scene.member(n)?.up(&Join { url: &url, key: Some(key), flags: &[&name, "--timeout=10s"] });
    let Err(said) = up else { return Err("it was let in".to_owned()) };
    let lower = said.to_lowercase();
    see!(words.iter().any(|word| lower.contains(word)), "the reason does not reach the user: {said}");
    see!(scene.coordinator.nodes()?.len() == before, "a node was made all the same");
    scene.afresh(n)?;
    holds()
}

fn single_use(scene: &mut Scene) -> Outcome {
    let key = scene.single_use_key()?;
    scene.join(0, &key, &[])?;
    refused(scene, 1, &key, &["used"])
}

fn restart(scene: &mut Scene) -> Outcome {
    let before = scene.at(0)?.status()?.own()?.clone();
    let member = scene.member(0)?;
    member.stop();
    member.start()?;
    member.becomes("Running", secs(15))?;
    let after = member.status()?.own()?.clone();
    see!(before.addresses == after.addresses && before.public_key == after.public_key, "it is another node now: {before:?} {after:?}");
    until("the coordinator sees it online", secs(10), || Ok(scene.coordinator.node(NAMES[0])?.online))?;
    holds()
}

fn reusable(scene: &mut Scene) -> Outcome {
    let key = scene.coordinator.key(Wish { reusable: true, ..Wish::default() })?;
    scene.afresh(0)?;
    scene.join(0, &key.text, &[])?;
    scene.join(1, &key.text, &[])?;
    let (one, two) = (scene.at(0)?.status()?.own()?.clone(), scene.at(1)?.status()?.own()?.clone());
    see!(one.v4()? != two.v4()?, "two nodes have one address");
    holds()
}

fn ephemeral(scene: &mut Scene) -> Outcome {
    let key = scene.coordinator.key(Wish { ephemeral: true, ..Wish::default() })?;
    scene.afresh(2)?;
    scene.join(2, &key.text, &[])?;
    scene.coordinator.node(NAMES[2])?;
    scene.at(2)?.tell(&["logout"])?;
    until("the coordinator has forgotten it", secs(5), || Ok(scene.coordinator.nodes()?.iter().all(|node| node.name != NAMES[2])))?;
    holds()
}

fn tagged(scene: &mut Scene) -> Outcome {
    let key = scene.coordinator.key(Wish { tag: Some("tag:server"), ..Wish::default() })?;
    scene.afresh(2)?;
    scene.join(2, &key.text, &[])?;
    let listed = scene.coordinator.node(NAMES[2])?;
    see!(listed.tags == ["tag:server"] && !listed.expires, "the coordinator lists {listed:?}");
    scene.joined(0)?;
    let own = scene.at(2)?.status()?.own()?.clone();
    see!(own.key_expiry.is_none(), "its own key is said to expire: {own:?}");
    // The others see the tag, too.
    if scene.cast.kind(0) == crate::member::Kind::Stock {
        until("a peer sees the tag", secs(5), || Ok(scene.seen(0, 2)?.tags == ["tag:server"]))?;
    }
    holds()
}

fn expired(scene: &mut Scene) -> Outcome {
    let key = scene.coordinator.key(Wish { brief: true, ..Wish::default() })?;
    let made = std::time::Instant::now();
    until("the key's second is over", secs(5), || Ok(made.elapsed() > std::time::Duration::from_millis(1500)))?;
    refused(scene, 3, &key.text, &["expired"])
}

fn revoked(scene: &mut Scene) -> Outcome {
    let key = scene.coordinator.key(Wish { reusable: true, ..Wish::default() })?;
    scene.coordinator.revoke(&key)?;
    // Headscale knows no difference between revoked and expired.
    refused(scene, 3, &key.text, &["revoked", "expired"])
}
