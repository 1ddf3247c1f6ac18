//! The digest that identifies the content of a pushed batch.

use kme::Party;
use sha3::{Digest as _, Sha3_256};

use super::wire::BatchMetadata;

/// Separates this digest from every other use of the hash.
const DOMAIN: &[u8] = b"dqkd batch content 1\0";

/// SHA3-256 over every member of the metadata, each with its length, in a fixed order.
///
/// A digest of fresh 256-bit seeds reveals nothing about them. So it may be stored, unlike the metadata.
pub fn content_digest(batch: &BatchMetadata) -> [u8; 32] {
    let mut hash = Sha3_256::new_with_prefix(DOMAIN);
    let mut field = |bytes: &[u8]| {
        hash.update((bytes.len() as u64).to_le_bytes());
        hash.update(bytes);
    };
    let number = |n: usize| (n as u64).to_le_bytes();
    field(batch.batch_id.as_bytes());
    field(batch.suite.as_bytes());
    field(batch.pool_set.id.as_bytes());
    field(&number(batch.pool_set.words));
    field(&batch.pool_set.expires_at.as_ms().to_le_bytes());
    field(&number(batch.pool_set.pools.len()));
    for pool in &batch.pool_set.pools {
        field(pool.server.as_str().as_bytes());
        field(pool.id.as_bytes());
    }
    field(batch.seed.expose());
    field(batch.mask_seed.expose());
    field(&batch.words_per_pool.to_le_bytes());
    field(&number(batch.key_bytes));
    field(&number(batch.key_ids.len()));
    for id in &batch.key_ids {
        field(id.as_bytes());
    }
    field(batch.master.as_str().as_bytes());
    field(&number(batch.recipients.len()));
    for recipient in &batch.recipients {
        let (kind, party): (&[u8], &str) = match &recipient.party {
            Party::Sae(sae) => (b"sae", sae.as_str()),
            Party::Kme(kme) => (b"kme", kme.as_str()),
        };
        field(kind);
        field(party.as_bytes());
        field(recipient.kme.as_str().as_bytes());
    }
    field(&batch.created_at.as_ms().to_le_bytes());
    field(&batch.expires_at.as_ms().to_le_bytes());
    field(batch.confirm.as_bytes());
    hash.finalize().into()
}
