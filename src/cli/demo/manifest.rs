//! `demo.json`: where everything of a demo is. Its form is stable; scripts read it.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

/// The whole demo. Paths are absolute.
#[derive(Debug, Serialize, Deserialize)]
pub(in crate::cli) struct Manifest {
    /// The folder; not part of the file, which lies in it.
    #[serde(skip)]
    pub(super) dir: PathBuf,
    pub(in crate::cli) ca: PathBuf,
    pub(in crate::cli) sites: Vec<Site>,
    pub(in crate::cli) pool_servers: Vec<PoolServer>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(in crate::cli) struct Site {
    pub(in crate::cli) id: String,
    pub(in crate::cli) config: PathBuf,
    pub(in crate::cli) sae_url: String,
    pub(super) peer_url: String,
    pub(super) admin_url: String,
    pub(in crate::cli) saes: Vec<Sae>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(in crate::cli) struct Sae {
    pub(in crate::cli) id: String,
    pub(in crate::cli) cert: PathBuf,
    pub(in crate::cli) key: PathBuf,
    pub(super) p12: PathBuf,
    pub(super) p12_password: String,
}

#[derive(Debug, Serialize, Deserialize)]
pub(in crate::cli) struct PoolServer {
    pub(in crate::cli) id: String,
    pub(super) config: PathBuf,
    pub(in crate::cli) url: String,
}

impl Manifest {
    pub(super) const FILE: &'static str = "demo.json";

    pub(super) fn write(&self) -> anyhow::Result<()> {
        use std::io::Write as _;
        use std::os::unix::fs::OpenOptionsExt as _;
        let path = self.dir.join(Self::FILE);
        let context = || format!("cannot write {}", path.display());
        let text = serde_json::to_string_pretty(self).with_context(context)?;
        // It has the passwords of the bundles.
        let mut options = std::fs::OpenOptions::new();
        let mut file = options.write(true).create_new(true).mode(0o600).open(&path).with_context(context)?;
        file.write_all(text.as_bytes()).with_context(context)
    }

    /// Reads `file`, which some `dqkd demo` has written.
    pub(in crate::cli) fn read(file: &Path) -> anyhow::Result<Self> {
        let text =
            std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
        let text = Zeroizing::new(text);
        serde_json::from_str(&text).with_context(|| format!("{} is no demo.json", file.display()))
    }

    /// Whether a demo was written into `dir`.
    pub(super) fn is_in(dir: &Path) -> bool {
        dir.join(Self::FILE).is_file()
    }
}
