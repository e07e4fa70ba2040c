//! The network that a new subnet router stands in (`--route auto`).

use ipnet::IpNet;

use super::choose::{Choice, Place};
use super::observed::Observed;
use super::options::{GuestOptions, NodeKind, Role};
use super::refusal::Refusal;
use crate::settings::Ipv4Setup;

/// The role with the network of the guest's own bridge among its routes, if that is asked for: what the guest's fixed address says, else the
/// host's own on the bridge.
///
/// # Errors
/// Neither says anything.
pub(super) fn resolved(role: &Role, options: &GuestOptions, place: &Place, observed: &Observed) -> Result<(Role, Option<Choice>), Refusal> {
    let mut role = role.clone();
    let Role::Node { kind: NodeKind::SubnetRouter { routes, lan, .. }, .. } = &mut role else { return Ok((role, None)) };
    if !std::mem::take(lan) {
        return Ok((role, None));
    }
    let bridges = observed.host(&place.host).map(|host| &host.bridges[..]).unwrap_or_default();
    let on_bridge = bridges.iter().find(|bridge| bridge.name == place.bridge.as_str()).and_then(|bridge| bridge.address);
    let (net, why) = match (options.lan.new_ipv4(), on_bridge) {
        (Ipv4Setup::Fixed(net), _) => (IpNet::from(net).trunc(), "the network of the address given with --ip".to_owned()),
        (_, Some(net)) => (net.trunc(), format!("{}'s own network on {}", place.host, place.bridge)),
        (_, None) => return Err(Refusal::NoNetwork { host: place.host.clone(), bridge: place.bridge.clone() }),
    };
    if !routes.contains(&net) {
        routes.push(net);
    }
    Ok((role, Some(Choice { what: "route", value: net.to_string(), why })))
}
