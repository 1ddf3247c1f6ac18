//! `demo.json`: the files and addresses of a demo. Scripts read it, so its form does not change.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde::Serialize;

/// The whole demo. Paths are absolute.
#[derive(Debug, Serialize)]
pub(super) struct Manifest {
    /// The folder of the file, so not part of it.
    #[serde(skip)]
    pub(super) dir: PathBuf,
    pub(super) ca: PathBuf,
    pub(super) sites: Vec<Site>,
    pub(super) pool_servers: Vec<PoolServer>,
}

#[derive(Debug, Serialize)]
pub(super) struct Site {
    pub(super) id: String,
    pub(super) config: PathBuf,
    pub(super) sae_url: String,
    pub(super) peer_url: String,
    pub(super) admin_url: String,
    pub(super) saes: Vec<Sae>,
}

#[derive(Debug, Serialize)]
pub(super) struct Sae {
    pub(super) id: String,
    pub(super) cert: PathBuf,
    pub(super) key: PathBuf,
    pub(super) p12: PathBuf,
    pub(super) p12_password: String,
}

#[derive(Debug, Serialize)]
pub(super) struct PoolServer {
    pub(super) id: String,
    pub(super) config: PathBuf,
    pub(super) url: String,
}

impl Manifest {
    pub(super) const FILE: &'static str = "demo.json";

    pub(super) fn write(&self) -> anyhow::Result<()> {
        use std::io::Write as _;
        use std::os::unix::fs::OpenOptionsExt as _;
        let path = self.dir.join(Self::FILE);
        let context = || format!("cannot write {}", path.display());
        let text = serde_json::to_string_pretty(self).with_context(context)?;
        // It holds the passwords of the bundles.
        let mut options = std::fs::OpenOptions::new();
        let mut file = options.write(true).create_new(true).mode(0o600).open(&path).with_context(context)?;
        file.write_all(text.as_bytes()).with_context(context)
    }

    /// Whether a demo was written into `dir`.
    pub(super) fn is_in(dir: &Path) -> bool {
        dir.join(Self::FILE).is_file()
    }
}
