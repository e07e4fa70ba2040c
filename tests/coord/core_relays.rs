//! Relays that an admin adds to the relay map.

use pvemesh::coord::server::CommandError;
use pvemesh::relay::region::with_one_relay;
use pvemesh::wire::control::{DerpMap, DerpRegion, MapResponse};

use crate::world::*;

fn numbers(map: &MapResponse) -> Vec<i32> {
    map.derp_map.as_ref().unwrap().regions.as_ref().unwrap().keys().copied().collect()
}

fn wanted(number: i32) -> DerpRegion {
    with_one_relay(number, "192.168.1.9", 443, Some(3478), Some("sha256-raw:00"))
}

#[test]
fn a_relay_is_told_to_all_at_once_and_gets_the_next_free_number() {
    let mut world = World::new();
    world.join(1, "alpha");
    let a = world.stream(1);
    assert!(world.take(a).unwrap().derp_map.is_none());
    let file = DerpMap { regions: Some([(901, Some(wanted(901)))].into()), ..DerpMap::default() };
    world.server.set_derp_map(Some(file));
    world.take(a);
    let added = world.server.add_relay(&DerpRegion { region_code: String::new(), ..wanted(0) }).unwrap();
    assert_eq!((added.region_id, added.nodes[0].region_id, added.nodes[0].name.as_str()), (902, 902, "902a"));
    assert_eq!(added.region_code, "own-902");
    assert_eq!(numbers(&world.take(a).unwrap()), [901, 902]);
    // The same again says nothing.
    world.drain();
    world.writes.clear();
    assert_eq!(world.server.add_relay(&added).unwrap(), added);
    assert!(world.take(a).is_none() && world.drain().is_empty() && world.writes.is_empty());
    world.server.remove_relay(902).unwrap();
    assert_eq!(numbers(&world.take(a).unwrap()), [901]);
    assert!(matches!(world.server.remove_relay(902), Err(CommandError::Missing(..))));
}

#[test]
fn relays_outlive_a_restart() {
    let mut world = World::new();
    world.server.add_relay(&wanted(950)).unwrap();
    world.server.add_relay(&wanted(951)).unwrap();
    world.server.remove_relay(951).unwrap();
    world.drain();
    let kept = world.server.relays();
    assert_eq!(kept.len(), 1);
    world.restart();
    assert_eq!(world.server.relays(), kept);
}

#[test]
fn what_is_no_relay_is_refused() {
    let mut world = World::new();
    let file = DerpMap { regions: Some([(900, Some(wanted(900)))].into()), ..DerpMap::default() };
    world.server.set_derp_map(Some(file));
    assert!(matches!(world.server.add_relay(&wanted(900)), Err(CommandError::Conflict(_))), "the coordinator's own number");
    let mut nameless = wanted(910);
    nameless.nodes[0].host_name = String::new();
    let mut odd = wanted(910);
    odd.nodes[0].cert_name = "a\nb".into();
    let empty = DerpRegion { nodes: Vec::new(), ..wanted(910) };
    for region in [wanted(1), wanted(1000), wanted(-5), nameless, odd, empty] {
        assert!(matches!(world.server.add_relay(&region), Err(CommandError::Invalid(_))), "{region:?}");
    }
    assert!(world.server.relays().is_empty());
    for _ in 901..=999 {
        world.server.add_relay(&wanted(0)).unwrap();
    }
    assert!(matches!(world.server.add_relay(&wanted(0)), Err(CommandError::Conflict(_))));
}
