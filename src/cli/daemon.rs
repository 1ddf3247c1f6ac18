//! `dqkd serve`, `dqkd pool`, `dqkd migrate`: one daemon from its configuration file.

use std::path::Path;

use anyhow::Context as _;
use kme::{Clock as _, SystemClock};
use tokio::signal::unix::{SignalKind, signal};

use super::{Failure, Outcome, block_on};
use crate::app::{self, Daemon, Origin};
use crate::config::{self, ConfigFile, KmeConfig, PoolServerConfig};
use crate::store::{Store, StoreSettings};
use crate::telemetry;

pub(super) fn serve(file: &Path) -> Outcome {
    let (config, origin) = kme_config(file)?;
    telemetry::init(&config.log);
    block_on(async { until_stopped(app::start_kme(&config, Some(origin)).await?).await })??;
    Ok(())
}

pub(super) fn pool(file: &Path) -> Outcome {
    let config = pool_config(file)?;
    telemetry::init(&config.log);
    block_on(async { until_stopped(app::start_pool_server(&config).await?).await })??;
    Ok(())
}

pub(super) fn migrate(file: &Path) -> Outcome {
    let (config, _) = kme_config(file)?;
    let store = &config.store.location;
    let url = app::store_url(&config.store)?;
    let keks = app::key_encryption_keys(&config.store.kek).map_err(anyhow::Error::from)?;
    let settings = StoreSettings { url, kme: config.id.clone(), keks, migrate: true };
    let migrated = block_on(Store::migrate(settings, SystemClock.now()))?;
    migrated.with_context(|| format!("store {store}"))?;
    println!("{store}: the schema is up to date");
    Ok(())
}

fn load(file: &Path) -> Result<(ConfigFile, Origin), Failure> {
    let env = config::process_environment();
    let config = config::load(file, env.clone())?;
    config.check_files(file)?;
    Ok((config, Origin { file: file.to_owned(), env }))
}

fn kme_config(file: &Path) -> Result<(Box<KmeConfig>, Origin), Failure> {
    match load(file)? {
        (ConfigFile::Kme(config), origin) => Ok((config, origin)),
        (ConfigFile::Pool(_), _) => Err(Failure::Usage(format!(
            "{} configures a pool server: run `dqkd pool --config {0}`",
            file.display()
        ))),
    }
}

fn pool_config(file: &Path) -> Result<Box<PoolServerConfig>, Failure> {
    match load(file)? {
        (ConfigFile::Pool(config), _) => Ok(config),
        (ConfigFile::Kme(_), _) => {
            Err(Failure::Usage(format!("{} configures a KME: run `dqkd serve --config {0}`", file.display())))
        }
    }
}

/// Prints where the daemon listens, then waits until it ends or a signal comes.
async fn until_stopped(daemon: Daemon) -> anyhow::Result<()> {
    for (listener, address) in &daemon.addresses {
        println!("{} {listener} {address}", daemon.name);
    }
    let stopper = daemon.stopper();
    tokio::spawn(async move {
        if told_to_stop().await.is_ok() {
            tracing::info!("stopping; signal again to exit immediately");
            stopper.cancel();
            if told_to_stop().await.is_ok() {
                std::process::exit(1);
            }
        }
    });
    daemon.ended().await
}

/// Waits for SIGTERM or Ctrl-C.
pub(super) async fn told_to_stop() -> std::io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}
