//! Typed settings of both kinds of daemon, from one TOML file and environment overrides.
//!
//! Owns names, defaults, ranges and the wording of complaints (`docs/configuration.md`). Reads the configuration file
//! only: other rooms open certificates and keys, so no secret passes through here.

mod check;
mod checker;
mod duration;
mod env;
mod error;
mod identity_limits;
mod kme;
mod load;
mod pool_server;
mod raw;
mod sections;
mod settings;
mod source;
mod url;

#[cfg(test)]
mod tests;

pub use check::{Summary, check};
pub use env::process_environment;
pub use error::{ConfigError, Problem};
pub use identity_limits::{IdentityLimits, RateLimits, StoredLimits};
pub use kme::{KmeConfig, ListenConfig, PeerConfig, PoolServerEntry};
pub use load::{ConfigFile, load};
pub use pool_server::{PoolLimitsConfig, PoolListenConfig, PoolServerConfig};
pub use sections::{
    Etsi014Config, KekSource, KeysConfig, LimitsConfig, PoolsConfig, RetrievalConfig, SET_TTL_MAX,
    StoreConfig, StoreLocation,
};
pub use settings::{DangerConfig, HandshakesConfig, LogConfig, LogFormat, LogLevel};
pub use source::Place;
pub use url::{BaseUrl, PostgresUrl};
