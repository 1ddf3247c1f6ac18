//! Names of the fields in log events and spans, so that every room spells them alike.
//!
//! Use them as `tracing::info!({ fields::KEY_ID } = %id, "...")`. IDs are not secret; key material, seeds, pools and
//! the bodies of metadata are, and have no name here on purpose.

/// ID of one key.
pub const KEY_ID: &str = "key.id";
/// How many keys.
pub const KEY_COUNT: &str = "key.count";
/// Size of each key in bits.
pub const KEY_SIZE_BITS: &str = "key.size_bits";
/// ID of one batch of keys.
pub const BATCH_ID: &str = "batch.id";
/// An SAE.
pub const SAE_ID: &str = "sae.id";
/// The SAE that asked for a key first.
pub const SAE_MASTER_ID: &str = "sae.master_id";
/// A KME.
pub const KME_ID: &str = "kme.id";
/// Another KME that this one talks to.
pub const PEER_ID: &str = "peer.id";
/// A random pool server.
pub const POOL_SERVER_ID: &str = "pool_server.id";
/// One pool.
pub const POOL_ID: &str = "pool.id";
/// One pool set.
pub const POOL_SET_ID: &str = "pool_set.id";
/// Which listener: `sae`, `peer`, `pool` or `admin`.
pub const LISTENER: &str = "listener";
/// Address of the other end.
pub const REMOTE_ADDRESS: &str = "remote.address";
/// Route template of a request, never the path itself.
pub const HTTP_ROUTE: &str = "http.route";
/// Status code of an answer.
pub const HTTP_STATUS: &str = "http.status";
/// Time taken in milliseconds.
pub const DURATION_MS: &str = "duration_ms";
/// Stable code of an error.
pub const ERROR_CODE: &str = "error.code";
/// Text of an error and its causes.
pub const ERROR: &str = "error";
/// Source place of a panic.
pub const PANIC_LOCATION: &str = "panic.location";
