//! Subnet routes and exit nodes: advertised, approved, used.

use super::{Act, Row, in_company};
use crate::internet::WEB;
use crate::scene::{NAMES, Outcome, Scene, holds};
use crate::traffic;
use crate::wait::{secs, stays, until};
use crate::{Done, see};

pub const ACT: Act = Act {
    name: "routes",
    plays: in_company,
    seconds: 70,
    rows: &[
        Row { sentence: "an advertised subnet route is listed, and used by nobody before it is approved", play: advertised },
        Row { sentence: "an approved subnet route is used by a node that accepts routes", play: subnet },
        Row { sentence: "a network of a site with a number (4via6) is reached by its IPv6 prefix", play: site },
        Row { sentence: "an advertised and approved exit node is offered to the others", play: exit_offered },
        Row { sentence: "`set --exit-node` sends traffic out there, and an empty one takes it back", play: exit_used },
        Row { sentence: "names are asked for where the exit node is, and nowhere else", play: exit_names },
    ],
};

const NET: &str = "192.168.77.0/24";
const HOST: &str = "192.168.77.2";
pub(super) const ROUTER: usize = 0;
pub(super) const USER: usize = 1;

fn forwards(scene: &Scene) -> Done {
    scene
        .machine(ROUTER)?
        .within(|| {
            std::fs::write("/proc/sys/net/ipv4/ip_forward", "1")?;
            std::fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1")
        })?
        .map_err(|e| format!("switch forwarding on: {e}"))
}

pub(super) fn advertised(scene: &mut Scene) -> Outcome {
    scene.acquainted(ROUTER, USER)?;
    forwards(scene)?;
    let host = scene.internet.behind(&scene.machine(ROUTER)?, "printer")?;
    traffic::echo(&host)?;
    // The row that uses it comes later.
    std::mem::forget(host);
    scene.at(ROUTER)?.tell(&["set", &format!("--advertise-routes={NET}")])?;
    scene.at(USER)?.tell(&["set", "--accept-routes"])?;
    until("the coordinator lists the route", secs(5), || Ok(scene.coordinator.node(NAMES[ROUTER])?.advertised == [NET]))?;
    see!(scene.coordinator.node(NAMES[ROUTER])?.approved.is_empty(), "it is approved already");
    stays("nobody is told", secs(1), || Ok(!scene.seen(USER, ROUTER)?.allowed.iter().any(|net| net == NET)))?;
    holds()
}

pub(super) fn subnet(scene: &mut Scene) -> Outcome {
    let router = scene.coordinator.node(NAMES[ROUTER])?;
    see!(router.advertised == [NET], "nothing is advertised");
    scene.coordinator.approve(router.id, &[NET])?;
    until("the user is told", secs(5), || Ok(scene.seen(USER, ROUTER)?.allowed.iter().any(|net| net == NET)))?;
    let (machine, host) = (scene.machine(USER)?, HOST.parse().map_err(|_| HOST)?);
    until("the printer answers", secs(10), || traffic::tcp(&machine, host).map(|()| true))?;
    until("the printer answers by UDP", secs(10), || traffic::udp(&machine, host).map(|()| true))?;
    holds()
}

/// The same network as that of site 7.
const SITE: &str = "fd7a:115c:a1e0:b1a:0:7:c0a8:4d00/120";
const SITE_HOST: &str = "fd7a:115c:a1e0:b1a:0:7:c0a8:4d02";

pub(super) fn site(scene: &mut Scene) -> Outcome {
    scene.at(ROUTER)?.tell(&["set", &format!("--advertise-routes={NET},{SITE}")])?;
    until("the coordinator lists the route", secs(5), || Ok(scene.coordinator.node(NAMES[ROUTER])?.advertised.len() == 2))?;
    let router = scene.coordinator.node(NAMES[ROUTER])?;
    scene.coordinator.approve(router.id, &[NET, SITE])?;
    until("the user is told", secs(5), || Ok(scene.seen(USER, ROUTER)?.allowed.iter().any(|net| net == SITE)))?;
    let (machine, host) = (scene.machine(USER)?, SITE_HOST.parse().map_err(|_| SITE_HOST)?);
    until("the printer answers", secs(10), || traffic::tcp(&machine, host).map(|()| true))?;
    until("the printer answers by UDP", secs(10), || traffic::udp(&machine, host).map(|()| true))?;
    scene.at(ROUTER)?.tell(&["set", &format!("--advertise-routes={NET}")])?;
    holds()
}

pub(super) fn exit_offered(scene: &mut Scene) -> Outcome {
    scene.acquainted(ROUTER, USER)?;
    forwards(scene)?;
    scene.at(ROUTER)?.tell(&["set", "--advertise-exit-node"])?;
    let both = |routes: &[String]| ["0.0.0.0/0", "::/0"].iter().all(|net| routes.iter().any(|route| route == net));
    until("the coordinator lists it", secs(5), || Ok(both(&scene.coordinator.node(NAMES[ROUTER])?.advertised)))?;
    let router = scene.coordinator.node(NAMES[ROUTER])?;
    see!(!scene.seen(USER, ROUTER)?.exit_node_option, "it is offered before it is approved");
    scene.coordinator.approve(router.id, &[NET, "0.0.0.0/0", "::/0"])?;
    until("it is offered", secs(5), || Ok(scene.seen(USER, ROUTER)?.exit_node_option))?;
    holds()
}

pub(super) fn exit_used(scene: &mut Scene) -> Outcome {
    see!(scene.seen(USER, ROUTER)?.exit_node_option, "no exit node is offered");
    let (own, exit) = ("10.7.0.12", "10.7.0.11");
    let machine = scene.machine(USER)?;
    let seen_as = |wanted: &str| {
        until(&format!("the web server sees {wanted}"), secs(10), || {
            let seen = traffic::seen_as(&machine, WEB)?;
            if seen == wanted { Ok(true) } else { Err(format!("it sees {seen}")) }
        })
    };
    seen_as(own)?;
    scene.at(USER)?.tell(&["set", &format!("--exit-node={}", NAMES[ROUTER])])?;
    seen_as(exit)?;
    scene.at(USER)?.tell(&["set", "--exit-node="])?;
    seen_as(own)?;
    holds()
}

pub(super) fn exit_names(scene: &mut Scene) -> Outcome {
    see!(scene.seen(USER, ROUTER)?.exit_node_option, "no exit node is offered");
    let machine = scene.machine(USER)?;
    scene.at(USER)?.tell(&["set", &format!("--exit-node={}", NAMES[ROUTER])])?;
    let mut names = 0;
    // Each name once, for nobody is to have kept the answer.
    let asked_by = |names: &mut u32| -> Done<Vec<String>> {
        *names += 1;
        let name = format!("probe{names}.example.org");
        // That it does not exist is the answer.
        let _ = machine.run(&["getent", "ahostsv4", &name]);
        scene.internet.askers(&name)
    };
    until("the exit node's machine asks", secs(15), || {
        let askers = asked_by(&mut names)?;
        if askers == ["10.7.0.11"] { Ok(true) } else { Err(format!("the name server was asked by {askers:?}")) }
    })?;
    scene.at(USER)?.tell(&["set", "--exit-node="])?;
    until("the user's machine asks itself again", secs(15), || Ok(asked_by(&mut names)? == ["10.7.0.12"]))?;
    holds()
}
