//! Unfinished handshakes: how many there may be, in all and from one address.
//!
//! An honest handshake takes milliseconds. So where there are too many, the oldest is the one that nobody
//! will miss: it gives way to the new one, and a new client never waits.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use super::counts::ListenerCounts;

/// The unfinished handshakes of one listener.
#[derive(Clone)]
pub(super) struct Handshakes(Arc<Table>);

struct Table {
    all_max: usize,
    address_max: usize,
    unfinished: Mutex<Unfinished>,
    counts: Arc<ListenerCounts>,
}

#[derive(Default)]
struct Unfinished {
    next: u64,
    /// By number, so the oldest is the first.
    all: BTreeMap<u64, (IpAddr, CancellationToken)>,
    of_address: HashMap<IpAddr, BTreeSet<u64>>,
}

impl Unfinished {
    fn remove(&mut self, number: u64) -> Option<CancellationToken> {
        let (address, displaced) = self.all.remove(&number)?;
        if let Some(numbers) = self.of_address.get_mut(&address) {
            numbers.remove(&number);
            if numbers.is_empty() {
                self.of_address.remove(&address);
            }
        }
        Some(displaced)
    }
}

impl Handshakes {
    pub(super) fn new(all_max: usize, address_max: usize, counts: Arc<ListenerCounts>) -> Self {
        let (all_max, address_max) = (all_max.max(1), address_max.max(1));
        Self(Arc::new(Table { all_max, address_max, unfinished: Mutex::default(), counts }))
    }

    /// Notes that a handshake begins. If there are too many, displaces the oldest.
    pub(super) fn begin(&self, address: IpAddr) -> Handshake {
        let (table, address) = (Arc::clone(&self.0), block_of(address));
        let mut unfinished = table.unfinished.lock();
        let numbers = unfinished.of_address.get(&address).filter(|all| all.len() >= table.address_max);
        let oldest = match numbers {
            Some(numbers) => numbers.first().copied(),
            None if unfinished.all.len() >= table.all_max => unfinished.all.keys().next().copied(),
            None => None,
        };
        if let Some(displaced) = oldest.and_then(|number| unfinished.remove(number)) {
            displaced.cancel();
        }
        let (number, displaced) = (unfinished.next, CancellationToken::new());
        unfinished.next += 1;
        unfinished.all.insert(number, (address, displaced.clone()));
        unfinished.of_address.entry(address).or_default().insert(number);
        table.counts.handshakes.store(unfinished.all.len(), Ordering::Relaxed);
        drop(unfinished);
        Handshake { table, number, displaced }
    }
}

/// One unfinished handshake. It is over when this is dropped.
pub(super) struct Handshake {
    table: Arc<Table>,
    number: u64,
    displaced: CancellationToken,
}

impl Handshake {
    /// Waits until it has to give way.
    pub(super) async fn displaced(&self) {
        self.displaced.cancelled().await;
    }
}

impl Drop for Handshake {
    fn drop(&mut self) {
        let mut unfinished = self.table.unfinished.lock();
        unfinished.remove(self.number);
        self.table.counts.handshakes.store(unfinished.all.len(), Ordering::Relaxed);
    }
}

/// What counts as one address: of IPv6 a whole /64, since a single machine usually has one to itself.
pub(super) fn block_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn handshakes(all_max: usize, address_max: usize) -> (Handshakes, Arc<ListenerCounts>) {
        let counts = Arc::new(ListenerCounts::default());
        (Handshakes::new(all_max, address_max, Arc::clone(&counts)), counts)
    }

    fn displaced(handshakes: &[Handshake]) -> Vec<bool> {
        handshakes.iter().map(|handshake| handshake.displaced.is_cancelled()).collect()
    }

    #[test]
    fn an_address_that_has_too_many_loses_its_oldest_and_nobody_elses() {
        let (table, counts) = handshakes(100, 2);
        let begun = ["10.0.0.1", "10.0.0.2", "10.0.0.1", "10.0.0.1", "10.0.0.1"]
            .map(|address| table.begin(address.parse().unwrap()));
        assert_eq!(displaced(&begun), [true, false, true, false, false]);
        assert_eq!(counts.handshakes(), 3);
        drop(begun);
        assert_eq!(counts.handshakes(), 0);
        let unfinished = table.0.unfinished.lock();
        assert!(unfinished.all.is_empty() && unfinished.of_address.is_empty());
    }

    #[test]
    fn too_many_in_all_displace_the_oldest_of_all() {
        let (table, counts) = handshakes(3, 2);
        let begun: Vec<_> = (1..=5).map(|last| table.begin([10, 0, 0, last].into())).collect();
        assert_eq!(displaced(&begun), [true, true, false, false, false]);
        assert_eq!(counts.handshakes(), 3);
    }

    #[test]
    fn finished_ones_make_room() {
        let (table, _) = handshakes(2, 2);
        let first = table.begin([10, 0, 0, 1].into());
        for _ in 0..10 {
            drop(table.begin([10, 0, 0, 1].into()));
        }
        assert!(!first.displaced.is_cancelled());
    }

    #[test]
    fn a_network_of_ipv6_is_one_address_and_a_mapped_ipv4_is_what_it_maps() {
        let of = |text: &str| block_of(text.parse().unwrap());
        assert_eq!(of("2001:db8:1:2:3:4:5:6"), of("2001:db8:1:2::1"));
        assert_ne!(of("2001:db8:1:2::1"), of("2001:db8:1:3::1"));
        assert_eq!(of("::ffff:10.0.0.1"), of("10.0.0.1"));
        assert_ne!(of("10.0.0.1"), of("10.0.0.2"));
    }
}
