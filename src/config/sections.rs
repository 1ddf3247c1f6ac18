//! Single tables of a KME's configuration: `[store]`, `[keys]`, `[retrieval]`, `[pools]`, `[limits]`.
//!
//! Owns their defaults, ranges and rules. Rules that join tables are in `kme`.

use std::fmt;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use blast::{MAX_POOL_WORDS, MAX_POOLS, MIN_POOL_WORDS, MIN_POOLS};
use kme::{KEY_TTL_MAX, KeyLimits, RetrievalMode};
use toml::Spanned;

use super::checker::{Checker, Field, Scope};
use super::duration;
use super::identity_limits::IdentityLimits;
use super::raw::{RawEtsi014, RawKeys, RawLimits, RawPools, RawRetrieval, RawStore};
use super::settings::{HandshakesConfig, shutdown_grace};
use super::source::ENV_PREFIX;
use super::url::{PostgresUrl, STORE_URL_FORM, StoreUrl, sqlite_url};

/// Shortest time that can be configured.
pub(super) const TICK: Duration = Duration::from_millis(1);
/// Bytes of one word of a pool.
pub(super) const WORD_BYTES: u64 = 8;
/// Bytes of one MiB.
pub(super) const MIB: u64 = 1024 * 1024;
/// Longest life of a pool and of a pool set.
pub const SET_TTL_MAX: Duration = Duration::from_hours(24);

/// `[store]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreConfig {
    /// Where the database is.
    pub location: StoreLocation,
    /// Where the key-encryption key comes from.
    pub kek: KekSource,
    /// Whether `serve` brings the schema up to date.
    pub migrate: bool,
}

/// A database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreLocation {
    /// Absolute path of a SQLite file.
    Sqlite(PathBuf),
    /// A Postgres database, and the file that holds the password for it.
    Postgres(PostgresUrl, Option<PathBuf>),
}

impl fmt::Display for StoreLocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sqlite(path) => path.display().fmt(f),
            Self::Postgres(url, _) => url.fmt(f),
        }
    }
}

impl StoreLocation {
    /// The URL of the database: an absolute `sqlite://` URL, escaped, or the `postgres://` URL as it was written, which
    /// may contain a password.
    pub fn url(&self) -> String {
        match self {
            Self::Sqlite(path) => sqlite_url(&path.to_string_lossy()),
            Self::Postgres(url, _) => url.expose().to_owned(),
        }
    }
}

impl StoreConfig {
    pub(super) fn check(checker: &mut Checker<'_>, raw: Option<Spanned<RawStore>>) -> Option<Self> {
        let (scope, mut raw) = Scope::open("store", raw);
        let migrate = raw.migrate.take().is_none_or(Spanned::into_inner);
        let password_file = raw
            .password_file
            .take()
            .map(|value| Field { at: scope.at("password_file", Some(&value)), value: value.into_inner() });
        let location = checker.required(&scope, "url", raw.url.take(), STORE_URL_FORM).and_then(|field| {
            match StoreUrl::parse(&field.value) {
                Some(StoreUrl::Sqlite(file)) => {
                    if let Some(password) = &password_file {
                        checker.problem(
                            &password.at,
                            "a SQLite file has no password",
                            "with postgres:// only",
                        );
                    }
                    checker.absolute(&field.at, &file.to_string_lossy()).map(StoreLocation::Sqlite)
                }
                Some(StoreUrl::Postgres(url)) => postgres(checker, url, password_file),
                None => {
                    checker.problem(&field.at, "is not a store", STORE_URL_FORM);
                    None
                }
            }
        });
        let kek = KekSource::check(checker, &scope, raw);
        Some(Self { location: location?, kek: kek?, migrate })
    }
}

fn postgres(
    checker: &mut Checker<'_>,
    url: PostgresUrl,
    password_file: Option<Field<String>>,
) -> Option<StoreLocation> {
    let Some(field) = password_file else { return Some(StoreLocation::Postgres(url, None)) };
    if url.has_password() {
        checker.problem(&field.at, "is a second password", "either in store.url or in this file");
    } else if !url.has_user() {
        checker.problem(
            &field.at,
            "needs a user, but store.url names none",
            "store.url = \"postgres://USER@HOST/DATABASE\"",
        );
    }
    checker.secret_file(field).map(|file| StoreLocation::Postgres(url, Some(file)))
}

/// Where the key-encryption key comes from. Never the key itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KekSource {
    /// A file, absolute.
    File(PathBuf),
    /// An environment variable, by name.
    Env(String),
    /// A systemd credential: a file name in `$CREDENTIALS_DIRECTORY`.
    Credential(String),
}

impl KekSource {
    fn check(checker: &mut Checker<'_>, scope: &Scope, raw: RawStore) -> Option<Self> {
        const FORM: &str = "exactly one of kek_file, kek_env, kek_credential";
        let written: Vec<_> = [
            ("kek_file", raw.kek_file.as_ref()),
            ("kek_env", raw.kek_env.as_ref()),
            ("kek_credential", raw.kek_credential.as_ref()),
        ]
        .into_iter()
        .filter_map(|(key, value)| value.map(|value| (key, value.clone())))
        .collect();
        let [(key, value)] = written.as_slice() else {
            if let Some((key, second)) = written.get(1) {
                checker.problem(&scope.at(key, Some(second)), "is a second source of the key", FORM);
            } else {
                checker.problem(&scope.at::<String>("kek_file", None), "is missing", FORM);
            }
            return None;
        };
        let field = Field { at: scope.at(key, Some(value)), value: value.get_ref().clone() };
        // The complaint does not quote the value: it may be the key instead of its place.
        match *key {
            "kek_file" => checker.secret_file(field).map(Self::File),
            "kek_env" => {
                let right = is_variable_name(&field.value) && !field.value.starts_with(ENV_PREFIX);
                if !right {
                    checker.problem(
                        &field.at,
                        "is not the name of an environment variable",
                        "1 to 64 letters, digits and underscores, not starting with a digit or DQKD__",
                    );
                }
                right.then_some(Self::Env(field.value))
            }
            _ => {
                let right = is_credential_name(&field.value);
                if !right {
                    checker.problem(
                        &field.at,
                        "is not the name of a credential",
                        "a plain file name of at most 255 characters",
                    );
                }
                right.then_some(Self::Credential(field.value))
            }
        }
    }
}

fn is_variable_name(text: &str) -> bool {
    (1..=64).contains(&text.len())
        && !text.starts_with(|c: char| c.is_ascii_digit())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

fn is_credential_name(text: &str) -> bool {
    (1..=255).contains(&text.len())
        && !matches!(text, "." | "..")
        && !text.contains(|c: char| c == '/' || c.is_control())
}

/// `[keys]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeysConfig {
    /// What SAEs may ask for.
    pub limits: KeyLimits,
    /// How long a key can be retrieved after it was made.
    pub ttl: Duration,
    /// Keys kept ready for every pair in use.
    pub min_stored_per_pair: u32,
}

impl KeysConfig {
    /// Largest key in bits.
    const SIZE_BITS_MAX: i64 = 65_536;

    /// Also returns the place of `ttl`, for rules that join tables.
    pub(super) fn check(checker: &mut Checker<'_>, raw: Option<Spanned<RawKeys>>) -> (Self, Field<Duration>) {
        let (scope, raw) = Scope::open("keys", raw);
        let sizes = 8..=Self::SIZE_BITS_MAX;
        let size = checker.number(&scope, "size_bits", raw.size_bits, 256_u32, sizes.clone());
        let min = checker.number(&scope, "min_size_bits", raw.min_size_bits, 8_u32, sizes.clone());
        let max = checker.number(&scope, "max_size_bits", raw.max_size_bits, 65_536_u32, sizes);
        for field in [&size, &min, &max] {
            if !field.value.is_multiple_of(8) {
                checker.problem(
                    &field.at,
                    &format!("{} bits are not whole bytes", field.value),
                    "a multiple of 8",
                );
            }
        }
        if min.value > size.value {
            let what = format!("{} is more than keys.size_bits = {}", min.value, size.value);
            checker.problem(&min.at, &what, "min_size_bits <= size_bits <= max_size_bits");
        }
        if size.value > max.value {
            let what = format!("{} is more than keys.max_size_bits = {}", size.value, max.value);
            checker.problem(&size.at, &what, "min_size_bits <= size_bits <= max_size_bits");
        }
        let per_request = checker.number(&scope, "max_per_request", raw.max_per_request, 128_u32, 1..=1024);
        let stored =
            checker.number(&scope, "max_stored_per_pair", raw.max_stored_per_pair, 4096_u32, 1..=1_000_000);
        if per_request.value > stored.value {
            let what =
                format!("{} is more than keys.max_stored_per_pair = {}", per_request.value, stored.value);
            checker.problem(&per_request.at, &what, "max_per_request <= max_stored_per_pair");
        }
        let floor =
            checker.number(&scope, "min_stored_per_pair", raw.min_stored_per_pair, 64_u32, 0..=1_000_000);
        let additional = checker.number(&scope, "max_sae_id_count", raw.max_sae_id_count, 8_u32, 0..=64);
        let ttl = checker.duration(&scope, "ttl", raw.ttl, Duration::from_hours(24), TICK..=KEY_TTL_MAX);
        let limits = KeyLimits {
            size_bits: size.value,
            min_size_bits: min.value,
            max_size_bits: max.value,
            max_per_request: per_request.value,
            max_stored_per_pair: stored.value,
            max_additional_saes: additional.value,
        };
        let min_stored_per_pair = floor.value.min(stored.value);
        (Self { limits, ttl: ttl.value, min_stored_per_pair }, ttl)
    }
}

/// `[etsi014]`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Etsi014Config {
    /// Whether paths name SAEs only, masters retrieve nothing, and empty lists are refused.
    pub strict: bool,
}

impl Etsi014Config {
    pub(super) fn check(raw: Option<Spanned<RawEtsi014>>) -> Self {
        let (_, raw) = Scope::open("etsi014", raw);
        Self { strict: raw.strict.is_some_and(Spanned::into_inner) }
    }
}

/// `[retrieval]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetrievalConfig {
    /// How often a party may retrieve.
    pub mode: RetrievalMode,
    /// Whether the master may retrieve by ID at its own site (an extension of the standard).
    pub master_refetch: bool,
    /// How long after the hand-out it may, at most: never longer than the key lives.
    pub master_ttl: Duration,
    /// How long the same SAE may repeat a retrieval whose answer was lost.
    pub replay_window: Duration,
}

impl RetrievalConfig {
    pub(super) fn check(
        checker: &mut Checker<'_>,
        raw: Option<Spanned<RawRetrieval>>,
        ttl: &Field<Duration>,
        etsi014: Etsi014Config,
    ) -> Self {
        let (scope, raw) = Scope::open("retrieval", raw);
        let modes = [("once", RetrievalMode::Once), ("until-expiry", RetrievalMode::UntilExpiry)];
        let mode_at = scope.at("mode", raw.mode.as_ref());
        let mode = checker.choice(&scope, "mode", raw.mode.as_ref(), RetrievalMode::Once, &modes);
        let all = Duration::ZERO..=KEY_TTL_MAX;
        let window = checker.duration(&scope, "replay_window", raw.replay_window, Duration::ZERO, all);
        if window.value > ttl.value {
            let what = format!(
                "{} is longer than keys.ttl = {}",
                duration::print(window.value),
                duration::print(ttl.value)
            );
            checker.problem(&window.at, &what, "replay_window <= keys.ttl");
        }
        let hour = Duration::from_hours(1);
        let master_ttl =
            checker.duration(&scope, "master_ttl", raw.master_ttl, hour, TICK..=KEY_TTL_MAX).value;
        let refetch_at = scope.at("master_refetch", raw.master_refetch.as_ref());
        let master_refetch = raw.master_refetch.map_or(!etsi014.strict, Spanned::into_inner);
        if etsi014.strict {
            let beyond = "goes beyond the standard, but etsi014.strict = true";
            if master_refetch {
                checker.problem(&refetch_at, beyond, "false, or no such line");
            }
            if mode != RetrievalMode::Once {
                checker.problem(&mode_at, beyond, "\"once\"");
            }
            if !window.value.is_zero() {
                checker.problem(&window.at, beyond, "0s");
            }
        }
        Self { mode, master_refetch, master_ttl, replay_window: window.value }
    }
}

/// `[pools]`: the random pools that keys are made from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolsConfig {
    /// Pools of a set, each on its own server.
    pub pools_per_set: usize,
    /// Fewest pools of a set, of this site's own sets and of those that peers announce.
    pub pools_min: usize,
    /// 64-bit words of a pool of a new set; a power of two.
    pub pool_words: u32,
    /// Largest pool of a set, and the largest that this site downloads for a peer; a power of two.
    pub pool_words_max: u32,
    /// Life of a set.
    pub set_ttl: Duration,
    /// Most memory of all sets, those of peers included, in MiB.
    pub memory_max_mib: u64,
}

impl PoolsConfig {
    /// Fewest and most words of a pool.
    pub(super) const WORDS: RangeInclusive<i64> = range(MIN_POOL_WORDS, MAX_POOL_WORDS);
    /// Fewest and most pools of a set.
    const POOLS: RangeInclusive<i64> = range(MIN_POOLS, MAX_POOLS);

    /// `servers` is the number of listed pool servers. By default, a set has three pools, or two if only two are listed.
    pub(super) fn check(checker: &mut Checker<'_>, raw: Option<Spanned<RawPools>>, servers: usize) -> Self {
        let (scope, raw) = Scope::open("pools", raw);
        let default = servers.clamp(MIN_POOLS, 3);
        let per_set = checker.number(&scope, "pools_per_set", raw.pools_per_set, default, Self::POOLS);
        if per_set.value > servers && servers >= 2 {
            let what = format!("{} is more than the {servers} [[pool_server]] entries", per_set.value);
            checker.problem(
                &per_set.at,
                &what,
                "2 up to the number of pool servers: each pool of a set has its own",
            );
        }
        let least = checker.number(&scope, "pools_min", raw.pools_min, per_set.value, Self::POOLS);
        if least.value > per_set.value {
            let what = format!("{} is more than pools.pools_per_set = {}", least.value, per_set.value);
            checker.problem(&least.at, &what, "pools_min <= pools_per_set");
        }
        let words = checker.number(&scope, "pool_words", raw.pool_words, 1_u32 << 17, Self::WORDS);
        let words_max =
            checker.number(&scope, "pool_words_max", raw.pool_words_max, 1_u32 << 20, Self::WORDS);
        power_of_two(checker, &words);
        power_of_two(checker, &words_max);
        if words.value > words_max.value {
            let what = format!("{} is more than pools.pool_words_max = {}", words.value, words_max.value);
            checker.problem(&words.at, &what, "pool_words <= pool_words_max");
        }
        let ttl =
            checker.duration(&scope, "set_ttl", raw.set_ttl, Duration::from_mins(10), TICK..=SET_TTL_MAX);
        let memory = checker.number(&scope, "memory_max_mib", raw.memory_max_mib, 256_u64, 1..=1 << 20);
        // The next set is made before the current one is used up, so two of the largest must fit.
        let needed = 2 * per_set.value as u64 * u64::from(words_max.value) * WORD_BYTES;
        if needed > memory.value * MIB {
            let what = format!(
                "{} MiB cannot hold two sets of {} pools of {} words",
                memory.value, per_set.value, words_max.value
            );
            checker.problem(&memory.at, &what, &format!("{} or more", needed.div_ceil(MIB)));
        }
        Self {
            pools_per_set: per_set.value,
            pools_min: least.value,
            pool_words: words.value,
            pool_words_max: words_max.value,
            set_ttl: ttl.value,
            memory_max_mib: memory.value,
        }
    }
}

#[expect(clippy::cast_possible_wrap, reason = "the engine's bounds are far below 2^63")]
const fn range(least: usize, most: usize) -> RangeInclusive<i64> {
    least as i64..=most as i64
}

/// Complains if the number of words is not a power of two.
pub(super) fn power_of_two(checker: &mut Checker<'_>, words: &Field<u32>) {
    if !words.value.is_power_of_two() {
        let what = format!("{} is not a power of two", words.value);
        let allowed = format!("a power of two from {MIN_POOL_WORDS} to {MAX_POOL_WORDS}");
        checker.problem(&words.at, &what, &allowed);
    }
}

/// `[limits]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LimitsConfig {
    /// The longest that an SAE waits for an answer.
    pub request_timeout: Duration,
    /// Most connections of each listener.
    pub max_connections: usize,
    /// Most unfinished handshakes of each listener.
    pub handshakes: HandshakesConfig,
    /// Most running requests of each listener.
    pub max_concurrent_requests: usize,
    /// Largest request body in KiB.
    pub max_body_kib: usize,
    /// The longest that this site waits for a peer or a pool server.
    pub peer_timeout: Duration,
    /// Largest difference of clocks between sites.
    pub clock_skew_max: Duration,
    /// How long running requests may take after a stop was requested.
    pub shutdown_grace: Duration,
    /// How long the daemon still serves after a stop was requested, while it reports that it is not ready.
    pub drain_delay: Duration,
    /// Of each SAE that has none of its own.
    pub sae: IdentityLimits,
    /// Of each peer that has none of its own.
    pub kme: IdentityLimits,
}

impl LimitsConfig {
    pub(super) fn check(
        checker: &mut Checker<'_>,
        raw: Option<Spanned<RawLimits>>,
        keys: &KeysConfig,
    ) -> Self {
        let (scope, raw) = Scope::open("limits", raw);
        let sae = IdentityLimits::of_saes(checker, raw.sae, keys.limits.max_stored_per_pair);
        let kme = IdentityLimits::of_kmes(checker, raw.kme, keys.ttl);
        let five = Duration::from_secs(5);
        let waits = TICK..=Duration::from_mins(5);
        let skews = Duration::ZERO..=Duration::from_hours(1);
        let delays = Duration::ZERO..=Duration::from_mins(10);
        let skew = Duration::from_secs(30);
        let concurrent = raw.max_concurrent_requests;
        let (all, of_one) = (raw.max_handshakes, raw.max_handshakes_per_address);
        Self {
            request_timeout: checker
                .duration(&scope, "request_timeout", raw.request_timeout, five, waits.clone())
                .value,
            max_connections: checker
                .number(&scope, "max_connections", raw.max_connections, 4096, 1..=1_000_000)
                .value,
            handshakes: HandshakesConfig::check(checker, &scope, all, of_one),
            max_concurrent_requests: checker
                .number(&scope, "max_concurrent_requests", concurrent, 1024, 1..=1_000_000)
                .value,
            max_body_kib: checker.number(&scope, "max_body_kib", raw.max_body_kib, 256, 1..=16_384).value,
            peer_timeout: checker.duration(&scope, "peer_timeout", raw.peer_timeout, five, waits).value,
            clock_skew_max: checker.duration(&scope, "clock_skew_max", raw.clock_skew_max, skew, skews).value,
            shutdown_grace: shutdown_grace(checker, &scope, raw.shutdown_grace),
            drain_delay: checker
                .duration(&scope, "drain_delay", raw.drain_delay, Duration::ZERO, delays)
                .value,
            sae,
            kme,
        }
    }
}
