//! One run: connections, the keys used so far, the rules for every answer, the findings of each test.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use mtls::Offer;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::time::timeout;
use zeroize::Zeroizing;

use super::exchange::{Delivered, Exchange, unanswered};
use super::outcome::{Failure, Refusal, Stop, skip};
use super::setup::{Profile, Sae, Setup};
use crate::https::{Connection, Endpoint, HTTP_1, HttpRequest, HttpResponse, KeptConnections, Trouble};
use crate::wire::{key_ids_body, path};

/// Longest time for a hook.
const HOOK_MAX: Duration = Duration::from_mins(2);
/// Pause before a condition that needs a moment is checked again.
pub(super) const MOMENT: Duration = Duration::from_millis(200);
/// How often a refused request is sent before it is blamed for a falling count of keys.
const COUNT_TRIES: usize = 3;

/// The limits of a pair, from status (clause 6.1).
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) key_size: u64,
    pub(super) min_key_size: u64,
    pub(super) max_key_size: u64,
    pub(super) max_per_request: u64,
    pub(super) max_additional: u64,
}

/// One run over a setup.
pub(super) struct Session {
    pub(super) setup: Setup,
    limits: Option<Limits>,
    /// By SAE and URL.
    kept: Mutex<HashMap<(String, String), Arc<KeptConnections>>>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    keys_used: usize,
    failures: Vec<Failure>,
    notes: Vec<String>,
    /// ID and base64 of the keys that `enc_keys` has given. None of them may come again.
    issued: Vec<(String, Zeroizing<String>)>,
    /// Errors without the standard's form, for T52.
    formless: Vec<Failure>,
    errors: usize,
    /// Key containers that caches may keep, for T54.
    cached: Vec<Failure>,
    containers: usize,
}

impl Session {
    /// Reads the limits, so that every test can use them. T8 reports a KME that does not answer.
    pub(super) async fn open(setup: Setup) -> Self {
        let (kept, state) = (Mutex::default(), Mutex::default());
        let mut session = Self { setup, limits: None, kept, state };
        session.limits = limits_of(&session.status().await);
        session
    }

    /// The failures and notes since the last call.
    pub(super) fn take_findings(&self) -> (Vec<Failure>, Vec<String>) {
        let mut state = self.state.lock();
        (std::mem::take(&mut state.failures), std::mem::take(&mut state.notes))
    }

    pub(super) fn strict(&self) -> bool {
        self.setup.profile == Profile::Strict
    }

    pub(super) fn keys_used(&self) -> usize {
        self.state.lock().keys_used
    }

    pub(super) fn limits(&self) -> Result<Limits, Stop> {
        self.limits.map_or_else(|| skip("A's status about B gave no limits; see T8"), Ok)
    }

    pub(super) fn c(&self) -> Result<&Sae, Stop> {
        self.setup.c.as_ref().map_or_else(|| skip("needs a third SAE: --c-id, --c-cert, --c-key"), Ok)
    }

    /// Whether C is served by B's KME.
    pub(super) fn c_is_with_b(&self) -> bool {
        self.setup.c.as_ref().is_some_and(|c| c.url == self.setup.b.url)
    }

    /// Counts keys before a test asks for them.
    pub(super) fn spend(&self, keys: usize) -> Result<(), Stop> {
        let mut state = self.state.lock();
        if state.keys_used.saturating_add(keys) > self.setup.max_keys {
            return skip(format!("would use more than {} keys (--max-keys)", self.setup.max_keys));
        }
        state.keys_used += keys;
        Ok(())
    }

    /// Records a failure; the test continues.
    pub(super) fn fail(&self, failure: Failure) {
        self.state.lock().failures.push(failure);
    }

    /// Adds a note, which does not make the test fail.
    pub(super) fn note(&self, text: impl Into<String>) {
        self.state.lock().notes.push(text.into());
    }

    /// Requires something of an answer; the test continues either way.
    pub(super) fn check(&self, holds: bool, exchange: &Exchange, clause: &'static str, expected: &str) {
        if !holds {
            self.fail(Failure::new(exchange, clause, expected));
        }
    }

    /// Requires something in the strict profile. In the lenient one, adds a note if it is missing.
    pub(super) fn should(&self, holds: bool, exchange: &Exchange, clause: &'static str, expected: &str) {
        if !holds && self.strict() {
            self.fail(Failure::new(exchange, clause, expected));
        } else if !holds {
            self.note(format!("expected {expected} ({clause}); got {}", exchange.received()));
        }
    }

    /// Requires a refusal, with a `message`.
    pub(super) fn refused(&self, exchange: &Exchange, refusal: &Refusal) {
        let Refusal { clause, of, statuses, tolerated, sentence } = refusal;
        let wanted = statuses.iter().map(u16::to_string).collect::<Vec<_>>().join(" or ");
        let fits = statuses.contains(&exchange.status);
        if !fits && (self.strict() || !tolerated.contains(&exchange.status)) {
            let sentence = sentence.map_or(String::new(), |sentence| format!(" and `{}`", sentence.text));
            self.fail(Failure::new(exchange, clause, format!("status {wanted}{sentence} for {of}")));
            return;
        }
        if !fits {
            self.note(format!("status {} for {of}, where {wanted} is expected ({clause})", exchange.status));
        }
        let message = exchange.message();
        // The standard gives a model for 400 and 503 only.
        if [400, 503].contains(&exchange.status) || (self.strict() && exchange.status >= 400) {
            self.check(message.is_some(), exchange, "6.5 R53", "an Error: JSON with `message`, a string");
        }
        if let (Some(sentence), Some(message), 400) = (sentence, message, exchange.status) {
            let expected = format!("the message `{}` for {of}", sentence.text);
            if sentence.is_demanded && !sentence.is_meant_by(&message) {
                self.fail(Failure::new(exchange, clause, expected));
            } else {
                self.should(message == sentence.text, exchange, clause, &expected);
            }
        }
    }

    /// Sends `request` as `sae` over a kept connection. Repeats it only if it was certainly not sent.
    pub(super) async fn send(&self, sae: &Sae, request: HttpRequest) -> Exchange {
        let kept = match self.kept(sae) {
            Ok(kept) => kept,
            Err(trouble) => return unanswered(sae, &request, trouble),
        };
        let mut response = HttpResponse::default();
        let result = timeout(self.setup.timeout, kept.exchange(&request, &mut response)).await;
        self.observed(sae, &request, result.map(|result| result.map(|()| response)))
    }

    /// Sends `request` as `sae` over a new connection.
    pub(super) async fn send_alone(&self, sae: &Sae, request: HttpRequest) -> Exchange {
        match self.connect(sae, HTTP_1).await {
            Ok(mut connection) => self.over(&mut connection, sae, &request).await,
            Err(trouble) => unanswered(sae, &request, trouble),
        }
    }

    /// Sends `request` over `connection`.
    pub(super) async fn over(
        &self,
        connection: &mut Connection,
        sae: &Sae,
        request: &HttpRequest,
    ) -> Exchange {
        let mut response = HttpResponse::default();
        let result = timeout(self.setup.timeout, connection.exchange(request, &mut response)).await;
        self.observed(sae, request, result.map(|result| result.map(|()| response)))
    }

    /// A new connection as `sae`.
    pub(super) async fn connect(&self, sae: &Sae, offer: Offer<'_>) -> Result<Connection, String> {
        let endpoint = Endpoint::new(&sae.url, &sae.credentials.0, offer)?;
        let connected = timeout(self.setup.timeout, endpoint.connect()).await;
        connected.map_err(|_| "no connection in time".to_owned())?.map_err(|error| error.to_string())
    }

    /// Requires that the KME of `sae` still answers over a new connection. A KME that is down refuses every
    /// connection, so without this check a refusal would prove nothing.
    pub(super) async fn still_answers(&self, sae: &Sae, clause: &'static str) {
        let exchange = self.send_alone(sae, HttpRequest::get(path(&sae.id, "status"))).await;
        let expected = "an answer of this KME to a good connection: else its refusals say nothing";
        self.check(exchange.trouble.is_none(), &exchange, clause, expected);
    }

    fn kept(&self, sae: &Sae) -> Result<Arc<KeptConnections>, String> {
        let mut kept = self.kept.lock();
        let key = (sae.id.clone(), sae.url.to_string());
        if let Some(connections) = kept.get(&key) {
            return Ok(Arc::clone(connections));
        }
        let endpoint = Endpoint::new(&sae.url, &sae.credentials.0, HTTP_1)?;
        let connections = Arc::new(KeptConnections::to(endpoint));
        kept.insert(key, Arc::clone(&connections));
        Ok(connections)
    }

    /// Checks the rules for every answer.
    fn observed(
        &self,
        sae: &Sae,
        request: &HttpRequest,
        result: Result<Result<HttpResponse, Trouble>, tokio::time::error::Elapsed>,
    ) -> Exchange {
        let exchange = match result {
            Ok(Ok(response)) => Exchange::answered(sae, request, response),
            Ok(Err(trouble)) => unanswered(sae, request, trouble.to_string()),
            Err(_) => unanswered(sae, request, format!("nothing complete within {:?}", self.setup.timeout)),
        };
        self.observe(&exchange);
        exchange
    }

    /// Collects what T52 and T54 report.
    fn observe(&self, exchange: &Exchange) {
        let mut state = self.state.lock();
        if exchange.status == 200 && exchange.request.target.contains("c_keys") {
            state.containers += 1;
            if !exchange.header("cache-control").is_some_and(|value| value.contains("no-store")) {
                let expected = "Cache-Control: no-store with keys";
                state.cached.push(Failure::new(exchange, "R56", expected));
            }
        }
        if exchange.status < 400 {
            return;
        }
        state.errors += 1;
        let text = String::from_utf8_lossy(&exchange.response.body);
        let holds_key = state.issued.iter().any(|(_, key)| key.len() >= 16 && text.contains(key.as_str()));
        if let Some(expected) = exchange.wrong_form_of_error(self.strict(), holds_key) {
            let failure = Failure::new(exchange, "6.5 R53 R54", expected);
            state.formless.push(failure);
        }
    }

    /// Every error of the run, and those without the standard's form.
    pub(super) fn errors_seen(&self) -> (usize, Vec<Failure>) {
        let state = self.state.lock();
        (state.errors, state.formless.clone())
    }

    /// Every key container of the run, and those that caches may keep.
    pub(super) fn containers_seen(&self) -> (usize, Vec<Failure>) {
        let state = self.state.lock();
        (state.containers, state.cached.clone())
    }

    /// A's status about B.
    pub(super) async fn status(&self) -> Exchange {
        self.send(&self.setup.a, HttpRequest::get(path(&self.setup.b.id, "status"))).await
    }

    /// A POST of `enc_keys` by A for B.
    pub(super) async fn enc(&self, body: &Value) -> Exchange {
        self.send(&self.setup.a, HttpRequest::post(path(&self.setup.b.id, "enc_keys"), body.to_string()))
            .await
    }

    /// A GET of `enc_keys` by A for B, with `query`: nothing, or `?` and what follows.
    pub(super) async fn enc_get(&self, query: &str) -> Exchange {
        let path = path(&self.setup.b.id, "enc_keys");
        self.send(&self.setup.a, HttpRequest::get(format!("{path}{query}"))).await
    }

    /// `number` fresh keys of the default size that A shares with B.
    pub(super) async fn fresh(&self, number: usize) -> Result<Vec<Delivered>, Stop> {
        let limits = self.limits()?;
        self.spend(number)?;
        let mut keys = Vec::new();
        while keys.len() < number {
            let most = usize::try_from(limits.max_per_request.max(1)).unwrap_or(usize::MAX);
            let now = (number - keys.len()).min(most);
            let exchange = self.enc(&json!({ "number": now })).await;
            keys.extend(self.fresh_of(&exchange, now, limits.key_size, "6.3 R44-R46")?);
        }
        Ok(keys)
    }

    /// One fresh key.
    pub(super) async fn fresh_one(&self) -> Result<Delivered, Stop> {
        let limits = self.limits()?;
        self.spend(1)?;
        let exchange = self.enc(&json!({})).await;
        let mut keys = self.fresh_of(&exchange, 1, limits.key_size, "6.3 R44-R46")?;
        let missing = || Failure::new(&exchange, "6.3 R44", "one key");
        keys.pop().ok_or_else(|| missing().into())
    }

    /// The keys of an answer to `enc_keys`: none of them was ever given before.
    pub(super) fn fresh_of(
        &self,
        exchange: &Exchange,
        number: usize,
        bits: u64,
        clause: &'static str,
    ) -> Result<Vec<Delivered>, Failure> {
        let keys =
            exchange.container(number, bits).map_err(|expected| Failure::new(exchange, clause, expected))?;
        let mut state = self.state.lock();
        for key in &keys {
            let text = key.to_base64();
            // Short keys may repeat by chance.
            let is_old = |(id, old): &(String, Zeroizing<String>)| {
                id.eq_ignore_ascii_case(&key.id) || (bits >= 64 && *old == text)
            };
            if state.issued.iter().any(is_old) {
                let expected = "fresh keys: a key or key ID that was delivered before came again";
                return Err(Failure::new(exchange, "5.3 R43", expected));
            }
            state.issued.push((key.id.clone(), text));
        }
        Ok(keys)
    }

    /// `dec_keys` as `sae` for keys of the master `master`, by POST.
    pub(super) async fn dec(&self, sae: &Sae, master: &str, ids: &[&str]) -> Exchange {
        let body = key_ids_body(ids.iter().copied());
        self.send(sae, HttpRequest::post(path(master, "dec_keys"), body)).await
    }

    /// `dec_keys` as B, for keys of A.
    pub(super) async fn b_gets(&self, ids: &[&str]) -> Exchange {
        self.dec(&self.setup.b, &self.setup.a.id, ids).await
    }

    /// As B, a POST of `dec_keys` for keys of A, with this body.
    pub(super) async fn b_posts(&self, body: &Value) -> Exchange {
        let path = path(&self.setup.a.id, "dec_keys");
        self.send(&self.setup.b, HttpRequest::post(path, body.to_string())).await
    }

    /// As B, a GET of `dec_keys` for keys of A, with `query`.
    pub(super) async fn b_asks(&self, query: &str) -> Exchange {
        let path = path(&self.setup.a.id, "dec_keys");
        self.send(&self.setup.b, HttpRequest::get(format!("{path}{query}"))).await
    }

    /// Requires that B gets exactly `key` now.
    pub(super) async fn b_still_gets(&self, key: &Delivered, clause: &'static str) {
        let exchange = self.b_gets(&[&key.id]).await;
        self.same_keys(&exchange, std::slice::from_ref(key), clause);
    }

    /// Requires that an answer holds exactly `keys`.
    pub(super) fn same_keys(&self, exchange: &Exchange, keys: &[Delivered], clause: &'static str) {
        let bits = keys.first().map_or(0, |key| key.key.len() as u64 * 8);
        match exchange.container(keys.len(), bits) {
            Err(expected) => self.fail(Failure::new(exchange, clause, expected)),
            Ok(got) => {
                for key in keys {
                    let twin = got.iter().find(|other| other.id.eq_ignore_ascii_case(&key.id));
                    let has_id = twin.is_some();
                    self.check(has_id, exchange, clause, "the key IDs that the master received");
                    let is_same = twin.is_none_or(|twin| twin.key == key.key);
                    self.check(is_same, exchange, clause, "the same key bytes that the master received");
                }
            }
        }
    }

    /// Requires that a refused request, which `attempt` sends, does not change the number of stored keys.
    /// Others may use keys meanwhile, so the number counts as changed only if it falls every time.
    pub(super) async fn uses_nothing<F>(&self, clause: &'static str, attempt: impl Fn() -> F)
    where
        F: Future<Output = Exchange>,
    {
        let mut last = None;
        for _ in 0..COUNT_TRIES {
            let before = self.stored().await;
            let exchange = attempt().await;
            let after = self.stored().await;
            match (before, after) {
                (Some(before), Some(after)) if after < before => last = Some((exchange, before, after)),
                _ => return,
            }
        }
        if let Some((exchange, before, after)) = last {
            let expected = format!(
                "a refused request that uses up no key; stored_key_count fell from {before} to {after}"
            );
            self.fail(Failure::new(&exchange, clause, expected));
        }
    }

    /// `stored_key_count` of A to B, when status works.
    pub(super) async fn stored(&self) -> Option<u64> {
        self.status().await.json()?.get("stored_key_count")?.as_u64()
    }

    /// Runs a hook to its end. What it prints goes to standard error.
    pub(super) async fn hook(&self, command: &str) -> Result<(), Stop> {
        self.kept.lock().clear();
        let mut shell = tokio::process::Command::new("sh");
        shell.arg("-c").arg(command).stdin(std::process::Stdio::null()).stdout(std::io::stderr());
        let received = match timeout(HOOK_MAX, shell.kill_on_drop(true).status()).await {
            Ok(Ok(status)) if status.success() => return Ok(()),
            Ok(Ok(status)) => status.to_string(),
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("it did not end within {HOOK_MAX:?}"),
        };
        let expected = "a hook that ends with success".to_owned();
        Err(Failure { expected, sent: command.to_owned(), received, clause: "(hook)" }.into())
    }
}

/// Lenient, so that a KME with a wrong status is still tested; T8 reports what is wrong.
fn limits_of(status: &Exchange) -> Option<Limits> {
    let json = status.json()?;
    let number = |name: &str| match json.get(name)? {
        Value::String(text) => text.trim().parse().ok(),
        other => other.as_u64(),
    };
    let key_size = number("key_size")?;
    Some(Limits {
        key_size,
        min_key_size: number("min_key_size").unwrap_or(key_size),
        max_key_size: number("max_key_size").unwrap_or(key_size),
        max_per_request: number("max_key_per_request").unwrap_or(1),
        max_additional: number("max_SAE_ID_count").unwrap_or(0),
    })
}
