//! ETSI GS QKD 014 over HTTP: real stores, a key source that counts, client identities without TLS.

mod authorisation;
mod dec_keys;
mod edge;
mod enc_keys;
mod from_memory;
mod identity;
mod openapi;
mod qkd014_client;
mod status;

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, Method, Request, StatusCode, header};
use http_body_util::BodyExt as _;
use mtls::identity::{ClientIdentity, Identity};
use mtls::{ConnectionService as _, ListenerService as _};
use serde_json::Value;
use tokio_util::task::TaskTracker;

use super::SaeApi;
use crate::delivery::DeliveryRules;
use crate::delivery::testing::{TestSite, TestSites, rules};
use crate::http::RequestMeters;
use crate::http::limits::Clients;
use crate::http::middleware::EdgeLimits;

const NOT_FOUND: &str = "one or more keys specified are not found on KME";

/// What a client gets.
#[derive(Debug)]
struct TestAnswer {
    status: StatusCode,
    headers: HeaderMap,
    text: String,
}

impl TestAnswer {
    fn json(&self) -> Value {
        assert_eq!(self.headers[header::CONTENT_TYPE], "application/json", "{self:?}");
        assert_eq!(self.headers[header::CACHE_CONTROL], "no-store", "{self:?}");
        serde_json::from_str(&self.text).unwrap()
    }

    /// The IDs and keys of a container, decoded.
    fn keys(&self) -> Vec<(String, Vec<u8>)> {
        assert_eq!(self.status, StatusCode::OK, "{self:?}");
        let json = self.json();
        let entry = |entry: &Value| {
            let key = STANDARD.decode(entry["key"].as_str().unwrap()).unwrap();
            (entry["key_ID"].as_str().unwrap().to_owned(), key)
        };
        json["keys"].as_array().unwrap().iter().map(entry).collect()
    }

    /// The message of a failure in the form of Table 13.
    fn message(&self) -> String {
        assert!(!self.status.is_success(), "{self:?}");
        let json = self.json();
        let details = json.get("details");
        assert!(details.is_none_or(|list| list.as_array().unwrap().iter().all(Value::is_object)), "{self:?}");
        json["message"].as_str().unwrap().to_owned()
    }
}

/// Two sites, and the API of each.
struct Net {
    sites: TestSites,
    a: SaeApi,
    b: SaeApi,
    tasks: TaskTracker,
}

impl Net {
    async fn new() -> Self {
        Self::with(rules()).await
    }

    async fn with(rules: DeliveryRules) -> Self {
        Self::limited(rules, 100).await
    }

    async fn limited(rules: DeliveryRules, max_concurrent: usize) -> Self {
        let sites = TestSites::new(rules).await;
        let tasks = TaskTracker::new();
        let limits = EdgeLimits { max_concurrent, timeout: Duration::from_mins(1) };
        let api = |site: &TestSite| {
            let (clients, meters) = (Clients::unlimited("sae"), RequestMeters::default());
            super::api(Arc::clone(&site.delivery), clients, limits, tasks.clone(), &meters)
        };
        Self { a: api(&sites.a), b: api(&sites.b), sites, tasks }
    }

    /// Sends a request as the SAE `caller` to the site where it lives.
    async fn call(&self, caller: &str, request: http::request::Builder, body: impl Into<Body>) -> TestAnswer {
        let api = if ["bob", "carol", "b/o b%é"].contains(&caller) { &self.b } else { &self.a };
        let identity = Identity::Sae(testkit::authenticated_sae(caller));
        let request = request.extension(ClientIdentity::new(Ok(identity)));
        answer(api, request.body(body.into()).unwrap()).await
    }

    async fn get(&self, caller: &str, path: &str) -> TestAnswer {
        self.call(caller, Request::get(format!("/api/v1/keys/{path}")), Body::empty()).await
    }

    async fn post(&self, caller: &str, path: &str, body: impl Into<Body>) -> TestAnswer {
        let request = Request::post(format!("/api/v1/keys/{path}"));
        self.call(caller, request.header(header::CONTENT_TYPE, "application/json"), body).await
    }

    /// Keys that alice shares with bob.
    async fn enc(&self, number: usize) -> Vec<(String, Vec<u8>)> {
        let keys = self.get("alice", &format!("bob/enc_keys?number={number}")).await.keys();
        assert_eq!(keys.len(), number);
        keys
    }

    async fn dec(&self, caller: &str, path: &str, ids: &[&str]) -> TestAnswer {
        let ids: Vec<_> = ids.iter().map(|id| serde_json::json!({ "key_ID": id })).collect();
        let body = serde_json::json!({ "key_IDs": ids }).to_string();
        self.post(caller, &format!("{path}/dec_keys"), body).await
    }

    /// Everything that a request may change: orders and keys at both sites.
    async fn marks(&self) -> [(usize, u64); 2] {
        [self.sites.a.marks().await, self.sites.b.marks().await]
    }
}

/// The client is the one in the extensions of `request`, or nobody.
async fn answer(api: &SaeApi, request: Request<Body>) -> TestAnswer {
    let client = request.extensions().get::<ClientIdentity>().cloned().unwrap_or_else(ClientIdentity::none);
    let (parts, body) = api.open(client).answer(request).await.into_parts();
    let bytes = body.collect().await.unwrap().to_bytes();
    TestAnswer {
        status: parts.status,
        headers: parts.headers,
        text: String::from_utf8(bytes.to_vec()).unwrap(),
    }
}

/// A path as it is written in a URL.
fn escaped(id: &str) -> String {
    percent_encoding::utf8_percent_encode(id, percent_encoding::NON_ALPHANUMERIC).to_string()
}

fn method(name: &str) -> Method {
    name.parse().unwrap()
}
