//! The sites, SAEs and pool servers of a demo, and their ports.

use std::net::TcpListener;

use anyhow::{bail, ensure};

use kme::{OsRandom, Random as _};

/// SAEs of the first two sites.
const FIRST_SAES: [&[&str]; 2] = [&["alice", "dave"], &["bob", "carol"]];
/// One for each further site.
const MORE_SAES: [&str; 19] = [
    "erin", "frank", "grace", "heidi", "ivan", "judy", "kim", "leo", "mia", "nina", "oscar", "peggy",
    "quinn", "rosa", "sybil", "trent", "uma", "victor", "wendy",
];
/// Where to look for free ports.
const FREE: std::ops::Range<u16> = 10_000..32_000;
const ATTEMPTS: u32 = 100;

/// A demo before its files are written.
pub(super) struct Plan {
    pub(super) sites: Vec<SitePlan>,
    pub(super) pools: Vec<PoolPlan>,
}

pub(super) struct SitePlan {
    pub(super) id: String,
    pub(super) saes: Vec<&'static str>,
    pub(super) sae_port: u16,
    pub(super) peer_port: u16,
    pub(super) admin_port: u16,
    pub(super) store_url: String,
}

pub(super) struct PoolPlan {
    pub(super) id: String,
    pub(super) port: u16,
    pub(super) admin_port: u16,
}

impl Plan {
    /// Takes consecutive ports from `base_port`, or free ones if that is 0.
    pub(super) fn new(sites: usize, pool_servers: usize, base_port: u16) -> anyhow::Result<Self> {
        let count = 3 * sites + 2 * pool_servers;
        let ports = if base_port == 0 { free(count)? } else { consecutive(base_port, count)? };
        let mut ports = ports.into_iter();
        let mut next = || ports.next().unwrap_or_default();
        let letters = 'a'..='z';
        let site_plans = letters.zip(saes()).take(sites).map(|(letter, saes)| SitePlan {
            id: format!("site-{letter}"),
            store_url: format!("sqlite://site-{letter}.db"),
            saes,
            sae_port: next(),
            peer_port: next(),
            admin_port: next(),
        });
        let sites = site_plans.collect();
        let pools = (1..=pool_servers)
            .map(|number| PoolPlan { id: format!("pool-{number}"), port: next(), admin_port: next() })
            .collect();
        Ok(Self { sites, pools })
    }
}

fn saes() -> impl Iterator<Item = Vec<&'static str>> {
    FIRST_SAES.into_iter().map(<[_]>::to_vec).chain(MORE_SAES.into_iter().map(|name| vec![name]))
}

fn consecutive(base: u16, count: usize) -> anyhow::Result<Vec<u16>> {
    let ports: Vec<u16> = (base..=u16::MAX).take(count).collect();
    ensure!(ports.len() == count, "--base-port {base} is too high: the demo needs {count} ports");
    Ok(ports)
}

/// Free consecutive ports, below those that systems use for outgoing connections. If another program takes
/// one before the demo does, the demo fails and says so.
fn free(count: usize) -> anyhow::Result<Vec<u16>> {
    for _ in 0..ATTEMPTS {
        let mut bytes = [0; 2];
        OsRandom.fill(&mut bytes)?;
        let base = FREE.start + u16::from_le_bytes(bytes) % (FREE.end - FREE.start);
        let ports = consecutive(base, count)?;
        // Holds all ports until the last one was tried.
        let held: Result<Vec<_>, _> =
            ports.iter().map(|port| TcpListener::bind(("127.0.0.1", *port))).collect();
        if held.is_ok() {
            return Ok(ports);
        }
    }
    bail!("found no {count} consecutive free ports: give --base-port")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_site_has_its_own_saes_and_every_listener_its_own_port() {
        for (sites, pool_servers) in (2..=21).zip((2..=8).cycle()) {
            for base in [0, 20_000] {
                let plan = Plan::new(sites, pool_servers, base).unwrap();
                let saes: std::collections::BTreeSet<_> =
                    plan.sites.iter().flat_map(|site| &site.saes).collect();
                assert_eq!(saes.len(), sites + 2);
                let mut ports: Vec<u16> = plan
                    .sites
                    .iter()
                    .flat_map(|site| [site.sae_port, site.peer_port, site.admin_port])
                    .chain(plan.pools.iter().flat_map(|pool| [pool.port, pool.admin_port]))
                    .collect();
                ports.sort_unstable();
                ports.dedup();
                let count = 3 * sites + 2 * pool_servers;
                assert_eq!((plan.sites.len(), plan.pools.len(), ports.len()), (sites, pool_servers, count));
                let last = base + u16::try_from(count - 1).unwrap();
                assert!(base == 0 || (ports[0], ports[count - 1]) == (base, last));
            }
        }
        assert!(Plan::new(2, 3, 65_530).is_err());
    }
}
