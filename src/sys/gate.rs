//! How many connections there may be. Whoever has not proven to be a node of the mesh is a stranger: there are fewer places for those,
//! and fewer still for each address, so that strangers crowd out each other and not the mesh.
//!
//! A stranger who is in but has asked nothing yet is *half-open*. When places run out, the half-open one that has dawdled longest gives
//! way: where it is the address's own places that ran out, one of that address, else one of the address with most strangers. So a
//! thousand silent connections from anywhere do not keep out one client that knows what it wants.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

/// How many there may be.
#[derive(Debug, Clone, Copy)]
pub(in crate::sys) struct Limits {
    /// Connections in all.
    pub(in crate::sys) all: usize,
    /// Of strangers. One costs some 50 KiB at most: HTTP and Noise buffers, an HTTP/2 window.
    pub(in crate::sys) strangers: usize,
    /// Of strangers from one address (an IPv6 /64 counts as one).
    pub(in crate::sys) strangers_each: usize,
    /// How long a stranger waits for a place.
    pub(in crate::sys) patience: Duration,
    /// How long a half-open connection is left alone. Clients ask at once; slow lines and a busy moment need some room.
    pub(in crate::sys) dawdle: Duration,
}

/// How often someone who waits for a place looks whether another has dawdled long enough.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

impl Limits {
    /// The limits that fit into a number of file descriptors.
    pub(in crate::sys) fn within(descriptors: u64) -> Self {
        let all = usize::try_from(descriptors.saturating_sub(64)).unwrap_or(usize::MAX).clamp(64, 16 * 1024);
        Self {
            all,
            strangers: (all / 4).min(512),
            strangers_each: (all / 8).min(128),
            patience: Duration::from_secs(5),
            dawdle: Duration::from_secs(2),
        }
    }
}

/// Counts connections.
#[derive(Debug)]
pub(in crate::sys) struct Gate {
    limits: Limits,
    all: Arc<Semaphore>,
    strangers: Arc<Semaphore>,
    by_address: Mutex<HashMap<IpAddr, Address>>,
}

#[derive(Debug)]
struct Address {
    places: Arc<Semaphore>,
    users: usize,
    /// Those inside that have asked nothing yet, oldest first.
    half_open: BTreeMap<u64, HalfOpen>,
    last: u64,
}

#[derive(Debug)]
struct HalfOpen {
    since: Instant,
    evicted: Arc<Notify>,
}

/// One of all connections.
#[derive(Debug, Clone)]
pub(in crate::sys) struct Arrived {
    _all: Arc<OwnedSemaphorePermit>,
}

/// A connection's place.
#[derive(Debug)]
pub(in crate::sys) struct Place {
    _arrived: Arrived,
    evicted: Arc<Notify>,
    stranger: Mutex<Option<Stranger>>,
}

#[derive(Debug)]
struct Stranger {
    /// Before the permits: when they come free, it is no longer among the half-open.
    address: AddressUse,
    _places: [OwnedSemaphorePermit; 2],
}

/// Keeps an address's counter alive, and its own entry among the half-open.
#[derive(Debug)]
struct AddressUse {
    gate: Arc<Gate>,
    address: IpAddr,
    number: Option<u64>,
}

impl Gate {
    pub(in crate::sys) fn new(limits: Limits) -> Self {
        Self {
            limits,
            all: Arc::new(Semaphore::new(limits.all)),
            strangers: Arc::new(Semaphore::new(limits.strangers)),
            by_address: Mutex::default(),
        }
    }

    /// A place among all connections, if there is one.
    pub(in crate::sys) fn arrive(&self) -> Option<Arrived> {
        self.all.clone().try_acquire_owned().ok().map(|permit| Arrived { _all: Arc::new(permit) })
    }

    /// A place as a stranger; `None` if none becomes free in time.
    pub(in crate::sys) async fn admit(self: &Arc<Self>, arrived: Arrived, address: IpAddr) -> Option<Place> {
        let (own, mut address) = self.address(address);
        let both = async {
            // The address first: those that wait for their own address's places must not hold any of the common ones.
            let of_address = own.clone().acquire_owned().await.ok()?;
            let of_strangers = self.strangers.clone().acquire_owned().await.ok()?;
            Some([of_address, of_strangers])
        };
        let make_room = async {
            loop {
                self.evict((own.available_permits() == 0).then_some(address.address));
                tokio::time::sleep(LOOK_AGAIN).await;
            }
        };
        let places = tokio::time::timeout(self.limits.patience, async {
            tokio::select! {
                biased;
                places = both => places,
                never = make_room => never,
            }
        });
        let places = places.await.ok()??;
        let evicted = address.enter();
        Some(Place { _arrived: arrived, evicted, stranger: Mutex::new(Some(Stranger { address, _places: places })) })
    }

    fn address(self: &Arc<Self>, address: IpAddr) -> (Arc<Semaphore>, AddressUse) {
        let address = network_of(address);
        let mut by_address = self.by_address.lock().unwrap_or_else(PoisonError::into_inner);
        let counted = by_address.entry(address).or_insert_with(|| Address {
            places: Arc::new(Semaphore::new(self.limits.strangers_each)),
            users: 0,
            half_open: BTreeMap::new(),
            last: 0,
        });
        counted.users += 1;
        (counted.places.clone(), AddressUse { gate: self.clone(), address, number: None })
    }

    /// Throws out the half-open connection that has dawdled longest: of one address, or of the one with most of them.
    fn evict(&self, of: Option<IpAddr>) {
        let mut by_address = self.by_address.lock().unwrap_or_else(PoisonError::into_inner);
        let crowded = match of {
            Some(address) => by_address.get_mut(&address),
            None => by_address.values_mut().max_by_key(|counted| counted.half_open.len()),
        };
        let Some(counted) = crowded else { return };
        if let Some(oldest) = counted.half_open.first_entry()
            && oldest.get().since.elapsed() >= self.limits.dawdle
        {
            oldest.remove().evicted.notify_one();
        }
    }
}

impl AddressUse {
    fn change<T>(&self, change: impl FnOnce(&mut Address) -> T) -> Option<T> {
        let mut by_address = self.gate.by_address.lock().unwrap_or_else(PoisonError::into_inner);
        by_address.get_mut(&self.address).map(change)
    }

    /// Enters it among the half-open; gives what it is thrown out by.
    fn enter(&mut self) -> Arc<Notify> {
        let evicted = Arc::new(Notify::new());
        self.number = self.change(|counted| {
            counted.last += 1;
            counted.half_open.insert(counted.last, HalfOpen { since: Instant::now(), evicted: evicted.clone() });
            counted.last
        });
        evicted
    }

    fn settle(&mut self) {
        if let Some(number) = self.number.take() {
            self.change(|counted| counted.half_open.remove(&number));
        }
    }
}

impl Drop for AddressUse {
    fn drop(&mut self) {
        self.settle();
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
    pub(in crate::sys) fn prove(&self) {
        drop(self.stranger.lock().unwrap_or_else(PoisonError::into_inner).take());
    }

    /// It has asked for something with keys of its own: it is not half-open any more.
    pub(in crate::sys) fn settle(&self) {
        if let Some(stranger) = self.stranger.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
            stranger.address.settle();
        }
    }

    pub(in crate::sys) fn is_stranger(&self) -> bool {
        self.stranger.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// Returns when it has to give way to another.
    pub(in crate::sys) async fn evicted(&self) {
        self.evicted.notified().await;
    }
}

/// What counts as one address: whoever has one IPv6 address has its whole /64.
fn network_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from(u128::from(v6) >> 64 << 64)),
        v4 => v4,
    }
}

/// How many files may be open, after asking for as many as are allowed.
pub(in crate::sys) fn descriptors() -> u64 {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        let wanted = rustix::process::Rlimit { current: limit.maximum, maximum: limit.maximum };
        if setrlimit(Resource::Nofile, wanted).is_ok() {
            limit = getrlimit(Resource::Nofile);
        }
    }
    limit.current.unwrap_or(u64::MAX)
}

#[cfg(test)]
#[allow(clippy::indexing_slicing, reason = "test code")]
mod tests {
    use super::*;

    fn gate(each: usize, dawdle: Duration) -> Arc<Gate> {
        Arc::new(Gate::new(Limits { all: 12, strangers: 4, strangers_each: each, patience: Duration::from_millis(50), dawdle }))
    }

    const LONG: Duration = Duration::from_secs(600);

    #[tokio::test]
    async fn one_address_cannot_take_all_strangers_places() {
        let gate = gate(2, LONG);
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
        let gate = gate(1, LONG);
        let address = "192.0.2.1".parse().unwrap();
        let place = gate.admit(gate.arrive().unwrap(), address).await.unwrap();
        assert!(place.is_stranger());
        place.prove();
        assert!(!place.is_stranger() && gate.admit(gate.arrive().unwrap(), address).await.is_some());
        drop(place);
        assert!(gate.by_address.lock().unwrap().is_empty());
        assert_eq!((gate.all.available_permits(), gate.strangers.available_permits()), (12, 4));
    }

    #[tokio::test]
    async fn the_longest_half_open_one_of_the_most_crowded_address_gives_way() {
        let gate = gate(3, Duration::ZERO);
        let (crowd, quiet) = ("192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap());
        let mut held = vec![gate.admit(gate.arrive().unwrap(), quiet).await.unwrap()];
        for _ in 0..3 {
            held.push(gate.admit(gate.arrive().unwrap(), crowd).await.unwrap());
        }
        let newcomer = tokio::spawn({
            let gate = gate.clone();
            async move { gate.admit(gate.arrive().unwrap(), "192.0.2.3".parse().unwrap()).await }
        });
        tokio::time::timeout(LONG, held[1].evicted()).await.unwrap();
        for kept in [0, 2, 3] {
            assert!(tokio::time::timeout(Duration::ZERO, held[kept].evicted()).await.is_err(), "{kept}");
        }
        held.remove(1);
        assert!(newcomer.await.unwrap().is_some());
    }

    #[tokio::test]
    async fn whoever_has_asked_for_something_does_not_give_way() {
        let gate = gate(2, Duration::ZERO);
        let address = "192.0.2.1".parse().unwrap();
        let settled =
            [gate.admit(gate.arrive().unwrap(), address).await.unwrap(), gate.admit(gate.arrive().unwrap(), address).await.unwrap()];
        settled.iter().for_each(Place::settle);
        assert!(gate.admit(gate.arrive().unwrap(), address).await.is_none());
        for place in &settled {
            assert!(tokio::time::timeout(Duration::ZERO, place.evicted()).await.is_err());
        }
    }
}
