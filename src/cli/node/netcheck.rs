//! `pvemesh node netcheck`.

use std::fmt::Write as _;

use super::{Failure, Output, show, unreached};
use crate::node::NetworkReport;
use crate::sys::local_api::Client;

pub(super) async fn run(client: &Client, output: &Output) -> Result<(), Failure> {
    let report = client.netcheck().await.map_err(|e| unreached("check the network", &e))?;
    output.result(&report, text(&report).trim_end());
    Ok(())
}

fn text(report: &NetworkReport) -> String {
    let yes = |is: bool| if is { "yes" } else { "no" };
    let family = |works: bool, address: &str| if works { format!("yes, seen as {address}") } else { "no".to_owned() };
    let mut text = String::new();
    let _ = writeln!(text, "UDP          {}", yes(report.udp));
    let _ = writeln!(text, "IPv4         {}", family(report.v4, &report.global_v4));
    let v6 = family(report.v6, &report.global_v6);
    let _ = writeln!(text, "IPv6         {v6}{}", if !report.v6 && report.os_has_v6 { ", though the system has it" } else { "" });
    let nat = match report.mapping_varies {
        Some(true) => "gives each destination another port, which makes direct ways hard to find",
        Some(false) => "gives all destinations the same port, or there is none",
        None => "not known (two relays have to answer)",
    };
    let _ = writeln!(text, "NAT          {nat}");
    let _ = writeln!(text, "port mapping {}", port_mapping(report));
    if report.captive_portal == Some(true) {
        let _ = writeln!(text, "portal       this network answers every request itself; log in there with a browser");
    }
    let code = |id: u16| report.region_code.get(&id).map_or_else(|| id.to_string(), |code| show::printable(code));
    let home = if report.home == 0 { "none".to_owned() } else { code(report.home) };
    let _ = writeln!(text, "home relay   {home}");
    let mut regions: Vec<u16> = report.region_code.keys().copied().collect();
    regions.sort_by_key(|id| (report.region_latency.get(id).copied().unwrap_or(u64::MAX), *id));
    for id in regions {
        let nanoseconds = report.region_latency.get(&id).copied();
        #[expect(clippy::cast_precision_loss, reason = "for people")]
        let latency = nanoseconds.map_or_else(|| "no answer".to_owned(), |ns| format!("{:.1}ms", ns as f64 / 1e6));
        let trouble = report.relay_trouble.get(&id).map(|why| format!("  ({})", show::printable(why))).unwrap_or_default();
        let _ = writeln!(text, "  {:<10} {latency}{trouble}", code(id));
    }
    text
}

/// What the router offers, and what it has given.
fn port_mapping(report: &NetworkReport) -> String {
    let all = [(report.pmp, "NAT-PMP"), (report.pcp, "PCP"), (report.upnp, "UPnP")];
    if all.iter().all(|(there, _)| there.is_none()) {
        return "not asked for (no router in front, or --port-mapping=false)".to_owned();
    }
    let offered: Vec<&str> = all.iter().filter(|(there, _)| *there == Some(true)).map(|(_, name)| *name).collect();
    match (offered.is_empty(), report.mapped_port.as_str()) {
        (true, _) => "the router offers none".to_owned(),
        (false, "") => format!("{} offered, none given", offered.join(", ")),
        (false, mapped) => format!("{} offered; {mapped}", offered.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_says_what_matters_and_no_more() {
        let report = NetworkReport {
            udp: true,
            v4: true,
            os_has_v6: true,
            global_v4: "203.0.113.9:41641".to_owned(),
            mapping_varies: Some(false),
            pmp: Some(true),
            pcp: Some(false),
            upnp: Some(true),
            mapped_port: "203.0.113.9:4500 by NAT-PMP".to_owned(),
            home: 901,
            region_latency: [(901, 1_500_000)].into(),
            region_code: [(901, "lab".to_owned()), (902, "far\u{7}".to_owned())].into(),
            relay_trouble: [(902, "connection refused".to_owned())].into(),
            ..NetworkReport::default()
        };
        let expected = "UDP          yes\nIPv4         yes, seen as 203.0.113.9:41641\nIPv6         no, though the system has it\n\
                        NAT          gives all destinations the same port, or there is none\n\
                        port mapping NAT-PMP, UPnP offered; 203.0.113.9:4500 by NAT-PMP\nhome relay   lab\n  lab        1.5ms\n  \
                        far        no answer  (connection refused)\n";
        assert_eq!(text(&report), expected);
    }
}
