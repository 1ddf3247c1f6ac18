//! The leased blocks of one pair, in the order in which they are handed out.
//!
//! Keeps a count of the keys, so that a request looks at one block instead of all.

use std::collections::VecDeque;
use std::sync::Arc;

use kme::life;
use kme::{Demands, FreshKey, Timestamp};

use crate::store::LeasedBlock;

/// Blocks in memory.
#[derive(Debug, Default)]
pub(super) struct Blocks {
    queue: VecDeque<LeasedBlock>,
    /// Number of keys in the queue.
    keys: usize,
    /// When the first of the blocks in the queue may no longer be handed out.
    sound_until: Option<Timestamp>,
    /// Blocks that waited too long. They go back to the store, where a lease takes them again.
    overdue: Vec<LeasedBlock>,
}

impl Blocks {
    /// Adds blocks behind the others.
    pub(super) fn extend(&mut self, blocks: impl IntoIterator<Item = LeasedBlock>) {
        self.queue.extend(blocks);
        self.count();
    }

    /// Takes out everything that has keys.
    pub(super) fn take_all(&mut self) -> Vec<LeasedBlock> {
        let Self { queue, overdue, .. } = std::mem::take(self);
        queue.into_iter().chain(overdue).filter(|block| !block.keys.is_empty()).collect()
    }

    /// Takes out the blocks that are to go back to the store.
    pub(super) fn take_overdue(&mut self, now: Timestamp) -> Vec<LeasedBlock> {
        self.drop_unusable(now);
        std::mem::take(&mut self.overdue)
    }

    /// Whether some blocks are to go back to the store, as of the last look at them.
    pub(super) fn is_overdue(&self) -> bool {
        !self.overdue.is_empty()
    }

    /// Keys that may still be handed out, or leased again.
    pub(super) fn held(&mut self, now: Timestamp) -> u64 {
        let usable = self.usable(now);
        let overdue = self.overdue.iter().filter(|block| now < block.usable_until);
        usable + overdue.map(|block| block.keys.len() as u64).sum::<u64>()
    }

    /// Keys that may still be handed out.
    pub(super) fn usable(&mut self, now: Timestamp) -> u64 {
        self.drop_unusable(now);
        self.keys as u64
    }

    /// Takes out exactly `number` keys that may still be handed out and meet `demands`; none if there are
    /// fewer.
    pub(super) fn pop(&mut self, number: usize, demands: &Demands, now: Timestamp) -> Option<Vec<FreshKey>> {
        self.drop_unusable(now);
        let fits = |block: &LeasedBlock| demands.met_by(&block.provenance, now);
        if self.keys < number {
            return None;
        }
        let mut found = 0;
        for block in self.queue.iter().filter(|block| fits(block)) {
            found += block.keys.len();
            if found >= number {
                break;
            }
        }
        if found < number {
            return None;
        }
        let mut popped = Vec::with_capacity(number);
        for block in self.queue.iter_mut().filter(|block| fits(block)) {
            while popped.len() < number
                && let Some(key) = block.keys.pop()
            {
                popped.push(FreshKey { key, provenance: Arc::clone(&block.provenance) });
            }
            if popped.len() == number {
                break;
            }
        }
        self.keys -= popped.len();
        while self.queue.front().is_some_and(|block| block.keys.is_empty()) {
            self.queue.pop_front();
        }
        Some(popped)
    }

    fn drop_unusable(&mut self, now: Timestamp) {
        if self.sound_until.is_some_and(|until| now >= until) {
            for block in std::mem::take(&mut self.queue) {
                if block.keys.is_empty() || now >= block.usable_until {
                    continue;
                }
                if now < hand_out_until(&block) {
                    self.queue.push_back(block);
                } else {
                    self.overdue.push(block);
                }
            }
            self.count();
        }
    }

    fn count(&mut self) {
        self.keys = self.queue.iter().map(|block| block.keys.len()).sum();
        self.sound_until = self.queue.iter().map(hand_out_until).min();
    }
}

fn hand_out_until(block: &LeasedBlock) -> Timestamp {
    life::hand_out_until(block.created_at, block.provenance.expires_at, block.leased_at)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use kme::{BatchId, Key, KeyId, KeyMaterial, OsRandom, Provenance, SecretBytes, SourceGrade};

    use super::*;

    const START: Timestamp = Timestamp::from_ms(1_000_000);

    /// Keys from `pools` pools that may be handed out for the time `usable`.
    fn block(keys: usize, usable: Duration, pools: usize) -> LeasedBlock {
        let grade = SourceGrade { entropy_sources: ["os".to_owned()].into(), pools, hybrid_tls: true };
        let expires_at = START.plus(2 * usable);
        let ids = KeyId::draw_batch(keys, &OsRandom).unwrap();
        let key = |id| Key { id, material: KeyMaterial::new(SecretBytes::zeroed(1)) };
        LeasedBlock {
            batch_id: BatchId::draw(&OsRandom).unwrap(),
            entitled: Vec::new(),
            leased_at: START,
            usable_until: life::usable_until(START, expires_at),
            created_at: START,
            provenance: Arc::new(Provenance { grade, expires_at }),
            keys: ids.into_iter().map(key).collect(),
        }
    }

    const SHORT: Duration = Duration::from_secs(10);
    const LONG: Duration = Duration::from_secs(20);

    #[test]
    fn keys_come_from_the_oldest_block_first_and_all_or_none() {
        let mut blocks = Blocks::default();
        blocks.extend([block(2, LONG, 3), block(2, LONG, 3)]);
        let expected: Vec<KeyId> =
            blocks.queue.iter().flat_map(|b| b.keys.iter().rev()).map(|k| k.id).collect();
        let none = Demands::default();
        assert!(blocks.pop(5, &none, START).is_none());
        assert_eq!(blocks.usable(START), 4, "nothing was taken");
        let mut popped = Vec::new();
        for number in [1, 2, 1] {
            popped.extend(blocks.pop(number, &none, START).unwrap().iter().map(|fresh| fresh.key.id));
        }
        assert_eq!(popped, expected);
        assert!(blocks.pop(1, &none, START).is_none());
        assert!(blocks.queue.is_empty() && blocks.usable(START) == 0);
    }

    #[test]
    fn a_block_counts_until_its_time_is_over_wherever_it_stands() {
        let mut blocks = Blocks::default();
        blocks.extend([block(1, LONG, 3)]);
        blocks.extend([block(4, SHORT, 3), block(1, LONG, 3)]);
        assert_eq!(blocks.usable(START.plus(SHORT).minus(Duration::from_millis(1))), 6);
        assert!(blocks.pop(3, &Demands::default(), START.plus(SHORT)).is_none());
        assert_eq!(blocks.usable(START.plus(SHORT)), 2);
        assert_eq!(blocks.usable(START.plus(LONG)), 0);
        assert!(blocks.take_all().is_empty());
    }

    #[test]
    fn a_block_that_waited_too_long_is_not_handed_out_but_still_counts_as_held() {
        let mut blocks = Blocks::default();
        let (soon, later) = (START.plus(life::HOLD), START.plus(3 * life::HOLD));
        blocks.extend([block(2, 2 * life::HOLD, 3), block(4, life::HOLD, 3)]);
        let just_leased = LeasedBlock { leased_at: soon, ..block(1, 2 * life::HOLD, 3) };
        blocks.extend([just_leased]);
        assert_eq!((blocks.usable(soon), blocks.held(soon)), (1, 3), "of the four the time is over");
        assert!(blocks.pop(2, &Demands::default(), soon).is_none());
        assert!(blocks.is_overdue());
        assert_eq!(blocks.take_overdue(soon).iter().map(|block| block.keys.len()).sum::<usize>(), 2);
        assert!(!blocks.is_overdue() && blocks.held(soon) == 1);
        assert_eq!(blocks.held(later), 0);
    }

    #[test]
    fn demands_pass_over_blocks_that_do_not_meet_them() {
        let mut blocks = Blocks::default();
        blocks.extend([block(1, LONG, 2), block(1, LONG, 3), block(1, LONG, 2)]);
        let three = Demands { min_pools: Some(3), ..Demands::default() };
        assert!(blocks.pop(2, &three, START).is_none());
        assert_eq!(blocks.pop(1, &three, START).unwrap()[0].provenance.grade.pools, 3);
        assert!(blocks.pop(1, &three, START).is_none());
        assert_eq!(blocks.pop(2, &Demands::default(), START).unwrap().len(), 2, "past the empty one");
        assert!(blocks.queue.is_empty());
    }

    #[test]
    fn what_is_taken_out_is_all_that_is_left() {
        let mut blocks = Blocks::default();
        blocks.extend([block(1, LONG, 2), block(2, LONG, 3)]);
        let three = Demands { min_pools: Some(3), ..Demands::default() };
        blocks.pop(2, &three, START).unwrap();
        let left = blocks.take_all();
        assert_eq!(left.iter().map(|block| block.keys.len()).collect::<Vec<_>>(), [1]);
        assert_eq!(blocks.usable(START), 0);
    }
}
