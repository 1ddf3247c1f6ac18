//! Honest applications that ask while an attack goes on: alice gets keys at site-a and bob the same keys at
//! site-b, one after the other, again and again.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Method, Request, header};
use http_body_util::{BodyExt as _, Full};
use mtls::{ExpectedServer, HttpVersion, HttpsClient, TlsFiles, TlsStore};
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::field::Field;

/// How long an application waits for an answer.
const PATIENCE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(10);

/// How honest applications connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Manner {
    /// Each keeps a connection.
    Steady,
    /// A new connection for every request, as after a restart.
    Fresh,
}

/// What honest applications got.
#[derive(Clone, Default)]
pub(crate) struct Service {
    pub(crate) served: usize,
    /// Why the others were not, and how often.
    pub(crate) failures: BTreeMap<String, usize>,
    times: Vec<Duration>,
}

impl Service {
    pub(crate) fn failed(&self) -> usize {
        self.failures.values().sum()
    }

    /// At most one request in fifty was not answered: a machine with much other work may lose one by itself, and
    /// without its defence each attack stops most of them.
    pub(crate) fn goes_on(&self) -> bool {
        self.served > 0 && 50 * self.failed() <= self.served
    }

    fn p99(&self) -> Duration {
        let mut times = self.times.clone();
        times.sort_unstable();
        times.get(times.len() * 99 / 100).copied().unwrap_or_default()
    }

    pub(crate) fn add(&mut self, took: Duration, result: Result<(), String>) {
        self.times.push(took);
        match result {
            Ok(()) => self.served += 1,
            Err(reason) => *self.failures.entry(reason).or_default() += 1,
        }
    }
}

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = self.served + self.failed();
        let share = 100 * self.served / all.max(1);
        write!(f, "{share} % of {all}, p99 {} ms", self.p99().as_millis())
    }
}

impl fmt::Debug for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self} {:?}", self.failures)
    }
}

/// Applications that ask until they are stopped.
pub(crate) struct Honest {
    stop: CancellationToken,
    task: JoinHandle<Service>,
}

impl Honest {
    /// Alice and bob.
    pub(crate) fn start(field: &Field, manner: Manner) -> Self {
        let mut alice = Application::new(field, "alice", manner);
        let mut bob = Application::new(field, "bob", manner);
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let task = tokio::spawn(async move {
            let mut service = Service::default();
            while !stopped.is_cancelled() {
                let made = alice.timed(&mut service, "bob/enc_keys", None).await;
                if let Some(key) = made.as_ref().map(|made| &made["keys"][0]) {
                    let ask = json!({ "key_IDs": [{ "key_ID": key["key_ID"] }] });
                    let got = bob.timed(&mut service, "alice/dec_keys", Some(ask)).await;
                    assert!(got.is_none_or(|got| got["keys"][0]["key"] == key["key"]), "the same key");
                }
                sleep(PAUSE).await;
            }
            service
        });
        Self { stop, task }
    }

    /// What they got, once the last request has its answer.
    pub(crate) async fn stop(self) -> Service {
        self.stop.cancel();
        self.task.await.unwrap()
    }

    /// What they get in this time.
    pub(crate) async fn served_in(field: &Field, manner: Manner, lasts: Duration) -> Service {
        let honest = Self::start(field, manner);
        sleep(lasts).await;
        honest.stop().await
    }
}

/// One application with its own certificate.
pub(crate) struct Application {
    url: String,
    tls: Arc<TlsStore>,
    manner: Manner,
    https: HttpsClient,
}

impl Application {
    pub(crate) fn new(field: &Field, sae: &str, manner: Manner) -> Self {
        let (site, sae) = field.network.sae(sae);
        let files =
            TlsFiles { ca: field.network.ca(), cert: sae.cert.clone(), key: sae.key.clone(), crl: None };
        let tls = TlsStore::open(files).unwrap();
        let https = client(&tls);
        Self { url: format!("{}/api/v1/keys", site.sae_url), tls, manner, https }
    }

    async fn timed(&mut self, service: &mut Service, path: &str, body: Option<Value>) -> Option<Value> {
        let start = Instant::now();
        let answer = self.ask(path, body).await;
        let (answer, result) = match answer {
            Ok(answer) => (Some(answer), Ok(())),
            Err(reason) => (None, Err(reason)),
        };
        service.add(start.elapsed(), result);
        answer
    }

    /// One request. The error says why there is no 200.
    pub(crate) async fn ask(&mut self, path: &str, body: Option<Value>) -> Result<Value, String> {
        if self.manner == Manner::Fresh {
            self.https = client(&self.tls);
        }
        let method = if body.is_some() { Method::POST } else { Method::GET };
        let body = body.map(|body| body.to_string()).unwrap_or_default();
        let request = Request::builder()
            .method(method)
            .uri(format!("{}/{path}", self.url))
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body)))
            .unwrap();
        let exchange = async {
            let response = self.https.send(request).await.map_err(|error| error.to_string())?;
            let status = response.status();
            let body = response.into_body().collect().await.map_err(|error| error.to_string())?.to_bytes();
            let body: Value = serde_json::from_slice(&body).unwrap_or_default();
            if status.is_success() {
                Ok(body)
            } else {
                Err(format!("{} {}", status.as_u16(), body["message"]))
            }
        };
        timeout(PATIENCE, exchange).await.unwrap_or_else(|_| Err("no answer in 10 s".to_owned()))
    }
}

fn client(tls: &Arc<TlsStore>) -> HttpsClient {
    HttpsClient::new(Arc::clone(tls), ExpectedServer::HostName, "", HttpVersion::Http1Or2).unwrap()
}
