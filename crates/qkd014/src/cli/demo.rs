//! `demo.json`, which `dqkd demo` writes: the sites and SAEs of a demo. For other KMEs there are options.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde::{Deserialize, Deserializer};
use zeroize::Zeroizing;

use crate::https::KmeUrl;

/// The members of the file that are used here.
#[derive(Deserialize)]
pub(super) struct Manifest {
    pub(super) ca: PathBuf,
    pub(super) sites: Vec<Site>,
    pub(super) pool_servers: Vec<PoolServer>,
}

#[derive(Deserialize)]
pub(super) struct Site {
    pub(super) id: String,
    #[serde(deserialize_with = "url")]
    pub(super) sae_url: KmeUrl,
    pub(super) saes: Vec<Sae>,
}

#[derive(Deserialize)]
pub(super) struct Sae {
    pub(super) id: String,
    pub(super) cert: PathBuf,
    pub(super) key: PathBuf,
}

#[derive(Deserialize)]
pub(super) struct PoolServer {
    pub(super) id: String,
    pub(super) url: String,
}

impl Manifest {
    pub(super) fn read(file: &Path) -> anyhow::Result<Self> {
        let text =
            std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
        // It has the passwords of the bundles.
        let text = Zeroizing::new(text);
        serde_json::from_str(&text).with_context(|| format!("{} is not a demo.json", file.display()))
    }
}

fn url<'de, D: Deserializer<'de>>(deserializer: D) -> Result<KmeUrl, D::Error> {
    String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
}
