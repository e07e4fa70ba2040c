//! Packets of a peer, and of a machine at a site, as the translation between IPv6 and IPv4 takes them.

#![no_main]

use std::net::Ipv4Addr;
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use pvemesh::time::Time;
use pvemesh::tunnel::translate::{
    Flow, Flows, GROWTH, Identifications, Origin, ROOM, Sites, SitesConfig, to_v4, to_v6, to_v6_in_place, too_big,
};
use pvemesh::tunnel::{Segments, VirtioHeader};

const MTU: u16 = 1280;

fuzz_target!(|data: &[u8]| {
    // Ten bytes of virtio-net header, then packets: two bytes say how long each is, as far as there are any.
    let Some((virtio, mut rest)) = data.split_first_chunk::<{ VirtioHeader::LENGTH }>() else { return };
    let config = SitesConfig {
        routes: vec!["fd7a:115c:a1e0:b1a:0:7::/96".parse().unwrap()],
        own: Some("fd7a:115c:a1e0::1".parse().unwrap()),
        kept_out: vec![Ipv4Addr::new(100, 64, 0, 1)],
    };
    let sites = Sites::new(&config, MTU).unwrap();
    let (peer, ids) = (Ipv4Addr::new(100, 64, 0, 9), Identifications::default());
    let origin = Origin { site: 7, peer: "fd7a:115c:a1e0::9".parse().unwrap() };
    let (mut flows, mut now) = (Flows::default(), Time::default());
    let mut room = vec![0; ROOM];
    while let Some(([a, b], after)) = rest.split_first_chunk::<2>() {
        let (packet, after) = after.split_at(after.len().min(u16::from_be_bytes([*a, *b]).into()));
        rest = after;
        now = now + Duration::from_secs(u64::from(*b));
        let mut turned = packet.to_vec();
        if let Ok(turned) = to_v4(&mut turned, peer, &sites, &ids)
            && let Some((flow, origin)) = turned.flow
        {
            flows.spoken(now, flow, origin);
        }
        if let Some(flow) = Flow::of_peer(packet) {
            flows.spoken_plainly(&flow);
        }
        let origin = flows.answered(now, packet).unwrap_or(origin);
        let fits = |piece: &mut [u8]| assert!(piece.len() <= usize::from(MTU));
        let _ = to_v6(packet, &origin, &sites, &mut room, fits);
        let _ = too_big(packet, &sites, &mut room);
        let Some(mut header) = VirtioHeader::read(*virtio) else { return };
        let mut buffer = [&[0; GROWTH], packet].concat();
        if let Some(start) = to_v6_in_place(&mut header, &mut buffer, GROWTH, &origin, &sites)
            && let Ok(mut segments) = Segments::new(&header, &mut buffer[start..])
        {
            while let Some(segment) = segments.next() {
                assert!(segment.len() <= usize::from(MTU));
            }
        }
    }
});
