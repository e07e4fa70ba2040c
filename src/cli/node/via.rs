//! `pvemesh node via`: the prefix of a site's network, and back. The node need not run.

use ipnet::{IpNet, Ipv4Net};
use serde::Serialize;

use super::show::printable;
use super::{Exit, Failure, Output};
use crate::ident::Via;

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    site: u32,
    network: Ipv4Net,
    prefix: IpNet,
}

pub(super) fn run(what: &str, network: Option<&str>, output: &Output) -> Result<(), Failure> {
    let via = match network {
        Some(network) => site(what).zip(network.parse().ok()).map(|(site, v4): (u32, Ipv4Net)| Via { site, v4: v4.trunc() }),
        None => match what.parse() {
            Ok(IpNet::V6(prefix)) => Via::of(prefix.trunc()),
            _ => None,
        },
    };
    let via = via.ok_or_else(|| {
        let words = network.map_or_else(|| printable(what), |network| format!("{} {}", printable(what), printable(network)));
        let next = "write a site's number and its network, as in `7 192.168.1.0/24`, or the prefix that stands for them";
        Failure::new("translate between a site's network and its prefix", format!("`{words}` is neither"), next).exit(Exit::Usage)
    })?;
    let prefix = IpNet::V6(via.prefix());
    let answer = Answer { site: via.site, network: via.v4, prefix };
    output.result(&answer, if network.is_some() { prefix.to_string() } else { via.to_string() });
    Ok(())
}

/// Decimal, or hexadecimal with `0x`, as in names.
fn site(text: &str) -> Option<u32> {
    match text.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}
