//! What a history says about each key: who got it, who may retrieve it, what may have used it up.

use std::collections::HashMap;

use uuid::Uuid;

use super::{Invariant, Rules, Violation, violation};
use crate::history::{Ask, Caller, Event, Outcome, Party, Seen, Slave};

/// What a requested key is to the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hold {
    /// The caller's own, as the holder with this number.
    Mine(usize),
    /// The caller is a holder, but the path names nobody who shares it.
    WrongPath,
    /// The caller's site has it, for others.
    Foreign,
    /// The caller's site does not have it, or it was never handed out.
    Unknown,
}

/// One key that was handed out.
struct Fact {
    /// The exchange that handed it out.
    event: usize,
    digest: [u8; 32],
    master: Caller,
    /// Holder 0 is the master.
    holders: Vec<Slave>,
    expires_earliest_ms: i64,
    expires_latest_ms: i64,
    /// For each holder: the exchanges that used or may have used its retrieval.
    uses: Vec<Vec<usize>>,
}

pub(super) struct Facts {
    keys: HashMap<Uuid, Fact>,
    starts_ms: Vec<i64>,
}

impl Facts {
    pub(super) fn of(events: &[Event], rules: Rules, found: &mut Vec<Violation>) -> Self {
        let starts_ms = events.iter().map(|event| event.start_ms).collect();
        let mut facts = Self { keys: HashMap::new(), starts_ms };
        let mut by_digest: HashMap<[u8; 32], Uuid> = HashMap::new();
        for (index, event) in events.iter().enumerate() {
            let Ask::Enc { slaves, .. } = &event.ask else { continue };
            for seen in event.keys() {
                if facts.keys.contains_key(&seen.id) {
                    let what = format!("{} was handed out before", seen.id);
                    found.push(violation(Invariant::HandedOutAtMostOnce, event, &what));
                    continue;
                }
                if let Some(other) = by_digest.insert(seen.digest, seen.id) {
                    let what = format!("{} is the same key as {other}", seen.id);
                    found.push(violation(Invariant::HandedOutAtMostOnce, event, &what));
                }
                facts.keys.insert(seen.id, Fact::new(index, event, seen, slaves, rules));
            }
        }
        for (index, event) in events.iter().enumerate() {
            facts.note_uses(index, event);
        }
        facts
    }

    /// An answer of 200 used the keys up. An exchange without an answer may have, if all its keys were the
    /// caller's.
    fn note_uses(&mut self, index: usize, event: &Event) {
        let Ask::Dec { path, ids } = &event.ask else { return };
        let is_lost = matches!(event.outcome, Outcome::Lost);
        if event.status() != 200 && !is_lost {
            return;
        }
        let holds: Vec<(Uuid, Hold)> = ids.iter().map(|id| (*id, self.hold(event, path, id))).collect();
        if is_lost && !holds.iter().all(|(_, hold)| matches!(hold, Hold::Mine(_))) {
            return;
        }
        for (id, hold) in holds {
            if let (Hold::Mine(holder), Some(fact)) = (hold, self.keys.get_mut(&id)) {
                fact.uses[holder].push(index);
            }
        }
    }

    pub(super) fn hold(&self, event: &Event, path: &Party, id: &Uuid) -> Hold {
        let Some(fact) = self.keys.get(id) else { return Hold::Unknown };
        let site = event.caller.site;
        let own = Party::Sae(event.caller.sae.clone());
        let mut hold = Hold::Unknown;
        for (index, holder) in fact.holders.iter().enumerate().filter(|(_, holder)| holder.site == site) {
            if holder.party == own || holder.party == Party::Kme(site) {
                if fact.path_fits(index, path) {
                    return Hold::Mine(index);
                }
                hold = Hold::WrongPath;
            } else if hold == Hold::Unknown {
                hold = Hold::Foreign;
            }
        }
        hold
    }

    pub(super) fn digest(&self, id: &Uuid) -> Option<[u8; 32]> {
        self.keys.get(id).map(|fact| fact.digest)
    }

    pub(super) fn made_by(&self, id: &Uuid) -> usize {
        self.keys[id].event
    }

    pub(super) fn expiry_earliest(&self, id: &Uuid) -> Option<i64> {
        self.keys.get(id).map(|fact| fact.expires_earliest_ms)
    }

    pub(super) fn expiry_latest(&self, id: &Uuid) -> Option<i64> {
        self.keys.get(id).map(|fact| fact.expires_latest_ms)
    }

    /// Whether another exchange than `index` may have used up the holder's retrieval before `end_ms`.
    pub(super) fn may_be_used(&self, id: &Uuid, holder: usize, index: usize, end_ms: i64) -> bool {
        let Some(fact) = self.keys.get(id) else { return false };
        fact.uses[holder].iter().any(|other| *other != index && self.starts_ms[*other] <= end_ms)
    }

    /// Whether every holder at `site` may have retrieved the key before `end_ms`: then it is gone there.
    pub(super) fn may_be_erased(&self, id: &Uuid, site: usize, index: usize, end_ms: i64) -> bool {
        let Some(fact) = self.keys.get(id) else { return true };
        let here = (0..fact.holders.len()).filter(|holder| fact.holders[*holder].site == site);
        here.into_iter().all(|holder| self.may_be_used(id, holder, index, end_ms))
    }

    /// Each holder's retrieval of each key, with the exchanges that may have used it.
    pub(super) fn retrievals(&self) -> impl Iterator<Item = (Uuid, usize, &[usize])> {
        self.keys.iter().flat_map(|(id, fact)| {
            fact.uses.iter().enumerate().map(|(holder, uses)| (*id, holder, uses.as_slice()))
        })
    }

    pub(super) fn never_used(&self) -> impl Iterator<Item = (Uuid, usize)> {
        self.retrievals().filter(|(_, _, uses)| uses.is_empty()).map(|(id, holder, _)| (id, holder))
    }
}

impl Fact {
    fn new(index: usize, event: &Event, seen: &Seen, slaves: &[Slave], rules: Rules) -> Self {
        let master = Slave { party: Party::Sae(event.caller.sae.clone()), site: event.caller.site };
        let holders: Vec<Slave> = std::iter::once(master).chain(slaves.iter().cloned()).collect();
        Self {
            event: index,
            digest: seen.digest,
            master: event.caller.clone(),
            // Without a word on it, the key may have been made ahead: it is handed out until half its life is over.
            expires_earliest_ms: seen.expires_ms.unwrap_or(event.start_ms + rules.ttl_ms / 2),
            expires_latest_ms: seen.expires_ms.unwrap_or(event.end_ms + rules.ttl_ms),
            uses: vec![Vec::new(); holders.len()],
            holders,
        }
    }

    fn path_fits(&self, holder: usize, path: &Party) -> bool {
        if holder == 0 {
            let names = |slave: &Slave| slave.party == *path || Party::Kme(slave.site) == *path;
            return self.holders[1..].iter().any(names);
        }
        *path == Party::Sae(self.master.sae.clone()) || *path == Party::Kme(self.master.site)
    }
}
