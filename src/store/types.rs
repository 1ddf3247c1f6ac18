//! The words of the store's interface. Plain data; no SQL.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use kme::RetrievalMode;
pub use kme::life::Inserted;
use kme::{BatchId, Key, KeyId, KmeId, Party, Provenance, Recipient, SaeId, Timestamp};

/// The part a party plays for a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// It asked for the key with `enc_keys`.
    Master,
    /// The key was addressed to it.
    Slave,
}

/// One retrieval of every key of a batch, held by a party at this site.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entitlement {
    /// Who holds it. A KME stands for any admitted SAE of that site.
    pub party: Party,
    /// What the path of the request has to name: the peer of this role.
    pub role: Role,
}

/// SHA3-256 (or another 256-bit digest) over everything that makes a pushed batch what it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ContentDigest(pub [u8; 32]);

/// A batch to be stored.
#[derive(Clone, Copy, Debug)]
pub struct NewBatch<'a> {
    /// Its ID; storing the same content again under it changes nothing.
    pub batch_id: BatchId,
    /// The KME that made it.
    pub source: &'a KmeId,
    /// The master of every key in it.
    pub master: &'a SaeId,
    /// All slaves, at this and at other sites.
    pub recipients: &'a [Recipient],
    /// The retrievals held at this site.
    pub entitled: &'a [Entitlement],
    /// Digest of the pushed content.
    pub content: ContentDigest,
    /// When the source made it.
    pub created_at: Timestamp,
    /// From this moment on no key of it is returned.
    pub expires_at: Timestamp,
    /// At least one key; distinct IDs; all of one length of at least one byte.
    pub keys: &'a [Key],
}

/// A pair that keys are kept ready for.
#[derive(Clone, Copy, Debug)]
pub struct ReadyPair<'a> {
    /// The SAE that will ask for them.
    pub master: &'a SaeId,
    /// Whom it shares them with.
    pub recipient: &'a Recipient,
}

/// Ready keys of one batch that left the store: whoever holds this is the only one to hand them out.
#[derive(Debug)]
pub struct LeasedBlock {
    /// Their batch.
    pub batch_id: BatchId,
    /// From this moment on they are not handed out any more.
    pub usable_until: Timestamp,
    /// When they were made.
    pub created_at: Timestamp,
    /// Where they come from and when they expire.
    pub provenance: Arc<Provenance>,
    /// Whether the store still holds them, for those at this site who may retrieve them by ID.
    pub is_stored: bool,
    /// The keys.
    pub keys: Vec<Key>,
}

/// Leased keys that were not handed out and go back.
#[derive(Clone, Copy, Debug)]
pub struct ReturnedBlock<'a> {
    /// Their batch.
    pub batch_id: BatchId,
    /// Whom they are for.
    pub pair: ReadyPair<'a>,
    /// As it was leased.
    pub usable_until: Timestamp,
    /// As it was leased.
    pub provenance: &'a Provenance,
    /// At least one.
    pub key_ids: &'a [KeyId],
}

/// A request for keys by ID.
#[derive(Clone, Copy, Debug)]
pub struct Retrieval<'a> {
    /// The authenticated SAE that asks.
    pub caller: &'a SaeId,
    /// This site: the caller may also use what is addressed to it.
    pub local: &'a KmeId,
    /// Whom the path of the request names.
    pub path: &'a Party,
    /// One to [`super::MAX_KEYS_PER_RETRIEVAL`] distinct IDs.
    pub key_ids: &'a [KeyId],
    /// How often.
    pub mode: RetrievalMode,
    /// How long the same caller may repeat a retrieval whose answer was lost.
    pub replay_window: Duration,
    /// How long the caller waits for the commit to begin. Once it has begun, its result is waited for.
    pub patience: Duration,
}

/// What became of keys that were to be voided.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VoidOutcome {
    /// Nobody retrieved these here and nobody will.
    pub voided: Vec<KeyId>,
    /// Somebody retrieved these here; they stay as they are.
    pub kept: Vec<KeyId>,
}

/// What became of ready keys whose commit nobody saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Withdrawn {
    /// Nobody will get them: their row is gone, or never came and never will.
    Voided,
    /// They may have been handed out: some were leased, or nobody can tell any more.
    InUse,
}

/// What one sweep erased.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Blocks of ready keys that nobody took in time.
    pub ready_blocks: u64,
    /// Keys, expired or retrieved by everyone.
    pub keys: u64,
    /// Batches past their expiry.
    pub batches: u64,
    /// Tombstones past their expiry.
    pub tombstones: u64,
    /// Data keys that no batch uses.
    pub data_keys: u64,
    /// On Postgres, marks of writers that are gone.
    pub marks: u64,
}

impl Swept {
    /// Whether there was anything to erase; when there was, more may be waiting.
    pub fn any(&self) -> bool {
        *self != Self::default()
    }
}

/// How much is stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Batches, including voided ones and those whose keys are all retrieved.
    pub batches: u64,
    /// Keys whose material is still here.
    pub keys: u64,
}
