//! A network that answers every web request itself, as hotels' do until somebody logs in.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::time::Duration;

use super::coordinator::{Coordinator, call, ours};
use super::netns::{eventually, lacking};
use super::node::Node;
use super::place::{Internet, Place, sh};
use super::turn;

#[test]
fn a_portal_is_told_from_a_network_without_udp() {
    if let Some(reason) = lacking() {
        println!("skipped: {reason}");
        return;
    }
    let _turn = turn();
    let home = tempfile::tempdir().unwrap();
    let internet = Internet::new();
    let coordinator = Coordinator::start_with(&internet.centre, home.path(), "--listen-http 0.0.0.0:80");
    let (host, routers) = internet.settle(Place::PortRestricted);
    let router = &routers[0];
    let _node = Node::start(&host, "alpha", home.path(), &coordinator);
    let node = |words: &str| call(&host, ours(&format!("node --socket {} {words}", home.path().join("alpha.sock").display())));
    let portal = || node("netcheck").contains("portal       this network answers");
    eventually("UDP passes", Duration::from_secs(10), || node("netcheck").contains("UDP          yes"));

    sh(router, "nft insert rule ip lab passing meta l4proto udp drop".to_owned());
    eventually("UDP does not pass", Duration::from_secs(15), || node("netcheck").contains("UDP          no"));
    assert!(!portal(), "the relay itself has answered");

    let listener = router.run(|| TcpListener::bind("0.0.0.0:8000").unwrap());
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _ = stream.read(&mut [0; 2048]);
            let _ = stream
                .write_all(b"HTTP/1.1 302 Found\r\nLocation: http://hotel.test/login\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        }
    });
    sh(router, "nft add rule ip lab arriving iifname lan tcp dport 80 redirect to :8000".to_owned());
    eventually("the portal is noticed", Duration::from_secs(20), portal);
    assert!(node("status").contains("a portal stands in the way"), "{}", node("status"));

    sh(router, "nft flush chain ip lab passing; nft flush chain ip lab arriving".to_owned());
    eventually("it is gone", Duration::from_secs(20), || !portal());
}
