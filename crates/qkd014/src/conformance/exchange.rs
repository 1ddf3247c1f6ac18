//! One request with its answer, and what a report may show of both.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use zeroize::Zeroizing;

use super::setup::Sae;
use crate::https::{HttpRequest, HttpResponse};

/// Characters of a body that a report shows.
const SHOWN_CHARS: usize = 400;

/// A key as a KME delivered it.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Delivered {
    pub(super) id: String,
    pub(super) key: Zeroizing<Vec<u8>>,
}

impl Delivered {
    /// As in a container.
    pub(super) fn to_base64(&self) -> Zeroizing<String> {
        Zeroizing::new(STANDARD.encode(self.key.as_slice()))
    }
}

/// A request and what came back.
pub(super) struct Exchange {
    who: String,
    pub(super) request: HttpRequest,
    /// 0 when there was no answer.
    pub(super) status: u16,
    pub(super) response: HttpResponse,
    /// Why there was no answer.
    pub(super) trouble: Option<String>,
}

/// A request without an answer.
pub(super) fn unanswered(sae: &Sae, request: &HttpRequest, trouble: impl Into<String>) -> Exchange {
    Exchange {
        who: sae.id.clone(),
        request: request.clone(),
        status: 0,
        response: HttpResponse::default(),
        trouble: Some(trouble.into()),
    }
}

impl Exchange {
    /// A request of `sae` with its answer.
    pub(super) fn answered(sae: &Sae, request: &HttpRequest, response: HttpResponse) -> Self {
        Self { status: response.status, response, trouble: None, ..unanswered(sae, request, "") }
    }

    pub(super) fn json(&self) -> Option<Wiped> {
        serde_json::from_slice(&self.response.body).ok().map(Wiped)
    }

    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.response.headers.get(name).and_then(|value| value.to_str().ok())
    }

    pub(super) fn is_json(&self) -> bool {
        self.header("content-type")
            .is_some_and(|kind| kind.to_ascii_lowercase().starts_with("application/json"))
    }

    /// The `message` of an Error (clause 6.5).
    pub(super) fn message(&self) -> Option<String> {
        self.json()?.get("message")?.as_str().map(str::to_owned)
    }

    /// What is wrong with the form of an error (clause 6.5). `holds_key`: it contains a delivered key.
    pub(super) fn wrong_form_of_error(&self, is_strict: bool, holds_key: bool) -> Option<&'static str> {
        let (json, message) = (self.json(), self.message());
        let details = json.as_ref().and_then(|json| json.get("details"));
        let is_list =
            |details: &Value| details.as_array().is_some_and(|all| all.iter().all(Value::is_object));
        if holds_key {
            Some("no key in an error")
        } else if [400, 503].contains(&self.status) && message.is_none() {
            Some("an Error: JSON with `message`, a string")
        } else if !details.is_none_or(is_list) {
            Some("`details` of an Error, if any, as an array of objects")
        } else if is_strict && (!self.is_json() || message.is_none()) {
            Some("an Error in JSON (application/json, with `message`), whatever the status")
        } else if is_strict && ![400, 401, 404, 405, 413, 415, 503].contains(&self.status) {
            Some("no status but 400, 401 and 503, and of HTTP 404, 405, 413, 415")
        } else {
            None
        }
    }

    /// The request in one line. Requests hold key IDs, which are not secret, but no keys.
    pub(super) fn sent(&self) -> String {
        let HttpRequest { method, target, body, .. } = &self.request;
        let body: String = String::from_utf8_lossy(body).chars().take(SHOWN_CHARS).collect();
        format!("{method} as {}: {target} {body}", self.who).trim_end().to_owned()
    }

    /// The answer in one line, without keys.
    pub(super) fn received(&self) -> String {
        if let Some(trouble) = &self.trouble {
            return format!("no answer: {trouble}");
        }
        let shown = match self.json() {
            Some(mut json) => {
                hide_keys(&mut json.0);
                json.to_string()
            }
            None if self.status == 200 => format!("{} bytes that are no JSON", self.response.body.len()),
            None => String::from_utf8_lossy(&self.response.body).into_owned(),
        };
        let shown: String = shown.chars().filter(|c| !c.is_control()).take(SHOWN_CHARS).collect();
        format!("{} {shown}", self.status).trim_end().to_owned()
    }

    /// The keys of a container (clause 6.3), if their number, length and form are right.
    pub(super) fn container(&self, number: usize, bits: u64) -> Result<Vec<Delivered>, String> {
        if self.status != 200 {
            return Err("status 200 and a key container".to_owned());
        }
        if !self.is_json() {
            return Err("Content-Type application/json".to_owned());
        }
        let json = self.json().ok_or("a body of JSON")?;
        let keys = json.get("keys").and_then(Value::as_array).ok_or("`keys`, an array of objects")?;
        if keys.len() != number {
            return Err(format!("exactly the {number} keys asked for, not {}", keys.len()));
        }
        let mut delivered: Vec<Delivered> = Vec::with_capacity(number);
        for entry in keys {
            let key = delivered_key(entry, bits)?;
            // Short keys may repeat by chance.
            if delivered.iter().any(|other| other.id == key.id || (bits >= 64 && other.key == key.key)) {
                return Err("keys and key IDs that all differ".to_owned());
            }
            delivered.push(key);
        }
        Ok(delivered)
    }
}

fn delivered_key(entry: &Value, bits: u64) -> Result<Delivered, String> {
    let id = entry.get("key_ID").and_then(Value::as_str).ok_or("`key_ID`, a string")?;
    if id.len() != 36 || uuid::Uuid::try_parse(id).is_err() {
        return Err("`key_ID` in the text form of a UUID".to_owned());
    }
    let text = entry.get("key").and_then(Value::as_str).ok_or("`key`, a string")?;
    let key = STANDARD.decode(text).map_err(|_| "`key` in standard base64 with padding")?;
    let key = Zeroizing::new(key);
    if key.len() as u64 != bits.div_ceil(8) {
        return Err(format!("a key of {bits} bits (`key`, decoded), not of {}", key.len() * 8));
    }
    for name in ["key_ID_extension", "key_extension"] {
        if entry.get(name).is_some_and(|extension| !extension.is_object()) {
            return Err(format!("`{name}`, if any, an object"));
        }
    }
    Ok(Delivered { id: id.to_owned(), key })
}

/// JSON that may hold keys, which are wiped when it is dropped.
pub(super) struct Wiped(Value);

impl std::ops::Deref for Wiped {
    type Target = Value;

    fn deref(&self) -> &Value {
        &self.0
    }
}

impl Drop for Wiped {
    fn drop(&mut self) {
        hide_keys(&mut self.0);
    }
}

/// Replaces every member named `key` by its length, and wipes its text.
fn hide_keys(json: &mut Value) {
    match json {
        Value::Array(entries) => entries.iter_mut().for_each(hide_keys),
        Value::Object(members) => {
            for (name, value) in members {
                match value {
                    Value::String(text) if name == "key" => {
                        let shown = format!("({} characters)", text.len());
                        drop(Zeroizing::new(std::mem::replace(text, shown)));
                    }
                    other => hide_keys(other),
                }
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16, body: &str) -> Exchange {
        let mut response = HttpResponse { status, ..HttpResponse::default() };
        response.headers.insert("content-type", http::HeaderValue::from_static("application/json"));
        response.body.extend_from_slice(body.as_bytes());
        Exchange { who: "A".into(), request: HttpRequest::get("/x"), status, response, trouble: None }
    }

    const ID: &str = "c328d7b5-d24a-4f9a-884e-de1bb0f89666";

    #[test]
    fn a_container_is_taken_only_in_the_standards_form() {
        let body = |id: &str, key: &str| format!(r#"{{"keys":[{{"key_ID":"{id}","key":"{key}"}}]}}"#);
        let good = answer(200, &body(ID, "AAECAwQFBgc=")).container(1, 64).unwrap_or_default();
        assert_eq!((good[0].id.as_str(), good[0].key.len()), (ID, 8));
        for (id, key, bits) in [
            (ID, "AAECAwQFBgc=", 128),
            (ID, "AAECAwQFBgc", 64),
            (ID, "_-ECAwQFBgc=", 64),
            ("7", "AAECAwQFBgc=", 64),
            ("c328d7b5d24a4f9a884ede1bb0f89666", "AAECAwQFBgc=", 64),
        ] {
            assert!(answer(200, &body(id, key)).container(1, bits).is_err(), "{id} {key} {bits}");
        }
        assert!(answer(200, r#"{"keys":{}}"#).container(1, 64).is_err());
        assert!(answer(503, &body(ID, "AAECAwQFBgc=")).container(1, 64).is_err());
    }

    #[test]
    fn reports_show_no_key() {
        for status in [200, 400] {
            let shown =
                answer(status, r#"{"keys":[{"key_ID":"x","key":"s3same"}],"key":"s3same"}"#).received();
            assert!(!shown.contains("s3same"), "{shown}");
        }
        assert!(!answer(200, "s3same").received().contains("s3same"));
    }
}
