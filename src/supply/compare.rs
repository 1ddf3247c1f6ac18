//! Finds out which pool server gave two sites different pools, after a batch did not match.
//!
//! Both sites have discarded the set by then. They compare a salted digest of each pool over their own
//! connection, and stop using the servers whose pools differ for sets that they share. A site that lies here
//! only spoils sets that it shares itself.

use std::collections::BTreeSet;
use std::sync::Arc;

use kme::{KmeId, PoolServerId, PoolSetId};
use tokio::task::JoinError;

use super::SupplyParts;
use crate::peer::PeerError;
use crate::peer::wire::{ComparisonRequest, PoolDigest};
use crate::pool::{PoolServers, PoolSet};

/// The digests of the pools of a discarded set.
///
/// # Errors
/// If the runtime stops.
pub(super) async fn digests(set: Arc<PoolSet>, salt: [u8; 32]) -> Result<Vec<PoolDigest>, JoinError> {
    let work = move || {
        let digests = set.digests(&salt).into_iter();
        digests.map(|(pool, digest)| PoolDigest { pool, digest }).collect()
    };
    // Some milliseconds for each pool.
    tokio::task::spawn_blocking(work).await
}

/// The servers whose pools have different digests here and there. A pool that one site left out is not judged.
pub(super) fn differing(here: &[PoolDigest], there: &[PoolDigest]) -> BTreeSet<PoolServerId> {
    let differs =
        |own: &&PoolDigest| there.iter().any(|other| other.pool == own.pool && other.digest != own.digest);
    here.iter().filter(differs).map(|own| own.pool.server.clone()).collect()
}

/// Puts the servers whose pools differ under quarantine for sets that are shared with `peer`.
pub(super) fn judge(servers: &PoolServers, peer: &KmeId, set: PoolSetId, differing: &BTreeSet<PoolServerId>) {
    if differing.is_empty() {
        tracing::error!(
            %peer, %set,
            "a batch did not match its confirmation value although the pools of both sites are equal: the \
             metadata differ, or one of the sites is at fault"
        );
    }
    for server in differing {
        servers.quarantine(server, peer);
    }
}

/// As the source: compares the pools of a set that `peer` reported. Once for each set and peer; whoever comes
/// while that is under way waits for its end. It goes on if the caller leaves.
pub(super) async fn find_liar(parts: &Arc<SupplyParts>, peer: &KmeId, set: &Arc<PoolSet>) {
    let (parts, peer, set) = (Arc::clone(parts), peer.clone(), Arc::clone(set));
    let tracker = parts.tasks.clone();
    let work = tracker.spawn(async move {
        let mut compared = set.compared().lock().await;
        if !compared.insert(peer.clone()) {
            return;
        }
        let differing = match ask(&parts, &peer, &set).await {
            Ok(Some(differing)) => differing,
            Ok(None) => return,
            Err(error) => {
                tracing::warn!(
                    %peer, set = %set.id(), error = &error as &dyn std::error::Error,
                    "the pools of a discarded set could not be compared; no pool server is blamed"
                );
                return;
            }
        };
        judge(parts.sets.servers(), &peer, set.id(), &differing);
        for server in &differing {
            parts.sets.avoid(server, &peer);
        }
    });
    let _ = work.await;
}

/// `None`: the comparison could not even be asked for.
async fn ask(
    parts: &SupplyParts,
    peer: &KmeId,
    set: &Arc<PoolSet>,
) -> Result<Option<BTreeSet<PoolServerId>>, PeerError> {
    let mut salt = [0; 32];
    let Some(client) = parts.peers.find(peer) else { return Ok(None) };
    if let Err(error) = parts.random.fill(&mut salt) {
        tracing::error!(%error, "no salt could be drawn for the comparison of a pool set");
        return Ok(None);
    }
    let Ok(pools) = digests(Arc::clone(set), salt).await else { return Ok(None) };
    let request = ComparisonRequest { pool_set: set.id(), salt, pools };
    let answer = client.compare(&request).await?;
    Ok(Some(differing(&request.pools, &answer.pools)))
}

#[cfg(test)]
mod tests {
    use kme::PoolId;

    use super::*;
    use crate::pool::AnnouncedPool;

    #[test]
    fn only_pools_that_both_sites_name_can_differ() {
        let digest = |server: &str, id: u8, byte: u8| PoolDigest {
            pool: AnnouncedPool { server: server.parse().unwrap(), id: PoolId::from_bytes([id; 16]) },
            digest: [byte; 32],
        };
        let here = [digest("pool-1", 1, 1), digest("pool-2", 2, 2), digest("pool-3", 3, 3)];
        assert!(differing(&here, &here).is_empty());
        let there =
            [digest("pool-1", 1, 1), digest("pool-2", 2, 9), digest("pool-9", 3, 9), digest("pool-3", 9, 9)];
        assert_eq!(differing(&here, &there), BTreeSet::from(["pool-2".parse().unwrap()]));
        assert!(differing(&here, &[]).is_empty());
    }
}
