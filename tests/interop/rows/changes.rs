//! What changes at one node is seen by the others, soon, and as a delta.

use std::time::{Duration, Instant};

use super::{Act, Row, in_company};
use crate::member::{Join, Kind, Member};
use crate::scene::{NAMES, Outcome, Scene, with};
use crate::wait::{get, seconds, secs, until};
use crate::{Done, see};

pub const ACT: Act = Act {
    name: "changes",
    plays: in_company,
    seconds: 70,
    rows: &[
        Row { sentence: "a peer that joins is seen by the others within 2 s", play: added },
        Row { sentence: "a renamed peer is seen by the others within 2 s", play: renamed },
        Row { sentence: "a peer that goes offline is seen by the others within 2 s", play: offline },
        Row { sentence: "a peer that comes online is seen by the others within 2 s", play: online },
        Row { sentence: "a peer's new endpoint comes as a delta", play: endpoint },
        Row { sentence: "a peer's new home relay comes as a delta", play: home_relay },
        Row { sentence: "a peer's new disco key comes as a delta", play: disco_key },
        Row { sentence: "a removed peer is gone for the others within 2 s", play: removed },
    ],
};

/// How soon the others have to know.
const SOON: Duration = secs(2);
/// The one that changes, and those that look on.
const CHANGED: usize = 2;
const OTHERS: [usize; 2] = [0, 1];

/// Waits until all others see what they should; the clock runs since `start`.
fn all_see(scene: &Scene, start: Instant, what: &str, limit: Duration, see: impl Fn(&dyn Member) -> Done<bool>) -> Outcome {
    let mut worst = Duration::ZERO;
    for n in OTHERS {
        let member = scene.at(n)?;
        until(&format!("{} sees {what}", NAMES[n]), secs(30), || see(member))?;
        worst = worst.max(start.elapsed());
    }
    see!(worst <= limit, "seen after {} only", seconds(worst));
    with(seconds(worst))
}

fn added(scene: &mut Scene) -> Outcome {
    scene.acquainted(0, 1)?;
    scene.member(CHANGED)?;
    let key = scene.coordinator.any_key()?;
    let url = scene.coordinator.url();
    let scene = &*scene;
    std::thread::scope(|scope| {
        let newcomer = scene.at(CHANGED)?;
        let joining = scope.spawn(|| {
            let name = format!("--hostname={}", NAMES[CHANGED]);
            newcomer.up(&Join { url: &url, key: Some(&key.text), flags: &[&name] })
        });
        // From the moment that it knows its own address.
        let admitted = get("it is admitted", secs(25), || {
            let own = newcomer.status()?.own;
            Ok(own.is_some_and(|own| !own.addresses.is_empty()).then(Instant::now))
        })?;
        let seen = all_see(scene, admitted, "it", SOON, |member| Ok(member.status()?.find(NAMES[CHANGED]).is_some_and(|p| p.online)));
        joining.join().map_err(|_| "the join panicked")??;
        seen
    })
}

fn renamed(scene: &mut Scene) -> Outcome {
    scene.acquainted(CHANGED, 0)?;
    let id = scene.coordinator.node(NAMES[CHANGED])?.id;
    let mut slowest = String::new();
    for name in ["fresh-name", NAMES[CHANGED]] {
        scene.coordinator.rename(id, name)?;
        let seen = all_see(scene, Instant::now(), "the name", SOON, |member| Ok(member.status()?.find(name).is_some()))?;
        if let crate::scene::Seen::Holds(time) = seen {
            slowest = slowest.max(time);
        }
    }
    with(slowest)
}

fn offline(scene: &mut Scene) -> Outcome {
    scene.acquainted(CHANGED, 0)?;
    scene.acquainted(CHANGED, 1)?;
    let limit = scene.coordinator.offline_limit();
    scene.member(CHANGED)?.stop();
    all_see(scene, Instant::now(), "it offline", limit, |member| Ok(!member.status()?.peer(NAMES[CHANGED])?.online))
}

fn online(scene: &mut Scene) -> Outcome {
    let running = scene.joined(CHANGED)?.running()?;
    see!(running, "it does not run");
    scene.member(CHANGED)?.stop();
    until("it is offline", secs(20), || Ok(!scene.seen(0, CHANGED)?.online && !scene.seen(1, CHANGED)?.online))?;
    scene.member(CHANGED)?.start()?;
    scene.at(CHANGED)?.becomes("Running", secs(15))?;
    all_see(scene, Instant::now(), "it online", SOON, |member| Ok(member.status()?.peer(NAMES[CHANGED])?.online))
}

/// Makes a change at beta and sees it at alpha, which must get it within its open stream.
fn delta(scene: &mut Scene, what: &str, change: impl Fn(&mut Scene) -> Done, arrived: impl Fn(&dyn Member) -> Done<bool>) -> Outcome {
    scene.acquainted(0, 1)?;
    let before = scene.at(0)?.messages()?;
    change(scene)?;
    let time = until(&format!("{} has the {what}", NAMES[0]), secs(30), || arrived(scene.at(0)?))?;
    match (before, scene.at(0)?.messages()?) {
        (Some(before), Some(after)) => {
            see!(after.streams == before.streams, "the stream was opened anew: {before:?} {after:?}");
            see!(after.deltas > before.deltas, "no delta was counted: {before:?} {after:?}");
            see!(after.maps - after.deltas == before.maps - before.deltas, "a whole map was sent: {before:?} {after:?}");
            with(format!("{}, counted as a delta", seconds(time)))
        }
        _ => with(seconds(time)),
    }
}

fn endpoint(scene: &mut Scene) -> Outcome {
    const ADDRESS: &str = "10.7.0.99";
    let found = delta(
        scene,
        "endpoint",
        |scene| scene.machine(1)?.ip(&format!("addr add {ADDRESS}/24 dev eth0")),
        |member| Ok(member.detail(NAMES[1])?.endpoints.iter().any(|e| e.starts_with(&format!("{ADDRESS}:")))),
    );
    scene.machine(1)?.ip(&format!("addr del {ADDRESS}/24 dev eth0"))?;
    found
}

fn home_relay(scene: &mut Scene) -> Outcome {
    scene.acquainted(0, 1)?;
    let regions = crate::internet::REGIONS.map(i64::from);
    let home = get("a home relay is known", secs(10), || Ok(Some(scene.at(0)?.detail(NAMES[1])?.home).filter(|home| *home != 0)))?;
    let other = regions.into_iter().find(|region| *region != home).ok_or("there is one region only")?;
    let found = delta(
        scene,
        "home relay",
        |scene| match scene.cast.kind(1) {
            Kind::Stock => scene.at(1)?.tell(&["debug", "force-prefer-derp", &other.to_string()]).map(drop),
            Kind::Ours => cut_off(scene, &crate::internet::relay_addresses(home)),
        },
        |member| Ok(member.detail(NAMES[1])?.home == other),
    );
    if scene.cast.kind(1) == Kind::Ours {
        scene.machine(1)?.run(&["nft", "delete table inet away"])?;
    }
    found
}

/// Keeps beta from a relay, which refuses it from now on.
fn cut_off(scene: &Scene, (v4, v6): &(String, String)) -> Done {
    let refused = |to: &str| format!("{to} tcp dport 443 reject with tcp reset; {to} drop;");
    let (v4, v6) = (refused(&format!("ip daddr {v4}")), refused(&format!("ip6 daddr {v6}")));
    let rules = format!("table inet away {{ chain output {{ type filter hook output priority 0; {v4} {v6} }}; }}");
    let machine = scene.machine(1)?;
    machine.run(&["nft", &rules])?;
    // An idle connection is not missed until something is to go over it: a ping wants to.
    let _ = scene.at(1)?.ping(NAMES[0]);
    Ok(())
}

fn disco_key(scene: &mut Scene) -> Outcome {
    scene.acquainted(0, 1)?;
    let before = get("a disco key is known", secs(10), || {
        let disco = scene.at(0)?.detail(NAMES[1])?.disco;
        Ok((disco.len() > 20 && !disco.ends_with("00000000")).then_some(disco))
    })?;
    delta(
        scene,
        "disco key",
        |scene| match scene.cast.kind(1) {
            Kind::Stock => scene.at(1)?.tell(&["debug", "rotate-disco-key"]).map(drop),
            // A new one at every start.
            Kind::Ours => {
                scene.member(1)?.stop();
                scene.member(1)?.start()
            }
        },
        |member| Ok(member.detail(NAMES[1])?.disco != before),
    )
}

fn removed(scene: &mut Scene) -> Outcome {
    scene.acquainted(CHANGED, 0)?;
    scene.acquainted(CHANGED, 1)?;
    let id = scene.coordinator.node(NAMES[CHANGED])?.id;
    scene.coordinator.delete(id)?;
    all_see(scene, Instant::now(), "it gone", SOON, |member| Ok(member.status()?.find(NAMES[CHANGED]).is_none()))
}
