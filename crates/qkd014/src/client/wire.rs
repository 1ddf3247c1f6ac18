//! The JSON of ETSI GS QKD 014, clause 6, as a client sees it. Unknown members are ignored.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer, Serialize};
use zeroize::Zeroizing;

use kme::SecretBytes;

/// Status (clause 6.1). Sizes are in bits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KmeStatus {
    /// The KME that answered.
    #[serde(rename = "source_KME_ID")]
    pub source_kme_id: String,
    /// The KME that serves the slave.
    #[serde(rename = "target_KME_ID")]
    pub target_kme_id: String,
    /// The caller.
    #[serde(rename = "master_SAE_ID")]
    pub master_sae_id: String,
    /// Whom the path named.
    #[serde(rename = "slave_SAE_ID")]
    pub slave_sae_id: String,
    /// Default size of a key.
    pub key_size: u32,
    /// Keys that can be delivered now.
    pub stored_key_count: u64,
    /// Most keys that may be stored.
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

/// Key request (clause 6.2).
#[derive(Clone, Debug, Default, Serialize)]
pub struct EncRequest {
    /// How many keys.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub number: Option<u32>,
    /// Size of each in bits.
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

/// One key of a container.
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
pub(super) struct Refusal {
    pub(super) message: String,
}

fn from_base64<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SecretBytes, D::Error> {
    let text = Zeroizing::new(String::deserialize(deserializer)?);
    // The text must not get into the error.
    let bytes =
        STANDARD.decode(text.as_bytes()).map_err(|_| serde::de::Error::custom("a key is not base64"))?;
    Ok(SecretBytes::take(bytes))
}
