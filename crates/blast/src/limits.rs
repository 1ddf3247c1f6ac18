//! The limits of a batch. Each stands here once; error messages and configuration refer to them.

/// Fewest pools of a batch: with one, the server of that pool would know every key.
pub const MIN_POOLS: usize = 2;
/// Most pools of a batch.
pub const MAX_POOLS: usize = 8;
/// Fewest 64-bit words of a pool.
pub const MIN_POOL_WORDS: usize = 1 << 14;
/// Most 64-bit words of a pool.
pub const MAX_POOL_WORDS: usize = 1 << 27;
/// Most keys of one batch.
pub const MAX_KEYS_PER_BATCH: usize = 64;
/// Most output bits of one batch: its keys and the confirmation value.
pub(super) const MAX_OUTPUT_BITS: u64 = 1 << 17;
/// Bits of the confirmation value, which is the end of every output.
pub(super) const CONFIRM_BITS: u64 = 128;
/// Most words sampled from one pool, so that metadata never makes a recipient allocate without bound. The largest
/// output needs 5060; the rest is room for a source that samples more than it must.
pub(super) const MAX_WORDS_PER_POOL: u32 = 8192;
