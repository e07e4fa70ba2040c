//! Our node without a TUN, as router and exit node for stock clients.

use super::routes::{ROUTER, USER, advertised, exit_names, exit_offered, exit_used, site, subnet};
use super::{Act, Row};
use crate::scene::{Cast, Clients, Outcome, Scene, holds};
use crate::traffic;
use crate::wait::{secs, until};

pub const ACT: Act = Act {
    name: "userspace",
    plays: with_stock,
    seconds: 70,
    rows: &[
        Row { sentence: "a node without a TUN joins, and its machine is reached by TCP, UDP and ping", play: reached },
        Row { sentence: "it advertises a subnet route, which nobody uses before it is approved", play: advertised },
        Row { sentence: "its approved subnet route is used by a stock client", play: subnet },
        Row { sentence: "its network is reached as that of a site with a number (4via6)", play: site },
        Row { sentence: "it offers itself as exit node", play: exit_offered },
        Row { sentence: "a stock client's traffic leaves through it, and comes back", play: exit_used },
        Row { sentence: "a stock client asks it for names", play: exit_names },
    ],
};

fn with_stock(cast: &Cast) -> bool {
    cast.clients == Clients::Mixed
}

fn reached(scene: &mut Scene) -> Outcome {
    scene.userspace[ROUTER] = true;
    scene.acquainted(ROUTER, USER)?;
    let address = scene.seen(USER, ROUTER)?.addresses[0];
    let machine = scene.machine(USER)?;
    until("TCP", secs(10), || traffic::tcp(&machine, address).map(|()| true))?;
    until("UDP", secs(10), || traffic::udp(&machine, address).map(|()| true))?;
    until("ping", secs(10), || machine.run(&["ping", "-c", "1", "-W", "2", &address.to_string()]).map(|_| true))?;
    holds()
}
