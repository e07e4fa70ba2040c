//! Checks by value: what is asked, what is made of the answers.

#![allow(clippy::indexing_slicing, reason = "test code")]

mod checks;
mod homes;
mod plans;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use super::*;
use crate::ident::RegionId;
use crate::time::Time;
use crate::wire::control::DerpMap;

fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

fn at(milliseconds: u64) -> Time {
    Time::from_start(ms(milliseconds))
}

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn region(n: u16) -> RegionId {
    RegionId(n)
}

fn map(text: &str) -> Vec<Region> {
    regions(&serde_json::from_str::<DerpMap>(text).unwrap())
}

/// Regions with these numbers, each with two relays in both families.
fn plain(numbers: &[u16]) -> Vec<Region> {
    let one = |n: &u16| {
        let node = |k: u16| {
            format!(r#"{{"Name":"{n}{k}","RegionID":{n},"HostName":"r{n}-{k}.example","IPv4":"192.0.2.{n}","IPv6":"2001:db8::{n}:{k}"}}"#)
        };
        format!(r#""{n}":{{"RegionID":{n},"RegionCode":"r{n}","Nodes":[{},{}]}}"#, node(1), node(2))
    };
    map(&format!(r#"{{"Regions":{{{}}}}}"#, numbers.iter().map(one).collect::<Vec<_>>().join(",")))
}

#[test]
fn a_relay_map_is_read_with_its_defaults_and_odd_entries_are_left_out() {
    let read = map(r#"{"Regions":{
            "1":{"RegionID":1,"RegionCode":"a","Nodes":[{"Name":"1a","HostName":"a.example","IPv6":"none","STUNPort":-1,"DERPPort":8443}]},
            "2":{"RegionID":2,"Avoid":true,"Nodes":[{"Name":"2a","HostName":"192.0.2.9","STUNOnly":true}]},
            "3":{"RegionID":3,"NoMeasureNoHome":true,"Nodes":[{"Name":"3a","HostName":"c.example","IPv4":"nonsense","STUNPort":99}]},
            "4":{"RegionID":4,"Nodes":[]}, "5":null, "0":{"RegionID":0,"Nodes":[{"Name":"x"}]}, "70000":{"RegionID":70000,"Nodes":[{"Name":"x"}]}},
          "HomeParams":{"RegionScore":{"1":0.5,"2":-1,"3":0}}}"#);
    assert_eq!(
        read.iter().map(|r| (r.id.0, r.avoid, r.unmeasured, r.score)).collect::<Vec<_>>(),
        [(1, false, false, 0.5), (2, true, false, 1.0), (3, false, true, 1.0)]
    );
    let servers: Vec<&Server> = read.iter().map(|r| &r.servers[0]).collect();
    assert_eq!((servers[0].stun, servers[0].relay, &servers[0].v4, &servers[0].v6), (None, Some(8443), &Place::Named, &Place::Nowhere));
    assert_eq!((servers[1].stun, servers[1].relay), (Some(3478), None));
    assert_eq!((&servers[1].v4, &servers[1].v6), (&Place::At("192.0.2.9".parse().unwrap()), &Place::Nowhere));
    assert_eq!((servers[2].stun, &servers[2].v4, &servers[2].v6), (Some(99), &Place::Nowhere, &Place::Named));
}

#[test]
fn own_addresses_are_kept_for_a_while_and_a_hard_nat_does_not_fill_the_list() {
    let mut own = OwnAddresses::default();
    own.note(at(0), address("203.0.113.9:1"));
    own.note(at(1000), address("[2001:db8::1]:1"));
    own.note(at(2000), address("203.0.113.9:2"));
    assert_eq!(own.current(at(3000)), ["203.0.113.9:2", "[2001:db8::1]:1", "203.0.113.9:1"].map(address));
    own.note(at(4000), address("203.0.113.9:1"));
    assert_eq!(own.current(at(4000))[0], address("203.0.113.9:1"), "seen again, so the newest");
    assert_eq!(own.current(at(312_500)), [address("203.0.113.9:1")], "five minutes and ten seconds later");
    for port in 1..1000 {
        own.note(at(5000), SocketAddr::new("203.0.113.9".parse().unwrap(), port));
    }
    assert_eq!(own.current(at(5000)).len(), 7);
    for n in 0..1000u32 {
        own.note(at(6000), SocketAddr::from((n.to_be_bytes(), 1)));
    }
    assert_eq!(own.current(at(6000)).len(), 24);
    own.clear();
    assert_eq!(own.current(at(6000)), []);
}
