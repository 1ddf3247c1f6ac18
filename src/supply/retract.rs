//! Retracts an order that failed: voids what sites stored of it, so that no twin stays usable anywhere.
//!
//! Best effort. A site that cannot be reached in time keeps its keys until they expire. Nobody was told their
//! IDs.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{join, join_all};
use kme::{Backoff, BatchId, KmeId, Timestamp};
use mtls::SparingLog;
use tokio::sync::Semaphore;
use tokio::time::sleep;

use super::SupplyParts;
use super::meter::Retracted;
use crate::peer::PeerClient;
use crate::peer::wire::VoidRequest;
use crate::store::ReadyVoid;

/// Most orders that are retracted at once. Keys of further ones stay until they expire.
const RETRACTED_AT_ONCE: usize = 1024;
/// How often a site is asked to void a batch.
const ATTEMPTS: u32 = 8;
/// Pause between two attempts.
const PAUSE: Backoff = Backoff::new(Duration::from_millis(250), Duration::from_secs(16));

/// Where an order may have left keys.
#[derive(Debug, Default)]
pub(super) struct Traces {
    /// Sites that were sent a batch.
    pub(super) remote: BTreeSet<(KmeId, BatchId)>,
    /// Batches that were being stored here.
    pub(super) local: Vec<BatchId>,
    /// Batches that were being stored here as ready keys. Once that is committed, `enc_keys` may hand them
    /// out.
    pub(super) ready: Vec<BatchId>,
}

/// Retracts orders in the background, a bounded number at once.
pub(super) struct Retractor {
    parts: Arc<SupplyParts>,
    permits: Arc<Semaphore>,
    log: SparingLog,
}

impl Retractor {
    pub(super) fn new(parts: Arc<SupplyParts>) -> Self {
        let permits = Arc::new(Semaphore::new(RETRACTED_AT_ONCE));
        Self { parts, permits, log: SparingLog::new("sae") }
    }

    /// Starts to void the batches that `traces` names. All have this life.
    pub(super) fn start(&self, mut traces: Traces, created_at: Timestamp, expires_at: Timestamp) {
        if traces.remote.is_empty() && traces.local.is_empty() && traces.ready.is_empty() {
            return;
        }
        let Ok(permit) = Arc::clone(&self.permits).try_acquire_owned() else {
            if self.log.allows("", "too_many_failed") {
                tracing::warn!("too many orders failed at once; what sites stored of these will expire");
            }
            return;
        };
        let parts = Arc::clone(&self.parts);
        self.parts.tasks.spawn(async move {
            let local = traces.local.iter().map(|batch| void_at_home(&parts, *batch, expires_at));
            let remote = async {
                // At home first: a twin may be voided only if its key was never handed out and never will be.
                let ready = traces.ready.iter();
                let ready = ready.map(async |batch| {
                    (batch, void_ready_at_home(&parts, *batch, created_at, expires_at).await)
                });
                for (batch, is_voided) in join_all(ready).await {
                    if !is_voided {
                        traces.remote.retain(|(_, other)| other != batch);
                    }
                }
                let at_peers = traces.remote.iter().filter_map(|(kme, batch)| {
                    let peer = parts.peers.find(kme)?;
                    Some(void_at_peer(&parts, peer, *batch, expires_at))
                });
                join_all(at_peers).await;
            };
            join(join_all(local), remote).await;
            drop(permit);
        });
    }
}

/// The attempts to void a batch at one site.
#[derive(Default)]
struct Attempts {
    failed: u32,
}

impl Attempts {
    /// After an attempt that failed: waits until the next is due. `false` when there is none, or the daemon
    /// stops.
    async fn wait_for_next(&mut self, parts: &SupplyParts) -> bool {
        self.failed += 1;
        if self.failed >= ATTEMPTS {
            return false;
        }
        tokio::select! {
            () = sleep(PAUSE.after(self.failed)) => true,
            () = parts.stopping.cancelled() => false,
        }
    }
}

async fn void_at_peer(parts: &SupplyParts, peer: &PeerClient, batch_id: BatchId, expires_at: Timestamp) {
    let whole = VoidRequest { batch_id, key_ids: Vec::new(), expires_at };
    let mut attempts = Attempts::default();
    loop {
        match peer.void(&whole).await {
            Ok(answer) if answer.kept.is_empty() => return parts.meter.retracted(Retracted::Voided),
            Ok(answer) => {
                parts.meter.retracted(Retracted::Kept);
                tracing::error!(
                    peer = %peer.kme(), batch = %batch_id, kept = answer.kept.len(),
                    "keys of a failed order had already been retrieved"
                );
                return;
            }
            Err(error) => {
                tracing::debug!(
                    peer = %peer.kme(), batch = %batch_id, error = &error as &dyn std::error::Error,
                    "a batch was not voided"
                );
            }
        }
        if !attempts.wait_for_next(parts).await {
            break;
        }
    }
    parts.meter.retracted(Retracted::LeftToExpire);
    if parts.stopping.is_cancelled() {
        tracing::debug!(peer = %peer.kme(), batch = %batch_id, "the daemon stops; a batch of a failed order expires");
    } else {
        tracing::warn!(
            peer = %peer.kme(), batch = %batch_id,
            "a batch of a failed order could not be voided; nobody knows its key IDs, and it expires"
        );
    }
}

/// Voids a batch of ready keys here, unless some were leased. `true`: none was leased, and none ever will be.
async fn void_ready_at_home(
    parts: &SupplyParts,
    batch_id: BatchId,
    created_at: Timestamp,
    expires_at: Timestamp,
) -> bool {
    let mut attempts = Attempts::default();
    loop {
        match parts.store.void_unless_leased(&parts.local, batch_id, created_at, expires_at).await {
            Ok(ReadyVoid::Voided) => return true,
            Ok(ReadyVoid::InUse) => {
                tracing::info!(batch = %batch_id, "ready keys were stored after all and are in use");
                return false;
            }
            // For example while the disk is full.
            Err(error) => {
                if !attempts.wait_for_next(parts).await {
                    tracing::warn!(
                        batch = %batch_id, error = &error as &dyn std::error::Error,
                        "could not find out whether ready keys were stored; their twins stay until expiry"
                    );
                    return false;
                }
            }
        }
    }
}

async fn void_at_home(parts: &SupplyParts, batch_id: BatchId, expires_at: Timestamp) {
    let mut attempts = Attempts::default();
    while let Err(error) = parts.store.void(&parts.local, batch_id, &[], expires_at).await {
        if !attempts.wait_for_next(parts).await {
            tracing::warn!(
                batch = %batch_id, error = &error as &dyn std::error::Error,
                "a batch of a failed order could not be voided here; nobody knows its key IDs, and it expires"
            );
            return;
        }
    }
}
