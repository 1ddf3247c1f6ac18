//! The JSON of answers (ETSI GS QKD 014, Tables 9 and 11), and a type for request bodies.

use std::fmt;
use std::marker::PhantomData;

use axum::body::Bytes;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kme::{FreshKey, Key, KeyId, Party};
use serde::Serialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use utoipa::ToSchema;
use zeroize::Zeroizing;

use super::extensions::{KeyExtension, Report};
use crate::delivery::Status;
use crate::http::error::ApiError;

const HEAD: &[u8] = br#"{"keys":["#;
const BEFORE_ID: &[u8] = br#"{"key_ID":""#;
const BEFORE_KEY: &[u8] = br#"","key":""#;
const AFTER_KEY: &[u8] = br#"""#;
const BEFORE_EXTENSION: &[u8] = br#","key_extension":"#;
const AFTER_ENTRY: &[u8] = b"}";
const TAIL: &[u8] = b"]}";

/// A JSON object and nothing else. A derived `Deserialize` would also accept an array of the members.
#[derive(Debug)]
pub(super) struct ObjectOnly<T>(pub(super) T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for ObjectOnly<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for Object<T> {
            type Value = T;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<M: MapAccess<'de>>(self, members: M) -> Result<T, M::Error> {
                T::deserialize(MapAccessDeserializer::new(members))
            }
        }

        deserializer.deserialize_map(Object(PhantomData)).map(Self)
    }
}

/// Table 9: what the caller may ask for and how many keys there are.
#[derive(Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = Status)]
pub(super) struct StatusBody<'a> {
    /// The KME that was asked.
    #[serde(rename = "source_KME_ID")]
    source: &'a str,
    /// The KME of the slave SAE.
    #[serde(rename = "target_KME_ID")]
    target: &'a str,
    /// The caller.
    #[serde(rename = "master_SAE_ID")]
    master: &'a str,
    /// Whom the path names: an SAE, or a whole KME.
    #[serde(rename = "slave_SAE_ID")]
    slave: &'a str,
    /// Bits of a key when the request does not say `size`.
    key_size: u32,
    /// Keys of that size that are ready to be handed out.
    stored_key_count: u32,
    /// Upper bound of `stored_key_count`.
    max_key_count: u32,
    /// Largest `number`, and most entries of `key_IDs`.
    max_key_per_request: u32,
    /// Largest `size`.
    max_key_size: u32,
    /// Smallest `size`.
    min_key_size: u32,
    /// Most entries of `additional_slave_SAE_IDs`; 0 for no multicast.
    #[serde(rename = "max_SAE_ID_count")]
    max_sae_id_count: u32,
}

/// Table 11, for OpenAPI only: `container` writes it.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = KeyContainer, description = "Table 11.")]
#[expect(dead_code, reason = "keys are written straight into a buffer that is wiped; this describes it")]
pub(super) struct ContainerBody {
    /// As many keys as were asked for, in the order of `key_IDs`.
    #[schema(min_items = 1)]
    keys: Vec<EntryBody>,
}

/// A key and its ID.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = Key)]
#[expect(dead_code, reason = "see `ContainerBody`")]
pub(super) struct EntryBody {
    /// Lower-case UUID, version 4.
    #[serde(rename = "key_ID")]
    #[schema(
        format = "uuid",
        pattern = "^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$"
    )]
    key_id: String,
    /// Standard base64 with padding; decodes to `size` / 8 bytes.
    #[schema(content_encoding = "base64", min_length = 4, pattern = "^[A-Za-z0-9+/]+={0,2}$")]
    key: String,
    /// By `enc_keys`, when own extensions asked for it.
    #[schema(nullable = false)]
    key_extension: Option<KeyExtension>,
}

/// The answer of `status`.
pub(super) fn status(status: &Status) -> Result<Bytes, ApiError> {
    let limits = &status.limits;
    let body = StatusBody {
        source: status.source.as_str(),
        target: status.target.as_str(),
        master: status.master.as_str(),
        slave: match &status.slave {
            Party::Sae(sae) => sae.as_str(),
            Party::Kme(kme) => kme.as_str(),
        },
        key_size: limits.size_bits,
        stored_key_count: status.stored,
        max_key_count: limits.max_stored_per_pair,
        max_key_per_request: limits.max_per_request,
        max_key_size: limits.max_size_bits,
        min_key_size: limits.min_size_bits,
        max_sae_id_count: limits.max_additional_saes,
    };
    serde_json::to_vec(&body).map(Bytes::from).map_err(|_| not_encoded())
}

/// A key container (Table 11) of keys that are retrieved by ID.
///
/// # Errors
/// When it cannot be written, which is a defect.
pub fn key_container(keys: &[Key]) -> Result<Bytes, ApiError> {
    container(keys.iter().map(|key| Entry { key, extension: None }))
}

/// A key container (Table 11) of fresh keys. The `key_extension` of each holds what `report` asks for.
pub(super) fn fresh_key_container(keys: &[FreshKey], report: Report) -> Result<Bytes, ApiError> {
    if report == Report::default() {
        return container(keys.iter().map(|fresh| Entry { key: &fresh.key, extension: None }));
    }
    let extensions = keys.iter().map(|fresh| {
        let extension = report.about(&fresh.provenance).map(|told| serde_json::to_vec(&told)).transpose();
        extension.map_err(|_| not_encoded())
    });
    let extensions: Vec<Option<Vec<u8>>> = extensions.collect::<Result<_, _>>()?;
    let told = keys.iter().zip(&extensions);
    container(told.map(|(fresh, json)| Entry { key: &fresh.key, extension: json.as_deref() }))
}

/// One element of `keys`.
#[derive(Clone, Copy)]
struct Entry<'a> {
    key: &'a Key,
    /// `key_extension` as JSON.
    extension: Option<&'a [u8]>,
}

impl Entry<'_> {
    fn len(&self) -> usize {
        let extension = self.extension.map_or(0, |json| BEFORE_EXTENSION.len() + json.len());
        let key =
            BEFORE_ID.len() + KeyId::TEXT_BYTES + BEFORE_KEY.len() + base64_len(self.key) + AFTER_KEY.len();
        key + extension + AFTER_ENTRY.len()
    }
}

/// Writes into one buffer, allocated once, wiped when the connection has sent it.
fn container<'a>(entries: impl Iterator<Item = Entry<'a>> + Clone) -> Result<Bytes, ApiError> {
    let len = container_len(entries.clone());
    let mut body = Zeroizing::new(Vec::with_capacity(len));
    body.extend_from_slice(HEAD);
    for (index, Entry { key, extension }) in entries.enumerate() {
        if index > 0 {
            body.push(b',');
        }
        body.extend_from_slice(BEFORE_ID);
        body.extend_from_slice(&key.id.text());
        body.extend_from_slice(BEFORE_KEY);
        let start = body.len();
        body.resize(start + base64_len(key), 0);
        let room = body.get_mut(start..).unwrap_or_default();
        STANDARD.encode_slice(key.material.expose(), room).map_err(|_| not_encoded())?;
        body.extend_from_slice(AFTER_KEY);
        if let Some(json) = extension {
            body.extend_from_slice(BEFORE_EXTENSION);
            body.extend_from_slice(json);
        }
        body.extend_from_slice(AFTER_ENTRY);
    }
    body.extend_from_slice(TAIL);
    debug_assert_eq!(body.len(), len, "a longer body was moved and left a copy behind");
    Ok(Bytes::from_owner(body))
}

fn container_len<'a>(entries: impl Iterator<Item = Entry<'a>>) -> usize {
    let (count, len) = entries.fold((0_usize, 0), |(count, len), entry| (count + 1, len + entry.len()));
    HEAD.len() + len + count.saturating_sub(1) + TAIL.len()
}

fn base64_len(key: &Key) -> usize {
    key.material.len_bytes().div_ceil(3) * 4
}

fn not_encoded() -> ApiError {
    ApiError::unavailable("not_encoded", "the KME failed to write its answer", 5)
}

#[cfg(test)]
mod tests {
    use kme::{KeyMaterial, SecretBytes};

    use super::*;

    fn key(bytes: &[u8]) -> Key {
        Key {
            id: "C328D7B5-D24A-4F9A-884E-DE1BB0F89666".parse().unwrap(),
            material: KeyMaterial::new(SecretBytes::copy_of(bytes)),
        }
    }

    #[test]
    fn a_container_is_an_array_of_lower_case_ids_and_padded_standard_base64() {
        let body = key_container(&[key(&[0xff; 4]), key(&[0xfb, 0xef, 0xbe])]).unwrap();
        assert_eq!(
            std::str::from_utf8(&body).unwrap(),
            r#"{"keys":[{"key_ID":"c328d7b5-d24a-4f9a-884e-de1bb0f89666","key":"/////w=="},{"key_ID":"c328d7b5-d24a-4f9a-884e-de1bb0f89666","key":"++++"}]}"#
        );
    }

    #[test]
    fn a_container_is_never_moved_while_it_is_written() {
        for count in 0..4 {
            for len in [1, 2, 3, 32, 129] {
                let keys: Vec<Key> = (0..count).map(|_| key(&vec![7; len])).collect();
                for extension in [None, Some(&b"{}"[..])] {
                    let entries = keys.iter().map(|key| Entry { key, extension });
                    let body = container(entries.clone()).unwrap();
                    assert_eq!(body.len(), container_len(entries));
                    let json: serde_json::Value = serde_json::from_slice(&body).unwrap();
                    assert_eq!(json["keys"].as_array().unwrap().len(), count);
                }
            }
        }
    }

    #[test]
    fn an_array_is_no_object_even_if_its_elements_would_fit() {
        #[derive(Debug, serde::Deserialize)]
        struct Pair {
            a: u8,
        }
        assert_eq!(serde_json::from_str::<ObjectOnly<Pair>>(r#"{"a":1}"#).unwrap().0.a, 1);
        assert!(serde_json::from_str::<Pair>("[1]").is_ok(), "what serde derives");
        assert!(serde_json::from_str::<ObjectOnly<Pair>>("[1]").is_err());
    }
}
