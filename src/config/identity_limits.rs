//! Limits of single identities: `[limits.sae]`, `[limits.kme]`, and `limits` of a `[[sae]]` or `[[peer]]`.
//!
//! Owns their defaults and ranges. What an entry does not say is as in the table.

use std::ops::RangeInclusive;
use std::time::Duration;

use kme::KEY_TTL_MAX;
use toml::Spanned;

use super::checker::{Checker, Scope};
use super::raw::{RawKmeLimits, RawPoolKmeLimits, RawSaeLimits};
use super::sections::TICK;

/// How much one identity may ask of a daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimits {
    /// Requests a second; 0 for no limit.
    pub requests_per_second: u32,
    /// Keys a second; 0 for no limit.
    pub keys_per_second: u32,
    /// Connections at once.
    pub connections: usize,
}

/// How much may be stored for one identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredLimits {
    /// Keys of a master SAE, or of a source KME.
    pub keys: u64,
    /// MiB of these keys.
    pub mib: u64,
    /// Tombstones of a source KME; 0 for an SAE, which leaves none.
    pub tombstones: u64,
    /// Longest life of the keys of a source KME. The keys of this site's SAEs live as long as `keys.ttl` says.
    pub key_ttl_max: Duration,
}

/// All limits of one identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdentityLimits {
    /// What it may ask.
    pub rates: RateLimits,
    /// What it may leave.
    pub stored: StoredLimits,
}

const RATES: RangeInclusive<i64> = 0..=1_000_000_000;
const CONNECTIONS: RangeInclusive<i64> = 1..=1_000_000;
const KEYS: RangeInclusive<i64> = 0..=1_000_000_000_000;
const MIBS: RangeInclusive<i64> = 0..=1 << 30;

impl IdentityLimits {
    /// Of an SAE that the configuration says nothing about.
    const SAE: Self = Self {
        rates: RateLimits { requests_per_second: 0, keys_per_second: 0, connections: 1024 },
        stored: StoredLimits { keys: 16_000_000, mib: 1024, tombstones: 0, key_ttl_max: KEY_TTL_MAX },
    };
    /// Of such a peer.
    const KME: Self = Self {
        rates: RateLimits { requests_per_second: 0, keys_per_second: 0, connections: 256 },
        stored: StoredLimits {
            keys: 64_000_000,
            mib: 4096,
            tombstones: 65_536,
            key_ttl_max: Duration::from_hours(24),
        },
    };

    /// `[limits.sae]`. One SAE may have at least `least_keys`.
    pub(super) fn of_saes(
        checker: &mut Checker<'_>,
        raw: Option<Spanned<RawSaeLimits>>,
        least_keys: u32,
    ) -> Self {
        let (scope, inner) = Scope::open("limits.sae", raw);
        let at = scope.at("stored_keys", inner.stored_keys.as_ref());
        let limits = Self::of_sae(checker, &scope, inner, Self::SAE);
        if limits.stored.keys < least_keys.into() {
            let what = format!("{} is less than keys.max_stored_per_pair = {least_keys}", limits.stored.keys);
            checker.problem(&at, &what, "stored_keys >= keys.max_stored_per_pair");
        }
        limits
    }

    /// An SAE's own limits, over those of all.
    pub(super) fn of_one_sae(
        checker: &mut Checker<'_>,
        raw: Option<Spanned<RawSaeLimits>>,
        all: Self,
    ) -> Self {
        let (scope, raw) = Scope::open("sae.limits", raw);
        Self::of_sae(checker, &scope, raw, all)
    }

    fn of_sae(checker: &mut Checker<'_>, scope: &Scope, raw: RawSaeLimits, all: Self) -> Self {
        let raw = RawKmeLimits {
            requests_per_second: raw.requests_per_second,
            keys_per_second: raw.keys_per_second,
            connections: raw.connections,
            stored_keys: raw.stored_keys,
            stored_mib: raw.stored_mib,
            ..RawKmeLimits::default()
        };
        Self::read(checker, scope, raw, all)
    }

    /// `[limits.kme]`. `ttl` is the life of this site's own keys: those of peers may live as long.
    pub(super) fn of_kmes(
        checker: &mut Checker<'_>,
        raw: Option<Spanned<RawKmeLimits>>,
        ttl: Duration,
    ) -> Self {
        let (scope, raw) = Scope::open("limits.kme", raw);
        let mut default = Self::KME;
        default.stored.key_ttl_max = default.stored.key_ttl_max.max(ttl);
        Self::read(checker, &scope, raw, default)
    }

    /// A peer's own limits, over those of all.
    pub(super) fn of_peer(checker: &mut Checker<'_>, raw: Option<Spanned<RawKmeLimits>>, all: Self) -> Self {
        let (scope, raw) = Scope::open("peer.limits", raw);
        Self::read(checker, &scope, raw, all)
    }

    fn read(checker: &mut Checker<'_>, scope: &Scope, raw: RawKmeLimits, all: Self) -> Self {
        let Self { rates, stored } = all;
        let (ttl_max, longest) = (raw.key_ttl_max, stored.key_ttl_max);
        let key_ttl_max = checker.duration(scope, "key_ttl_max", ttl_max, longest, TICK..=KEY_TTL_MAX).value;
        let mut number = |key, raw, default, range| checker.number(scope, key, raw, default, range).value;
        let stored = StoredLimits {
            keys: number("stored_keys", raw.stored_keys, stored.keys, KEYS),
            mib: number("stored_mib", raw.stored_mib, stored.mib, MIBS),
            tombstones: number("tombstones", raw.tombstones, stored.tombstones, KEYS),
            key_ttl_max,
        };
        let (requests, keys) = (raw.requests_per_second, raw.keys_per_second);
        let mut rate = |key, raw, default| checker.number(scope, key, raw, default, RATES).value;
        let requests_per_second = rate("requests_per_second", requests, rates.requests_per_second);
        let keys_per_second = rate("keys_per_second", keys, rates.keys_per_second);
        let connections =
            checker.number(scope, "connections", raw.connections, rates.connections, CONNECTIONS).value;
        Self { rates: RateLimits { requests_per_second, keys_per_second, connections }, stored }
    }
}

impl RateLimits {
    /// `[limits.kme]` of a pool server.
    pub(super) fn at_a_pool_server(
        checker: &mut Checker<'_>,
        raw: Option<Spanned<RawPoolKmeLimits>>,
    ) -> Self {
        let (scope, raw) = Scope::open("limits.kme", raw);
        let (requests, connections) = (raw.requests_per_second, raw.connections);
        let default = IdentityLimits::KME.rates;
        Self {
            requests_per_second: checker
                .number(&scope, "requests_per_second", requests, default.requests_per_second, RATES)
                .value,
            connections: checker
                .number(&scope, "connections", connections, default.connections, CONNECTIONS)
                .value,
            ..default
        }
    }
}
