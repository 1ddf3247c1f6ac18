//! The JSON of the peer protocol (`/peer/v1/`), shared by server and client.
//!
//! A batch's metadata is as secret as its keys until the pools are gone: [`BatchMetadata`] wipes its seeds
//! and shows neither in `Debug`; [`encode`] returns a buffer that is wiped when its last handle is dropped.

use std::fmt;

use blast::Confirm;
use bytes::Bytes;
use kme::{BatchId, KeyId, KmeId, PoolSetId, Recipient, SaeId, Seed, Timestamp};
use serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer};
use serde::de::{MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zeroize::Zeroizing;

use crate::pool::{AnnouncedPool, AnnouncedSet, SetTrouble};

/// Path of `POST`: announce a pool set, so that the recipient downloads it ahead of need.
pub const POOL_SETS_PATH: &str = "/peer/v1/pool-sets";
/// Path of `POST`: compare the pools of a set that the recipient discarded after a confirmation mismatch.
pub const COMPARISON_PATH: &str = "/peer/v1/pool-sets/comparison";
/// Path of `POST`: push one batch, or a list of them: [`Push`].
pub const BATCHES_PATH: &str = "/peer/v1/batches";
/// Path of `POST`: void keys that nobody retrieved.
pub const VOID_PATH: &str = "/peer/v1/void";
/// Path of `GET`: who the KME is and what it allows.
pub const INFO_PATH: &str = "/peer/v1/info";

/// Version of this protocol, the `v1` of its paths.
pub const PROTOCOL_VERSION: &str = "1";

/// Answer to an announced pool set: its pools are here.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SetReady {
    /// Bits that this site will let be drawn from the set.
    pub left_bits: u64,
}

/// Body of `POST /peer/v1/pool-sets/comparison`.
///
/// The source sends it after the recipient answered a batch with [`SetTrouble::ConfirmationMismatch`]. The
/// recipient answers once, within a minute, and only for a set that it has discarded: see
/// [`crate::pool::PoolSet::digests`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ComparisonRequest {
    /// The set.
    pub pool_set: PoolSetId,
    /// Fresh random bytes, so that digests are of this call only; 64 hexadecimal digits.
    #[serde(with = "plain_hex")]
    pub salt: [u8; 32],
    /// The source's pools.
    pub pools: Vec<PoolDigest>,
}

/// Answer to `POST /peer/v1/pool-sets/comparison`: the recipient's pools under the same salt.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ComparisonAnswer {
    /// One entry for each pool of the set.
    pub pools: Vec<PoolDigest>,
}

/// The salted digest of one pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolDigest {
    /// The pool and its server.
    #[serde(flatten)]
    pub pool: AnnouncedPool,
    /// 64 hexadecimal digits.
    #[serde(with = "plain_hex")]
    pub digest: [u8; 32],
}

/// What a recipient needs to make the keys of one batch. Unknown members are ignored.
#[derive(Serialize, Deserialize)]
pub struct BatchMetadata {
    /// The batch's name; pushing the same content again under it changes nothing.
    pub batch_id: BatchId,
    /// The construction, [`blast::SUITE`].
    pub suite: String,
    /// The pools, in the order of the extraction, and the servers that have them.
    pub pool_set: AnnouncedSet,
    /// Chooses the sample and the diagonal; 64 hexadecimal digits.
    #[serde(with = "seed")]
    pub seed: Seed,
    /// Masks the keys; 64 hexadecimal digits.
    #[serde(with = "seed")]
    pub mask_seed: Seed,
    /// The sample size k.
    pub words_per_pool: u32,
    /// Length of every key in bytes.
    pub key_bytes: usize,
    /// The keys' names, in the order of the output.
    pub key_ids: Vec<KeyId>,
    /// The SAE that receives the keys at the source site.
    pub master: SaeId,
    /// Everyone else who may retrieve them, with their sites.
    pub recipients: Vec<Recipient>,
    /// When the source made the batch.
    pub created_at: Timestamp,
    /// From this moment on no site returns a key of it.
    pub expires_at: Timestamp,
    /// The confirmation value; 32 hexadecimal digits.
    #[serde(with = "confirm")]
    pub confirm: Confirm,
}

impl fmt::Debug for BatchMetadata {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BatchMetadata({}, {} keys)", self.batch_id, self.key_ids.len())
    }
}

/// Body of `POST /peer/v1/batches`: one batch, or a list of batches of one pool set, which are stored all or none.
/// The answer has the same form. A list is only for KMEs that allow one: [`InfoLimits::max_batches_per_push`].
#[derive(Debug)]
pub enum Push {
    /// `{...}`
    One(BatchMetadata),
    /// `[{...}, ...]`
    List(Vec<BatchMetadata>),
}

impl<'de> Deserialize<'de> for Push {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OneOrList;
        // By hand, because `#[serde(untagged)]` would keep unwiped copies of the seeds.
        impl<'de> Visitor<'de> for OneOrList {
            type Value = Push;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a batch or a list of batches")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Push, A::Error> {
                BatchMetadata::deserialize(MapAccessDeserializer::new(map)).map(Push::One)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Push, A::Error> {
                Vec::deserialize(SeqAccessDeserializer::new(list)).map(Push::List)
            }
        }
        deserializer.deserialize_any(OneOrList)
    }
}

/// Answer to a pushed batch: its keys are stored durably.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BatchStored {
    /// The batch.
    pub batch_id: BatchId,
    /// How many keys of it are stored.
    pub keys: usize,
}

/// Body of `POST /peer/v1/void`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct VoidRequest {
    /// The batch. If it has not arrived, it is refused when it does.
    pub batch_id: BatchId,
    /// Which keys of it; empty for all.
    #[serde(default)]
    pub key_ids: Vec<KeyId>,
    /// When the batch would have expired.
    pub expires_at: Timestamp,
}

/// Answer to `POST /peer/v1/void`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VoidAnswer {
    /// Nobody retrieved these here and nobody will.
    pub voided: Vec<KeyId>,
    /// Somebody retrieved these here.
    pub kept: Vec<KeyId>,
}

/// Answer to `GET /peer/v1/info`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Info {
    /// Who answers.
    pub kme_id: KmeId,
    /// Version of its program.
    pub version: String,
    /// Versions of the peer protocol that it speaks.
    pub protocols: Vec<String>,
    /// Constructions that it can regenerate.
    pub suites: Vec<String>,
    /// Its clock when it answered.
    pub clock: Timestamp,
    /// What it accepts.
    pub limits: InfoLimits,
}

/// What a KME accepts from its peers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InfoLimits {
    /// Shortest key in bits.
    pub min_key_size: u32,
    /// Longest key in bits.
    pub max_key_size: u32,
    /// Most keys of one batch.
    pub max_keys_per_batch: usize,
    /// Most batches of one push. A KME that does not say takes one.
    #[serde(default = "one")]
    pub max_batches_per_push: usize,
    /// Largest difference of clocks in seconds.
    pub clock_skew_max_secs: u64,
}

const fn one() -> usize {
    1
}

/// Any error answer of the protocol.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Refusal {
    /// What was wrong.
    pub message: String,
    /// For programs: at most one [`SetTrouble`]. Entries of another shape are ignored.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub details: Vec<serde_json::Value>,
}

impl Refusal {
    /// What is wrong with the pool set, if that is why.
    pub fn set_trouble(&self) -> Option<SetTrouble> {
        self.details.iter().find_map(|detail| SetTrouble::deserialize(detail).ok())
    }
}

/// JSON in a buffer that is wiped with its last handle.
///
/// # Errors
/// If the value has no JSON form. Every type of this module has one.
pub fn encode(value: &impl Serialize) -> Result<Bytes, serde_json::Error> {
    let mut counter = Counter(0);
    serde_json::to_writer(&mut counter, value)?;
    // The exact size: a buffer that grew would leave unwiped copies behind.
    let mut buffer = Zeroizing::new(Vec::with_capacity(counter.0));
    serde_json::to_writer(&mut *buffer, value)?;
    Ok(Bytes::from_owner(buffer))
}

struct Counter(usize);

impl std::io::Write for Counter {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0 += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// `N` bytes as hexadecimal text, wiped when dropped.
struct HexBytes<const N: usize>(Zeroizing<[u8; N]>);

impl<const N: usize> Serialize for HexBytes<N> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut text = Zeroizing::new([0_u8; 64]);
        let text = text.get_mut(..2 * N).ok_or_else(|| serde::ser::Error::custom("too long"))?;
        hex::encode_to_slice(self.0.as_slice(), text).map_err(serde::ser::Error::custom)?;
        serializer.serialize_str(std::str::from_utf8(text).map_err(serde::ser::Error::custom)?)
    }
}

impl<'de, const N: usize> Deserialize<'de> for HexBytes<N> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Hex<const N: usize>;
        impl<const N: usize> Visitor<'_> for Hex<N> {
            type Value = HexBytes<N>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{} hexadecimal digits", 2 * N)
            }

            // The text itself must not get into the error.
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Self::Value, E> {
                let mut bytes = Zeroizing::new([0; N]);
                hex::decode_to_slice(text, bytes.as_mut_slice())
                    .map_err(|_| E::custom(format_args!("not {} hexadecimal digits", 2 * N)))?;
                Ok(HexBytes(bytes))
            }
        }
        deserializer.deserialize_str(Hex)
    }
}

/// Bytes that are not secret.
mod plain_hex {
    use super::{Deserialize, Deserializer, HexBytes, Serialize, Serializer, Zeroizing};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8; 32], serializer: S) -> Result<S::Ok, S::Error> {
        HexBytes(Zeroizing::new(*bytes)).serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<[u8; 32], D::Error> {
        HexBytes::deserialize(deserializer).map(|hex| *hex.0)
    }
}

mod seed {
    use super::{Deserialize, Deserializer, HexBytes, Seed, Serialize, Serializer, Zeroizing};

    pub(super) fn serialize<S: Serializer>(seed: &Seed, serializer: S) -> Result<S::Ok, S::Error> {
        HexBytes(Zeroizing::new(*seed.expose())).serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Seed, D::Error> {
        let hex = HexBytes::<{ Seed::LEN_BYTES }>::deserialize(deserializer)?;
        Seed::copy_of(hex.0.as_slice()).ok_or_else(|| serde::de::Error::custom("not a seed"))
    }
}

mod confirm {
    use super::{Confirm, Deserialize, Deserializer, HexBytes, Serialize, Serializer, Zeroizing};

    pub(super) fn serialize<S: Serializer>(confirm: &Confirm, serializer: S) -> Result<S::Ok, S::Error> {
        HexBytes(Zeroizing::new(*confirm.as_bytes())).serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Confirm, D::Error> {
        HexBytes::deserialize(deserializer).map(|hex| Confirm::from_bytes(*hex.0))
    }
}
