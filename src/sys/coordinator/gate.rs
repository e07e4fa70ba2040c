//! How many connections there may be. Whoever has not proven to be a node of the mesh is a stranger: there are fewer places for those,
//! and fewer still for each address, so that strangers crowd out each other and not the mesh.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// How many there may be.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Connections in all.
    pub(super) all: usize,
    /// Of strangers. One costs some 50 KiB at most: HTTP and Noise buffers, an HTTP/2 window.
    pub(super) strangers: usize,
    /// Of strangers from one address (an IPv6 /64 counts as one).
    pub(super) strangers_each: usize,
    /// How long a stranger waits for a place.
    pub(super) patience: Duration,
}

impl Limits {
    /// The limits that fit into a number of file descriptors.
    pub(super) fn within(descriptors: u64) -> Self {
        let all = usize::try_from(descriptors.saturating_sub(64)).unwrap_or(usize::MAX).clamp(64, 16 * 1024);
        Self { all, strangers: (all / 4).min(512), strangers_each: (all / 8).min(128), patience: Duration::from_secs(5) }
    }
}

/// Counts connections.
#[derive(Debug)]
pub(super) struct Gate {
    limits: Limits,
    all: Arc<Semaphore>,
    strangers: Arc<Semaphore>,
    by_address: Mutex<HashMap<IpAddr, Address>>,
}

#[derive(Debug)]
struct Address {
    places: Arc<Semaphore>,
    users: usize,
}

/// A connection's place.
#[derive(Debug)]
pub(super) struct Place {
    _all: OwnedSemaphorePermit,
    stranger: Mutex<Option<Stranger>>,
}

#[derive(Debug)]
struct Stranger {
    _places: [OwnedSemaphorePermit; 2],
    _use: AddressUse,
}

/// Keeps an address's counter alive.
#[derive(Debug)]
struct AddressUse {
    gate: Arc<Gate>,
    address: IpAddr,
}

impl Gate {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            limits,
            all: Arc::new(Semaphore::new(limits.all)),
            strangers: Arc::new(Semaphore::new(limits.strangers)),
            by_address: Mutex::default(),
        }
    }

    /// A place among all connections, if there is one.
    pub(super) fn arrive(&self) -> Option<OwnedSemaphorePermit> {
        self.all.clone().try_acquire_owned().ok()
    }

    /// A place as a stranger; `None` if none becomes free in time.
    pub(super) async fn admit(self: &Arc<Self>, arrived: OwnedSemaphorePermit, address: IpAddr) -> Option<Place> {
        let (places, address_use) = self.address(address);
        let both = async {
            // The address first: those that wait for their own address's places must not hold any of the common ones.
            let of_address = places.acquire_owned().await.ok()?;
            let of_strangers = self.strangers.clone().acquire_owned().await.ok()?;
            Some([of_address, of_strangers])
        };
        let places = tokio::time::timeout(self.limits.patience, both).await.ok()??;
        Some(Place { _all: arrived, stranger: Mutex::new(Some(Stranger { _places: places, _use: address_use })) })
    }

    fn address(self: &Arc<Self>, address: IpAddr) -> (Arc<Semaphore>, AddressUse) {
        let address = network_of(address);
        let mut by_address = self.by_address.lock().unwrap_or_else(PoisonError::into_inner);
        let counted =
            by_address.entry(address).or_insert_with(|| Address { places: Arc::new(Semaphore::new(self.limits.strangers_each)), users: 0 });
        counted.users += 1;
        (counted.places.clone(), AddressUse { gate: self.clone(), address })
    }
}

impl Drop for AddressUse {
    fn drop(&mut self) {
        let mut by_address = self.gate.by_address.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(counted) = by_address.get_mut(&self.address) {
            counted.users -= 1;
            if counted.users == 0 {
                by_address.remove(&self.address);
            }
        }
    }
}

impl Place {
    /// The connection has proven to be a node's or an admin's: it gives its stranger's place to the next.
    pub(super) fn prove(&self) {
        drop(self.stranger.lock().unwrap_or_else(PoisonError::into_inner).take());
    }

    pub(super) fn is_stranger(&self) -> bool {
        self.stranger.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }
}

/// What counts as one address: whoever has one IPv6 address has its whole /64.
fn network_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from(u128::from(v6) >> 64 << 64)),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gate(each: usize) -> Arc<Gate> {
        Arc::new(Gate::new(Limits { all: 10, strangers: 4, strangers_each: each, patience: Duration::from_millis(20) }))
    }

    #[tokio::test]
    async fn one_address_cannot_take_all_strangers_places() {
        let gate = gate(2);
        let (noisy, other) = ("2001:db8::1".parse().unwrap(), "192.0.2.1".parse().unwrap());
        let mut held = Vec::new();
        for _ in 0..2 {
            held.push(gate.admit(gate.arrive().unwrap(), noisy).await.unwrap());
        }
        assert!(gate.admit(gate.arrive().unwrap(), "2001:db8::2".parse().unwrap()).await.is_none());
        assert!(gate.admit(gate.arrive().unwrap(), other).await.is_some());
        held.pop();
        assert!(gate.admit(gate.arrive().unwrap(), noisy).await.is_some());
    }

    #[tokio::test]
    async fn whoever_proves_itself_makes_room_and_nothing_is_left_behind() {
        let gate = gate(1);
        let address = "192.0.2.1".parse().unwrap();
        let place = gate.admit(gate.arrive().unwrap(), address).await.unwrap();
        assert!(place.is_stranger());
        place.prove();
        assert!(!place.is_stranger() && gate.admit(gate.arrive().unwrap(), address).await.is_some());
        drop(place);
        assert!(gate.by_address.lock().unwrap().is_empty());
        assert_eq!(gate.all.available_permits(), 10);
    }
}
