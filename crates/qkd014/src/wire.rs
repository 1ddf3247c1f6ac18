//! ETSI GS QKD 014 on the wire: paths (clause 5) and JSON (clause 6). Unknown members are ignored.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kme::SecretBytes;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::{Deserialize, Deserializer, Serialize};
use zeroize::Zeroizing;

/// Characters that stand for themselves in a path or query. All others are percent-encoded: IDs are free
/// text.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// `/api/v1/keys/{id}/{call}`; `id` is percent-encoded, `call` is not.
pub(crate) fn path(id: &str, call: &str) -> String {
    format!("/api/v1/keys/{}/{call}", utf8_percent_encode(id, ENCODED))
}

/// The query of a GET of `dec_keys`.
pub(crate) fn key_id_query(id: &str) -> String {
    format!("?key_ID={}", utf8_percent_encode(id, ENCODED))
}

/// The body of a POST of `dec_keys` (clause 6.4).
pub(crate) fn key_ids_body<'a>(ids: impl IntoIterator<Item = &'a str>) -> String {
    let ids: Vec<_> = ids.into_iter().map(|id| serde_json::json!({ "key_ID": id })).collect();
    serde_json::json!({ "key_IDs": ids }).to_string()
}

/// Status (clause 6.1). Sizes are in bits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KmeStatus {
    /// The caller's KME, which answered.
    #[serde(rename = "source_KME_ID")]
    pub source_kme_id: String,
    /// The KME that serves the slave.
    #[serde(rename = "target_KME_ID")]
    pub target_kme_id: String,
    /// The calling SAE.
    #[serde(rename = "master_SAE_ID")]
    pub master_sae_id: String,
    /// The SAE that was asked about.
    #[serde(rename = "slave_SAE_ID")]
    pub slave_sae_id: String,
    /// Default size of a key.
    pub key_size: u32,
    /// How many keys the KME can deliver now.
    pub stored_key_count: u64,
    /// How many keys the KME stores at most.
    pub max_key_count: u64,
    /// Most keys of one request.
    pub max_key_per_request: u64,
    /// Largest size of a key.
    pub max_key_size: u32,
    /// Smallest size of a key.
    pub min_key_size: u32,
    /// Most additional slaves of one request.
    #[serde(rename = "max_SAE_ID_count")]
    pub max_sae_id_count: u64,
}

/// Key request (clause 6.2). The KME chooses what is absent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct KeyRequest {
    /// How many keys.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub number: Option<u32>,
    /// Size of each key in bits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<u32>,
    /// Further SAEs that may retrieve them.
    #[serde(rename = "additional_slave_SAE_IDs", skip_serializing_if = "Vec::is_empty")]
    pub additional_slaves: Vec<String>,
}

/// Key container (clause 6.3).
#[derive(Debug, Deserialize)]
pub struct KeyContainer {
    /// The keys.
    pub keys: Vec<DeliveredKey>,
}

/// One key of a container. Wiped when dropped; `Debug` shows its length only.
#[derive(Deserialize)]
pub struct DeliveredKey {
    /// Its ID.
    #[serde(rename = "key_ID")]
    pub id: String,
    /// The key itself; base64 on the wire.
    #[serde(deserialize_with = "from_base64")]
    pub key: SecretBytes,
}

impl DeliveredKey {
    /// The key in base64, as the KME sent it.
    pub fn to_base64(&self) -> Zeroizing<String> {
        Zeroizing::new(STANDARD.encode(self.key.expose()))
    }
}

impl fmt::Debug for DeliveredKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DeliveredKey({}, {} bytes)", self.id, self.key.len())
    }
}

/// Error (clause 6.5).
#[derive(Debug, Deserialize)]
struct ErrorBody {
    message: String,
}

/// Characters of a KME's message that are kept.
const MESSAGE_MAX_CHARS: usize = 500;

/// The message of an error, without control characters for a terminal; empty where there is none.
pub(crate) fn message_of(body: &[u8]) -> String {
    let text = serde_json::from_slice::<ErrorBody>(body).map(|error| error.message).unwrap_or_default();
    text.chars().filter(|c| !c.is_control()).take(MESSAGE_MAX_CHARS).collect()
}

fn from_base64<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SecretBytes, D::Error> {
    let text = Zeroizing::new(String::deserialize(deserializer)?);
    // The text must not get into the error.
    let bytes =
        STANDARD.decode(text.as_bytes()).map_err(|_| serde::de::Error::custom("a key is not base64"))?;
    Ok(SecretBytes::take(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_percent_encoded_in_paths_and_queries() {
        assert_eq!(path("rack 7/50%é", "status"), "/api/v1/keys/rack%207%2F50%25%C3%A9/status");
        assert_eq!(path("a-b.c_d~e", "enc_keys"), "/api/v1/keys/a-b.c_d~e/enc_keys");
        assert_eq!(key_id_query("a&b"), "?key_ID=a%26b");
    }

    #[test]
    fn a_body_of_dec_keys_has_an_object_for_each_id() {
        assert_eq!(key_ids_body(["x", "y"]), r#"{"key_IDs":[{"key_ID":"x"},{"key_ID":"y"}]}"#);
    }
}
