//! `demo.json` of `dqkd demo`: where the sites and SAEs of a demo are. Other KMEs are named by options.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde::Deserialize;
use zeroize::Zeroizing;

/// The members of the file that are of use here.
#[derive(Deserialize)]
pub(super) struct Manifest {
    pub(super) ca: PathBuf,
    pub(super) sites: Vec<Site>,
    pub(super) pool_servers: Vec<PoolServer>,
}

#[derive(Deserialize)]
pub(super) struct Site {
    pub(super) id: String,
    pub(super) config: PathBuf,
    pub(super) sae_url: String,
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
        serde_json::from_str(&text).with_context(|| format!("{} is no demo.json", file.display()))
    }
}
