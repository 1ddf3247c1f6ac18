//! KMEs of ETSI GS QKD 014 in one process, to test a tester. They are correct except for one chosen fault.
//!
//! ```text
//! dqkd demo --generate-only --dir D --sites 3
//! cargo run --example wrong-kme -- --dir D --fault partial-container
//! ```
//!
//! Serves every site of the folder with its certificates, keys in memory only. Not part of the product:
//! `docs/conformance.md` says what it is for.

mod answer;
mod api;
mod directory;
mod fault;
mod kme;
mod listener;
mod request;
mod store;

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context as _;
use clap::Parser;
use tokio::net::TcpListener;

use crate::api::Api;
use crate::directory::Directory;
use crate::fault::{Fault, Faults};
use crate::kme::Network;

/// KMEs of ETSI GS QKD 014 that are right unless told to be wrong. Never for use.
#[derive(Parser)]
struct Arguments {
    /// Folder that `dqkd demo --generate-only` wrote.
    #[arg(long, required_unless_present = "list_faults")]
    dir: Option<PathBuf>,
    /// The one deviation to have.
    #[arg(long)]
    fault: Option<String>,
    /// Prints all deviations, name and meaning, and ends.
    #[arg(long)]
    list_faults: bool,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    if arguments.list_faults {
        for fault in Fault::ALL {
            println!("{}\t{}", fault.name(), fault.about());
        }
        return Ok(());
    }
    let dir = arguments.dir.context("--dir is missing")?;
    let faults = Faults::named(arguments.fault.as_deref())?;
    let directory = Arc::new(Directory::read(&dir)?);
    let network = Arc::new(Network::new(Arc::clone(&directory), faults));
    for site in &directory.sites {
        let tls = listener::server_config(site, &directory.ca, faults)?;
        let tcp = TcpListener::bind(site.address)
            .await
            .with_context(|| format!("{} cannot use {}", site.id, site.address))?;
        let api = Api { network: Arc::clone(&network), kme: site.id.clone() };
        tokio::spawn(listener::serve(tcp, tls, api, site.trust_domain.clone()));
        println!("{} listens on {}", site.id, site.address);
    }
    tokio::signal::ctrl_c().await.context("no signal handler")
}
