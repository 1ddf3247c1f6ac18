//! Reads certificates, CRL, SAE directory and limits of SAEs again when they change and on SIGHUP.
//!
//! If they cannot be read or are not valid, the problem is logged and the old ones stay in force.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use kme::{Directory, SaeId, causes};
use mtls::TlsStore;
use parking_lot::Mutex;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::interval;

use super::wiring;
use crate::config::{self, ConfigFile, IdentityLimits, KmeConfig};
use crate::http::limits::Clients;
use crate::supply::{QuotaTable, Quotas};

/// How often files are checked.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Where a daemon's settings came from, for reading them again.
#[derive(Clone, Debug)]
pub struct Origin {
    /// The configuration file.
    pub file: PathBuf,
    /// The environment's overrides, as `NAME=value` pairs.
    pub env: Vec<(String, String)>,
}

/// The files that one daemon reads again.
pub(super) struct Reload {
    pub(super) tls: Arc<TlsStore>,
    pub(super) directory: Option<DirectoryReload>,
}

pub(super) struct DirectoryReload {
    pub(super) origin: Origin,
    pub(super) current: KmeConfig,
    pub(super) directory: Arc<ArcSwap<Directory>>,
    /// The SAEs that use the `sae` listener.
    pub(super) saes: Arc<Clients>,
    pub(super) quotas: Arc<Quotas>,
    /// The limits of SAEs that are in force.
    pub(super) limits: Mutex<SaeLimits>,
}

/// Limits of all SAEs, and of those that have some of their own.
type SaeLimits = (IdentityLimits, HashMap<SaeId, IdentityLimits>);

/// Checks the files until it is dropped.
pub(super) async fn watch(reload: Arc<Reload>) {
    let mut hangup = signal(SignalKind::hangup()).ok();
    let mut ticks = interval(LOOK_EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    ticks.tick().await;
    let mut complaint = String::new();
    loop {
        let asked = tokio::select! {
            _ = ticks.tick() => false,
            Some(()) = heard(&mut hangup) => true,
        };
        let again = Arc::clone(&reload);
        // Files may be on a slow disk.
        let result = tokio::task::spawn_blocking(move || again.once()).await;
        let text = result.map_or_else(|_| "the read was aborted".to_owned(), |problems| problems.join("; "));
        if !text.is_empty() && (asked || text != complaint) {
            tracing::error!(problem = text, "changed files are not used; the old ones stay in force");
        } else if asked {
            tracing::info!("certificates, CRL and SAE directory were read again");
        }
        complaint = text;
    }
}

async fn heard(signal: &mut Option<Signal>) -> Option<()> {
    match signal {
        Some(signal) => signal.recv().await,
        None => None,
    }
}

impl Reload {
    /// Checks everything once; returns the problems.
    fn once(&self) -> Vec<String> {
        let mut problems = Vec::new();
        match self.tls.reload() {
            Ok(true) => tracing::info!("new certificates are in force"),
            Ok(false) => {}
            Err(error) => problems.push(causes(&error)),
        }
        if let Some(directory) = &self.directory
            && let Err(problem) = directory.once()
        {
            problems.push(problem);
        }
        problems
    }
}

impl DirectoryReload {
    fn once(&self) -> Result<(), String> {
        let new = match config::load(&self.origin.file, self.origin.env.clone()) {
            Ok(ConfigFile::Kme(new)) => new,
            Ok(ConfigFile::Pool(_)) => {
                return Err(format!("{} does not configure a KME", self.file().display()));
            }
            Err(error) => return Err(error.to_string()),
        };
        let old = self.directory.load();
        let new_limits = Self::limits_of(&new);
        let limits_differ = *self.limits.lock() != new_limits;
        if *new.directory() == **old && !limits_differ {
            return Ok(());
        }
        let peers_differ = !new.directory().peers().eq(old.peers());
        if peers_differ || new.id != self.current.id {
            return Err(format!(
                "{}: [kme] id and [[peer]] entries take effect only after a restart",
                self.file().display()
            ));
        }
        self.directory.store(Arc::new(new.directory().clone()));
        self.saes.set_limits(wiring::sae_limits(&new));
        // Those of peers take effect after a restart.
        let peers = wiring::quotas(&self.current).peers;
        self.quotas.set(QuotaTable { peers, ..wiring::quotas(&new) });
        *self.limits.lock() = new_limits;
        tracing::info!(saes = new.saes.len(), "a new SAE directory is in force");
        Ok(())
    }

    pub(super) fn limits_of(config: &KmeConfig) -> SaeLimits {
        (config.limits.sae, config.sae_limits.clone())
    }

    fn file(&self) -> &Path {
        &self.origin.file
    }
}
