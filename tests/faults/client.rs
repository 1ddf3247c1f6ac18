//! One SAE's ETSI GS QKD 014 client. It records every exchange in the history.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use http::Method;
use serde_json::{Value, json};
use testkit::Network;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use uuid::Uuid;

use crate::history::{Ask, Caller, Event, Outcome, Party, Seen, SeenAnswer};
use crate::wire::{Reply, Wire};
use crate::workload::World;

pub(crate) struct Client {
    caller: Caller,
    wire: Wire,
}

impl Client {
    pub(crate) fn new(network: &Network, caller: Caller, is_http_1: bool) -> Self {
        let wire = Wire::new(network, &caller.sae, is_http_1);
        Self { caller, wire }
    }

    pub(crate) fn caller(&self) -> &Caller {
        &self.caller
    }

    /// Sends a request, records the result and returns it. `call` is the last part of the path, with a query;
    /// a retrieval has its own body.
    pub(crate) async fn ask(
        &mut self,
        world: &Arc<World>,
        call: &str,
        path: &Party,
        ask: Ask,
        body: Option<Value>,
        hang_up_after: Option<Duration>,
    ) -> Event {
        let name = match path {
            Party::Sae(sae) => sae,
            Party::Kme(site) => world.sites[*site].as_str(),
        };
        let mut path = format!("/api/v1/keys/{name}/{call}");
        let mut body = body.map(|body| body.to_string());
        if let Ask::Dec { ids, .. } = &ask {
            if let ([id], true) = (ids.as_slice(), ids[0].as_bytes()[0] < 128) {
                path = format!("{path}?key_ID={id}");
            } else {
                let ids: Vec<Value> = ids.iter().map(|id| json!({ "key_ID": id })).collect();
                body = Some(json!({ "key_IDs": ids }).to_string());
            }
        }
        let method = if body.is_some() { Method::POST } else { Method::GET };
        let start_ms = world.stopwatch.now_ms();
        let reply = self.wire.call(method, &path, body, hang_up_after).await;
        let end_ms = world.stopwatch.now_ms();
        let outcome = match reply {
            Reply::NotSent => Outcome::NotSent,
            Reply::Lost => Outcome::Lost,
            Reply::Whole { status, retry_after, is_json, body } => {
                let body = serde_json::from_slice(&body).ok().filter(|_| is_json);
                Outcome::Answer(read(status, retry_after, body))
            }
        };
        let event = Event { start_ms, end_ms, caller: self.caller.clone(), ask, outcome };
        world.history.add(event.clone());
        event
    }
}

fn read(status: u16, retry_after: bool, body: Option<Value>) -> SeenAnswer {
    let body = body.unwrap_or_default();
    let keys = body["keys"].as_array().and_then(|keys| keys.iter().map(key).collect());
    let counts = body["stored_key_count"].as_u64().zip(body["max_key_count"].as_u64());
    let message = body["message"].as_str().map(str::to_owned);
    SeenAnswer { status, retry_after, message, keys, counts }
}

/// `None`: not a key as the standard defines it.
fn key(value: &Value) -> Option<Seen> {
    let id = Uuid::try_parse(value["key_ID"].as_str()?).ok()?;
    let bytes = base64::engine::general_purpose::STANDARD.decode(value["key"].as_str()?).ok()?;
    let expires_at = value["key_extension"]["dqkd_expiry"]["expires_at"].as_str();
    let expires_ms = expires_at.and_then(|text| {
        let at = OffsetDateTime::parse(text, &Rfc3339).ok()?;
        i64::try_from(at.unix_timestamp_nanos() / 1_000_000).ok()
    });
    Some(Seen { id, digest: Seen::digest_of(&bytes), bits: bytes.len() * 8, expires_ms })
}
