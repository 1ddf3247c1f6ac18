//! Turns the configuration into the settings of each room.

use std::num::NonZeroU32;
use std::time::Duration;

use anyhow::Context as _;
use mtls::ListenerLimits;
use mtls::identity::{IdentityRules, SaeIdentitySource};

use crate::config::{
    HandshakesConfig, KekSource, KmeConfig, PeerConfig, PoolServerConfig, RateLimits, SET_TTL_MAX,
    StoreConfig, StoreLocation, StoredLimits,
};
use crate::delivery::{DeliveryRules, RetrievalPolicy};
use crate::http::limits::{ClientLimits, LimitTable};
use crate::http::middleware::EdgeLimits;
use crate::pool::{PoolServersSettings, RecipientSetsSettings, SourceSetsSettings, VaultLimits};
use crate::store::{KekError, KeyEncryptionKeys, Stored};
use crate::supply::{IntakeRules, PeerQuota, QuotaTable, SupplySettings};

const MIB: u64 = 1024 * 1024;
/// Longest time for a TLS handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest time until a pool server's answer begins. Filling the largest pool takes seconds.
const POOL_REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// How much earlier an order times out than its request, so that it is voided before the caller learns of the
/// timeout.
const ORDER_MARGIN: Duration = Duration::from_millis(250);
/// Most groups of recipient sites, each with its own pool sets.
const GROUPS_MAX: usize = 64;
/// Most pool sets that this site holds for one replica of a peer.
const SETS_PER_REPLICA_MAX: usize = 16;

pub(super) fn sae_identity_rules(config: &KmeConfig) -> IdentityRules {
    IdentityRules { trust_domain: config.trust_domain.clone(), sae_sources: config.sae_identity.clone() }
}

/// Rules for KMEs, pool servers and operators: they must have a SPIFFE URI.
pub(super) fn strict_identity_rules(trust_domain: &str) -> IdentityRules {
    IdentityRules { trust_domain: trust_domain.to_owned(), sae_sources: vec![SaeIdentitySource::Spiffe] }
}

pub(super) fn listener_limits(
    max_connections: usize,
    handshakes: HandshakesConfig,
    shutdown_grace: Duration,
) -> ListenerLimits {
    ListenerLimits {
        max_connections,
        max_handshakes: handshakes.max,
        max_handshakes_per_address: handshakes.max_per_address,
        handshake_timeout: HANDSHAKE_TIMEOUT,
        shutdown_grace,
        ..ListenerLimits::default()
    }
}

pub(super) fn edge_limits(config: &KmeConfig) -> EdgeLimits {
    EdgeLimits {
        max_concurrent: config.limits.max_concurrent_requests,
        timeout: config.limits.request_timeout,
    }
}

pub(super) fn pool_edge_limits(config: &PoolServerConfig) -> EdgeLimits {
    EdgeLimits { max_concurrent: config.limits.max_connections, timeout: POOL_REQUEST_TIMEOUT }
}

fn client_limits(rates: RateLimits) -> ClientLimits {
    ClientLimits {
        requests_per_second: NonZeroU32::new(rates.requests_per_second),
        keys_per_second: NonZeroU32::new(rates.keys_per_second),
        connections: rates.connections,
    }
}

fn stored(limits: StoredLimits) -> Stored {
    let bytes = limits.mib.saturating_mul(MIB);
    Stored { keys: limits.keys, bytes, tombstones: limits.tombstones }
}

/// What may be stored for each SAE and each peer.
pub(super) fn quotas(config: &KmeConfig) -> QuotaTable {
    let of_sae = |sae| stored(config.sae_limits.get(sae).unwrap_or(&config.limits.sae).stored);
    let of_peer = |peer: &PeerConfig| {
        let limits = peer.limits.stored;
        (peer.id.clone(), PeerQuota { most: stored(limits), key_ttl_max: limits.key_ttl_max })
    };
    QuotaTable {
        saes: config.saes.iter().map(|(sae, _)| (sae.clone(), of_sae(sae))).collect(),
        other_saes: stored(config.limits.sae.stored),
        peers: config.peers.iter().map(of_peer).collect(),
    }
}

/// What each SAE may ask of the `sae` listener.
pub(super) fn sae_limits(config: &KmeConfig) -> LimitTable {
    let of = |sae| client_limits(config.sae_limits.get(sae).unwrap_or(&config.limits.sae).rates);
    LimitTable {
        listed: config.saes.iter().map(|(sae, _)| (sae.to_string(), of(sae))).collect(),
        others: client_limits(config.limits.sae.rates),
    }
}

/// What each peer may ask of the `peer` listener.
pub(super) fn peer_limits(config: &KmeConfig) -> LimitTable {
    let of = |peer: &PeerConfig| (peer.id.to_string(), client_limits(peer.limits.rates));
    LimitTable {
        listed: config.peers.iter().map(of).collect(),
        others: client_limits(config.limits.kme.rates),
    }
}

/// What each KME may ask of a pool server.
pub(super) fn pool_limits(config: &PoolServerConfig) -> LimitTable {
    LimitTable { others: client_limits(config.limits.kme), ..LimitTable::default() }
}

/// The key-encryption keys that `source` names.
///
/// # Errors
/// [`KekError`] names the source.
pub fn key_encryption_keys(source: &KekSource) -> Result<KeyEncryptionKeys, KekError> {
    match source {
        KekSource::File(path) => KeyEncryptionKeys::from_file(path),
        KekSource::Env(name) => KeyEncryptionKeys::from_env(name),
        KekSource::Credential(name) => KeyEncryptionKeys::from_credential(name),
    }
}

/// The URL of the store, with its password, which may be in a separate file.
///
/// # Errors
/// A password file that cannot be read, or is empty.
pub fn store_url(store: &StoreConfig) -> anyhow::Result<String> {
    let StoreLocation::Postgres(url, Some(file)) = &store.location else { return Ok(store.location.url()) };
    let text = std::fs::read_to_string(file).with_context(|| format!("password file {}", file.display()))?;
    // Editors end the line with a newline.
    let password = text.trim_end_matches(['\n', '\r']);
    anyhow::ensure!(!password.is_empty(), "password file {} is empty", file.display());
    Ok(url.with_password(password))
}

pub(super) fn pool_servers(config: &KmeConfig) -> PoolServersSettings {
    PoolServersSettings {
        pools_per_set: config.pools.pools_per_set,
        pools_min: config.pools.pools_min,
        set_timeout: config.limits.peer_timeout,
        reads_expected: config.peers.iter().map(|peer| (peer.id.clone(), peer.replicas)).collect(),
    }
}

/// Half of the memory is for sets that this site makes, half for those of its peers.
fn set_memory_bytes(config: &KmeConfig) -> u64 {
    config.pools.memory_max_mib.saturating_mul(MIB / 2)
}

pub(super) fn source_sets(config: &KmeConfig) -> SourceSetsSettings {
    SourceSetsSettings {
        words_initial: words(config.pools.pool_words),
        words_max: words(config.pools.pool_words_max),
        ttl: config.pools.set_ttl,
        expiry_margin: (config.pools.set_ttl / 10).min(Duration::from_secs(30)),
        groups_max: GROUPS_MAX,
        memory_max_bytes: set_memory_bytes(config),
    }
}

pub(super) fn recipient_sets(config: &KmeConfig) -> RecipientSetsSettings {
    let replicas = config.peers.iter().filter_map(|peer| usize::try_from(peer.replicas).ok()).max();
    RecipientSetsSettings {
        sets_per_source_max: SETS_PER_REPLICA_MAX.saturating_mul(replicas.unwrap_or(1)),
        pools_min: config.pools.pools_min,
        words_max: words(config.pools.pool_words_max),
        life_max: SET_TTL_MAX + config.limits.clock_skew_max,
        memory_max_bytes: set_memory_bytes(config),
    }
}

fn words(count: u32) -> usize {
    usize::try_from(count).unwrap_or(usize::MAX)
}

pub(super) fn supply(config: &KmeConfig) -> SupplySettings {
    SupplySettings {
        key_ttl: config.keys.ttl,
        master_refetch: config.retrieval.master_refetch,
        master_ttl: config.retrieval.master_ttl,
        order_timeout: work_timeout(config),
        max_orders: config.limits.max_concurrent_requests,
        default_key_bytes: words(config.keys.limits.size_bits / 8),
        min_stored_per_pair: config.keys.min_stored_per_pair,
        max_stored_per_pair: config.keys.limits.max_stored_per_pair,
    }
}

/// How long the work of a request may take.
fn work_timeout(config: &KmeConfig) -> Duration {
    let timeout = config.limits.request_timeout;
    timeout.saturating_sub(ORDER_MARGIN).max(timeout / 2)
}

pub(super) fn intake(config: &KmeConfig) -> IntakeRules {
    IntakeRules {
        limits: config.keys.limits.clone(),
        clock_skew_max: config.limits.clock_skew_max,
        body_max_bytes: config.limits.max_body_kib.saturating_mul(1024),
    }
}

pub(super) fn delivery(config: &KmeConfig) -> DeliveryRules {
    DeliveryRules {
        limits: config.keys.limits.clone(),
        admission: config.sae_admission,
        retrieval: RetrievalPolicy {
            mode: config.retrieval.mode,
            replay_window: config.retrieval.replay_window,
        },
        retrieval_patience: work_timeout(config),
        strict: config.etsi014.strict,
    }
}

pub(super) fn vault(config: &PoolServerConfig) -> VaultLimits {
    VaultLimits {
        memory_max_bytes: config.memory_max_mib.saturating_mul(MIB),
        owner_memory_max_bytes: config.owner_memory_max_mib.saturating_mul(MIB),
        pools_max: config.pools_max,
        words_min: blast::MIN_POOL_WORDS,
        words_max: words(config.words_max),
        ttl_max: config.ttl_max,
        readers_max: config.readers_max,
        kmes: config.kmes.clone(),
    }
}
