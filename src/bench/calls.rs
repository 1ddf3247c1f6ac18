//! Requests of ETSI GS QKD 014 before they are sent.

use std::fmt::Write as _;

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
    /// Get key, by GET.
    pub(super) fn enc(slave: &End, load: &Load) -> Self {
        let mut target = format!("/api/v1/keys/{}/enc_keys", utf8_percent_encode(&slave.name, ESCAPED));
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
