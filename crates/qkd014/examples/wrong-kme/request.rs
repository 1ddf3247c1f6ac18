//! What SAEs ask for: Tables 10 and 12, from a body or a query.

use serde_json::{Map, Value};

use crate::answer::Refusal;
use crate::fault::{Fault, Faults};

/// Members of Table 10.
const KNOWN: &[&str] =
    &["number", "size", "additional_slave_SAE_IDs", "extension_mandatory", "extension_optional"];

/// A key request (Table 10). Absent members are `None` or empty.
#[derive(Default)]
pub(crate) struct KeyRequest {
    pub(crate) number: Option<i128>,
    pub(crate) size_bits: Option<i128>,
    pub(crate) additional: Vec<String>,
    pub(crate) mandatory: Vec<Value>,
    pub(crate) optional: Vec<Value>,
}

impl KeyRequest {
    /// From the body of a POST.
    pub(crate) fn from_body(body: &[u8], faults: Faults) -> Result<Self, Refusal> {
        if body.is_empty() && !faults.has(Fault::EmptyBodyRefused) {
            return Ok(Self::default());
        }
        let members = match object(body) {
            Err(_) if faults.has(Fault::BrokenJsonServed) => return Ok(Self::default()),
            parsed => parsed?,
        };
        if faults.has(Fault::NullRefused) && members.values().any(Value::is_null) {
            return Err(Refusal::bad("null is not allowed"));
        }
        if faults.has(Fault::OthersRefused) && members.keys().any(|name| !KNOWN.contains(&name.as_str())) {
            return Err(Refusal::bad("unknown member"));
        }
        let number = match integer(&members, "number") {
            Err(_) if faults.has(Fault::NumberText) => None,
            parsed => parsed?,
        };
        let additional = entries(&members, "additional_slave_SAE_IDs")?;
        let additional: Option<Vec<String>> =
            additional.iter().map(|id| id.as_str().map(str::to_owned)).collect();
        Ok(Self {
            number,
            size_bits: integer(&members, "size")?,
            additional: additional
                .ok_or_else(|| Refusal::bad("additional_slave_SAE_IDs shall be an array of strings"))?,
            mandatory: extensions(&members, "extension_mandatory")?,
            optional: extensions(&members, "extension_optional")?,
        })
    }

    /// From the query of a GET.
    pub(crate) fn from_query(query: Option<&str>, faults: Faults) -> Result<Self, Refusal> {
        let integer = |name: &str| {
            value_in(query, name)
                .map(|text| text.parse().map_err(|_| Refusal::bad(format!("{name} shall be an integer"))))
                .transpose()
        };
        let number = match integer("number") {
            Err(_) if faults.has(Fault::NumberText) => None,
            parsed => parsed?,
        };
        Ok(Self { number, size_bits: integer("size")?, ..Self::default() })
    }
}

/// Key IDs from the body of a POST (Table 12).
pub(crate) fn ids_from_body(body: &[u8], faults: Faults) -> Result<Vec<String>, Refusal> {
    let members = object(body)?;
    let id_of = |entry: &Value| match entry {
        Value::Object(entry) => entry.get("key_ID").and_then(Value::as_str).map(str::to_owned),
        Value::String(id) if faults.has(Fault::TextIdsServed) => Some(id.clone()),
        _ => None,
    };
    let ids: Option<Vec<String>> = entries(&members, "key_IDs")?.iter().map(id_of).collect();
    ids.ok_or_else(|| Refusal::bad("key_IDs shall be an array of objects with key_ID"))
}

/// The one key ID in the query of a GET.
pub(crate) fn ids_from_query(query: Option<&str>) -> Result<Vec<String>, Refusal> {
    value_in(query, "key_ID")
        .map(|id| vec![id])
        .ok_or_else(|| Refusal::bad("the query shall name one key_ID"))
}

fn object(body: &[u8]) -> Result<Map<String, Value>, Refusal> {
    match serde_json::from_slice(body) {
        Ok(Value::Object(members)) => Ok(members),
        _ => Err(Refusal::bad("the request body shall be a JSON object")),
    }
}

fn integer(members: &Map<String, Value>, name: &str) -> Result<Option<i128>, Refusal> {
    match members.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => {
            let number = value.as_number().and_then(serde_json::Number::as_i128);
            number.map(Some).ok_or_else(|| Refusal::bad(format!("{name} shall be an integer")))
        }
    }
}

fn entries(members: &Map<String, Value>, name: &str) -> Result<Vec<Value>, Refusal> {
    match members.get(name) {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::Array(entries)) => Ok(entries.clone()),
        Some(_) => Err(Refusal::bad(format!("{name} shall be an array"))),
    }
}

/// Extensions that are not empty: shipping clients send `[{}]` for none.
fn extensions(members: &Map<String, Value>, name: &str) -> Result<Vec<Value>, Refusal> {
    let mut all = entries(members, name)?;
    if !all.iter().all(Value::is_object) {
        return Err(Refusal::bad(format!("{name} shall be an array of objects")));
    }
    all.retain(|entry| entry.as_object().is_some_and(|members| !members.is_empty()));
    Ok(all)
}

fn value_in(query: Option<&str>, name: &str) -> Option<String> {
    let pair = query?.split('&').find_map(|pair| pair.split_once('=').filter(|(key, _)| *key == name))?;
    Some(percent_encoding::percent_decode_str(pair.1).decode_utf8_lossy().into_owned())
}
