//! Our policy rules over netlink, told from other programs' by their origin.

use futures_util::TryStreamExt as _;
use ipnet::IpNet;
use netlink_packet_route::route::RouteProtocol;
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use rtnetlink::{Handle, IpVersion};

use super::RouterError;
use super::link::{address_family, failed, unless};
use crate::node::policy_routing::{Family, ORIGIN, Rule, Target};

fn version(family: Family) -> IpVersion {
    match family {
        Family::V4 => IpVersion::V4,
        Family::V6 => IpVersion::V6,
    }
}

fn rule_message(family: Family, rule: &Rule) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = address_family(family);
    let attributes = &mut message.attributes;
    attributes.push(RuleAttribute::Priority(rule.priority));
    attributes.push(RuleAttribute::Protocol(RouteProtocol::Other(ORIGIN)));
    if let Some((mark, mask)) = rule.mark {
        attributes.push(RuleAttribute::FwMark(mark));
        attributes.push(RuleAttribute::FwMask(mask));
    }
    if let Some(net) = rule.to {
        attributes.push(RuleAttribute::Destination(net.addr()));
        message.header.dst_len = net.prefix_len();
    }
    match rule.target {
        Target::Lookup(table, suppress) => {
            message.header.action = RuleAction::ToTable;
            attributes.push(RuleAttribute::Table(table));
            attributes.extend(suppress.map(RuleAttribute::SuppressPrefixLen));
        }
        Target::Unreachable => message.header.action = RuleAction::Unreachable,
    }
    message
}

/// The rule a message describes; `None` when it is not one of ours.
fn rule_of(message: &RuleMessage) -> Option<Rule> {
    let (mut priority, mut mark, mut mask, mut table) = (0, None, u32::MAX, u32::from(message.header.table));
    let (mut to, mut suppress, mut ours) = (None, None, false);
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Priority(value) => priority = *value,
            RuleAttribute::FwMark(value) => mark = Some(*value),
            RuleAttribute::FwMask(value) => mask = *value,
            RuleAttribute::Table(value) => table = *value,
            RuleAttribute::Destination(address) => to = IpNet::new(*address, message.header.dst_len).ok(),
            // The kernel writes "none" as all ones.
            RuleAttribute::SuppressPrefixLen(value) => suppress = (*value != u32::MAX).then_some(*value),
            RuleAttribute::Protocol(origin) => ours = u8::from(*origin) == ORIGIN,
            _ => {}
        }
    }
    let target = match message.header.action {
        RuleAction::ToTable => Target::Lookup(table, suppress),
        _ => Target::Unreachable,
    };
    ours.then_some(Rule { priority, mark: mark.map(|mark| (mark, mask)), to, target })
}

/// Makes our rules of one family exactly these; added from the first to the last, removed from the last to the first. Says how many had to
/// be added or removed.
pub(super) async fn set(handle: &Handle, family: Family, wanted: &[Rule]) -> Result<usize, RouterError> {
    let mut changed = 0;
    let list = handle.rule().get(version(family)).execute();
    let listed: Vec<RuleMessage> = list.try_collect().await.map_err(failed(format!("list the {family:?} policy rules")))?;
    let mut present: Vec<(Rule, RuleMessage)> = listed.into_iter().filter_map(|message| Some((rule_of(&message)?, message))).collect();
    for rule in wanted.iter().filter(|rule| present.iter().all(|(other, _)| other != *rule)) {
        let mut request = handle.rule().add();
        *request.message_mut() = rule_message(family, rule);
        let added = request.execute().await;
        unless(&[libc::EEXIST], added).map_err(failed(format!("add {family:?} policy rule {}", rule.priority)))?;
        changed += 1;
    }
    present.sort_unstable_by_key(|(rule, _)| std::cmp::Reverse(*rule));
    for (rule, message) in present.into_iter().filter(|(rule, _)| !wanted.contains(rule)) {
        let removed = handle.rule().del(message).execute().await;
        unless(&[libc::ENOENT], removed).map_err(failed(format!("remove {family:?} policy rule {}", rule.priority)))?;
        changed += 1;
    }
    Ok(changed)
}
