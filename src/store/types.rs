//! What goes into the store and comes out of it. Plain data; no SQL.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use kme::RetrievalMode;
pub use kme::life::{Inserted, Role};
use kme::{BatchId, Key, KeyId, KmeId, Party, Provenance, Recipient, SaeId, Timestamp};

/// The right of a party at this site to retrieve each key of a batch once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entitlement {
    /// Who holds it. A KME stands for any admitted SAE of that site.
    pub party: Party,
    /// Its part. The path of the request has to name the other side.
    pub role: Role,
}

/// A 256-bit digest over everything in a pushed batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ContentDigest(pub [u8; 32]);

/// A batch to be stored.
#[derive(Clone, Copy, Debug)]
pub struct NewBatch<'a> {
    /// Its ID. Storing the same content under it again changes nothing.
    pub batch_id: BatchId,
    /// The KME that made it.
    pub source: &'a KmeId,
    /// The master of every key in it.
    pub master: &'a SaeId,
    /// All slaves, at this and at other sites.
    pub recipients: &'a [Recipient],
    /// Who may retrieve them at this site.
    pub entitled: &'a [Entitlement],
    /// Digest of the pushed content.
    pub content: ContentDigest,
    /// When the source made it.
    pub created_at: Timestamp,
    /// When it expires: from then on no key of it is returned.
    pub expires_at: Timestamp,
    /// When the master's copies at this site end; `None`: when the keys expire. A lease may put it off.
    pub copy_ends_at: Option<Timestamp>,
    /// At least one, with distinct IDs, all of one length.
    pub keys: &'a [Key],
}

/// A pair with ready keys.
#[derive(Clone, Copy, Debug)]
pub struct ReadyPair<'a> {
    /// The SAE that will ask for them.
    pub master: &'a SaeId,
    /// With whom it shares them.
    pub recipient: &'a Recipient,
}

/// Ready keys of one batch that left the store. Only the holder of this hands them out.
#[derive(Debug)]
pub struct LeasedBlock {
    /// Their batch.
    pub batch_id: BatchId,
    /// Who may retrieve them at this site.
    pub entitled: Vec<Entitlement>,
    /// When they were leased. From [`kme::life::HOLD`] after that, they are not handed out but given back.
    pub leased_at: Timestamp,
    /// From then on they are neither handed out nor leased.
    pub usable_until: Timestamp,
    /// When they were made.
    pub created_at: Timestamp,
    /// Where they come from and when they expire.
    pub provenance: Arc<Provenance>,
    /// The keys.
    pub keys: Vec<Key>,
}

/// Leased keys that were not handed out and are given back.
#[derive(Clone, Copy, Debug)]
pub struct ReturnedBlock<'a> {
    /// Their batch.
    pub batch_id: BatchId,
    /// This site's KME, which made them.
    pub source: &'a KmeId,
    /// Whom they are for.
    pub pair: ReadyPair<'a>,
    /// As it was leased.
    pub entitled: &'a [Entitlement],
    /// As it was leased.
    pub created_at: Timestamp,
    /// As it was leased.
    pub usable_until: Timestamp,
    /// As it was leased.
    pub provenance: &'a Provenance,
    /// At least one.
    pub keys: &'a [Key],
}

/// A request for keys by ID.
#[derive(Clone, Copy, Debug)]
pub struct Retrieval<'a> {
    /// The authenticated SAE that asks.
    pub caller: &'a SaeId,
    /// This site: the caller may also use what is addressed to it.
    pub local: &'a KmeId,
    /// The party that the path of the request names.
    pub path: &'a Party,
    /// At least one, at most [`super::MAX_KEYS_PER_RETRIEVAL`], all distinct.
    pub key_ids: &'a [KeyId],
    /// How often each key may be retrieved.
    pub mode: RetrievalMode,
    /// How long the same caller may repeat a retrieval whose answer was lost.
    pub replay_window: Duration,
    /// How long the caller waits for the commit to begin. Once it has begun, the caller waits for its result.
    pub patience: Duration,
}

/// Result of voiding keys.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VoidOutcome {
    /// Nobody has retrieved these here, and nobody will.
    pub voided: Vec<KeyId>,
    /// Somebody has retrieved these here. They stay as they are.
    pub kept: Vec<KeyId>,
    /// What keeps the batch out, if it was not here.
    pub tombstone: Tombstone,
}

/// Whether a void left a tombstone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tombstone {
    /// The batch is here, so none is needed.
    #[default]
    NotNeeded,
    /// The batch is not here, and will be refused.
    Left,
    /// The batch is not here, and no tombstone was allowed: nothing was done.
    NotAllowed,
}

/// Result of voiding ready keys unless some were leased.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadyVoid {
    /// Nobody has them and nobody will get them.
    Voided,
    /// They may have been handed out: some were leased, or the store no longer knows.
    InUse,
}

/// What one sweep erased.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Keys that were due: their replay window has ended, or the master's copy.
    pub keys: u64,
    /// Records that cannot be opened, or have no key to erase: somebody changed them in the database.
    pub unlisted: u64,
    /// Expired batches with all their keys.
    pub batches: u64,
    /// Expired tombstones.
    pub tombstones: u64,
    /// Data keys that no record needs.
    pub data_keys: u64,
    /// On Postgres, commit marks of writers that are gone.
    pub marks: u64,
}

impl Swept {
    /// Whether anything was erased. Then more may be waiting.
    pub fn any(&self) -> bool {
        *self != Self::default()
    }
}
