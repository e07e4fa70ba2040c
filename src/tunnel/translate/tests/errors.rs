//! ICMP errors and the packets in them.

use super::*;

/// A peer's error about what the machine has sent, which it quotes.
fn peers_error(kind: u8, code: u8, word: u32, quote: &[u8]) -> Result<Vec<u8>, Refusal> {
    turned(forth_v6(ICMPV6, &icmp(kind, code, word, quote))).map(|(packet, flow)| {
        assert_eq!(flow, None);
        packet
    })
}

/// Somebody's error about what the peer has sent, which it quotes.
fn sites_error(from: Ipv4Addr, kind: u8, code: u8, word: u32, quote: &[u8]) -> Result<Vec<u8>, Refusal> {
    let packet = whole(v4(from, PEER_V4, ICMP, 0, &icmp(kind, code, word, quote)));
    answered(&packet).map(|mut found| found.remove(0))
}

#[test]
fn a_peers_error_is_about_the_packet_that_the_machine_has_sent() {
    let quotes = [
        (back_v6(UDP, &udp((53, 4000), &payload(100))), back_v4(UDP, 0, &udp((53, 4000), &payload(100)))),
        (back_v6(TCP, &tcp((80, 4000), 0x10, None, &payload(100))), back_v4(TCP, 0, &tcp((80, 4000), 0x10, None, &payload(100)))),
        (back_v6(ICMPV6, &icmp(129, 0, 0x0102_0003, &payload(99))), back_v4(ICMP, 0, &icmp(0, 0, 0x0102_0003, &payload(99)))),
    ];
    for (sent, expected) in quotes {
        let error = peers_error(1, 4, 0, &sent).unwrap();
        assert!(is_right(&error), "{error:x?}");
        assert_eq!((&error[12..20], &error[20..22]), (&[PEER_V4.octets(), MACHINE.octets()].concat()[..], &[3, 3][..]));
        assert!(is_right(&error[28..]), "the quoted packet's checksums are what the machine had written");
        assert_eq!(apart_from_id(error[28..].to_vec()), apart_from_id(expected));
        // Cut short it is the same, as far as it goes.
        let cut = peers_error(1, 4, 0, &sent[..48]).unwrap();
        assert!(slow(&cut[20..]) == 0xffff && cut.len() == 28 + 28, "{cut:x?}");
        assert_eq!(cut[28..32], error[28..32], "the length is that of the packet, not of the quote");
    }
}

#[test]
fn an_error_from_the_site_is_about_the_packet_that_the_peer_has_sent() {
    let quotes = [
        (forth_v4(UDP, &udp((4000, 53), &payload(100))), forth_v6(UDP, &udp((4000, 53), &payload(100)))),
        (forth_v4(TCP, &tcp((4000, 80), 0x02, Some(1220), &[])), forth_v6(TCP, &tcp((4000, 80), 0x02, Some(1220), &[]))),
        (forth_v4(ICMP, &icmp(8, 0, 0x0102_0003, &payload(99))), forth_v6(ICMPV6, &icmp(128, 0, 0x0102_0003, &payload(99)))),
    ];
    for (sent, expected) in quotes {
        // From a router that no carried prefix reaches, the peer hears of it by this node.
        for (from, speaker) in [(MACHINE, MACHINE_V6), (Ipv4Addr::new(10, 0, 0, 1), OWN)] {
            let error = sites_error(from, 3, 3, 0, &sent).unwrap();
            assert!(is_right(&error), "{error:x?}");
            assert_eq!(error[8..40], [speaker.octets(), PEER_V6.octets()].concat());
            assert_eq!(error[40..42], [1, 4]);
            assert!(is_right(&error[48..]));
            assert_eq!(apart_from_id(error[48..].to_vec()), apart_from_id(expected.clone()));
            let cut = sites_error(from, 3, 3, 0, &sent[..28]).unwrap();
            assert!(is_right(&cut) && cut.len() == 48 + 48, "{cut:x?}");
        }
    }
}

#[test]
fn types_and_codes_of_a_peers_errors_are_those_of_rfc_7915() {
    let sent = back_v6(UDP, &udp((53, 4000), &payload(10)));
    // Type and code, the word that follows, and the same in ICMP.
    let table = [
        ((1, 0, 0), (3, 1, 0)),
        ((1, 1, 0), (3, 10, 0)),
        ((1, 2, 0), (3, 1, 0)),
        ((1, 3, 0), (3, 1, 0)),
        ((1, 4, 0), (3, 3, 0)),
        ((2, 0, 1500), (3, 4, 1260)),
        ((2, 0, 1280), (3, 4, 1260)),
        ((3, 0, 0), (11, 0, 0)),
        ((3, 1, 0), (11, 1, 0)),
        ((4, 1, 6), (3, 2, 0)),
        ((4, 0, 0), (12, 0, 0)),
        ((4, 0, 4), (12, 0, 2 << 24)),
        ((4, 0, 6), (12, 0, 9 << 24)),
        ((4, 0, 7), (12, 0, 8 << 24)),
        ((4, 0, 8), (12, 0, 12 << 24)),
        ((4, 0, 39), (12, 0, 16 << 24)),
    ];
    for ((kind, code, word), (to, as_code, as_word)) in table {
        let error = peers_error(kind, code, word, &sent).unwrap();
        assert_eq!(error[20..22], [to, as_code], "{kind} {code}");
        assert_eq!(error[24..28], u32::to_be_bytes(as_word), "{kind} {code} {word}");
    }
    for (kind, code, word) in [(1, 5, 0), (4, 2, 0), (4, 0, 2), (4, 0, 40), (5, 0, 0), (127, 0, 0)] {
        assert_eq!(peers_error(kind, code, word, &sent), Err(Refusal::Untranslatable), "{kind} {code} {word}");
    }
}

#[test]
fn types_and_codes_of_a_sites_errors_are_those_of_rfc_7915() {
    let sent = forth_v4(UDP, &udp((4000, 53), &payload(10)));
    let mut table = vec![
        ((3, 2, 0), (4, 1, 6)),
        ((3, 3, 0), (1, 4, 0)),
        // Never below what IPv6 has to carry, nor above the tunnel's own.
        ((3, 4, 1260), (2, 0, 1280)),
        ((3, 4, 576), (2, 0, 1280)),
        ((3, 4, 1480), (2, 0, 1280)),
        ((3, 4, 0), (2, 0, 1280)),
        ((11, 0, 0), (3, 0, 0)),
        ((11, 1, 0), (3, 1, 0)),
        ((12, 0, 0), (4, 0, 0)),
        ((12, 2, 2 << 24), (4, 0, 4)),
        ((12, 0, 8 << 24), (4, 0, 7)),
        ((12, 0, 9 << 24), (4, 0, 6)),
        ((12, 0, 12 << 24), (4, 0, 8)),
        ((12, 0, 19 << 24), (4, 0, 24)),
    ];
    table.extend([0, 1, 5, 6, 7, 8, 11, 12].map(|code| ((3, code, 0), (1, 0, 0))));
    table.extend([9, 10, 13, 15].map(|code| ((3, code, 0), (1, 1, 0))));
    for ((kind, code, word), (to, as_code, as_word)) in table {
        let error = sites_error(MACHINE, kind, code, word, &sent).unwrap();
        assert_eq!(error[40..42], [to, as_code], "{kind} {code}");
        assert_eq!(error[44..48], u32::to_be_bytes(as_word), "{kind} {code} {word}");
    }
    for (kind, code, word) in [(3, 14, 0), (12, 1, 0), (12, 0, 4 << 24), (12, 0, 20 << 24)] {
        assert_eq!(sites_error(MACHINE, kind, code, word, &sent), Err(Refusal::Untranslatable), "{kind} {code} {word}");
    }
    // Source quench, redirect, questions: nothing that quotes a packet.
    for kind in [4, 5, 13, 17, 40] {
        assert!(sites_error(MACHINE, kind, 0, 0, &sent).is_err(), "{kind}");
    }
}

#[test]
fn a_larger_tunnel_tells_larger_sizes() {
    let large = Sites::new(&SitesConfig { routes: vec!["fd7a:115c:a1e0:b1a:0:7::/96".parse().unwrap()], ..SitesConfig::default() }, 9000);
    let large = large.unwrap();
    let sent = forth_v4(UDP, &udp((4000, 53), &payload(1600)));
    for (told, expected) in [(1480, 1500), (0, 1512), (8990, 9000), (9000, 9000)] {
        let packet = whole(v4(MACHINE, PEER_V4, ICMP, 0, &icmp(3, 4, told, &sent[..200])));
        to_v6(&packet, &ORIGIN, &large, &mut vec![0; ROOM], |packet| assert_eq!(packet[44..48], u32::to_be_bytes(expected))).unwrap();
    }
}

#[test]
fn extensions_of_an_error_are_left_out() {
    let sent = back_v6(UDP, &udp((53, 4000), &payload(80)));
    assert_eq!(sent.len(), 128);
    let extended = [&sent[..], &[0x20, 0, 0, 0, 0, 8, 1, 1, 1, 2, 3, 4]].concat();
    let plain = peers_error(3, 0, 0, &sent).unwrap();
    assert_eq!(apart_from_id(peers_error(3, 0, 16 << 24, &extended).unwrap()), apart_from_id(plain));
    assert_eq!(peers_error(3, 0, 17 << 24, &sent), Err(Refusal::Malformed), "longer than it is");

    let sent = forth_v4(UDP, &udp((4000, 53), &payload(100)));
    let extended = [&sent[..], &[0x20, 0, 0, 0]].concat();
    assert_eq!(sites_error(MACHINE, 11, 0, 32 << 16, &extended), sites_error(MACHINE, 11, 0, 0, &sent));
    assert_eq!(sites_error(MACHINE, 11, 0, 33 << 16, &sent), Err(Refusal::Malformed));
}

#[test]
fn an_error_never_gets_a_checksum_that_it_did_not_deserve() {
    let mut error = forth_v6(ICMPV6, &icmp(1, 4, 0, &back_v6(UDP, &udp((53, 4000), &payload(10)))));
    *error.last_mut().unwrap() ^= 1;
    assert_eq!(turned(error), Err(Refusal::Malformed));
    let mut error = back_v4(ICMP, 0, &icmp(3, 3, 0, &forth_v4(UDP, &udp((4000, 53), &payload(10)))));
    *error.last_mut().unwrap() ^= 1;
    assert_eq!(answered(&error), Err(Refusal::Malformed));
}

#[test]
fn errors_about_errors_and_about_others_packets_are_refused() {
    let about_error = back_v6(ICMPV6, &icmp(1, 4, 0, &payload(48)));
    assert_eq!(peers_error(1, 4, 0, &about_error), Err(Refusal::Untranslatable));
    let others = whole(v6(PEER_V6, OWN, UDP, &udp((1, 2), &[])));
    assert_eq!(peers_error(1, 4, 0, &others), Err(Refusal::Untranslatable));
    assert_eq!(sites_error(MACHINE, 3, 3, 0, &forth_v4(ICMP, &icmp(3, 3, 0, &payload(28)))), Err(Refusal::Untranslatable));
}
