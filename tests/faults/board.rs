//! The keys that were handed out and still have to be retrieved, and who may do so.

use std::collections::BTreeMap;
use std::sync::Mutex;

use uuid::Uuid;

use crate::history::{Caller, Party, Slave};
use crate::random::Choices;

/// Most retrieved keys that are remembered, to ask for them again on purpose.
const SPENT_MAX: usize = 64;

/// Holder and path of keys: what one request may ask for together.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Lane {
    pub(crate) site: usize,
    pub(crate) holder: Party,
    pub(crate) path: Party,
}

#[derive(Default)]
struct Keys {
    fresh: Vec<Uuid>,
    /// Perhaps retrieved by an exchange without an answer.
    doubtful: Vec<Uuid>,
    spent: Vec<Uuid>,
}

/// Which keys of a lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pile {
    Fresh,
    Doubtful,
    Spent,
}

#[derive(Default)]
pub(crate) struct Board(Mutex<BTreeMap<Lane, Keys>>);

impl Keys {
    fn pile(&mut self, pile: Pile) -> &mut Vec<Uuid> {
        match pile {
            Pile::Fresh => &mut self.fresh,
            Pile::Doubtful => &mut self.doubtful,
            Pile::Spent => &mut self.spent,
        }
    }
}

impl Board {
    /// Puts fresh keys into the lane of everyone who may retrieve them.
    pub(crate) fn add_fresh(&self, master: &Caller, slaves: &[Slave], ids: &[Uuid]) {
        let own = Party::Sae(master.sae.clone());
        let mut lanes = vec![Lane { site: master.site, holder: own.clone(), path: slaves[0].party.clone() }];
        lanes.extend(slaves.iter().map(|to| Lane {
            site: to.site,
            holder: to.party.clone(),
            path: own.clone(),
        }));
        for lane in lanes {
            self.put(&lane, Pile::Fresh, ids);
        }
    }

    pub(crate) fn put(&self, lane: &Lane, pile: Pile, ids: &[Uuid]) {
        let mut lanes = self.0.lock().unwrap();
        let keys = lanes.entry(lane.clone()).or_default().pile(pile);
        keys.extend_from_slice(ids);
        if pile == Pile::Spent {
            keys.drain(..keys.len().saturating_sub(SPENT_MAX));
        }
    }

    /// Lanes that `caller` may retrieve from and that have keys in `pile`.
    fn own(lanes: &mut BTreeMap<Lane, Keys>, caller: &Caller, pile: Pile) -> Vec<Lane> {
        let mut own = Vec::new();
        for (lane, keys) in lanes.iter_mut() {
            let is_holder =
                lane.holder == Party::Sae(caller.sae.clone()) || lane.holder == Party::Kme(caller.site);
            if lane.site == caller.site && is_holder && !keys.pile(pile).is_empty() {
                own.push(lane.clone());
            }
        }
        own
    }

    /// Takes up to `count` keys, old or new, out of one of the caller's lanes.
    pub(crate) fn take(
        &self,
        caller: &Caller,
        pile: Pile,
        count: usize,
        choices: &mut Choices,
    ) -> Option<(Lane, Vec<Uuid>)> {
        let mut lanes = self.0.lock().unwrap();
        let own = Self::own(&mut lanes, caller, pile);
        if own.is_empty() {
            return None;
        }
        let lane = choices.one_of(&own).clone();
        let keys = lanes.get_mut(&lane).unwrap().pile(pile);
        let count = count.min(keys.len());
        let ids = (0..count).map(|_| keys.swap_remove(choices.below(keys.len()))).collect();
        Some((lane, ids))
    }

    /// A fresh key of the caller's site that is for another SAE, and the lane in which that SAE would ask for
    /// it.
    pub(crate) fn peek_foreign(&self, caller: &Caller, choices: &mut Choices) -> Option<(Lane, Uuid)> {
        let lanes = self.0.lock().unwrap();
        let own = Party::Sae(caller.sae.clone());
        let foreign: Vec<(&Lane, &Keys)> = lanes
            .iter()
            .filter(|(lane, keys)| {
                let is_sae = matches!(lane.holder, Party::Sae(_));
                let is_foreign = is_sae && lane.holder != own && lane.path != own;
                lane.site == caller.site && is_foreign && !keys.fresh.is_empty()
            })
            .collect();
        if foreign.is_empty() {
            return None;
        }
        let (lane, keys) = *choices.one_of(&foreign);
        Some((lane.clone(), *choices.one_of(&keys.fresh)))
    }

    /// How many retrievals are left of fresh and doubtful keys.
    pub(crate) fn left(&self) -> usize {
        self.0.lock().unwrap().values().map(|keys| keys.fresh.len() + keys.doubtful.len()).sum()
    }
}
