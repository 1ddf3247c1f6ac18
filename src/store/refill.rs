//! Whose turn it is to refill a pair, among the daemons that share a database.
//!
//! On Postgres a turn is an advisory lock of a session. All turns of a daemon are held by one connection, which a
//! task of its own looks after: when the daemon dies or is cut off, the server ends the session, and another
//! daemon's next question is granted. (A daemon that lost its connection goes on with the batch that it is
//! making; at worst two daemons refill a pair at once, and it holds a block more than it should.)

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use sqlx::Connection;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use tracing::debug;

use super::connection::{Address, Link};
use super::error::StoreError;

/// `$1` names the pair.
const TRY_REFILL: &str = "SELECT CASE WHEN pg_try_advisory_lock(hashtext('dqkd refill ' || current_schema()), hashtext($1)) \
     THEN 1 ELSE 0 END";
const END_REFILL: &str =
    "SELECT pg_advisory_unlock(hashtext('dqkd refill ' || current_schema()), hashtext($1))";

/// Questions that wait at most.
const QUESTIONS: usize = 256;
/// What a server may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);

/// The right to refill one pair. Dropping it passes the turn on.
#[derive(Debug)]
#[must_use = "dropping it passes the turn on at once"]
pub struct RefillTurn(Option<Held>);

/// A lock of the keeper's session.
#[derive(Debug)]
struct Held {
    pair: String,
    /// Unbounded, because a drop cannot wait; there is at most one in it for each turn that was granted.
    letting_go: mpsc::UnboundedSender<String>,
}

impl RefillTurn {
    /// The turn where only one daemon uses the database: always granted.
    pub(super) fn of_the_only_daemon() -> Self {
        Self(None)
    }
}

impl Drop for RefillTurn {
    fn drop(&mut self) {
        if let Some(Held { pair, letting_go }) = self.0.take() {
            // A keeper that has ended has let go of everything.
            let _ = letting_go.send(pair);
        }
    }
}

type Answer = oneshot::Sender<Result<Option<RefillTurn>, StoreError>>;

/// Asks for turns on Postgres.
#[derive(Clone)]
pub(super) struct Turns(mpsc::Sender<(String, Answer)>);

impl Turns {
    /// Starts the task that holds this daemon's turns; it ends when the last `Turns` is dropped.
    pub(super) fn start(address: Arc<Address>) -> Self {
        let (asking, questions) = mpsc::channel(QUESTIONS);
        let (letting_go, let_go) = mpsc::unbounded_channel();
        let keeper = Keeper { address, link: None, held: HashSet::new(), letting_go };
        tokio::spawn(keeper.run(questions, let_go));
        Self(asking)
    }

    pub(super) async fn ask(&self, pair: String) -> Result<Option<RefillTurn>, StoreError> {
        let (reply, answer) = oneshot::channel();
        self.0.send((pair, reply)).await.map_err(|_| StoreError::Closed)?;
        answer.await.unwrap_or(Err(StoreError::Closed))
    }
}

/// Holds the locks.
struct Keeper {
    address: Arc<Address>,
    link: Option<Link>,
    /// A session is granted its own lock again, so what it holds is remembered here.
    held: HashSet<String>,
    letting_go: mpsc::UnboundedSender<String>,
}

impl Keeper {
    async fn run(
        mut self,
        mut questions: mpsc::Receiver<(String, Answer)>,
        mut let_go: mpsc::UnboundedReceiver<String>,
    ) {
        loop {
            tokio::select! {
                biased;
                Some(pair) = let_go.recv() => self.let_go(&pair).await,
                question = questions.recv() => {
                    let Some((pair, reply)) = question else { break };
                    let answer = self.answer(pair).await;
                    // A turn that nobody takes any more is dropped, which lets go of it.
                    let _ = reply.send(answer);
                }
            }
        }
        if let Some(link) = self.link.take() {
            // With its session every lock goes.
            let _ = timeout(ANSWER_TIMEOUT, link.into_inner().close()).await;
        }
    }

    async fn answer(&mut self, pair: String) -> Result<Option<RefillTurn>, StoreError> {
        if self.held.contains(&pair) {
            return Ok(None);
        }
        let is_granted = match self.lock(&pair).await {
            // The connection of before may have gone with its server. Whatever it held is free.
            Err(error) if error.ends_the_connection() && self.link.is_some() => {
                self.forget();
                self.lock(&pair).await
            }
            other => other,
        };
        match is_granted {
            Ok(true) => {
                self.held.insert(pair.clone());
                Ok(Some(RefillTurn(Some(Held { pair, letting_go: self.letting_go.clone() }))))
            }
            Ok(false) => Ok(None),
            Err(error) => {
                self.forget();
                Err(error)
            }
        }
    }

    async fn lock(&mut self, pair: &str) -> Result<bool, StoreError> {
        if self.link.is_none() {
            self.link = Some(self.address.connect().await?);
        }
        let Some(link) = &mut self.link else { return Err(StoreError::Closed) };
        let asked = sqlx::query_scalar(TRY_REFILL).bind(pair).fetch_one(&mut **link);
        let granted: i64 = timeout(ANSWER_TIMEOUT, asked).await.unwrap_or(Err(sqlx::Error::WorkerCrashed))?;
        Ok(granted != 0)
    }

    async fn let_go(&mut self, pair: &str) {
        // Not held any more: its session is gone, and perhaps another daemon has the turn.
        if !self.held.remove(pair) {
            return;
        }
        let Some(link) = &mut self.link else { return };
        let asked = sqlx::query(END_REFILL).bind(pair).execute(&mut **link);
        if !matches!(timeout(ANSWER_TIMEOUT, asked).await, Ok(Ok(_))) {
            debug!("the connection that holds the turns to refill is lost");
            self.forget();
        }
    }

    fn forget(&mut self) {
        self.link = None;
        self.held.clear();
    }
}
