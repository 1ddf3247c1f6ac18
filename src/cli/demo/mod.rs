//! `dqkd demo`: a whole network on this machine, and the proof that two sites get the same key.
//!
//! Writes certificates, configurations and `demo.json` into one folder. Starts every daemon in this process,
//! with the code of `dqkd serve` and `dqkd pool`, and calls them as applications do.

mod files;
mod manifest;
mod plan;
mod proof;

use std::path::PathBuf;

use anyhow::{Context as _, anyhow};
use clap::Args;
use futures_util::future::{join_all, select_all};

use super::daemon::told_to_stop;
use super::{Outcome, block_on};
use crate::app::{self, Daemon};
use crate::config::{self, ConfigFile, LogConfig, LogLevel};
use crate::store::replace_demo_schema;
use crate::telemetry;
use manifest::Manifest;
use plan::Plan;

#[derive(Debug, Args)]
pub(super) struct DemoArgs {
    /// Folder for all files; an earlier demo in it is replaced
    #[arg(long, value_name = "DIR", default_value = "dqkd-demo")]
    dir: PathBuf,
    /// First of consecutive ports; 0 for any that are free
    #[arg(long, value_name = "N", default_value_t = 0)]
    base_port: u16,
    /// Number of sites
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u8).range(2..=21))]
    sites: u8,
    /// Number of pool servers; a site uses three of them at a time
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u8).range(2..=8))]
    pool_servers: u8,
    /// Use this Postgres database instead of SQLite files; each site has a schema of its own (dqkd_demo_...)
    #[arg(long, value_name = "postgres://...")]
    store: Option<String>,
    /// Stop after the proof; fail if the keys differ
    #[arg(long, conflicts_with = "generate_only")]
    once: bool,
    /// Write the files and exit; start the daemons yourself with `dqkd pool` and `dqkd serve`
    #[arg(long)]
    generate_only: bool,
}

pub(super) fn run(args: DemoArgs) -> Outcome {
    telemetry::init(&LogConfig { level: LogLevel::Warn, ..LogConfig::default() });
    let mut plan = Plan::new(args.sites.into(), args.pool_servers.into(), args.base_port)?;
    if let Some(url) = &args.store {
        block_on(use_postgres(&mut plan, url))??;
    }
    let manifest = files::write(&args.dir, &plan)?;
    println!(
        "files         {}: CA, certificates, .p12 bundles, configurations, demo.json",
        manifest.dir.display()
    );
    if args.generate_only {
        print_starts(&manifest);
        return Ok(());
    }
    block_on(async {
        tokio::select! {
            result = network(&manifest, args.once) => result,
            told = told_to_stop() => told.context("signals cannot be received"),
        }
    })??;
    Ok(())
}

/// Gives each site a schema in the database at `url`.
async fn use_postgres(plan: &mut Plan, url: &str) -> anyhow::Result<()> {
    for site in &mut plan.sites {
        site.store_url = replace_demo_schema(url, &site.id).await.context("--store")?;
    }
    Ok(())
}

/// Runs all daemons: with `once` until the proof is done, otherwise until a signal or until one of them ends.
async fn network(manifest: &Manifest, once: bool) -> anyhow::Result<()> {
    let running = Running(start(manifest).await?);
    let result = tokio::select! {
        result = live(manifest, once) => result,
        told = told_to_stop() => told.context("signals cannot be received"),
        reason = running.first_end() => Err(reason),
    };
    running.stop().await;
    println!("stopped");
    result
}

async fn live(manifest: &Manifest, once: bool) -> anyhow::Result<()> {
    proof::run(manifest).await?;
    if once {
        return Ok(());
    }
    proof::print_commands(manifest);
    std::future::pending().await
}

struct Running(Vec<Daemon>);

impl Running {
    /// Waits until a daemon ends, and says which.
    async fn first_end(&self) -> anyhow::Error {
        let ends = self.0.iter().map(|daemon| Box::pin(daemon.stopper().cancelled_owned()));
        let ((), index, _) = select_all(ends).await;
        let name = self.0.get(index).map_or("a daemon", |daemon| daemon.name.as_str());
        anyhow!("{name} stopped by itself; the log says why")
    }

    async fn stop(self) {
        self.0.iter().for_each(Daemon::stop);
        for ended in join_all(self.0.into_iter().map(Daemon::ended)).await {
            if let Err(error) = ended {
                eprintln!("dqkd: {error:#}");
            }
        }
    }
}

async fn start(manifest: &Manifest) -> anyhow::Result<Vec<Daemon>> {
    let pools = manifest.pool_servers.iter().map(|pool| pool.config.clone());
    let mut daemons = start_all(pools.collect()).await?;
    println!("pool servers  {} serve", names(&daemons));
    let sites: Vec<PathBuf> = manifest.sites.iter().map(|site| site.config.clone()).collect();
    match start_all(sites).await {
        Ok(started) => {
            println!("sites         {} serve", names(&started));
            daemons.extend(started);
            Ok(daemons)
        }
        Err(error) => {
            Running(daemons).stop().await;
            Err(error)
        }
    }
}

/// Starts all daemons or none.
async fn start_all(configs: Vec<PathBuf>) -> anyhow::Result<Vec<Daemon>> {
    let (mut started, mut failure) = (Vec::new(), None);
    for result in join_all(configs.into_iter().map(start_one)).await {
        match result {
            Ok(daemon) => started.push(daemon),
            Err(error) => failure = failure.or(Some(error)),
        }
    }
    match failure {
        None => Ok(started),
        Some(error) => {
            Running(started).stop().await;
            Err(error)
        }
    }
}

/// Ignores the environment, so that the demo is always the same.
async fn start_one(file: PathBuf) -> anyhow::Result<Daemon> {
    match config::load(&file, [])? {
        ConfigFile::Kme(config) => app::start_kme(&config, None).await,
        ConfigFile::Pool(config) => app::start_pool_server(&config).await,
    }
}

fn names(daemons: &[Daemon]) -> String {
    daemons.iter().map(|daemon| daemon.name.as_str()).collect::<Vec<_>>().join(", ")
}

fn print_starts(manifest: &Manifest) {
    println!("\nStart each daemon in a terminal of its own:\n");
    for pool in &manifest.pool_servers {
        println!("  dqkd pool --config {}", pool.config.display());
    }
    for site in &manifest.sites {
        println!("  dqkd serve --config {}", site.config.display());
    }
    proof::print_commands(manifest);
}
