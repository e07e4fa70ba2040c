//! The DNS configuration arrives and is used.

use serde_json::{Value, json};

use super::{Act, Row, in_company};
use crate::Done;
use crate::coordinator::{DOMAIN, Which};
use crate::member::Kind;
use crate::scene::{Cast, NAMES, Outcome, Scene, holds, with};
use crate::see;
use crate::wait::{secs, until};

pub const ACT: Act = Act {
    name: "names",
    plays: in_company,
    seconds: 20,
    rows: &[
        Row { sentence: "`status` shows the peers' MagicDNS names", play: names },
        Row { sentence: "`dns status` shows the delivered configuration", play: dns_status },
        Row { sentence: "a peer's name resolves to its address by the system's resolver", play: resolves },
    ],
};

/// What only our coordinator can be told while it runs.
pub const HOSTS: Act = Act {
    name: "hosts",
    plays: with_ours,
    seconds: 15,
    rows: &[Row { sentence: "the name of a machine without a client appears at once, is found backwards too, and goes", play: host }],
};

fn with_ours(cast: &Cast) -> bool {
    in_company(cast) && cast.coordinator == Which::Ours
}

fn host(scene: &mut Scene) -> Outcome {
    scene.acquainted(0, 1)?;
    let (name, address) = ("printer", "192.168.77.9");
    let machine = scene.machine(1)?;
    let found = |words: &[&str]| machine.run(&[&["getent"], words].concat()).unwrap_or_default();
    see!(found(&["ahostsv4", name]).is_empty(), "the name is there already");
    scene.coordinator.set_host(name, Some(address))?;
    let took = until("the name is known", secs(5), || Ok(found(&["ahostsv4", name]).starts_with(&format!("{address} "))))?;
    let full = format!("{name}.{DOMAIN}");
    see!(found(&["ahostsv4", &full]).starts_with(address), "{full} is {}", found(&["ahostsv4", &full]));
    if scene.cast.kind(1) == Kind::Ours {
        // Stock clients know no names backwards but those of nodes.
        see!(found(&["hosts", address]).contains(&full), "{address} is {}", found(&["hosts", address]));
    }
    scene.coordinator.set_host(name, None)?;
    until("the name is gone", secs(5), || Ok(found(&["ahostsv4", name]).is_empty()))?;
    with(format!("{:.1} s", took.as_secs_f64()))
}

fn names(scene: &mut Scene) -> Outcome {
    scene.acquainted(0, 1)?;
    for (a, b) in [(0, 1), (1, 0)] {
        let status = scene.at(a)?.status()?;
        see!(status.peer(NAMES[b])?.dns_name == format!("{}.{DOMAIN}.", NAMES[b]), "it shows {:?}", status.peer(NAMES[b])?.dns_name);
        see!(status.own()?.dns_name == format!("{}.{DOMAIN}.", NAMES[a]), "it calls itself {:?}", status.own()?.dns_name);
    }
    holds()
}

fn dns_status(scene: &mut Scene) -> Outcome {
    scene.acquainted(0, 1)?;
    for n in [0, 1] {
        match scene.cast.kind(n) {
            Kind::Stock => stock_dns_status(&scene.at(n)?.tell(&["dns", "status"])?, NAMES[n])?,
            Kind::Ours => own_dns_status(&scene.at(n)?.tell(&["dns", "status", "--json"])?, NAMES[n])?,
        }
    }
    holds()
}

fn stock_dns_status(said: &str, name: &str) -> Done {
    for text in ["Tailscale DNS: enabled", &format!("suffix = {DOMAIN}"), &format!("{name}.{DOMAIN}")] {
        see!(said.contains(text), "`dns status` does not show {text:?}: {said}");
    }
    let search = said.split("Search Domains:").nth(1).unwrap_or_default();
    see!(search.trim_start().starts_with(&format!("- {DOMAIN}")), "the search list is {search:?}");
    Ok(())
}

fn own_dns_status(said: &str, name: &str) -> Done {
    let status: Value = serde_json::from_str(said).map_err(|e| format!("{e}: {said}"))?;
    let shown = (&status["MagicDNSEnabled"], &status["MagicDNSSuffix"], &status["SelfName"], &status["SearchDomains"]);
    let (name, search) = (json!(format!("{name}.{DOMAIN}.")), json!([DOMAIN]));
    see!(shown == (&json!(true), &json!(DOMAIN), &name, &search), "`dns status` shows {said}");
    Ok(())
}

fn resolves(scene: &mut Scene) -> Outcome {
    scene.acquainted(0, 1)?;
    for n in [0, 1] {
        let other = 1 - n;
        let address = scene.seen(n, other)?.v4()?.to_string();
        let machine = scene.machine(n)?;
        for name in [NAMES[other].to_owned(), format!("{}.{DOMAIN}", NAMES[other])] {
            until(&format!("{name} is {address}"), secs(10), || {
                let found = machine.run(&["getent", "ahostsv4", &name])?;
                if found.starts_with(&format!("{address} ")) { Ok(true) } else { Err(found) }
            })?;
        }
    }
    holds()
}
