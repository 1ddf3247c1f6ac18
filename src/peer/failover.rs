//! One call to a peer that may have several addresses, each a replica that can serve it.
//!
//! Calls take turns among the addresses that answer. Every replica is told of every pool set anyway, so
//! sticking to one would save nothing and leave the others idle. If an address fails or is busy, the next is
//! asked at once. If it stays silent for a part of the time, the next is asked in parallel.

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use kme::KmeId;
use serde::de::DeserializeOwned;
use tokio::time::{Duration, Instant, timeout};

use super::breaker::{BreakerState, CallPermit};
use super::error::PeerError;
use super::route::{PeerCall, Route};

/// One pass over some addresses of a peer.
pub(super) struct Pass<'a> {
    pub(super) kme: &'a KmeId,
    pub(super) routes: Vec<&'a Route>,
    pub(super) deadline: Instant,
    /// How long an address may be silent before the next is asked as well.
    pub(super) patience: Duration,
}

/// An address that was asked and has not answered.
struct Asked<'a> {
    place: usize,
    at: Instant,
    permit: CallPermit<'a>,
}

/// The addresses to be asked for a call, best first, counted from the one at `first`: those that answer, and
/// among them those that have the pools. Addresses that recently did not answer come last: one of them may be
/// back.
pub(super) fn in_order<'a, T>(routes: &'a [Route], first: usize, call: &PeerCall<'_, T>) -> Vec<&'a Route> {
    let first = first % routes.len().max(1);
    let mut order: Vec<&Route> = routes.iter().cycle().skip(first).take(routes.len()).collect();
    order.sort_by_key(|route| {
        (route.state() != BreakerState::Closed, call.set.is_some_and(|set| route.lacks(set)))
    });
    order
}

impl<'a> Pass<'a> {
    /// The first good answer, or the failure that tells most. More than one address may have acted on the
    /// call, which is safe to repeat.
    pub(super) async fn run<T: DeserializeOwned>(&self, call: &PeerCall<'_, T>) -> Result<T, PeerError> {
        let mut unasked: Vec<(usize, &'a Route)> = self.routes.iter().copied().enumerate().collect();
        let mut running = FuturesUnordered::new();
        let mut asked: Vec<Asked<'a>> = Vec::new();
        let mut failure = PeerError::Paused(self.kme.clone());
        loop {
            // At the deadline no further address is asked: it would seem silent.
            let is_time_left = Instant::now() < self.deadline;
            // An address whose circuit is open now may be asked later, while the others are silent.
            let mut next = unasked.iter().enumerate().filter(|_| is_time_left);
            if let Some((at, permit)) = next.find_map(|(at, (_, route))| Some((at, route.enter()?))) {
                let (place, route) = unasked.remove(at);
                asked.push(Asked { place, at: Instant::now(), permit });
                running.push(async move { (place, route, route.exchange(call, self.deadline).await) });
            }
            let more = is_time_left && !unasked.is_empty();
            let (place, route, result) = match self.wait(&mut running, more).await {
                Some(Some(answer)) => answer,
                Some(None) => return Err(failure),
                None => continue,
            };
            let own = asked.iter().position(|other| other.place == place);
            route.note(own.map(|own| asked.swap_remove(own).permit), call.set, &result);
            match result {
                Err(error) if !error.is_final() => {
                    if self.routes.len() > 1 {
                        self.log(route, &error);
                    }
                    if error.weight() >= failure.weight() {
                        failure = error;
                    }
                }
                answer => {
                    self.overtaken(asked);
                    return answer;
                }
            }
        }
    }

    /// The next answer; `Some(None)` when no asked address is left, `None` when it is time to ask another.
    async fn wait<A, F: Future<Output = A>>(
        &self,
        running: &mut FuturesUnordered<F>,
        more: bool,
    ) -> Option<Option<A>> {
        if more { timeout(self.patience, running.next()).await.ok() } else { Some(running.next().await) }
    }

    /// Callers do not see one replica's trouble, so it is logged here.
    fn log(&self, route: &Route, error: &PeerError) {
        let (peer, url, cause) = (self.kme, route.url(), error as &dyn std::error::Error);
        if matches!(error, PeerError::Refused { .. }) && !error.refuses_set() {
            tracing::warn!(%peer, url, error = cause, "a replica of a peer refused a call; asking the next");
        } else {
            tracing::debug!(%peer, url, error = cause, "a call to an address of a peer failed");
        }
    }

    /// Counts an address that was silent while another answered as failed. Otherwise later calls would wait
    /// for it again.
    fn overtaken(&self, asked: Vec<Asked<'_>>) {
        for silent in asked.into_iter().filter(|silent| silent.at.elapsed() >= self.patience) {
            silent.permit.failed();
        }
    }
}
