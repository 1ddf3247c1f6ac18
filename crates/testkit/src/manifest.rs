//! The content of `demo.json`: files and addresses of a network.

use std::path::PathBuf;

use serde::Deserialize;

/// The whole file.
#[derive(Deserialize)]
pub(crate) struct Manifest {
    pub ca: PathBuf,
    pub sites: Vec<Site>,
    pub pool_servers: Vec<PoolServer>,
}

#[derive(Clone, Deserialize)]
pub struct Site {
    pub id: String,
    pub config: PathBuf,
    pub sae_url: String,
    pub peer_url: String,
    pub admin_url: String,
    pub saes: Vec<Sae>,
}

#[derive(Clone, Deserialize)]
pub struct Sae {
    pub id: String,
    pub cert: PathBuf,
    pub key: PathBuf,
    pub p12: PathBuf,
    pub p12_password: String,
}

#[derive(Clone, Deserialize)]
pub struct PoolServer {
    pub id: String,
    pub config: PathBuf,
    pub url: String,
}
