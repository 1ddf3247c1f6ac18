//! The sites, SAEs and certificates of a demo folder (`dqkd demo --generate-only`).

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde::Deserialize;

/// The part of `demo.json` that is needed here.
#[derive(Deserialize)]
struct Demo {
    ca: PathBuf,
    sites: Vec<DemoSite>,
}

#[derive(Deserialize)]
struct DemoSite {
    id: String,
    config: PathBuf,
    sae_url: String,
    saes: Vec<DemoSae>,
}

#[derive(Deserialize)]
struct DemoSae {
    id: String,
}

/// The part of a site's configuration that is needed here.
#[derive(Deserialize)]
struct Config {
    kme: ConfigKme,
    tls: ConfigTls,
}

#[derive(Deserialize)]
struct ConfigKme {
    trust_domain: String,
}

#[derive(Deserialize)]
struct ConfigTls {
    cert: PathBuf,
    key: PathBuf,
}

/// One KME: its ID, address and certificate.
pub(crate) struct Site {
    pub(crate) id: String,
    pub(crate) address: SocketAddr,
    pub(crate) cert: PathBuf,
    pub(crate) key: PathBuf,
    pub(crate) trust_domain: String,
    /// The first SAE that it serves.
    pub(crate) first_sae: String,
}

/// All KMEs and SAEs.
pub(crate) struct Directory {
    pub(crate) ca: PathBuf,
    pub(crate) sites: Vec<Site>,
    /// SAE ID to KME ID.
    home_of: BTreeMap<String, String>,
}

impl Directory {
    /// Reads `dir/demo.json` and the configurations that it names.
    pub(crate) fn read(dir: &Path) -> anyhow::Result<Self> {
        let file = dir.join("demo.json");
        let text = std::fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
        let demo: Demo =
            serde_json::from_slice(&text).with_context(|| format!("{} is not a demo", file.display()))?;
        let mut directory = Self { ca: demo.ca, sites: Vec::new(), home_of: BTreeMap::new() };
        for site in demo.sites {
            for sae in &site.saes {
                directory.home_of.insert(sae.id.clone(), site.id.clone());
            }
            directory.sites.push(read_site(site)?);
        }
        Ok(directory)
    }

    /// The KME that serves the SAE `sae`.
    pub(crate) fn home(&self, sae: &str) -> Option<&str> {
        self.home_of.get(sae).map(String::as_str)
    }
}

fn read_site(site: DemoSite) -> anyhow::Result<Site> {
    let text = std::fs::read_to_string(&site.config)
        .with_context(|| format!("cannot read {}", site.config.display()))?;
    let config: Config = toml::from_str(&text)?;
    let dir = site.config.parent().unwrap_or(Path::new("."));
    let address = site.sae_url.trim_start_matches("https://").trim_end_matches('/');
    Ok(Site {
        address: address.parse().with_context(|| format!("{address} is not an address"))?,
        cert: dir.join(config.tls.cert),
        key: dir.join(config.tls.key),
        trust_domain: config.kme.trust_domain,
        first_sae: site.saes.first().context("a site has no SAE")?.id.clone(),
        id: site.id,
    })
}
