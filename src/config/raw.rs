//! Which tables and keys exist, and their TOML types.
//!
//! Owns the only list of key names, for serde (unknown keys are errors) and for the overrides. Checks no values. Every
//! key is optional, because `checker` has better words for a missing one.

use std::fmt;

use serde::de::{SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use toml::Spanned;

/// The TOML type of a key, to read the text of an override.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Text,
    Integer,
    Boolean,
    TextList,
}

trait HasKind {
    const KIND: Kind;
}

impl HasKind for String {
    const KIND: Kind = Kind::Text;
}
impl HasKind for i64 {
    const KIND: Kind = Kind::Integer;
}
impl HasKind for bool {
    const KIND: Kind = Kind::Boolean;
}
impl HasKind for Vec<Spanned<String>> {
    const KIND: Kind = Kind::TextList;
}
impl HasKind for OneOrMore {
    const KIND: Kind = Kind::TextList;
}

/// One text, or a list of texts with the place of each.
pub(super) enum OneOrMore {
    One(String),
    More(Vec<Spanned<String>>),
}

impl<'de> Deserialize<'de> for OneOrMore {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Texts;
        impl<'de> Visitor<'de> for Texts {
            type Value = OneOrMore;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("text in quotes or a list of texts")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Self::Value, E> {
                Ok(OneOrMore::One(text.to_owned()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
                let mut texts = Vec::new();
                while let Some(text) = seq.next_element()? {
                    texts.push(text);
                }
                Ok(OneOrMore::More(texts))
            }
        }
        deserializer.deserialize_any(Texts)
    }
}

/// The keys of a table with their types, without the tables within it.
type Fields = &'static [(&'static str, Kind)];

/// What one kind of file may contain.
pub(super) struct Schema {
    /// Tables, which the environment can override. A table within a table has a name with a dot.
    pub(super) tables: &'static [(&'static str, Fields)],
    /// Lists of tables, which it cannot.
    pub(super) arrays: &'static [(&'static str, Fields)],
}

macro_rules! raw_tables {
    ($($name:ident { $($field:ident: $kind:ty,)* $(+ $table:ident: $inner:ty,)* })*) => {$(
        #[derive(Default, Deserialize)]
        #[serde(deny_unknown_fields)]
        pub(super) struct $name {
            $(pub(super) $field: Option<Spanned<$kind>>,)*
            $(pub(super) $table: Option<Spanned<$inner>>,)*
        }

        impl $name {
            const FIELDS: Fields = &[$((stringify!($field), <$kind as HasKind>::KIND)),*];
        }
    )*};
}

macro_rules! raw_files {
    ($($name:ident {
        tables { $($table:ident: $kind:ty,)* }
        inner { $($path:literal: $inner:ty,)* }
        arrays { $($array:ident: $entry:ty,)* }
    })*) => {$(
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        pub(super) struct $name {
            $(pub(super) $table: Option<Spanned<$kind>>,)*
            $(#[serde(default)] pub(super) $array: Vec<Spanned<$entry>>,)*
        }

        impl $name {
            pub(super) const SCHEMA: Schema = Schema {
                tables: &[$((stringify!($table), <$kind>::FIELDS),)* $(($path, <$inner>::FIELDS),)*],
                arrays: &[$((stringify!($array), <$entry>::FIELDS)),*],
            };
        }
    )*};
}

raw_tables! {
    RawKme {
        id: String,
        trust_domain: String,
        sae_admission: String,
        sae_identity: Vec<Spanned<String>>,
    }
    RawTls {
        ca: String,
        cert: String,
        key: String,
        crl: String,
        sae_ca: String,
        crl_exempt: Vec<Spanned<String>>,
    }
    RawDanger {
        public_development_keys: bool,
    }
    RawListen {
        sae: String,
        peer: String,
        admin: String,
    }
    RawStore {
        url: String,
        kek_file: String,
        kek_env: String,
        kek_credential: String,
        password_file: String,
        migrate: bool,
    }
    RawKeys {
        size_bits: i64,
        min_size_bits: i64,
        max_size_bits: i64,
        max_per_request: i64,
        max_stored_per_pair: i64,
        min_stored_per_pair: i64,
        max_sae_id_count: i64,
        ttl: String,
    }
    RawEtsi014 {
        strict: bool,
    }
    RawRetrieval {
        mode: String,
        master_refetch: bool,
        master_ttl: String,
        replay_window: String,
    }
    RawPools {
        pools_per_set: i64,
        pools_min: i64,
        pool_words: i64,
        pool_words_max: i64,
        set_ttl: String,
        memory_max_mib: i64,
    }
    RawLimits {
        request_timeout: String,
        max_connections: i64,
        max_handshakes: i64,
        max_handshakes_per_address: i64,
        max_concurrent_requests: i64,
        max_body_kib: i64,
        peer_timeout: String,
        clock_skew_max: String,
        drain_delay: String,
        shutdown_grace: String,
        + sae: RawSaeLimits,
        + kme: RawKmeLimits,
    }
    RawSaeLimits {
        requests_per_second: i64,
        keys_per_second: i64,
        connections: i64,
        stored_keys: i64,
        stored_mib: i64,
    }
    RawKmeLimits {
        requests_per_second: i64,
        keys_per_second: i64,
        connections: i64,
        stored_keys: i64,
        stored_mib: i64,
        tombstones: i64,
        key_ttl_max: String,
    }
    RawLog {
        level: String,
        format: String,
    }
    RawPeer {
        id: String,
        url: OneOrMore,
        replicas: i64,
        + limits: RawKmeLimits,
    }
    RawPoolServer {
        id: String,
        url: String,
    }
    RawSae {
        id: String,
        kme: String,
        + limits: RawSaeLimits,
    }
    RawPool {
        id: String,
        trust_domain: String,
        memory_max_mib: i64,
        owner_memory_max_mib: i64,
        pools_max: i64,
        words_max: i64,
        ttl_max: String,
        readers_max: i64,
        creations_per_minute: i64,
        kmes: Vec<Spanned<String>>,
    }
    RawPoolListen {
        pool: String,
        admin: String,
    }
    RawPoolLimits {
        max_connections: i64,
        max_handshakes: i64,
        max_handshakes_per_address: i64,
        shutdown_grace: String,
        + kme: RawPoolKmeLimits,
    }
    RawPoolKmeLimits {
        requests_per_second: i64,
        connections: i64,
    }
}

raw_files! {
    RawKmeFile {
        tables {
            kme: RawKme,
            tls: RawTls,
            listen: RawListen,
            store: RawStore,
            keys: RawKeys,
            etsi014: RawEtsi014,
            retrieval: RawRetrieval,
            pools: RawPools,
            limits: RawLimits,
            log: RawLog,
            danger: RawDanger,
        }
        inner {
            "limits.sae": RawSaeLimits,
            "limits.kme": RawKmeLimits,
        }
        arrays {
            peer: RawPeer,
            pool_server: RawPoolServer,
            sae: RawSae,
        }
    }
    RawPoolServerFile {
        tables {
            pool: RawPool,
            tls: RawTls,
            listen: RawPoolListen,
            limits: RawPoolLimits,
            log: RawLog,
            danger: RawDanger,
        }
        inner {
            "limits.kme": RawPoolKmeLimits,
        }
        arrays {}
    }
}
