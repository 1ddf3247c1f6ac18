//! Retrieving keys by ID.
//!
//! All retrievals of one commit share three steps: load the records of all requested IDs, decide the requests
//! one after the other in memory, write the records that changed. [`Records::decide`] is the whole rule and
//! does no I/O.

use std::collections::{BTreeSet, HashMap, HashSet};

use kme::life::{self, Claim, EarlierUse, Erasure, Terms};
use kme::{Clock, Key, KeyId, KmeId, Party, SaeId, Timestamp};

use super::rows::{self, Found};
use crate::store::connection::Link;
use crate::store::error::{RetrieveError, StoreError};
use crate::store::record::{self, KeyState, Prefix, Record, prefix_of};
use crate::store::sealing::Sealer;
use crate::store::types::Retrieval;

/// Most keys of one retrieval.
pub const MAX_KEYS_PER_RETRIEVAL: usize = 4_096;

/// A request for keys by ID.
pub(crate) struct Retrieve {
    pub(crate) key_ids: Vec<KeyId>,
    caller: SaeId,
    local: KmeId,
    path: Party,
    terms: Terms,
}

impl Retrieve {
    /// Copies the request.
    pub(crate) fn new(asked: &Retrieval<'_>) -> Result<Self, StoreError> {
        if asked.key_ids.is_empty() || asked.key_ids.len() > MAX_KEYS_PER_RETRIEVAL {
            return Err(StoreError::Misuse("too few or too many keys in one retrieval"));
        }
        let mut seen = HashSet::new();
        if !asked.key_ids.iter().all(|id| seen.insert(id)) {
            return Err(StoreError::Misuse("a key ID twice in one retrieval"));
        }
        Ok(Self {
            key_ids: asked.key_ids.to_vec(),
            caller: asked.caller.clone(),
            local: asked.local.clone(),
            path: asked.path.clone(),
            terms: Terms { mode: asked.mode, replay_window: asked.replay_window },
        })
    }

    /// The prefixes of the IDs.
    pub(crate) fn prefixes(&self) -> impl Iterator<Item = Prefix> {
        self.key_ids.iter().map(prefix_of)
    }
}

/// What one request may do with one key.
enum Verdict {
    NotEntitled,
    Missing,
    /// Serve it, and use up the retrieval of the party with this number in the header.
    Take(usize),
    /// Serve it again.
    Repeat,
}

/// Where a requested key is.
#[derive(Clone, Copy)]
struct Place {
    record: usize,
    slot: usize,
}

/// The records that requested IDs may be in, and which of them changed.
pub(crate) struct Records {
    records: Vec<Record>,
    by_prefix: HashMap<Prefix, Vec<usize>>,
    /// Prefixes of which a record cannot be opened.
    damaged: HashMap<Prefix, StoreError>,
    changed: BTreeSet<usize>,
    now: Timestamp,
}

impl Records {
    /// Loads the records whose key IDs begin with one of `prefixes`.
    pub(crate) async fn load(
        link: &mut Link,
        sealer: &Sealer,
        prefixes: &[Prefix],
        clock: &dyn Clock,
    ) -> Result<Self, StoreError> {
        let found = rows::records_of(link, sealer, prefixes).await?;
        // After the wait for records that others have locked, in which keys may have expired.
        let now = clock.now();
        let (records, by_prefix, damaged) = (Vec::new(), HashMap::new(), HashMap::new());
        let mut loaded = Self { records, by_prefix, damaged, changed: BTreeSet::new(), now };
        for found in found {
            match found {
                Found::Record(record) => {
                    let prefix = record.header.prefix();
                    loaded.by_prefix.entry(prefix).or_default().push(loaded.records.len());
                    loaded.records.push(*record);
                }
                Found::Damaged { prefix, error, .. } => drop(loaded.damaged.insert(prefix, error)),
            }
        }
        Ok(loaded)
    }

    /// Where a key is. `Ok(None)`: nowhere.
    fn place(&self, id: KeyId) -> Result<Option<Place>, StoreError> {
        let prefix = prefix_of(&id);
        for &number in self.by_prefix.get(&prefix).into_iter().flatten() {
            if let Some(slot) = self.records.get(number).and_then(|record| record.slot_of(id)) {
                return Ok(Some(Place { record: number, slot }));
            }
        }
        self.damaged.get(&prefix).map_or(Ok(None), |error| Err(error.clone()))
    }

    fn verdict(&self, asked: &Retrieve, place: Option<Place>) -> Verdict {
        let Some((place, record)) = place.and_then(|place| Some((place, self.records.get(place.record)?)))
        else {
            return Verdict::Missing;
        };
        let (header, state, slot) = (&record.header, &record.state, place.slot);
        let is_here = state.of(slot).has_material() && !state.is_due(slot, self.now);
        if !is_here || !life::is_live(header.expires_at, self.now) {
            return Verdict::Missing;
        }
        // The caller's own right comes before that of its site.
        let is_own = |party: &Party| matches!(party, Party::Sae(sae) if *sae == asked.caller);
        let is_site = |party: &Party| matches!(party, Party::Kme(kme) if *kme == asked.local);
        let held = || header.entitled.iter().enumerate();
        let own = held().filter(|(_, held)| is_own(&held.party));
        let mut verdict = Verdict::NotEntitled;
        for (number, held) in own.chain(held().filter(|(_, held)| is_site(&held.party))) {
            verdict = Verdict::Missing;
            let has_ended = !life::is_live(record.retrievable_until(held), self.now);
            if has_ended || !header.path_fits(held.role, &asked.path) {
                continue;
            }
            let earlier = state.uses(slot).find(|used| used.party == number);
            let earlier =
                earlier.map(|used| EarlierUse { by_same_caller: used.by == asked.caller, at: used.at() });
            match life::claim(earlier, asked.terms, self.now) {
                Claim::Take => return Verdict::Take(number),
                Claim::Repeat => return Verdict::Repeat,
                Claim::Spent => {}
            }
        }
        verdict
    }

    /// Decides one request, all or nothing. On success, later requests see what it used up.
    pub(crate) fn decide(&mut self, asked: &Retrieve) -> Result<Vec<Key>, RetrieveError> {
        let mut wanted = Vec::with_capacity(asked.key_ids.len());
        let mut damage = None;
        for id in &asked.key_ids {
            match self.place(*id) {
                Ok(place) => wanted.push((place, self.verdict(asked, place))),
                Err(error) => damage = Some(error),
            }
        }
        // 401 comes before 400: one key of others is enough, even if other keys are missing.
        if wanted.iter().any(|(_, verdict)| matches!(verdict, Verdict::NotEntitled)) {
            return Err(RetrieveError::NotEntitled);
        }
        if let Some(error) = damage {
            return Err(error.into());
        }
        let mut opened = Vec::with_capacity(wanted.len());
        for (place, verdict) in &wanted {
            let (Verdict::Take(_) | Verdict::Repeat, Some(place)) = (verdict, place) else {
                return Err(RetrieveError::NotFound);
            };
            // Before anything is used up: one damaged key must not cost the caller the other keys.
            opened.push(self.open(*place)?);
        }
        for (place, verdict) in wanted {
            if let (Verdict::Take(party), Some(place)) = (verdict, place) {
                self.take(place, party, asked);
            }
        }
        Ok(opened)
    }

    fn open(&self, place: Place) -> Result<Key, RetrieveError> {
        let record = self.records.get(place.record).ok_or(RetrieveError::NotFound)?;
        let id = record.header.key_ids.get(place.slot).ok_or(RetrieveError::NotFound)?;
        Ok(record.key(place.slot)?.ok_or_else(|| StoreError::corrupt(record::TABLE, id))?)
    }

    fn take(&mut self, place: Place, party: usize, asked: &Retrieve) {
        let Place { record: number, slot } = place;
        let Some(record) = self.records.get_mut(number) else { return };
        self.changed.insert(number);
        record.state.note_use(slot, party, asked.caller.clone(), self.now);
        let is_used = |party| record.state.uses(slot).any(|used| used.party == party);
        let others = record.header.entitled.iter().enumerate().filter(|(number, _)| !is_used(*number));
        let others_until = others.map(|(_, party)| record.retrievable_until(party)).max();
        match life::erasure(others_until, record.header.expires_at, asked.terms, self.now) {
            Erasure::Now => record.erase(slot, KeyState::Gone),
            Erasure::At(at) => record.state.erase_at(slot, at),
            Erasure::Keep => {}
        }
    }

    /// Whether the decisions changed anything.
    pub(crate) fn is_changed(&self) -> bool {
        !self.changed.is_empty()
    }

    /// Writes what the decisions changed.
    pub(crate) async fn write(&self, link: &mut Link) -> Result<(), StoreError> {
        let changed = self.changed.iter().filter_map(|number| self.records.get(*number));
        rows::save(link, &changed.collect::<Vec<_>>()).await
    }
}
