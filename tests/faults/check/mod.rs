//! The judge: a pure function from a history to the violations in it.
//!
//! It knows nothing of faults. It allows one uncertainty, because a client cannot know: an exchange without
//! an answer may have used up its keys, if all of them could be retrieved.

mod facts;

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::fmt;

use uuid::Uuid;

use crate::history::{Ask, Event, Outcome, Party, Seen, SeenAnswer};
use facts::{Facts, Hold};

/// What must hold, whatever fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Invariant {
    HandedOutAtMostOnce,
    SameIdSameBytes,
    RetrievedAtMostOnce,
    AnsweredIsRetrievable,
    StrangersGet401,
    AllOrNothing,
    ExpiredIsGone,
    RefusalsAreWellFormed,
    OnlyDocumentedStatuses,
    RecoversByItself,
    MemoryIsBounded,
}

/// One violation of an invariant.
#[derive(Clone, Debug)]
pub(crate) struct Violation {
    pub(crate) invariant: Invariant,
    pub(crate) text: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.invariant, self.text)
    }
}

/// The settings of the run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules {
    /// `keys.ttl` of all sites.
    pub(crate) ttl_ms: i64,
    /// Difference between the test's clock and the daemons'. One machine, so only rounding.
    pub(crate) slack_ms: i64,
    /// Whether everything that was left was retrieved at the end of the run.
    pub(crate) drained: bool,
}

/// All violations in `events`, which are in the order in which they ended.
pub(crate) fn check(events: &[Event], rules: Rules) -> Vec<Violation> {
    let mut found = Vec::new();
    let facts = Facts::of(events, rules, &mut found);
    let judge = Judge { events, rules, facts };
    for (index, event) in events.iter().enumerate() {
        check_answer(event, &mut found);
        if let Ask::Dec { path, ids } = &event.ask {
            judge.retrieval(index, event, path, ids, &mut found);
        }
    }
    judge.each_at_most_once(&mut found);
    if rules.drained {
        judge.nothing_is_left(&mut found);
    }
    found
}

struct Judge<'a> {
    events: &'a [Event],
    rules: Rules,
    facts: Facts,
}

fn violation(invariant: Invariant, event: &Event, what: &str) -> Violation {
    Violation { invariant, text: format!("{what}: {event:?}") }
}

impl Judge<'_> {
    fn retrieval(&self, index: usize, event: &Event, path: &Party, ids: &[Uuid], found: &mut Vec<Violation>) {
        let holds: Vec<Hold> = ids.iter().map(|id| self.facts.hold(event, path, id)).collect();
        match event.status() {
            200 => {
                self.got(event, &holds, found);
                for seen in event.keys() {
                    self.same_bytes(event, seen, found);
                }
            }
            400 => self.not_found(index, event, ids, &holds, found),
            401 if !holds.contains(&Hold::Foreign) => {
                let what = "401 for keys that are the caller's, or that never were";
                found.push(violation(Invariant::AnsweredIsRetrievable, event, what));
            }
            _ => {}
        }
    }

    fn got(&self, event: &Event, holds: &[Hold], found: &mut Vec<Violation>) {
        for hold in holds {
            match hold {
                Hold::Mine(_) => {}
                Hold::Foreign => {
                    found.push(violation(Invariant::StrangersGet401, event, "a stranger got a key"));
                }
                Hold::Unknown | Hold::WrongPath => {
                    found.push(violation(Invariant::AllOrNothing, event, "a key that is not there"));
                }
            }
        }
        let late = |seen: &&Seen| {
            self.facts.expiry_latest(&seen.id).is_some_and(|at| event.start_ms > at + self.rules.slack_ms)
        };
        if let Some(seen) = event.keys().iter().find(late) {
            let what = format!("{} had expired", seen.id);
            found.push(violation(Invariant::ExpiredIsGone, event, &what));
        }
    }

    fn same_bytes(&self, event: &Event, seen: &Seen, found: &mut Vec<Violation>) {
        let differs = self.facts.digest(&seen.id).is_some_and(|digest| digest != seen.digest);
        if differs {
            let what = format!("{} is another key than the master got", seen.id);
            found.push(violation(Invariant::SameIdSameBytes, event, &what));
        }
    }

    /// 400 needs a reason; and if a requested key is there for others, the answer must be 401 instead.
    fn not_found(
        &self,
        index: usize,
        event: &Event,
        ids: &[Uuid],
        holds: &[Hold],
        found: &mut Vec<Violation>,
    ) {
        let mut has_reason = false;
        for (id, hold) in ids.iter().zip(holds) {
            match hold {
                Hold::Unknown | Hold::WrongPath => has_reason = true,
                Hold::Mine(holder) => {
                    has_reason |= self.facts.may_be_used(id, *holder, index, event.end_ms)
                        || self.may_have_expired(id, event.end_ms);
                }
                Hold::Foreign => {
                    if self.facts.may_be_erased(id, event.caller.site, index, event.end_ms)
                        || self.may_have_expired(id, event.end_ms)
                    {
                        has_reason = true;
                    } else {
                        let what = format!("400, but {id} is there and is another's");
                        found.push(violation(Invariant::StrangersGet401, event, &what));
                        return;
                    }
                }
            }
        }
        if !has_reason {
            let what = "400, but the keys were handed out, are the caller's and nobody used them up";
            found.push(violation(Invariant::AnsweredIsRetrievable, event, what));
        }
    }

    fn may_have_expired(&self, id: &Uuid, at_ms: i64) -> bool {
        self.facts.expiry_earliest(id).is_some_and(|expiry| at_ms + self.rules.slack_ms >= expiry)
    }

    fn each_at_most_once(&self, found: &mut Vec<Violation>) {
        for (id, holder, uses) in self.facts.retrievals() {
            let taken: Vec<usize> =
                uses.iter().copied().filter(|index| self.events[*index].status() == 200).collect();
            if let [first, second, ..] = taken[..] {
                let what =
                    format!("{id} was retrieved twice by holder {holder}; first {:?}", self.events[first]);
                found.push(violation(Invariant::RetrievedAtMostOnce, &self.events[second], &what));
            }
        }
    }

    /// After everything was asked for again, every key must have been used up, or may have been.
    fn nothing_is_left(&self, found: &mut Vec<Violation>) {
        let end_ms = self.events.last().map_or(0, |event| event.end_ms);
        for (id, holder) in self.facts.never_used() {
            if !self.may_have_expired(&id, end_ms) {
                let what = format!("holder {holder} never got {id}, at the end neither");
                let event = &self.events[self.facts.made_by(&id)];
                found.push(violation(Invariant::AnsweredIsRetrievable, event, &what));
            }
        }
    }
}

/// Rules for every answer, whatever happened before.
fn check_answer(event: &Event, found: &mut Vec<Violation>) {
    let Outcome::Answer(answer) = &event.outcome else { return };
    let documented: &[u16] = match event.ask {
        Ask::Enc { .. } | Ask::Status => &[200, 503],
        Ask::Dec { .. } => &[200, 400, 401, 503],
    };
    if !documented.contains(&answer.status) {
        found.push(violation(Invariant::OnlyDocumentedStatuses, event, "this status is not expected"));
    }
    if answer.status != 200 && answer.message.as_ref().is_none_or(String::is_empty) {
        found.push(violation(Invariant::RefusalsAreWellFormed, event, "no message"));
    }
    if answer.status == 503 && !answer.retry_after {
        found.push(violation(Invariant::RefusalsAreWellFormed, event, "no Retry-After"));
    }
    if answer.status == 200 && !is_whole(&event.ask, answer) {
        found.push(violation(Invariant::AllOrNothing, event, "not what was asked for"));
    }
}

/// Whether an answer of 200 has exactly what was asked for.
fn is_whole(ask: &Ask, answer: &SeenAnswer) -> bool {
    match ask {
        Ask::Enc { number, bits, .. } => {
            let Some(keys) = &answer.keys else { return false };
            keys.len() == *number && keys.iter().all(|key| key.bits == *bits)
        }
        Ask::Dec { ids, .. } => {
            let Some(keys) = &answer.keys else { return false };
            keys.iter().map(|key| &key.id).eq(ids)
        }
        Ask::Status => answer.counts.is_some_and(|(stored, most)| stored <= most),
    }
}

/// Whether service came back in time after everything was healed. `None`: not at all.
pub(crate) fn check_recovery(took_ms: Option<i64>, at_most_ms: i64, found: &mut Vec<Violation>) {
    if took_ms.is_none_or(|took| took > at_most_ms) {
        let text = format!("healed, but no service after {took_ms:?} of at most {at_most_ms} ms");
        found.push(Violation { invariant: Invariant::RecoversByItself, text });
    }
}

/// Whether daemons, by name, stayed below `at_most_kib` of resident memory.
pub(crate) fn check_memory(daemons: &[(String, u64)], at_most_kib: u64, found: &mut Vec<Violation>) {
    for (name, kib) in daemons.iter().filter(|(_, kib)| *kib > at_most_kib) {
        let text = format!("{name} has {kib} KiB, more than {at_most_kib}");
        found.push(Violation { invariant: Invariant::MemoryIsBounded, text });
    }
}

/// The number of violations of each invariant.
pub(crate) fn count(violations: &[Violation]) -> HashMap<Invariant, usize> {
    let mut counts = HashMap::new();
    for violation in violations {
        *counts.entry(violation.invariant).or_default() += 1;
    }
    counts
}
