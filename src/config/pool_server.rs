//! The configuration of a random pool server (`dqkd pool`).
//!
//! Owns its defaults and bounds. Opens no sockets and reads none of the files that it names.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroU32;
use std::time::Duration;

use kme::{KmeId, PoolServerId};
use mtls::DaemonTls;
use toml::Spanned;

use super::checker::{Checker, Field, Reference, Scope};
use super::error::Problem;
use super::identity_limits::RateLimits;
use super::raw::{RawPoolListen, RawPoolServerFile};
use super::sections::{MIB, PoolsConfig, SET_TTL_MAX, TICK, WORD_BYTES, power_of_two};
use super::settings::{DangerConfig, HandshakesConfig, LogConfig, is_loopback, shutdown_grace, tls};

/// `[listen]` of a pool server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolListenConfig {
    /// Address for KMEs.
    pub pool: SocketAddr,
    /// Address for operators.
    pub admin: SocketAddr,
}

impl PoolListenConfig {
    /// Whether the admin listener speaks plain HTTP. Otherwise it demands an operator certificate.
    pub fn admin_is_loopback(&self) -> bool {
        is_loopback(self.admin)
    }

    fn check(checker: &mut Checker<'_>, raw: Option<Spanned<RawPoolListen>>) -> Option<Self> {
        let (scope, raw) = Scope::open("listen", raw);
        let pool = checker.address(&scope, "pool", raw.pool, None);
        let default = SocketAddr::from((Ipv4Addr::LOCALHOST, 9191));
        let admin = checker.address(&scope, "admin", raw.admin, Some(default));
        checker.distinct_listeners(&[pool.clone(), admin.clone()]);
        Some(Self { pool: pool?.value, admin: admin?.value })
    }
}

/// `[limits]` of a pool server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolLimitsConfig {
    /// Most connections at once.
    pub max_connections: usize,
    /// Most unfinished handshakes of each listener.
    pub handshakes: HandshakesConfig,
    /// How long running requests may take after a stop was requested.
    pub shutdown_grace: Duration,
    /// What each KME may ask.
    pub kme: RateLimits,
}

/// The whole configuration of a pool server. Paths are absolute and values checked.
#[derive(Clone, Debug)]
pub struct PoolServerConfig {
    /// This server.
    pub id: PoolServerId,
    /// SPIFFE trust domain of all certificates.
    pub trust_domain: String,
    /// Most memory of all pools, in MiB.
    pub memory_max_mib: u64,
    /// Most memory of the pools of one owner, in MiB.
    pub owner_memory_max_mib: u64,
    /// Most pools at once.
    pub pools_max: usize,
    /// Largest pool in 64-bit words; a power of two.
    pub words_max: u32,
    /// Longest life of a pool.
    pub ttl_max: Duration,
    /// Most readers of one pool.
    pub readers_max: usize,
    /// Most pools that one KME may make in a minute.
    pub creations_per_minute: NonZeroU32,
    /// The KMEs that may make and read pools; `None` for every KME of the chain.
    pub kmes: Option<BTreeSet<KmeId>>,
    /// Certificates.
    pub tls: DaemonTls,
    /// Listeners.
    pub listen: PoolListenConfig,
    /// Bounds.
    pub limits: PoolLimitsConfig,
    /// Logging.
    pub log: LogConfig,
    pub(super) references: Vec<Reference>,
}

impl PoolServerConfig {
    /// `Err` has all complaints about the values.
    pub(super) fn check(mut checker: Checker<'_>, raw: RawPoolServerFile) -> Result<Self, Vec<Problem>> {
        let config = Self::build(&mut checker, raw);
        let (problems, references) = checker.finish();
        match config {
            Some(config) if problems.is_empty() => Ok(Self { references, ..config }),
            _ => Err(problems),
        }
    }

    fn build(checker: &mut Checker<'_>, raw: RawPoolServerFile) -> Option<Self> {
        let (scope, pool) = Scope::open("pool", raw.pool);
        let id = checker.daemon_id::<PoolServerId>(&scope, "id", pool.id);
        let trust_domain = checker.trust_domain(&scope, pool.trust_domain);
        let memory = checker.number(&scope, "memory_max_mib", pool.memory_max_mib, 256_u64, 1..=1 << 20);
        let owner =
            checker.number(&scope, "owner_memory_max_mib", pool.owner_memory_max_mib, 128_u64, 1..=1 << 20);
        if owner.value > memory.value {
            let what = format!("{} is more than pool.memory_max_mib = {}", owner.value, memory.value);
            checker.problem(&owner.at, &what, "owner_memory_max_mib <= memory_max_mib");
        }
        let words = checker.number(&scope, "words_max", pool.words_max, 1_u32 << 20, PoolsConfig::WORDS);
        power_of_two(checker, &words);
        let pool_mib = (u64::from(words.value) * WORD_BYTES).div_ceil(MIB);
        if pool_mib > owner.value {
            let what = format!("{} words take {pool_mib} MiB, more than an owner may have", words.value);
            checker.problem(&words.at, &what, "words_max * 8 bytes <= owner_memory_max_mib");
        }
        // Memory is shared by KMEs: one alone gets at most half.
        if 2 * pool_mib > memory.value {
            let what = format!(
                "{} words take {pool_mib} MiB, more than half of pool.memory_max_mib = {}, which is the share \
                 of one KME",
                words.value, memory.value
            );
            checker.problem(&words.at, &what, "words_max * 8 bytes <= memory_max_mib / 2");
        }
        let hour = Duration::from_hours(1);
        let ttl_max = checker.duration(&scope, "ttl_max", pool.ttl_max, hour, TICK..=SET_TTL_MAX).value;
        let pools_max = checker.number(&scope, "pools_max", pool.pools_max, 1024, 1..=65_536).value;
        let readers_max = checker.number(&scope, "readers_max", pool.readers_max, 16, 1..=64).value;
        let creations =
            checker.number(&scope, "creations_per_minute", pool.creations_per_minute, 600_u32, 1..=1_000_000);
        let creations_per_minute = NonZeroU32::new(creations.value).unwrap_or(NonZeroU32::MIN);
        let kmes = check_kmes(checker, &scope, pool.kmes);
        let listen = PoolListenConfig::check(checker, raw.listen);
        let danger = DangerConfig::check(raw.danger);
        let is_local = listen.is_some_and(|listen| is_loopback(listen.pool) && is_loopback(listen.admin));
        let tls = tls(checker, raw.tls, danger, is_local);
        let (scope, limits) = Scope::open("limits", raw.limits);
        let connections = limits.max_connections;
        let (all, of_one) = (limits.max_handshakes, limits.max_handshakes_per_address);
        let limits = PoolLimitsConfig {
            max_connections: checker
                .number(&scope, "max_connections", connections, 1024, 1..=1_000_000)
                .value,
            handshakes: HandshakesConfig::check(checker, &scope, all, of_one),
            shutdown_grace: shutdown_grace(checker, &scope, limits.shutdown_grace),
            kme: RateLimits::at_a_pool_server(checker, limits.kme),
        };
        let log = LogConfig::check(checker, raw.log);
        Some(Self {
            id: id?.value,
            trust_domain: trust_domain?,
            memory_max_mib: memory.value,
            owner_memory_max_mib: owner.value,
            pools_max,
            words_max: words.value,
            ttl_max,
            readers_max,
            creations_per_minute,
            kmes,
            tls: tls?,
            listen: listen?,
            limits,
            log,
            references: Vec::new(),
        })
    }
}

/// `[pool] kmes`: each once, and at least one if the list is there.
fn check_kmes(
    checker: &mut Checker<'_>,
    scope: &Scope,
    raw: Option<Spanned<Vec<Spanned<String>>>>,
) -> Option<BTreeSet<KmeId>> {
    let listed = raw?;
    if listed.get_ref().is_empty() {
        let allowed = "the IDs of the KMEs that may use this server; without the line, any KME of the chain";
        checker.problem(&scope.at("kmes", Some(&listed)), "is empty", allowed);
    }
    let ids: Vec<Field<KmeId>> =
        listed.into_inner().into_iter().filter_map(|id| checker.id(scope, "kmes", Some(id))).collect();
    checker.distinct(&ids, "each KME once");
    Some(ids.into_iter().map(|id| id.value).collect())
}
