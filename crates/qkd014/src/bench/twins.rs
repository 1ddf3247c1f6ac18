//! Whether both SAEs got the same keys: every kept key is compared with its twin.

use std::collections::HashMap;

use futures_util::{StreamExt as _, stream};
use serde::Serialize;

use super::kept::KeptAnswers;
use super::stock::{Limits, Stock};
use crate::client::Client;
use crate::wire::{DeliveredKey, KeyContainer};

/// Requests at once.
const AT_ONCE: usize = 8;

/// The result of a comparison.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Twins {
    /// Keys that were compared with their twins.
    pub compared: u64,
    /// Keys that differ from their twins.
    pub different: u64,
    /// Keys without a twin: B was refused, or got other keys.
    pub missing: u64,
    /// Keys whose ID was delivered twice.
    pub repeated: u64,
    /// Answers that are no key containers, or have another number of keys than asked for.
    pub malformed: u64,
}

impl Twins {
    /// Whether nothing is wrong.
    pub fn are_fine(&self) -> bool {
        (self.different, self.missing, self.repeated, self.malformed) == (0, 0, 0, 0)
    }

    /// Adds what another comparison found.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            compared: self.compared + other.compared,
            different: self.different + other.different,
            missing: self.missing + other.missing,
            repeated: self.repeated + other.repeated,
            malformed: self.malformed + other.malformed,
        }
    }
}

/// A comparison under way.
pub(super) struct Comparison {
    /// By ID in lower case.
    mine: HashMap<String, DeliveredKey>,
    twins: Twins,
}

impl Comparison {
    /// Starts with the keys in the answers of `enc_keys`, `number` in each.
    pub(super) fn new(answers: &KeptAnswers, number: u32) -> Self {
        let mut comparison = Self { mine: HashMap::new(), twins: Twins::default() };
        for (enc, _) in answers.iter().filter(|(enc, _)| !enc.is_empty()) {
            for key in comparison.container(enc, number) {
                if comparison.mine.insert(key.id.to_ascii_lowercase(), key).is_some() {
                    comparison.twins.repeated += 1;
                }
            }
        }
        comparison
    }

    /// Compares with the answers of `dec_keys`, whose keys A had in `stock` or fetched just before.
    pub(super) fn with_answers(mut self, answers: &KeptAnswers, stock: &Stock, number: u32) -> Twins {
        let stocked: HashMap<&str, &DeliveredKey> =
            stock.keys().iter().map(|key| (key.id.as_str(), key)).collect();
        for (_, dec) in answers.iter().filter(|(_, dec)| !dec.is_empty()) {
            for twin in self.container(dec, number) {
                let mine = self.mine.remove(&twin.id.to_ascii_lowercase());
                let mine = mine.as_ref().or_else(|| stocked.get(twin.id.as_str()).copied());
                self.twins.note(mine, &twin);
            }
        }
        // The keys that A got and B did not.
        self.twins.missing += self.mine.len() as u64;
        self.twins
    }

    /// Fetches the twins from B.
    pub(super) async fn by_fetching(self, b: &Client, master: &str, limits: Limits) -> Twins {
        let Self { mine, mut twins } = self;
        let each = usize::try_from(limits.max_per_request).unwrap_or(usize::MAX);
        let mut keys = mine.into_values();
        let groups = std::iter::from_fn(|| {
            let group: Vec<DeliveredKey> = keys.by_ref().take(each).collect();
            (!group.is_empty()).then_some(group)
        });
        let requests = groups.map(|group| async move {
            let ids: Vec<&str> = group.iter().map(|key| key.id.as_str()).collect();
            let answer = b.dec_keys(master, &ids).await;
            (group, answer)
        });
        let mut answers = stream::iter(requests).buffer_unordered(AT_ONCE);
        while let Some((group, answer)) = answers.next().await {
            let fetched = answer.map(|container| container.keys).unwrap_or_default();
            let mut mine: HashMap<String, DeliveredKey> =
                group.into_iter().map(|key| (key.id.to_ascii_lowercase(), key)).collect();
            for twin in fetched {
                let mine = mine.remove(&twin.id.to_ascii_lowercase());
                twins.note(mine.as_ref(), &twin);
            }
            twins.missing += mine.len() as u64;
        }
        twins
    }

    fn container(&mut self, body: &[u8], number: u32) -> Vec<DeliveredKey> {
        match serde_json::from_slice::<KeyContainer>(body) {
            Ok(container) if u32::try_from(container.keys.len()) == Ok(number) => container.keys,
            Ok(_) | Err(_) => {
                self.twins.malformed += 1;
                Vec::new()
            }
        }
    }
}

impl Twins {
    fn note(&mut self, mine: Option<&DeliveredKey>, twin: &DeliveredKey) {
        match mine {
            Some(mine) => {
                self.compared += 1;
                self.different += u64::from(!mine.key.ct_eq(&twin.key));
            }
            None => self.missing += 1,
        }
    }
}
