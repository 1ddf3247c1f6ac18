//! One run: connections, the keys used so far, what every answer has to fulfil, the verdict on each test.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Uri, Version, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use tokio::time::{Instant, timeout};
use zeroize::Zeroizing;

use super::cases::Case;
use super::exchange::{Delivered, Exchange};
use super::outcome::{Failure, Stop, skip};
use super::report::{Row, Verdict};
use super::setup::{Profile, Sae, Setup};
use crate::tls::{Dialer, Offer, OfferedTls};

/// Longest answer that is read.
const ANSWER_MAX_BYTES: usize = 16 * 1024 * 1024;
/// Characters of a URL's ID that stand for themselves.
const ESCAPED: &percent_encoding::AsciiSet =
    &percent_encoding::NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// What status says of a pair (clause 6.1).
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) key_size: u64,
    pub(super) min_key_size: u64,
    pub(super) max_key_size: u64,
    pub(super) max_per_request: u64,
    pub(super) max_key_count: u64,
    pub(super) max_additional: u64,
}

/// A request before it is sent.
pub(super) struct Call {
    pub(super) method: Method,
    pub(super) path: String,
    pub(super) body: Option<Vec<u8>>,
    pub(super) headers: Vec<(&'static str, String)>,
}

impl Call {
    pub(super) fn get(path: impl Into<String>) -> Self {
        Self { method: Method::GET, path: path.into(), body: None, headers: Vec::new() }
    }

    pub(super) fn post(path: impl Into<String>, body: impl Into<Vec<u8>>) -> Self {
        let headers = vec![("content-type", "application/json".to_owned())];
        Self { method: Method::POST, path: path.into(), body: Some(body.into()), headers }
    }

    pub(super) fn with(mut self, name: &'static str, value: &str) -> Self {
        self.headers.push((name, value.to_owned()));
        self
    }
}

/// A path of the API: `/api/v1/keys/{id}/{rest}`.
pub(super) fn path(id: &str, rest: &str) -> String {
    format!("/api/v1/keys/{}/{rest}", percent_encoding::utf8_percent_encode(id, ESCAPED))
}

/// An HTTP connection.
pub(super) enum Link {
    V1(http1::SendRequest<Full<Bytes>>),
    V2(http2::SendRequest<Full<Bytes>>),
}

/// One run over a setup.
pub(super) struct Session {
    pub(super) setup: Setup,
    limits: Option<Limits>,
    links: tokio::sync::Mutex<HashMap<String, Link>>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    keys_used: usize,
    failures: Vec<Failure>,
    notes: Vec<String>,
    /// Base64 of keys seen, to be looked for where no key belongs.
    seen: Vec<Zeroizing<String>>,
    /// Errors without the standard's form, for T52.
    formless: Vec<Failure>,
    errors: usize,
    /// Key containers that caches may keep, for T54.
    cached: Vec<Failure>,
    containers: usize,
}

impl Session {
    /// Reads the limits, so that every test can use them. A KME that does not answer is T8's finding.
    pub(super) async fn open(setup: Setup) -> Self {
        let mut session = Self {
            setup,
            limits: None,
            links: tokio::sync::Mutex::default(),
            state: Mutex::default(),
        };
        let status = session.a_to_b("status", None).await;
        session.limits = limits_of(&status);
        session
    }

    pub(super) async fn run(&self, case: &Case) -> Row {
        let started = Instant::now();
        let ended = (case.run)(self).await;
        let mut state = self.lock();
        let (mut failures, notes) =
            (std::mem::take(&mut state.failures), std::mem::take(&mut state.notes));
        drop(state);
        let verdict = match ended {
            Err(Stop::Fail(failure)) => {
                failures.push(failure);
                Verdict::failed(failures)
            }
            _ if !failures.is_empty() => Verdict::failed(failures),
            Err(Stop::Skip(reason)) => Verdict::Skipped(reason),
            Ok(()) => Verdict::Passed,
        };
        Row { number: case.number, title: case.title, verdict, notes, duration: started.elapsed() }
    }

    pub(super) fn strict(&self) -> bool {
        self.setup.profile == Profile::Strict
    }

    pub(super) fn keys_used(&self) -> usize {
        self.lock().keys_used
    }

    pub(super) fn limits(&self) -> Result<Limits, Stop> {
        self.limits.map_or_else(|| skip("status gave no limits; see T8"), Ok)
    }

    pub(super) fn c(&self) -> Result<&Sae, Stop> {
        self.setup.c.as_ref().map_or_else(|| skip("needs a third SAE (--sae-c)"), Ok)
    }

    /// Counts keys before they are asked for.
    pub(super) fn spend(&self, keys: usize) -> Result<(), Stop> {
        let mut state = self.lock();
        if state.keys_used + keys > self.setup.max_keys {
            return skip(format!("would use more than {} keys (--max-keys)", self.setup.max_keys));
        }
        state.keys_used += keys;
        Ok(())
    }

    /// Notes a failure; the test goes on.
    pub(super) fn fail(&self, failure: Failure) {
        self.lock().failures.push(failure);
    }

    /// Demands something of an answer; the test goes on either way.
    pub(super) fn check(&self, holds: bool, exchange: &Exchange, clause: &'static str, expected: &str) {
        if !holds {
            self.fail(Failure::new(exchange, clause, expected));
        }
    }

    /// Demands something in the strict profile; notes its absence in the lenient one.
    pub(super) fn should(&self, holds: bool, exchange: &Exchange, clause: &'static str, expected: &str) {
        if holds {
            return;
        }
        if self.strict() {
            self.fail(Failure::new(exchange, clause, expected));
        } else {
            self.lock().notes.push(format!("expected {expected} ({clause}); got {}", exchange.received()));
        }
    }

    /// Demands a refusal: one of `statuses` (in the lenient profile also of `tolerated`), with a `message`,
    /// which in the strict profile is `text` if given.
    pub(super) fn refused(
        &self,
        exchange: &Exchange,
        clause: &'static str,
        statuses: &[u16],
        tolerated: &[u16],
        text: Option<&str>,
    ) {
        let fits = statuses.contains(&exchange.status);
        let tolerable = !self.strict() && tolerated.contains(&exchange.status);
        let wanted = statuses.iter().map(u16::to_string).collect::<Vec<_>>().join(" or ");
        if !fits && !tolerable {
            self.fail(Failure::new(exchange, clause, format!("status {wanted}")));
            return;
        }
        if !fits {
            self.lock().notes.push(format!("status {} where {wanted} was expected ({clause})", exchange.status));
        }
        let message = exchange.message();
        // The standard gives no model for 401.
        if exchange.status != 401 || self.strict() {
            self.check(message.is_some(), exchange, "6.5 R53", "JSON with `message`, a string");
        }
        if let (Some(text), Some(message)) = (text, message)
            && exchange.status == 400
        {
            self.should(message == text, exchange, clause, &format!("message `{text}`"));
        }
    }

    /// Sends `call` as `sae`, over its kept-alive connection.
    pub(super) async fn send(&self, sae: &Sae, call: Call) -> Exchange {
        let mut links = self.links.lock().await;
        let exchange = match links.get_mut(&sae.id) {
            Some(link) => self.over(link, sae, &call).await,
            None => unsent(sae, &call, "not connected".to_owned()),
        };
        // A server may close an idle connection at any time.
        let exchange = if exchange.trouble.is_some() {
            match self.connect(sae, &[b"http/1.1"]).await {
                Ok(mut link) => {
                    let exchange = self.over(&mut link, sae, &call).await;
                    links.insert(sae.id.clone(), link);
                    exchange
                }
                Err(trouble) => unsent(sae, &call, trouble),
            }
        } else {
            exchange
        };
        drop(links);
        exchange
    }

    /// Sends `call` as `sae` over a connection of its own.
    pub(super) async fn send_alone(&self, sae: &Sae, call: Call) -> Exchange {
        match self.connect(sae, &[b"http/1.1"]).await {
            Ok(mut link) => self.over(&mut link, sae, &call).await,
            Err(trouble) => unsent(sae, &call, trouble),
        }
    }

    /// A new connection as `sae`.
    pub(super) async fn connect(&self, sae: &Sae, alpn: &[&'static [u8]]) -> Result<Link, String> {
        self.link(sae, Offer { tls: OfferedTls::Both, alpn, certificate: true }).await
    }

    /// A new connection with chosen properties.
    pub(super) async fn link(&self, sae: &Sae, offer: Offer<'_>) -> Result<Link, String> {
        let (host, port) = host_and_port(&sae.url)?;
        let dialled = timeout(self.setup.timeout, Dialer::new(sae.tls.clone()).dial(&host, port, offer));
        let stream = dialled.await.map_err(|_| "no connection in time")?.map_err(|error| error.to_string())?;
        let is_2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
        let io = TokioIo::new(stream);
        let text = |error: hyper::Error| error.to_string();
        if is_2 {
            let (link, driver) = http2::handshake(TokioExecutor::new(), io).await.map_err(text)?;
            tokio::spawn(driver);
            Ok(Link::V2(link))
        } else {
            let (link, driver) = http1::handshake(io).await.map_err(text)?;
            tokio::spawn(driver);
            Ok(Link::V1(link))
        }
    }

    /// Sends `call` over `link` and looks at what every answer has to fulfil.
    pub(super) async fn over(&self, link: &mut Link, sae: &Sae, call: &Call) -> Exchange {
        let exchange = match timeout(self.setup.timeout, transfer(link, sae, call)).await {
            Ok(Ok(exchange)) => exchange,
            Ok(Err(trouble)) => unsent(sae, call, trouble),
            Err(_) => unsent(sae, call, "no complete answer in time".to_owned()),
        };
        self.observe(&exchange);
        exchange
    }

    /// What T52 and T54 are about.
    fn observe(&self, exchange: &Exchange) {
        let mut state = self.lock();
        if exchange.status == 200 && exchange.url.contains("c_keys") {
            state.containers += 1;
            let private = exchange.header("cache-control").is_some_and(|value| value.contains("no-store"));
            if !private {
                state.cached.push(Failure::new(exchange, "R56", "Cache-Control: no-store"));
            }
        }
        if exchange.status < 400 {
            return;
        }
        state.errors += 1;
        let text = String::from_utf8_lossy(&exchange.body);
        let leaks = state.seen.iter().any(|key| key.len() >= 16 && text.contains(key.as_str()));
        let details = exchange.json().and_then(|json| json.get("details").cloned());
        let fits = details.is_none_or(|list| list.as_array().is_some_and(|all| all.iter().all(Value::is_object)));
        let has_model = [400, 503].contains(&exchange.status);
        let wanted = if leaks {
            "no key in an error"
        } else if has_model && exchange.message().is_none() {
            "`message`, a string"
        } else if !fits {
            "`details`, if any, an array of objects"
        } else if self.strict() && (!exchange.is_json() || exchange.message().is_none()) {
            "an Error in JSON, whatever the status"
        } else {
            return;
        };
        let failure = Failure::new(exchange, "6.5 R53 R54", wanted);
        state.formless.push(failure);
    }

    /// Every error of the run, and those without the standard's form.
    pub(super) fn errors_seen(&self) -> (usize, Vec<Failure>) {
        let state = self.lock();
        (state.errors, state.formless.clone())
    }

    /// Every key container of the run, and those that caches may keep.
    pub(super) fn containers_seen(&self) -> (usize, Vec<Failure>) {
        let state = self.lock();
        (state.containers, state.cached.clone())
    }

    /// A call by A about B: GET without a body, POST with one.
    pub(super) async fn a_to_b(&self, rest: &str, body: Option<Value>) -> Exchange {
        let path = path(&self.setup.b.id, rest);
        let call = match body {
            None => Call::get(path),
            Some(body) => Call::post(path, body.to_string()),
        };
        self.send(&self.setup.a, call).await
    }

    /// `number` fresh keys of the default size that A shares with B.
    pub(super) async fn fresh(&self, number: usize) -> Result<Vec<Delivered>, Stop> {
        self.fresh_with(number, json!({ "number": number })).await
    }

    /// Fresh keys of the default size by a request of one's own.
    pub(super) async fn fresh_with(&self, number: usize, body: Value) -> Result<Vec<Delivered>, Stop> {
        let limits = self.limits()?;
        self.spend(number)?;
        let exchange = self.a_to_b("enc_keys", Some(body)).await;
        self.keys_of(&exchange, number, limits.key_size, "6.3 R44-R46").map_err(Stop::from)
    }

    /// The keys of an answer, remembered for T52.
    pub(super) fn keys_of(
        &self,
        exchange: &Exchange,
        number: usize,
        bits: u64,
        clause: &'static str,
    ) -> Result<Vec<Delivered>, Failure> {
        use base64::Engine as _;
        let keys =
            exchange.container(number, bits).map_err(|expected| Failure::new(exchange, clause, expected))?;
        let encode = |key: &Delivered| {
            Zeroizing::new(base64::engine::general_purpose::STANDARD.encode(key.key.as_slice()))
        };
        self.lock().seen.extend(keys.iter().map(encode));
        Ok(keys)
    }

    /// `dec_keys` as `sae` for keys of the master `master`, by POST.
    pub(super) async fn dec(&self, sae: &Sae, master: &str, ids: &[&str]) -> Exchange {
        let ids: Vec<Value> = ids.iter().map(|id| json!({ "key_ID": id })).collect();
        let body = json!({ "key_IDs": ids }).to_string();
        self.send(sae, Call::post(path(master, "dec_keys"), body)).await
    }

    /// As B, for keys of A.
    pub(super) async fn b_gets(&self, ids: &[&str]) -> Exchange {
        self.dec(&self.setup.b, &self.setup.a.id, ids).await
    }

    /// Demands that B gets exactly `key` now.
    pub(super) async fn b_still_gets(&self, key: &Delivered, clause: &'static str) {
        let exchange = self.b_gets(&[&key.id]).await;
        self.same_keys(&exchange, std::slice::from_ref(key), clause);
    }

    /// Demands that an answer holds exactly `keys`.
    pub(super) fn same_keys(&self, exchange: &Exchange, keys: &[Delivered], clause: &'static str) {
        let bits = keys.first().map_or(0, |key| key.key.len() as u64 * 8);
        match self.keys_of(exchange, keys.len(), bits, clause) {
            Err(failure) => self.fail(failure),
            Ok(got) => {
                let same = keys.iter().all(|key| {
                    got.iter().any(|other| other.id.eq_ignore_ascii_case(&key.id) && other.key == key.key)
                });
                self.check(same, exchange, clause, "the keys and IDs that the master received");
            }
        }
    }

    /// `stored_key_count` of A to B, when status works.
    pub(super) async fn stored(&self) -> Option<u64> {
        self.a_to_b("status", None).await.json()?.get("stored_key_count")?.as_u64()
    }

    /// Runs a hook to its end.
    pub(super) async fn hook(&self, command: &str) -> Result<(), Stop> {
        let mut shell = std::process::Command::new("sh");
        shell.arg("-c").arg(command).stdin(std::process::Stdio::null());
        let done = tokio::task::spawn_blocking(move || shell.status()).await;
        match done {
            Ok(Ok(status)) if status.success() => Ok(()),
            _ => skip(format!("the hook `{command}` failed")),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn transfer(link: &mut Link, sae: &Sae, call: &Call) -> Result<Exchange, String> {
    let (host, port) = host_and_port(&sae.url)?;
    let authority = format!("{host}:{port}");
    let body = Full::new(Bytes::from(call.body.clone().unwrap_or_default()));
    let uri = match link {
        Link::V1(_) => call.path.clone(),
        Link::V2(_) => format!("https://{authority}{}", call.path),
    };
    let mut request = Request::builder().method(call.method.clone()).uri(uri);
    if matches!(link, Link::V1(_)) {
        request = request.header(header::HOST, authority);
    }
    for (name, value) in &call.headers {
        request = request.header(*name, value);
    }
    let request = request.body(body).map_err(|error| error.to_string())?;
    let text = |error: hyper::Error| error.to_string();
    let response = match link {
        Link::V1(link) => {
            link.ready().await.map_err(text)?;
            link.send_request(request).await.map_err(text)?
        }
        Link::V2(link) => {
            link.ready().await.map_err(text)?;
            link.send_request(request).await.map_err(text)?
        }
    };
    let (parts, body) = response.into_parts();
    let body = Limited::new(body, ANSWER_MAX_BYTES).collect().await.map_err(|error| error.to_string())?;
    let mut exchange = unsent(sae, call, String::new());
    exchange.status = parts.status.as_u16();
    exchange.version = parts.version;
    exchange.headers = parts.headers;
    exchange.body = Zeroizing::new(body.to_bytes().to_vec());
    exchange.trouble = None;
    Ok(exchange)
}

/// A call without an answer.
pub(super) fn unsent(sae: &Sae, call: &Call, trouble: String) -> Exchange {
    Exchange {
        who: sae.id.clone(),
        method: call.method.clone(),
        url: call.path.clone(),
        request_body: String::from_utf8_lossy(call.body.as_deref().unwrap_or_default()).into_owned(),
        status: 0,
        version: Version::HTTP_11,
        headers: http::HeaderMap::new(),
        body: Zeroizing::default(),
        trouble: Some(trouble),
    }
}

/// Host and port of an `https` URL.
pub(super) fn host_and_port(url: &str) -> Result<(String, u16), String> {
    let uri: Uri = url.parse().map_err(|_| format!("{url} is no URL"))?;
    let host = uri.host().ok_or_else(|| format!("{url} names no host"))?;
    Ok((host.to_owned(), uri.port_u16().unwrap_or(443)))
}

fn limits_of(status: &Exchange) -> Option<Limits> {
    let json = status.json()?;
    let number = |name: &str| json.get(name).and_then(Value::as_u64);
    Some(Limits {
        key_size: number("key_size")?,
        min_key_size: number("min_key_size")?,
        max_key_size: number("max_key_size")?,
        max_per_request: number("max_key_per_request")?,
        max_key_count: number("max_key_count")?,
        max_additional: number("max_SAE_ID_count")?,
    })
}

/// How long to wait before something that needs a moment is looked at again.
pub(super) const MOMENT: Duration = Duration::from_millis(200);
