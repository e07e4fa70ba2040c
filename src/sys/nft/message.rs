//! The table as netlink messages (`linux/netfilter/nf_tables.h`): what `nft` would compile the rules in the module's page to.

use std::net::IpAddr;

use netlink_packet_core::{DefaultNla, NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_DUMP, NLM_F_REQUEST, NetlinkMessage};
use netlink_packet_netfilter::nftables::{
    Bitwise, ChainAttribute, ChainMessage, Cmp, DataAttribute, Expressions, Hook, Immediate, InetHookNumber, Meta, MetaKey,
    NfTablesMessage, Operator, Register, RuleAttribute, RuleMessage, TableAttribute, TableFlags, TableMessage, Verdict, VerdictAttribute,
};
use netlink_packet_netfilter::none::ControlMessage;
use netlink_packet_netfilter::{NetfilterHeader, NetfilterMessage, NetfilterProtoFamily};

use super::{Rules, TABLE};
use crate::node::policy_routing::{FORWARD_MARK, LAN_MARK, MARK_MASK};

/// The subsystem number that opens and closes a batch (`NFNL_SUBSYS_NFTABLES`).
const SUBSYSTEM: u16 = 10;
/// `NF_DROP`.
const DROP: u32 = 0;
/// `NF_ACCEPT`.
const ACCEPT: u32 = 1;
/// `NFTA_CT_DREG`, `NFTA_CT_KEY` and `NFT_CT_STATE`: for connection tracking the crate has no names.
const CT_REGISTER: u16 = 1;
const CT_KEY: u16 = 2;
const CT_STATE: u32 = 0;
/// The states `established` and `related`.
const CT_KNOWN: u32 = 2 | 4;
/// `NFTA_PAYLOAD_*` and `NFT_PAYLOAD_TRANSPORT_HEADER`.
const PAYLOAD_REGISTER: u16 = 1;
const PAYLOAD_BASE: u16 = 2;
const PAYLOAD_OFFSET: u16 = 3;
const PAYLOAD_LENGTH: u16 = 4;
const TRANSPORT_HEADER: u32 = 2;
/// `NFTA_RT_*` and `NFT_RT_TCPMSS`.
const RT_REGISTER: u16 = 1;
const RT_KEY: u16 = 2;
const RT_TCP_MSS: u32 = 3;
/// `NFTA_BYTEORDER_*` and `NFT_BYTEORDER_HTON`.
const BYTEORDER_SOURCE: u16 = 1;
const BYTEORDER_DESTINATION: u16 = 2;
const BYTEORDER_OPERATION: u16 = 3;
const BYTEORDER_LENGTH: u16 = 4;
const BYTEORDER_SIZE: u16 = 5;
const HOST_TO_NETWORK: u32 = 1;
/// `NFTA_EXTHDR_*` and `NFT_EXTHDR_OP_TCPOPT`.
const EXTHDR_TYPE: u16 = 2;
const EXTHDR_OFFSET: u16 = 3;
const EXTHDR_LENGTH: u16 = 4;
const EXTHDR_OPERATION: u16 = 6;
const EXTHDR_SOURCE: u16 = 7;
const TCP_OPTION: u32 = 1;
/// `NFTA_NAT_*` and `NFT_NAT_SNAT`.
const NAT_TYPE: u16 = 1;
const NAT_FAMILY: u16 = 2;
const NAT_REGISTER: u16 = 3;
const NAT_SOURCE: u32 = 0;
/// TCP's number, its option "maximum segment size", and where the flags are (RFC 9293).
const TCP: u8 = 6;
const MAXIMUM_SEGMENT_SIZE: u8 = 2;
const TCP_FLAGS: u32 = 13;
const SYN: u8 = 2;
/// `NF_IP_PRI_FILTER`: where filtering is.
const PRIORITY_FILTER: i32 = 0;
/// `NF_IP_PRI_NAT_SRC`: where source addresses are translated.
const PRIORITY_SRCNAT: i32 = 100;
/// `IFNAMSIZ`: the kernel compares whole, zero-padded names.
const NAME_BYTES: usize = 16;

type Message = NetlinkMessage<NetfilterMessage>;

/// Messages as the bytes of one transaction.
pub(super) fn batch(messages: &[Message]) -> Vec<u8> {
    let control = |message: ControlMessage| {
        let mut message =
            NetlinkMessage::from(NetfilterMessage::new(NetfilterHeader::new(NetfilterProtoFamily::Unspec, 0, SUBSYSTEM), message));
        message.header.flags = NLM_F_REQUEST;
        message
    };
    let mut all = vec![control(ControlMessage::BatchBegin)];
    all.extend_from_slice(messages);
    all.push(control(ControlMessage::BatchEnd));
    let mut bytes = Vec::new();
    for (mut message, number) in all.into_iter().zip(1..) {
        message.header.sequence_number = number;
        message.finalize();
        let start = bytes.len();
        bytes.resize(start + message.buffer_len().next_multiple_of(4), 0);
        if let Some(place) = bytes.get_mut(start..) {
            message.serialize(place);
        }
    }
    bytes
}

/// The table in place of what is there: made if it is missing, so that the removal that follows cannot fail.
pub(super) fn replace(rules: &Rules, clamps: bool, flags: TableFlags) -> Vec<Message> {
    let mut messages = vec![table(flags), delete(), table(flags), chain("forward", "filter", InetHookNumber::Forward, PRIORITY_FILTER)];
    if rules.forward && clamps {
        messages.push(rule("forward", clamp_towards(&rules.interface)));
    }
    if rules.masquerade || !rules.lan_gateway.is_empty() {
        messages.push(chain("postrouting", "nat", InetHookNumber::PostRouting, PRIORITY_SRCNAT));
    }
    if rules.masquerade {
        messages.extend([rule("forward", mark_from(&rules.interface)), rule("postrouting", masquerade_marked(&rules.interface))]);
    }
    if !rules.lan_gateway.is_empty() {
        messages.push(rule("forward", mark_towards(&rules.interface)));
        messages.extend(rules.lan_gateway.iter().map(|address| rule("postrouting", translate_marked(&rules.interface, *address))));
    }
    if rules.shields_up {
        messages.extend([
            chain("input", "filter", InetHookNumber::LocalIn, PRIORITY_FILTER),
            rule("input", drop_new(&rules.interface)),
            rule("forward", drop_new(&rules.interface)),
        ]);
    }
    messages
}

/// How many rules [`replace`] makes.
pub(super) fn count(rules: &Rules, clamps: bool) -> usize {
    let gateway = if rules.lan_gateway.is_empty() { 0 } else { 1 + rules.lan_gateway.len() };
    usize::from(rules.forward && clamps) + 2 * (usize::from(rules.masquerade) + usize::from(rules.shields_up)) + gateway
}

/// The question for all rules of the table.
pub(super) fn list() -> Vec<u8> {
    let attributes = vec![RuleAttribute::Table(TABLE.to_owned())];
    let mut message = message(NfTablesMessage::GetRule(RuleMessage { attributes }), NLM_F_DUMP);
    message.header.sequence_number = 1;
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}

/// The removal of the table.
pub(super) fn delete() -> Message {
    let attributes = vec![TableAttribute::Name(TABLE.to_owned())];
    message(NfTablesMessage::DeleteTable(TableMessage { attributes }), 0)
}

fn message(inner: NfTablesMessage, flags: u16) -> Message {
    let mut message = NetlinkMessage::from(NetfilterMessage::new(NetfilterHeader::new(NetfilterProtoFamily::Inet, 0, 0), inner));
    message.header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
    message
}

fn table(flags: TableFlags) -> Message {
    let attributes = vec![TableAttribute::Name(TABLE.to_owned()), TableAttribute::Flags(flags)];
    message(NfTablesMessage::NewTable(TableMessage { attributes }), NLM_F_CREATE)
}

fn chain(name: &str, kind: &str, hook: InetHookNumber, priority: i32) -> Message {
    let attributes = vec![
        ChainAttribute::Table(TABLE.to_owned()),
        ChainAttribute::Name(name.to_owned()),
        ChainAttribute::Hook(vec![Hook::Number(hook.into()), Hook::Priority(priority.cast_unsigned())]),
        ChainAttribute::Policy(ACCEPT),
        ChainAttribute::Type(kind.to_owned()),
    ];
    message(NfTablesMessage::NewChain(ChainMessage { attributes }), NLM_F_CREATE)
}

fn rule(chain: &str, expressions: Vec<Expressions>) -> Message {
    let attributes = vec![
        RuleAttribute::Table(TABLE.to_owned()),
        RuleAttribute::Chain(chain.to_owned()),
        RuleAttribute::Expressions(expressions.into_iter().map(Into::into).collect()),
    ];
    message(NfTablesMessage::NewRule(RuleMessage { attributes }), NLM_F_CREATE | NLM_F_APPEND)
}

/// `iifname "…" meta mark set meta mark & ~mask | mark`: the other bits stay as they are.
fn mark_from(interface: &str) -> Vec<Expressions> {
    vec![
        load(MetaKey::Iifname),
        compare(Operator::Equal, name_bytes(interface)),
        load(MetaKey::Mark),
        bitwise(!MARK_MASK, FORWARD_MARK),
        Expressions::Meta(vec![Meta::Key(MetaKey::Mark), Meta::SourceRegister(Register::Reg1)]),
    ]
}

/// `iifname != "…" oifname "…" meta mark set meta mark & ~mask | mark`: from one mesh node to another nothing is translated. Where addresses
/// are translated, the kernel does not say any more by which interface a packet came.
fn mark_towards(interface: &str) -> Vec<Expressions> {
    vec![
        load(MetaKey::Iifname),
        compare(Operator::NotEqual, name_bytes(interface)),
        load(MetaKey::Oifname),
        compare(Operator::Equal, name_bytes(interface)),
        load(MetaKey::Mark),
        bitwise(!MARK_MASK, LAN_MARK),
        Expressions::Meta(vec![Meta::Key(MetaKey::Mark), Meta::SourceRegister(Register::Reg1)]),
    ]
}

/// `oifname "…" meta mark & mask == mark meta nfproto … snat to …`.
fn translate_marked(interface: &str, address: IpAddr) -> Vec<Expressions> {
    let number = |kind, value: u32| DefaultNla::new(kind, value.to_be_bytes().to_vec());
    let (family, bytes) = match address {
        IpAddr::V4(v4) => (NetfilterProtoFamily::IPv4, v4.octets().to_vec()),
        IpAddr::V6(v6) => (NetfilterProtoFamily::IPv6, v6.octets().to_vec()),
    };
    let family = u8::from(family);
    vec![
        load(MetaKey::Oifname),
        compare(Operator::Equal, name_bytes(interface)),
        load(MetaKey::Mark),
        bitwise(MARK_MASK, 0),
        compare(Operator::Equal, LAN_MARK.to_ne_bytes().to_vec()),
        load(MetaKey::Nfproto),
        compare(Operator::Equal, vec![family]),
        Expressions::Immediate(vec![Immediate::DestinationRegister(Register::Reg1), Immediate::Data(DataAttribute::Value(bytes))]),
        Expressions::Other {
            expression_type: "nat".to_owned(),
            attributes: vec![number(NAT_TYPE, NAT_SOURCE), number(NAT_FAMILY, family.into()), number(NAT_REGISTER, Register::Reg1.into())],
        },
    ]
}

/// `oifname != "…" meta mark & mask == mark masquerade`: from one mesh node to another nothing is translated.
fn masquerade_marked(interface: &str) -> Vec<Expressions> {
    vec![
        load(MetaKey::Oifname),
        compare(Operator::NotEqual, name_bytes(interface)),
        load(MetaKey::Mark),
        bitwise(MARK_MASK, 0),
        compare(Operator::Equal, FORWARD_MARK.to_ne_bytes().to_vec()),
        // The crate has no name for it; it takes no attributes.
        Expressions::Other { expression_type: "masq".to_owned(), attributes: Vec::new() },
    ]
}

/// `oifname "…" tcp flags syn tcp option maxseg size set rt mtu`. The kernel only ever makes it smaller.
fn clamp_towards(interface: &str) -> Vec<Expressions> {
    let number = |kind, value: u32| DefaultNla::new(kind, value.to_be_bytes().to_vec());
    let register = Register::Reg1.into();
    let other = |kind: &str, attributes| Expressions::Other { expression_type: kind.to_owned(), attributes };
    let one_byte = |value: u8| DataAttribute::Value(vec![value]);
    let compare_byte =
        |operator, value| Expressions::Cmp(vec![Cmp::SourceRegister(Register::Reg1), Cmp::Op(operator), Cmp::Data(one_byte(value))]);
    let flags = vec![
        number(PAYLOAD_REGISTER, register),
        number(PAYLOAD_BASE, TRANSPORT_HEADER),
        number(PAYLOAD_OFFSET, TCP_FLAGS),
        number(PAYLOAD_LENGTH, 1),
    ];
    let to_network = vec![
        number(BYTEORDER_SOURCE, register),
        number(BYTEORDER_DESTINATION, register),
        number(BYTEORDER_OPERATION, HOST_TO_NETWORK),
        number(BYTEORDER_LENGTH, 2),
        number(BYTEORDER_SIZE, 2),
    ];
    let option = vec![
        DefaultNla::new(EXTHDR_TYPE, vec![MAXIMUM_SEGMENT_SIZE]),
        // Behind the option's kind and length.
        number(EXTHDR_OFFSET, 2),
        number(EXTHDR_LENGTH, 2),
        number(EXTHDR_OPERATION, TCP_OPTION),
        number(EXTHDR_SOURCE, register),
    ];
    vec![
        load(MetaKey::Oifname),
        compare(Operator::Equal, name_bytes(interface)),
        load(MetaKey::L4Proto),
        compare_byte(Operator::Equal, TCP),
        other("payload", flags),
        Expressions::Bitwise(vec![
            Bitwise::SourceRegister(Register::Reg1),
            Bitwise::DestinationRegister(Register::Reg1),
            Bitwise::Length(1),
            Bitwise::Mask(one_byte(SYN)),
            Bitwise::Xor(one_byte(0)),
        ]),
        compare_byte(Operator::NotEqual, 0),
        other("rt", vec![number(RT_REGISTER, register), number(RT_KEY, RT_TCP_MSS)]),
        other("byteorder", to_network),
        other("exthdr", option),
    ]
}

/// `iifname "…" ct state & (established | related) == 0 drop`.
fn drop_new(interface: &str) -> Vec<Expressions> {
    let attribute = |kind, value: u32| DefaultNla::new(kind, value.to_be_bytes().to_vec());
    vec![
        load(MetaKey::Iifname),
        compare(Operator::Equal, name_bytes(interface)),
        Expressions::Other {
            expression_type: "ct".to_owned(),
            attributes: vec![attribute(CT_REGISTER, Register::Reg1.into()), attribute(CT_KEY, CT_STATE)],
        },
        bitwise(CT_KNOWN, 0),
        compare(Operator::Equal, 0u32.to_ne_bytes().to_vec()),
        Expressions::Immediate(vec![
            Immediate::DestinationRegister(Register::Verdict),
            Immediate::Data(DataAttribute::Verdict(vec![VerdictAttribute::Code(Verdict::Other(DROP))])),
        ]),
    ]
}

fn load(key: MetaKey) -> Expressions {
    Expressions::Meta(vec![Meta::Key(key), Meta::DestinationRegister(Register::Reg1)])
}

fn compare(operator: Operator, value: Vec<u8>) -> Expressions {
    Expressions::Cmp(vec![Cmp::SourceRegister(Register::Reg1), Cmp::Op(operator), Cmp::Data(DataAttribute::Value(value))])
}

/// `register & mask ^ xor` on 32 bits; marks are in the machine's byte order.
fn bitwise(mask: u32, xor: u32) -> Expressions {
    let bytes = |value: u32| DataAttribute::Value(value.to_ne_bytes().to_vec());
    Expressions::Bitwise(vec![
        Bitwise::SourceRegister(Register::Reg1),
        Bitwise::DestinationRegister(Register::Reg1),
        Bitwise::Length(4),
        Bitwise::Mask(bytes(mask)),
        Bitwise::Xor(bytes(xor)),
    ])
}

fn name_bytes(name: &str) -> Vec<u8> {
    let mut bytes = name.as_bytes().to_vec();
    bytes.resize(NAME_BYTES, 0);
    bytes
}
