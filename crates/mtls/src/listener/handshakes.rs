//! Unfinished handshakes: how many there may be, in all and from one address.
//!
//! An honest handshake takes milliseconds. So where there are too many, the oldest is the one that nobody
//! will miss: it gives way to the new one, and a new client never waits. If there is room, an address may have
//! more than its share for a moment: a hundred clients behind one address connect at once when a daemon comes
//! back.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::ListenerLimits;
use super::counts::ListenerCounts;

/// The unfinished handshakes of one listener.
#[derive(Clone)]
pub(super) struct Handshakes(Arc<Table>);

struct Table {
    all_max: usize,
    address_max: usize,
    grace: Duration,
    unfinished: Mutex<Unfinished>,
    counts: Arc<ListenerCounts>,
}

#[derive(Default)]
struct Unfinished {
    next: u64,
    /// By number, so the oldest is the first.
    all: BTreeMap<u64, One>,
    of_address: HashMap<IpAddr, BTreeSet<u64>>,
}

struct One {
    address: IpAddr,
    began: Instant,
    displaced: CancellationToken,
}

impl Unfinished {
    fn remove(&mut self, number: u64) -> Option<CancellationToken> {
        let One { address, displaced, .. } = self.all.remove(&number)?;
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
    pub(super) fn new(limits: &ListenerLimits, counts: Arc<ListenerCounts>) -> Self {
        let (all_max, address_max) = (limits.max_handshakes.max(1), limits.max_handshakes_per_address.max(1));
        let (grace, unfinished) = (limits.handshake_grace, Mutex::default());
        Self(Arc::new(Table { all_max, address_max, grace, unfinished, counts }))
    }

    /// Notes that a handshake begins. If there are too many, displaces the one that nobody will miss.
    pub(super) fn begin(&self, address: IpAddr) -> Handshake {
        let (table, address, now) = (Arc::clone(&self.0), block_of(address), Instant::now());
        let mut unfinished = table.unfinished.lock();
        let oldest = if let Some(number) = table.stale(&unfinished, address, now) {
            Some(number)
        } else if unfinished.all.len() >= table.all_max {
            let of_each = unfinished.of_address.values().map(|numbers| (numbers.len(), numbers.first()));
            of_each
                .max_by_key(|(count, first)| (*count, Reverse(*first)))
                .and_then(|(_, first)| first.copied())
        } else {
            None
        };
        if let Some(displaced) = oldest.and_then(|number| unfinished.remove(number)) {
            displaced.cancel();
        }
        let (number, displaced) = (unfinished.next, CancellationToken::new());
        unfinished.next += 1;
        unfinished.all.insert(number, One { address, began: now, displaced: displaced.clone() });
        unfinished.of_address.entry(address).or_default().insert(number);
        table.counts.handshakes.store(unfinished.all.len(), Ordering::Relaxed);
        drop(unfinished);
        Handshake { table, number, displaced }
    }
}

impl Table {
    /// The oldest handshake of an address that has its share, if its time is over.
    fn stale(&self, unfinished: &Unfinished, address: IpAddr, now: Instant) -> Option<u64> {
        let numbers = unfinished.of_address.get(&address).filter(|all| all.len() >= self.address_max)?;
        let oldest = numbers.first()?;
        let began = unfinished.all.get(oldest)?.began;
        (now.saturating_duration_since(began) >= self.grace).then_some(*oldest)
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
        with_grace(all_max, address_max, Duration::ZERO)
    }

    fn with_grace(all_max: usize, address_max: usize, grace: Duration) -> (Handshakes, Arc<ListenerCounts>) {
        let limits = ListenerLimits {
            max_handshakes: all_max,
            max_handshakes_per_address: address_max,
            handshake_grace: grace,
            ..ListenerLimits::default()
        };
        let counts = Arc::new(ListenerCounts::default());
        (Handshakes::new(&limits, Arc::clone(&counts)), counts)
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

    #[tokio::test(start_paused = true)]
    async fn an_address_may_have_more_for_a_moment_while_there_is_room() {
        let (table, _) = with_grace(5, 2, Duration::from_secs(1));
        let one = || table.begin([10, 0, 0, 1].into());
        let other = table.begin([10, 0, 0, 2].into());
        let begun = [one(), one(), one(), one()];
        assert_eq!(displaced(&begun), [false; 4]);
        // There is no room any more: the address that has the most loses its oldest.
        let third = table.begin([10, 0, 0, 3].into());
        assert_eq!(displaced(&begun), [true, false, false, false]);
        drop(third);
        tokio::time::advance(Duration::from_secs(1)).await;
        // There is room, but the moment is over.
        let _fifth = one();
        assert_eq!(displaced(&begun), [true, true, false, false]);
        assert_eq!(displaced(&[other]), [false]);
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
