//! The relays that clients are told: those of a file and the coordinator's own, and those that an admin added.

use std::collections::BTreeMap;

use super::session::Part;
use super::{CommandError, Server};
use crate::wire::control::{DerpMap, DerpRegion};

/// The numbers of private regions.
const PRIVATE: std::ops::RangeInclusive<i32> = 900..=999;
/// The first number that is given out: the one before is the coordinator's own relay's.
const FIRST: i32 = 901;
/// Most relays of a region.
const MAX_NODES: usize = 16;
/// Longest host name, certificate name, code or name.
const MAX_TEXT: usize = 253;

impl Server {
    /// The relays that an admin added.
    pub fn relays(&self) -> Vec<DerpRegion> {
        self.relays.values().cloned().collect()
    }

    /// Adds a relay's region, and tells all nodes. One without a number gets the next free one; one with a number replaces what was added
    /// under it before. Gives the region as it is kept.
    ///
    /// # Errors
    /// It names no relay, the number is none of a private region or the relay map's own, or none is free.
    pub fn add_relay(&mut self, wanted: &DerpRegion) -> Result<DerpRegion, CommandError> {
        let mut region = wanted.clone();
        if region.region_id == 0 {
            let taken = |number: &i32| self.relays.contains_key(number) || self.is_given(*number);
            let free = PRIVATE.filter(|number| *number >= FIRST).find(|number| !taken(number));
            region.region_id = free.ok_or_else(|| CommandError::Conflict("all numbers of private regions are taken".to_owned()))?;
        }
        let number = region.region_id;
        check(&region)?;
        if self.is_given(number) {
            return Err(CommandError::Conflict(format!(
                "region {number} stands in the coordinator's relay map already: choose another number"
            )));
        }
        for (node, letter) in region.nodes.iter_mut().zip('a'..) {
            node.region_id = number;
            if node.name.is_empty() || !wanted.nodes.iter().all(|node| node.region_id == number) {
                node.name = format!("{number}{letter}");
            }
        }
        if region.region_code.is_empty() {
            region.region_code = format!("own-{number}");
        }
        if region.region_name.is_empty() {
            region.region_name = format!("Own relay {number}");
        }
        let before = self.relays.insert(number, region.clone());
        if before.as_ref() != Some(&region) {
            self.unsaved_relays.insert(number);
            self.tell_part_to_all(Part::Derp);
        }
        Ok(region)
    }

    /// Takes away a region that an admin added, and tells all nodes.
    ///
    /// # Errors
    /// There is none of that number.
    pub fn remove_relay(&mut self, number: i32) -> Result<(), CommandError> {
        self.relays.remove(&number).ok_or_else(|| CommandError::Missing("relay", number.to_string()))?;
        self.unsaved_relays.insert(number);
        self.tell_part_to_all(Part::Derp);
        Ok(())
    }

    /// Whether the map that the coordinator was started with has a region.
    fn is_given(&self, number: i32) -> bool {
        let regions = self.settings.derp_map.as_ref().and_then(|map| map.regions.as_ref());
        regions.is_some_and(|regions| regions.get(&number).is_some_and(Option::is_some))
    }

    /// The relay map as clients are told; what it was started with comes first.
    pub(super) fn derp_map(&self) -> Option<DerpMap> {
        let mut map = self.settings.derp_map.clone();
        for (number, region) in &self.relays {
            let map = map.get_or_insert_with(DerpMap::default);
            map.regions.get_or_insert_with(BTreeMap::new).entry(*number).or_insert_with(|| Some(region.clone()));
        }
        map
    }
}

fn check(region: &DerpRegion) -> Result<(), CommandError> {
    let invalid = |text: String| Err(CommandError::Invalid(text));
    if !PRIVATE.contains(&region.region_id) {
        return invalid(format!("{} is no number of a private region: those are 900 to 999", region.region_id));
    }
    if region.nodes.is_empty() || region.nodes.len() > MAX_NODES {
        return invalid(format!("a region has one to {MAX_NODES} relays"));
    }
    let plain = |text: &str| text.len() <= MAX_TEXT && !text.chars().any(char::is_control);
    let host = |text: &str| !text.is_empty() && plain(text) && text.bytes().all(|b| b.is_ascii_graphic() && b != b'/');
    for node in &region.nodes {
        let texts = [&node.name, &node.cert_name, &node.ipv4, &node.ipv6];
        if !host(&node.host_name) || !texts.into_iter().all(|text| plain(text)) || !(-1..=65535).contains(&node.stun_port) {
            return invalid("each relay of a region needs a host name or address; texts are short and plain".to_owned());
        }
    }
    if plain(&region.region_code) && plain(&region.region_name) { Ok(()) } else { invalid("the region's names are too long".to_owned()) }
}
