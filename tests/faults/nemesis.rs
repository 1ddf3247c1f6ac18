//! Carries out the schedule's faults on the cluster.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::process::Signal;
use testkit::PATIENCE;
use testkit::postgres::Stop;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep};

use crate::cluster::Cluster;
use crate::proxy::Mode;
use crate::schedule::{Fault, Strike};

/// Pause between attempts to start a process that does not come up, like a service manager's.
const RESTART_PAUSE: Duration = Duration::from_millis(200);

/// What was done, for the summary.
#[derive(Clone, Debug, Default)]
pub(crate) struct Deeds {
    pub(crate) by_kind: BTreeMap<&'static str, usize>,
    pub(crate) kills: usize,
    pub(crate) start_slowest: Duration,
    pub(crate) stop_slowest: Duration,
    /// Starts that failed and were repeated: a daemon refuses a database that it cannot write.
    pub(crate) starts_refused: usize,
    /// Graceful stops with an exit code other than 0.
    pub(crate) unclean_stops: usize,
    /// How many faults could not be made, and the reason for the last one.
    pub(crate) not_done: (usize, Option<String>),
}

pub(crate) struct Nemesis {
    pub(crate) cluster: Arc<Cluster>,
    pub(crate) deeds: Mutex<Deeds>,
}

impl Nemesis {
    /// Carries out one fault, from beginning to end.
    pub(crate) async fn strike(&self, strike: Strike) {
        let lasts = strike.lasts;
        let done = match strike.fault {
            Fault::Kill { slot } => self.restart(slot, lasts, true).await,
            Fault::Terminate { slot } => self.restart(slot, lasts, false).await,
            Fault::Pause { slot } => {
                let daemon = self.cluster.slots[slot].daemon.lock().await;
                let daemon = daemon.as_ref().expect("a daemon runs");
                daemon.signal(Signal::STOP);
                sleep(lasts).await;
                daemon.signal(Signal::CONT);
                Ok(())
            }
            Fault::Link { link, mode } => {
                let link = &self.cluster.links[link];
                link.set(mode);
                sleep(lasts).await;
                link.set(Mode::Pass);
                Ok(())
            }
            Fault::DiskFull { site } => self.cluster.databases[site].is_full(lasts).await,
            Fault::ReadOnly { site } => self.cluster.databases[site].is_read_only(lasts).await,
            Fault::Locked { site } => self.cluster.databases[site].is_locked(lasts).await,
            Fault::Restart { site, how } => self.cluster.databases[site].restarts(how, lasts).await,
            Fault::Frozen { site } => self.cluster.databases[site].is_frozen(lasts).await,
            Fault::Exhausted { site } => self.cluster.databases[site].is_exhausted(lasts).await,
        };
        let mut deeds = self.deeds.lock().unwrap();
        match done {
            Ok(()) => {
                *deeds.by_kind.entry(kind(strike.fault)).or_default() += 1;
                deeds.kills += usize::from(matches!(strike.fault, Fault::Kill { .. }));
            }
            Err(reason) => deeds.not_done = (deeds.not_done.0 + 1, Some(reason)),
        }
    }

    /// Ends a process and starts it again.
    async fn restart(&self, slot: usize, pause: Duration, kill: bool) -> Result<(), String> {
        let cluster = Arc::clone(&self.cluster);
        let mut place = cluster.slots[slot].daemon.lock().await;
        let daemon = place.take().expect("a daemon runs");
        if kill {
            spawn_blocking(move || daemon.kill()).await.unwrap();
        } else {
            let began = Instant::now();
            let status = spawn_blocking(move || daemon.terminate()).await.unwrap();
            let mut deeds = self.deeds.lock().unwrap();
            deeds.stop_slowest = deeds.stop_slowest.max(began.elapsed());
            deeds.unclean_stops += usize::from(!status.success());
        }
        sleep(pause).await;
        let until = Instant::now() + PATIENCE;
        loop {
            let began = Instant::now();
            let cluster = Arc::clone(&self.cluster);
            let started = spawn_blocking(move || cluster.slots[slot].spawn()).await.unwrap();
            match started {
                Ok(daemon) => {
                    *place = Some(daemon);
                    let mut deeds = self.deeds.lock().unwrap();
                    deeds.start_slowest = deeds.start_slowest.max(began.elapsed());
                    return Ok(());
                }
                Err(log) => {
                    let tail: Vec<&str> = log.lines().rev().take(5).collect();
                    assert!(Instant::now() < until, "a daemon does not start: {tail:#?}");
                    self.deeds.lock().unwrap().starts_refused += 1;
                    sleep(RESTART_PAUSE).await;
                }
            }
        }
    }
}

fn kind(fault: Fault) -> &'static str {
    match fault {
        Fault::Kill { .. } => "kill",
        Fault::Pause { .. } => "pause",
        Fault::Terminate { .. } => "terminate",
        Fault::DiskFull { .. } => "disk full",
        Fault::ReadOnly { .. } => "read-only",
        Fault::Locked { .. } => "locked",
        Fault::Restart { how: Stop::Fast, .. } => "database stopped",
        Fault::Restart { how: Stop::Immediate, .. } => "database aborted",
        Fault::Restart { how: Stop::Kill, .. } => "database killed",
        Fault::Frozen { .. } => "database frozen",
        Fault::Exhausted { .. } => "database exhausted",
        Fault::Link { mode, .. } => match mode {
            Mode::Pass => "none",
            Mode::Delay(_) => "delay",
            Mode::Cut => "cut",
            Mode::Blackhole(_) => "blackhole",
            Mode::Stall(_) => "stall",
            Mode::Truncate(_) => "truncate",
            Mode::Drip => "drip",
            Mode::Far(_) => "far",
        },
    }
}
