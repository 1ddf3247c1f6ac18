//! A daemon's tasks. If a listener ends, the daemon stops and reports why. If a background task ends, it is
//! started again.
//!
//! A panic ends only its task, never the process, and no task ends unnoticed.

use std::fmt;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use kme::Backoff;
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use mtls::identity::{Identity, IdentityError};
use mtls::{ListenerCounts, ListenerLimits, ListenerService, ListenerTls, listener};

/// Pauses before an ended task is started again.
const RESTART_PAUSE: Backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(10));

/// Why a daemon stopped on its own.
type Stopped = anyhow::Result<()>;

/// A running KME or pool server. It keeps running when this is dropped; [`Daemon::stop`] stops it.
#[derive(Debug)]
pub struct Daemon {
    /// Its name in messages.
    pub name: String,
    /// Addresses of its listeners, with their names in the configuration.
    pub addresses: Vec<(&'static str, SocketAddr)>,
    stopping: CancellationToken,
    ended: JoinHandle<Stopped>,
}

impl Daemon {
    /// Asks it to stop: it takes no new connections, finishes its work and closes the store.
    pub fn stop(&self) {
        self.stopping.cancel();
    }

    /// A handle that asks it to stop.
    pub fn stopper(&self) -> CancellationToken {
        self.stopping.clone()
    }

    /// Waits until it has stopped.
    ///
    /// # Errors
    /// Why it stopped, unless it was asked to.
    pub async fn ended(self) -> Stopped {
        self.ended.await.unwrap_or_else(|_| Err(anyhow!("{} was aborted", self.name)))
    }
}

/// Counts restarts of background tasks.
#[derive(Clone, Debug, Default)]
pub(super) struct Restarts(Arc<AtomicU64>);

impl Restarts {
    pub(super) fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What the listeners of one daemon have counted, by their names.
#[derive(Clone, Debug, Default)]
pub(super) struct Listeners(Arc<Mutex<Vec<Counted>>>);

/// A listener's name and counts.
pub(super) type Counted = (&'static str, Arc<ListenerCounts>);

impl Listeners {
    fn add(&self, name: &'static str) -> Arc<ListenerCounts> {
        let counts = Arc::new(ListenerCounts::default());
        self.0.lock().push((name, Arc::clone(&counts)));
        counts
    }

    pub(super) fn all(&self) -> Vec<Counted> {
        self.0.lock().clone()
    }
}

/// A bound socket that is not served yet.
pub(super) struct Bound {
    tcp: TcpListener,
    address: SocketAddr,
}

/// Binds the listener `name` of `daemon`.
pub(super) async fn bind(
    daemon: &(impl fmt::Display + Sync),
    name: &str,
    address: SocketAddr,
) -> anyhow::Result<Bound> {
    let context = || format!("the {name} listener of {daemon} cannot use {address}");
    let tcp = TcpListener::bind(address).await.with_context(context)?;
    let address = tcp.local_addr().with_context(context)?;
    Ok(Bound { tcp, address })
}

/// The identity in a certificate, for messages.
pub(super) fn name_of(identity: Result<Identity, IdentityError>) -> String {
    match identity {
        Ok(Identity::Sae(sae)) => format!("SAE {}", sae.id()),
        Ok(Identity::Kme(kme)) => format!("KME {}", kme.id()),
        Ok(Identity::Pool(pool)) => format!("pool server {pool}"),
        Ok(Identity::Operator(name)) => format!("operator {name}"),
        Err(error) => format!("nobody ({error})"),
    }
}

/// Starts a daemon's tasks, and stops them when the daemon stops.
pub(super) struct Supervisor {
    name: String,
    /// Cancelled when a stop is requested; `/readyz` reports it.
    pub(super) stopping: CancellationToken,
    /// Cancelled when listeners shall take no new connections and finish those they have.
    pub(super) shutdown: CancellationToken,
    /// Cancelled when the other listeners have ended: then the admin listener ends too.
    served: CancellationToken,
    pub(super) restarts: Restarts,
    pub(super) listeners: Listeners,
    /// Work that a graceful stop waits for.
    pub(super) work: TaskTracker,
    vital: JoinSet<(&'static str, Stopped)>,
    /// The admin listener. It ends after the others, so that it can report the stop.
    last: JoinSet<(&'static str, Stopped)>,
    background: TaskTracker,
    addresses: Vec<(&'static str, SocketAddr)>,
}

impl Supervisor {
    pub(super) fn new(name: impl fmt::Display) -> Self {
        Self {
            name: name.to_string(),
            stopping: CancellationToken::new(),
            shutdown: CancellationToken::new(),
            served: CancellationToken::new(),
            restarts: Restarts::default(),
            listeners: Listeners::default(),
            work: TaskTracker::new(),
            vital: JoinSet::new(),
            last: JoinSet::new(),
            background: TaskTracker::new(),
            addresses: Vec::new(),
        }
    }

    /// Serves `service` on a bound listener.
    pub(super) fn listener(
        &mut self,
        name: &'static str,
        bound: Bound,
        tls: ListenerTls,
        service: impl ListenerService,
        limits: ListenerLimits,
    ) {
        let (shutdown, counts) = (self.shutdown.clone(), self.listeners.add(name));
        let task = listener::serve_counted(name, bound.tcp, tls, service, limits, shutdown, counts);
        self.vital(name, bound.address, task);
    }

    /// Serves the admin `service` on a bound listener, until the others have ended.
    pub(super) fn admin(
        &mut self,
        bound: Bound,
        tls: ListenerTls,
        service: impl ListenerService,
        limits: ListenerLimits,
    ) {
        self.addresses.push(("admin", bound.address));
        let (served, counts) = (self.served.clone(), self.listeners.add("admin"));
        self.last.spawn(async move {
            listener::serve_counted("admin", bound.tcp, tls, service, limits, served, counts).await;
            ("admin", Ok(()))
        });
    }

    /// Starts the task of a listener. If it ends by itself, the daemon stops.
    fn vital(
        &mut self,
        name: &'static str,
        address: SocketAddr,
        task: impl Future<Output = ()> + Send + 'static,
    ) {
        self.addresses.push((name, address));
        self.vital.spawn(async move {
            task.await;
            (name, Ok(()))
        });
    }

    /// Runs a background task until the stop. If it ends earlier, starts it again.
    pub(super) fn background<F>(&self, name: &'static str, task: impl Fn() -> F + Send + 'static)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let (shutdown, restarts) = (self.shutdown.clone(), self.restarts.clone());
        self.background.spawn(async move {
            for ends in 1.. {
                let mut running = tokio::spawn(task());
                tokio::select! {
                    () = shutdown.cancelled() => return running.abort(),
                    ended = &mut running => {
                        let panicked = ended.is_err_and(|error| error.is_panic());
                        tracing::error!(task = name, panicked, "a background task ended and is started again");
                    }
                }
                restarts.0.fetch_add(1, Ordering::Relaxed);
                tokio::select! {
                    () = shutdown.cancelled() => return,
                    () = sleep(RESTART_PAUSE.after(ends)) => {}
                }
            }
        });
    }

    /// Turns the tasks into a daemon. On a stop it is unready immediately. After `drain_delay` the listeners
    /// drain, within their own limits. Then remaining work may take `grace`. Then `finish` runs.
    pub(super) fn run(
        mut self,
        drain_delay: Duration,
        grace: Duration,
        finish: impl Future<Output = ()> + Send + 'static,
    ) -> Daemon {
        let (name, stopping) = (self.name.clone(), self.stopping.clone());
        let addresses = std::mem::take(&mut self.addresses);
        let ended = tokio::spawn(async move {
            let result = self.wait().await;
            self.stopping.cancel();
            if result.is_ok() {
                sleep(drain_delay).await;
            }
            self.shutdown.cancel();
            while self.vital.join_next().await.is_some() {}
            self.served.cancel();
            while self.last.join_next().await.is_some() {}
            self.background.close();
            self.background.wait().await;
            self.work.close();
            if tokio::time::timeout(grace, self.work.wait()).await.is_err() {
                tracing::warn!(daemon = self.name, left = self.work.len(), "stopping with unfinished work");
            }
            finish.await;
            tracing::info!(daemon = self.name, "stopped");
            result
        });
        Daemon { name, addresses, stopping, ended }
    }

    async fn wait(&mut self) -> Stopped {
        let ended = tokio::select! {
            () = self.stopping.cancelled() => return Ok(()),
            ended = self.vital.join_next() => ended,
            Some(ended) = self.last.join_next() => Some(ended),
        };
        if self.stopping.is_cancelled() {
            return Ok(());
        }
        let reason = match ended {
            Some(Ok((listener, _))) => anyhow!("the {listener} listener of {} ended", self.name),
            Some(Err(error)) if error.is_panic() => anyhow!("a listener of {} panicked", self.name),
            _ => anyhow!("{} has no listener left", self.name),
        };
        tracing::error!(daemon = self.name, %reason, "the daemon stops");
        Err(reason)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address() -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], 1))
    }

    #[tokio::test]
    async fn a_listener_that_ends_unasked_stops_the_daemon_with_a_reason() {
        let mut supervisor = Supervisor::new("site-x");
        supervisor.vital("sae", address(), async {});
        supervisor.vital("peer", address(), {
            let shutdown = supervisor.shutdown.clone();
            async move { shutdown.cancelled().await }
        });
        let reason = supervisor.run(Duration::ZERO, Duration::ZERO, async {}).ended().await.unwrap_err();
        assert!(reason.to_string().contains("sae listener of site-x"), "{reason}");
    }

    #[tokio::test]
    async fn a_panicking_listener_stops_the_daemon_with_a_reason() {
        let mut supervisor = Supervisor::new("site-x");
        supervisor.vital("sae", address(), async { panic!("seeded") });
        assert!(supervisor.run(Duration::ZERO, Duration::ZERO, async {}).ended().await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_background_task_that_panics_is_started_again_and_counted() {
        let mut supervisor = Supervisor::new("site-x");
        let shutdown = supervisor.shutdown.clone();
        supervisor.vital("sae", address(), async move { shutdown.cancelled().await });
        let (sender, mut receiver) = tokio::sync::mpsc::channel(8);
        supervisor.background("seeded", move || {
            let sender = sender.clone();
            async move {
                sender.send(()).await.unwrap();
                panic!("seeded");
            }
        });
        let restarts = supervisor.restarts.clone();
        let daemon = supervisor.run(Duration::ZERO, Duration::ZERO, async {});
        for _ in 0..3 {
            receiver.recv().await.unwrap();
        }
        assert!(restarts.count() >= 2);
        daemon.stop();
        daemon.ended().await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_stopping_daemon_is_unready_first_then_drains() {
        let mut supervisor = Supervisor::new("site-x");
        let (stopping, shutdown) = (supervisor.stopping.clone(), supervisor.shutdown.clone());
        supervisor.vital("sae", address(), {
            let shutdown = shutdown.clone();
            async move { shutdown.cancelled().await }
        });
        let daemon = supervisor.run(Duration::from_secs(5), Duration::ZERO, async {});
        daemon.stop();
        sleep(Duration::from_secs(4)).await;
        assert!(stopping.is_cancelled() && !shutdown.is_cancelled());
        daemon.ended().await.unwrap();
        assert!(shutdown.is_cancelled());
    }

    #[tokio::test]
    async fn a_stop_waits_for_work_under_way_then_finishes() {
        let mut supervisor = Supervisor::new("site-x");
        let shutdown = supervisor.shutdown.clone();
        supervisor.vital("sae", address(), async move { shutdown.cancelled().await });
        let order = Arc::new(Mutex::new(Vec::new()));
        let (release, released) = tokio::sync::oneshot::channel::<()>();
        let noted = Arc::clone(&order);
        supervisor.work.spawn(async move {
            released.await.unwrap();
            noted.lock().push("work");
        });
        let noted = Arc::clone(&order);
        let finish = async move { noted.lock().push("finish") };
        let daemon = supervisor.run(Duration::ZERO, Duration::from_mins(1), finish);
        daemon.stop();
        release.send(()).unwrap();
        daemon.ended().await.unwrap();
        assert_eq!(*order.lock(), ["work", "finish"]);
    }
}
