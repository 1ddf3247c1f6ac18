//! Voids what sites stored of an order that failed, so that no twin stays usable anywhere.
//!
//! Best effort: a site that cannot be reached in time keeps keys whose IDs nobody was told; they expire.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{join, join_all};
use kme::{BatchId, KmeId, Timestamp};
use tokio::time::sleep;

use super::SupplyParts;
use super::meter::Retracted;
use super::workshop::Workshop;
use crate::peer::PeerClient;
use crate::peer::wire::VoidRequest;
use crate::store::ReadyVoid;

/// Orders whose traces are being removed at once; more are left to expire.
pub(super) const RETRACTS_MAX: usize = 1024;
/// How often a site is asked.
const ATTEMPTS: u32 = 8;
/// First pause between attempts; doubles each time.
const PAUSE: Duration = Duration::from_millis(250);

/// Where an order may have left keys.
#[derive(Debug, Default)]
pub(super) struct Traces {
    /// Sites that were sent a batch.
    pub(super) remote: BTreeSet<(KmeId, BatchId)>,
    /// Batches that were being stored here.
    pub(super) local: Vec<BatchId>,
    /// Batches that were being stored here as ready keys: once that is committed, `enc_keys` may hand them out.
    pub(super) ready: Vec<BatchId>,
}

/// Removes `traces` in the background.
pub(super) fn spawn(workshop: &Arc<Workshop>, mut traces: Traces, expires_at: Timestamp) {
    if traces.remote.is_empty() && traces.local.is_empty() && traces.ready.is_empty() {
        return;
    }
    let Ok(permit) = Arc::clone(&workshop.retracts).try_acquire_owned() else {
        tracing::warn!("too many orders were given up at once; what sites stored of this one will expire");
        return;
    };
    let workshop = Arc::clone(workshop);
    let tasks = workshop.parts.tasks.clone();
    tasks.spawn(async move {
        let parts = &workshop.parts;
        let local = traces.local.iter().map(async |batch| at_home(parts, &whole(*batch, expires_at)).await);
        let remote = async {
            // At home first: a twin may be voided only when it is certain that nobody was or will be given its key.
            let ready = traces
                .ready
                .iter()
                .map(async |batch| (batch, is_voided_here(parts, *batch, expires_at).await));
            for (batch, is_voided_here) in join_all(ready).await {
                if !is_voided_here {
                    traces.remote.retain(|(_, other)| other != batch);
                }
            }
            let peers = traces.remote.iter().filter_map(|(kme, batch)| {
                let peer = parts.peers.find(kme)?;
                Some(async move { at_peer(parts, peer, &whole(*batch, expires_at)).await })
            });
            join_all(peers).await;
        };
        join(join_all(local), remote).await;
        drop(permit);
    });
}

fn whole(batch_id: BatchId, expires_at: Timestamp) -> VoidRequest {
    VoidRequest { batch_id, key_ids: Vec::new(), expires_at }
}

/// What is left of the attempts to void a batch at a site.
struct Patience {
    attempts: u32,
    pause: Duration,
}

impl Patience {
    fn new() -> Self {
        Self { attempts: ATTEMPTS, pause: PAUSE }
    }

    /// After an attempt that failed: waits for the next; `false` when there is none, or a stop comes first.
    async fn has_more(&mut self, parts: &SupplyParts) -> bool {
        self.attempts = self.attempts.saturating_sub(1);
        if self.attempts == 0 {
            return false;
        }
        tokio::select! {
            () = sleep(self.pause) => {
                self.pause *= 2;
                true
            }
            () = parts.stopping.cancelled() => false,
        }
    }
}

async fn at_peer(parts: &SupplyParts, peer: &PeerClient, request: &VoidRequest) {
    let batch_id = request.batch_id;
    let mut patience = Patience::new();
    loop {
        match peer.void(request).await {
            Ok(answer) if answer.kept.is_empty() => return parts.meter.retracted(Retracted::Voided),
            Ok(answer) => {
                parts.meter.retracted(Retracted::Kept);
                tracing::error!(
                    peer = %peer.kme(), batch = %batch_id, kept = answer.kept.len(),
                    "keys of an order that was given up had been retrieved"
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
        if !patience.has_more(parts).await {
            break;
        }
    }
    parts.meter.retracted(Retracted::LeftToExpire);
    if parts.stopping.is_cancelled() {
        tracing::debug!(peer = %peer.kme(), batch = %batch_id, "a stop leaves a batch to expire");
    } else {
        tracing::warn!(
            peer = %peer.kme(), batch = %batch_id,
            "a batch that was given up could not be voided; nobody knows its key IDs, and it expires"
        );
    }
}

async fn is_voided_here(parts: &SupplyParts, batch_id: BatchId, expires_at: Timestamp) -> bool {
    let mut patience = Patience::new();
    loop {
        match parts.store.void_unless_leased(&parts.local, batch_id, expires_at).await {
            Ok(ReadyVoid::Voided) => return true,
            Ok(ReadyVoid::InUse) => {
                tracing::info!(batch = %batch_id, "ready keys were stored after all and are in use");
                return false;
            }
            // As long as the disk is full, for one.
            Err(error) => {
                if !patience.has_more(parts).await {
                    tracing::warn!(
                        batch = %batch_id, error = &error as &dyn std::error::Error,
                        "whether ready keys were stored is not known; their twins stay until they expire"
                    );
                    return false;
                }
            }
        }
    }
}

async fn at_home(parts: &SupplyParts, request: &VoidRequest) {
    let VoidRequest { batch_id, key_ids, expires_at } = request;
    let mut patience = Patience::new();
    while let Err(error) = parts.store.void(&parts.local, *batch_id, key_ids, *expires_at).await {
        if !patience.has_more(parts).await {
            tracing::warn!(
                batch = %batch_id, error = &error as &dyn std::error::Error,
                "a batch that was given up could not be voided here; nobody knows its key IDs, and it expires"
            );
            return;
        }
    }
}
