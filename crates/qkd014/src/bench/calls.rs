//! Requests of ETSI GS QKD 014 before they are sent.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use super::setup::{End, Load};

/// Characters of an ID that stand for themselves in a path.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// One request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Call {
    /// Path and query.
    pub(super) target: String,
    /// JSON; a GET without it.
    pub(super) body: Option<Bytes>,
}

impl Call {
    /// Get key for `slave`, by GET.
    fn enc(slave: &str, load: &Load) -> Self {
        let mut target = format!("/api/v1/keys/{}/enc_keys", utf8_percent_encode(slave, ESCAPED));
        let mut separator = '?';
        if load.number != 1 {
            let _ = write!(target, "?number={}", load.number);
            separator = '&';
        }
        if let Some(bits) = load.size_bits {
            let _ = write!(target, "{separator}size={bits}");
        }
        Self { target, body: None }
    }

    /// Get key with key IDs: by GET for one, by POST for several.
    pub(super) fn dec<'a>(master: &End, ids: impl ExactSizeIterator<Item = &'a str>) -> Self {
        let path = format!("/api/v1/keys/{}/dec_keys", utf8_percent_encode(&master.name, ESCAPED));
        if ids.len() == 1 {
            let id: String = ids.collect();
            return Self {
                target: format!("{path}?key_ID={}", utf8_percent_encode(&id, ESCAPED)),
                body: None,
            };
        }
        let ids: Vec<_> = ids.map(|id| serde_json::json!({ "key_ID": id })).collect();
        let body = serde_json::json!({ "key_IDs": ids }).to_string();
        Self { target: path, body: Some(Bytes::from(body)) }
    }
}

/// Get key, for one slave after the other.
pub(super) struct Turns {
    first: Call,
    others: Vec<Call>,
    sent: AtomicUsize,
}

impl Turns {
    /// For `slave`, or for as many others as `load` says.
    pub(super) fn new(slave: &End, load: &Load) -> Self {
        let others = (2..=load.slaves.unwrap_or(0)).map(|number| Call::enc(&nth(slave, number), load));
        Self {
            first: Call::enc(&first_slave(slave, load), load),
            others: others.collect(),
            sent: AtomicUsize::new(0),
        }
    }

    /// The next in turn.
    pub(super) fn next(&self) -> &Call {
        if self.others.is_empty() {
            return &self.first;
        }
        let turn = self.sent.fetch_add(1, Ordering::Relaxed) % (self.others.len() + 1);
        self.others.get(turn).unwrap_or(&self.first)
    }
}

/// Whom `enc_keys` names first.
pub(super) fn first_slave(slave: &End, load: &Load) -> String {
    load.slaves.map_or_else(|| slave.name.clone(), |_| nth(slave, 1))
}

fn nth(slave: &End, number: usize) -> String {
    format!("{}-{number}", slave.name)
}
