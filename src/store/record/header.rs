//! What never changes in a record: its sealed header.
//!
//! The bytes, before they are sealed: version, length of a key, number of keys, digest of the content, the six
//! bytes that all key IDs share, the other ten of each ID; then everything that is text, as JSON.

use kme::{BatchId, KeyId, KmeId, Party, Recipient, SaeId, Timestamp};
use serde::{Deserialize, Serialize};

use crate::store::error::StoreError;
use crate::store::types::{ContentDigest, Entitlement, NewBatch, Role};

/// Most keys that a record may have.
pub(crate) const MAX_KEYS: usize = 4_096;
const VERSION: u8 = 1;
const PREFIX_BYTES: usize = KeyId::SHARED_PREFIX_BYTES;

/// The six bytes that the key IDs of a batch share, as the database orders them.
pub(crate) type Prefix = i64;

/// What the keys of a batch have in common.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) source: KmeId,
    pub(crate) master: SaeId,
    pub(crate) recipients: Vec<Recipient>,
    /// Who may retrieve the keys at this site.
    pub(crate) entitled: Vec<Entitlement>,
    pub(crate) created_at: Timestamp,
    pub(crate) expires_at: Timestamp,
    pub(crate) content: ContentDigest,
    /// Length of every key.
    pub(crate) key_bytes: usize,
    /// Sorted. A key's place in this list is its slot.
    pub(crate) key_ids: Vec<KeyId>,
}

/// The text of a header.
#[derive(Serialize, Deserialize)]
struct Text {
    source: KmeId,
    master: SaeId,
    recipients: Vec<Recipient>,
    entitled: Vec<Entitlement>,
    created_at_ms: i64,
    expires_at_ms: i64,
}

impl Header {
    /// The header of a batch. `key_ids` are sorted.
    pub(crate) fn of(batch: &NewBatch<'_>, key_ids: Vec<KeyId>, key_bytes: usize) -> Self {
        Self {
            source: batch.source.clone(),
            master: batch.master.clone(),
            recipients: batch.recipients.to_vec(),
            entitled: batch.entitled.to_vec(),
            created_at: batch.created_at,
            expires_at: batch.expires_at,
            content: batch.content,
            key_bytes,
            key_ids,
        }
    }

    pub(crate) fn prefix(&self) -> Prefix {
        self.key_ids.first().map_or(0, prefix_of)
    }

    /// Whether a slave may retrieve the keys at this site.
    pub(crate) fn has_slaves(&self) -> bool {
        self.entitled.iter().any(|party| party.role == Role::Slave)
    }

    /// Whether the path of a request names the other side: for a slave the master or its KME, for a master a
    /// recipient or its KME.
    pub(crate) fn path_fits(&self, role: Role, path: &Party) -> bool {
        match (role, path) {
            (Role::Slave, Party::Sae(sae)) => *sae == self.master,
            (Role::Slave, Party::Kme(kme)) => *kme == self.source,
            (Role::Master, path) => self.recipients.iter().any(|recipient| {
                recipient.party == *path || matches!(path, Party::Kme(kme) if *kme == recipient.kme)
            }),
        }
    }

    pub(super) fn to_bytes(&self) -> Result<Vec<u8>, StoreError> {
        let misuse = |_| StoreError::Misuse("a batch that does not fit into a record");
        let text = Text {
            source: self.source.clone(),
            master: self.master.clone(),
            recipients: self.recipients.clone(),
            entitled: self.entitled.clone(),
            created_at_ms: self.created_at.as_ms(),
            expires_at_ms: self.expires_at.as_ms(),
        };
        let mut bytes = vec![VERSION];
        bytes.extend_from_slice(&u32::try_from(self.key_bytes).map_err(misuse)?.to_be_bytes());
        bytes.extend_from_slice(&u32::try_from(self.key_ids.len()).map_err(misuse)?.to_be_bytes());
        bytes.extend_from_slice(&self.content.0);
        let first = self.key_ids.first().map(KeyId::as_bytes);
        bytes.extend(first.into_iter().flatten().take(PREFIX_BYTES));
        bytes.extend(self.key_ids.iter().flat_map(|id| id.as_bytes().iter().skip(PREFIX_BYTES)));
        serde_json::to_writer(&mut bytes, &text)
            .map_err(|_| StoreError::Misuse("parties that cannot be JSON"))?;
        Ok(bytes)
    }

    /// `None`: of a version that this program does not know.
    pub(super) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (version, bytes) = bytes.split_first()?;
        let (key_bytes, bytes) = bytes.split_first_chunk()?;
        let (count, bytes) = bytes.split_first_chunk()?;
        let (content, bytes) = bytes.split_first_chunk()?;
        let (prefix, bytes) = bytes.split_first_chunk::<PREFIX_BYTES>()?;
        let count = usize::try_from(u32::from_be_bytes(*count)).ok()?;
        let (rests, text) = bytes.split_at_checked(count.checked_mul(16 - PREFIX_BYTES)?)?;
        if *version != VERSION {
            return None;
        }
        let key_id = |rest: &[u8; 16 - PREFIX_BYTES]| {
            let mut id = [0; 16];
            let (head, tail) = id.split_at_mut(PREFIX_BYTES);
            head.copy_from_slice(prefix);
            tail.copy_from_slice(rest);
            KeyId::from_bytes(id)
        };
        let text: Text = serde_json::from_slice(text).ok()?;
        Some(Self {
            source: text.source,
            master: text.master,
            recipients: text.recipients,
            entitled: text.entitled,
            created_at: Timestamp::from_ms(text.created_at_ms),
            expires_at: Timestamp::from_ms(text.expires_at_ms),
            content: ContentDigest(*content),
            key_bytes: usize::try_from(u32::from_be_bytes(*key_bytes)).ok()?,
            key_ids: rests.as_chunks().0.iter().map(key_id).collect(),
        })
    }
}

/// The prefix of a key ID.
pub(crate) fn prefix_of(id: &KeyId) -> Prefix {
    id.as_bytes().iter().take(PREFIX_BYTES).fold(0, |prefix, byte| prefix << 8 | i64::from(*byte))
}

/// Sorts the keys of a batch and checks their form. Returns their IDs and the length of each.
pub(crate) fn check_keys(keys: &mut [&kme::Key]) -> Result<(Vec<KeyId>, usize), StoreError> {
    let key_bytes = keys.first().map_or(0, |key| key.material.len_bytes());
    if keys.is_empty() || keys.len() > MAX_KEYS {
        return Err(StoreError::Misuse("a batch without keys, or with too many"));
    }
    if key_bytes == 0 || keys.iter().any(|key| key.material.len_bytes() != key_bytes) {
        return Err(StoreError::Misuse("the keys of a batch must have one length, of at least a byte"));
    }
    keys.sort_unstable_by_key(|key| key.id);
    if keys.windows(2).any(|pair| matches!(pair, [one, next] if one.id == next.id)) {
        return Err(StoreError::Misuse("a key ID twice in one batch"));
    }
    let ids: Vec<KeyId> = keys.iter().map(|key| key.id).collect();
    if !KeyId::share_prefix(&ids) {
        return Err(StoreError::Misuse("the key IDs of a batch must share their first six bytes"));
    }
    Ok((ids, key_bytes))
}

/// A batch ID from its column.
pub(crate) fn batch_id(bytes: &[u8]) -> Result<BatchId, StoreError> {
    let bytes =
        bytes.try_into().map_err(|_| StoreError::corrupt(super::TABLE, "an ID that is not 16 bytes long"));
    bytes.map(BatchId::from_bytes)
}

#[cfg(test)]
mod tests {
    use kme::OsRandom;

    use super::*;

    #[test]
    fn a_header_comes_back_as_it_was_and_of_another_version_not_at_all() {
        let recipient =
            Recipient { party: Party::Sae("bob \"b\"".parse().unwrap()), kme: "site-b".parse().unwrap() };
        let mut key_ids = KeyId::draw_batch(5, &OsRandom).unwrap();
        key_ids.sort_unstable();
        let header = Header {
            source: "site-a".parse().unwrap(),
            master: "alice".parse().unwrap(),
            entitled: vec![Entitlement { party: recipient.party.clone(), role: Role::Slave }],
            recipients: vec![recipient],
            created_at: Timestamp::from_ms(-1),
            expires_at: Timestamp::from_ms(i64::MAX),
            content: ContentDigest([9; 32]),
            key_bytes: 8_192,
            key_ids,
        };
        let mut bytes = header.to_bytes().unwrap();
        assert_eq!(Header::from_bytes(&bytes).unwrap(), header);
        for length in 0..bytes.len() {
            assert!(Header::from_bytes(&bytes[..length]).is_none(), "{length} bytes");
        }
        bytes[0] += 1;
        assert!(Header::from_bytes(&bytes).is_none());
    }

    #[test]
    fn a_prefix_is_the_number_of_the_first_six_bytes() {
        let id = KeyId::from_bytes([0xff, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]);
        assert_eq!(prefix_of(&id), 0xff01_0203_0405);
    }
}
