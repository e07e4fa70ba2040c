//! The client against a server made of values, with simulated time.

#![allow(clippy::indexing_slicing, reason = "test code")]

use proptest::prelude::*;

use super::*;

const HARDWARE: [u8; 6] = [0xbc, 0x24, 0x11, 1, 2, 3];
const SERVER: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 1);
const ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 50);

fn at(seconds: u64) -> Time {
    Time::from_start(Duration::from_secs(seconds))
}

fn client() -> Machine {
    Machine::new(at(0), HARDWARE, "exit-1".parse().unwrap(), [7; 32])
}

fn sent(machine: &mut Machine) -> (Ipv4Addr, Message) {
    let transmit = machine.poll_transmit().expect("nothing to send");
    assert!(machine.poll_transmit().is_none());
    (transmit.to, Message::from_bytes(&transmit.bytes).unwrap())
}

fn reply(to: &Message, kind: MessageType, length: u32) -> Message {
    let mut message =
        Message::new_with_id(to.xid(), Ipv4Addr::UNSPECIFIED, ADDRESS, Ipv4Addr::UNSPECIFIED, Ipv4Addr::UNSPECIFIED, &HARDWARE);
    message.set_opcode(Opcode::BootReply);
    for option in [
        DhcpOption::MessageType(kind),
        DhcpOption::ServerIdentifier(SERVER),
        DhcpOption::AddressLeaseTime(length),
        DhcpOption::SubnetMask(Ipv4Addr::new(255, 255, 255, 0)),
        DhcpOption::Router(vec![SERVER]),
        DhcpOption::DomainNameServer(vec![SERVER]),
        DhcpOption::DomainName("lan".to_owned()),
    ] {
        message.opts_mut().insert(option);
    }
    message
}

fn take(machine: &mut Machine, now: Time, message: &Message) {
    machine.handle_datagram(now, &message.to_vec().unwrap());
}

fn bound(length: u32) -> Machine {
    let mut machine = client();
    let (_, discover) = sent(&mut machine);
    take(&mut machine, at(0), &reply(&discover, MessageType::Offer, length));
    let (_, request) = sent(&mut machine);
    take(&mut machine, at(0), &reply(&request, MessageType::Ack, length));
    assert!(matches!(machine.poll_event(), Some(Event::Bound(_))));
    machine
}

#[test]
fn an_offer_is_requested_and_its_acknowledgement_is_the_lease() {
    let mut machine = client();
    let (to, discover) = sent(&mut machine);
    assert_eq!((to, discover.flags().broadcast()), (Ipv4Addr::BROADCAST, true));
    assert_eq!(discover.opts().get(OptionCode::Hostname), Some(&DhcpOption::Hostname("exit-1".to_owned())));
    take(&mut machine, at(0), &reply(&discover, MessageType::Offer, 3600));
    let (_, request) = sent(&mut machine);
    assert_eq!(request.opts().get(OptionCode::RequestedIpAddress), Some(&DhcpOption::RequestedIpAddress(ADDRESS)));
    assert_eq!(request.opts().get(OptionCode::ServerIdentifier), Some(&DhcpOption::ServerIdentifier(SERVER)));
    take(&mut machine, at(1), &reply(&request, MessageType::Ack, 3600));
    let Some(Event::Bound(lease)) = machine.poll_event() else { panic!("no lease") };
    assert_eq!(lease.address, "192.168.1.50/24".parse().unwrap());
    assert_eq!((lease.router, lease.domain.as_deref()), (Some(SERVER), Some("lan")));
    assert_eq!(machine.poll_timeout().unwrap().at, at(1801));
}

#[test]
fn a_silent_network_is_asked_for_ever_with_a_growing_pause() {
    let mut machine = client();
    let (mut now, mut pauses) = (at(0), Vec::new());
    for _ in 0..20 {
        sent(&mut machine);
        let due = machine.poll_timeout().unwrap().at;
        pauses.push(due.since(now));
        now = due;
        machine.handle_timeout(now);
    }
    assert!(pauses[0] < Duration::from_millis(300), "{pauses:?}");
    assert!(pauses.iter().all(|pause| *pause <= Duration::from_secs(72)), "{pauses:?}");
    assert!(pauses[10..].iter().all(|pause| *pause >= Duration::from_secs(56)), "{pauses:?}");
}

#[test]
fn a_lease_is_renewed_with_its_server_then_with_anybody_and_then_lost() {
    let mut machine = bound(1000);
    machine.handle_timeout(machine.poll_timeout().unwrap().at);
    let (to, renewal) = sent(&mut machine);
    assert_eq!((to, renewal.ciaddr(), renewal.flags().broadcast()), (SERVER, ADDRESS, false));
    take(&mut machine, at(501), &reply(&renewal, MessageType::Ack, 1000));
    assert!(matches!(machine.poll_event(), Some(Event::Bound(_))));
    assert_eq!(machine.poll_timeout().unwrap().at, at(1001));

    let (mut destinations, mut events) = (Vec::new(), Vec::new());
    while events.is_empty() {
        let due = machine.poll_timeout().unwrap().at;
        assert!(due <= at(1501), "still held after it expired");
        machine.handle_timeout(due);
        events.extend(machine.poll_event());
        if events.is_empty() {
            destinations.push(sent(&mut machine).0);
        }
    }
    assert!(destinations.starts_with(&[SERVER, SERVER]), "{destinations:?}");
    assert!(destinations.ends_with(&[Ipv4Addr::BROADCAST]), "{destinations:?}");
    assert!(matches!(events[..], [Event::Lost { why: "it expired", .. }]), "{events:?}");
    assert!(sent(&mut machine).1.opts().has_msg_type(MessageType::Discover));
    assert!(machine.lease.is_none());
}

#[test]
fn a_refusal_loses_the_address_and_asks_anew_without_it() {
    let mut machine = bound(1000);
    machine.handle_timeout(at(500));
    let (_, renewal) = sent(&mut machine);
    take(&mut machine, at(500), &reply(&renewal, MessageType::Nak, 0));
    assert!(matches!(machine.poll_event(), Some(Event::Lost { .. })));
    let (_, discover) = sent(&mut machine);
    assert!(discover.opts().has_msg_type(MessageType::Discover) && !discover.opts().contains(OptionCode::RequestedIpAddress));
    assert_ne!(discover.xid(), renewal.xid());
}

#[test]
fn an_unanswered_request_goes_back_to_asking_everybody() {
    let mut machine = client();
    let (_, discover) = sent(&mut machine);
    take(&mut machine, at(0), &reply(&discover, MessageType::Offer, 1000));
    let mut kinds = Vec::new();
    for _ in 0..6 {
        kinds.push(sent(&mut machine).1.opts().msg_type().unwrap());
        machine.handle_timeout(machine.poll_timeout().unwrap().at);
    }
    assert_eq!(kinds[..5], [MessageType::Request; 5]);
    assert_eq!(kinds[5], MessageType::Discover);
}

#[test]
fn answers_to_somebody_else_and_senseless_ones_are_ignored() {
    let mut machine = client();
    let (_, discover) = sent(&mut machine);
    let good = reply(&discover, MessageType::Offer, 1000);
    let mut strangers = vec![good.clone(); 4];
    strangers[0].set_xid(discover.xid() ^ 1);
    strangers[1].set_chaddr(&[9; 6]);
    strangers[2].set_opcode(Opcode::BootRequest);
    strangers[3].set_yiaddr(Ipv4Addr::UNSPECIFIED);
    for stranger in &strangers {
        take(&mut machine, at(0), stranger);
        assert!(machine.poll_transmit().is_none(), "{stranger:?}");
    }
    take(&mut machine, at(0), &good);
    let (_, request) = sent(&mut machine);
    let mut elsewhere = reply(&request, MessageType::Ack, 1000);
    elsewhere.opts_mut().insert(DhcpOption::ServerIdentifier(Ipv4Addr::new(10, 0, 0, 1)));
    take(&mut machine, at(0), &elsewhere);
    assert!(machine.poll_event().is_none());
}

#[test]
fn a_hardware_address_of_any_claimed_length_is_no_panic() {
    let mut machine = client();
    let (_, discover) = sent(&mut machine);
    let good = reply(&discover, MessageType::Offer, 1000).to_vec().unwrap();
    for length in (0..=255).filter(|length| *length != HARDWARE.len() as u8) {
        let mut bytes = good.clone();
        bytes[2] = length;
        machine.handle_datagram(at(0), &bytes);
        assert!(machine.poll_transmit().is_none(), "hlen {length}");
    }
}

#[test]
fn an_option_nobody_asked_for_is_no_panic_whatever_its_length() {
    let mut machine = client();
    let (_, discover) = sent(&mut machine);
    let good = reply(&discover, MessageType::Nak, 1000).to_vec().unwrap();
    for code in 1..255 {
        for length in [0, 1, 2, 3, 4, 5, 8, 200] {
            let mut bytes = good[..240].to_vec();
            bytes.extend([code, length]);
            bytes.extend(std::iter::repeat_n(7, length.into()));
            bytes.extend(&good[240..]);
            machine.handle_datagram(at(0), &bytes);
            assert!(machine.poll_event().is_none());
        }
    }
}

#[test]
fn a_domain_that_would_add_lines_to_resolv_conf_is_left_out() {
    for name in ["a b", "x\nnameserver 1.2.3.4", "", "é"] {
        assert_eq!(domain_name(name), None, "{name:?}");
    }
    assert_eq!(domain_name("home.arpa.\0").as_deref(), Some("home.arpa"));
}

proptest! {
    #[test]
    fn mangled_answers_never_panic_and_never_stop_the_client(flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8), cut in any::<prop::sample::Index>(), length in any::<u32>()) {
        let mut machine = client();
        for kind in [MessageType::Offer, MessageType::Ack, MessageType::Nak] {
            let exchange = Message::new_with_id(machine.exchange, ADDRESS, ADDRESS, ADDRESS, ADDRESS, &HARDWARE);
            let mut bytes = reply(&exchange, kind, length).to_vec().unwrap();
            for (index, byte) in &flips {
                let index = index.index(bytes.len());
                bytes[index] = *byte;
            }
            machine.handle_datagram(at(1), &bytes[..cut.index(bytes.len() + 1)]);
            while machine.poll_event().is_some() || machine.poll_transmit().is_some() {}
            let endless = machine.lease.as_ref().is_some_and(|(lease, _)| lease.length.is_none());
            prop_assert!(machine.poll_timeout().is_some() || endless);
        }
    }
}
