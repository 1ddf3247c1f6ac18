//! Extensions of Get key (ETSI GS QKD 014, clause 6.2): demands on keys, and reports about them.
//!
//! Two are supported, both dqkd's own: `dqkd_source_grade` and `dqkd_expiry` (docs/etsi-014.md). In
//! `extension_optional` they ask for a `key_extension`; in `extension_mandatory` they also make demands.

use std::time::Duration;

use kme::{Demands, Provenance};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;
use utoipa::openapi::schema::{ObjectBuilder, OneOfBuilder, Schema, Type};
use utoipa::openapi::{Ref, RefOr};

use crate::http::error::ApiError;

const SOURCE_GRADE: &str = "dqkd_source_grade";
const EXPIRY: &str = "dqkd_expiry";

/// What the caller wants to know about each key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Report {
    source_grade: bool,
    expiry: bool,
}

/// Both extension fields of one request.
#[derive(Debug, Default)]
pub(super) struct Extensions {
    /// Names of mandatory extensions that are not supported, one group for each object that has any.
    pub(super) unsupported: Vec<Vec<String>>,
    /// `None` if the demands contradict each other or cannot be read.
    pub(super) demands: Option<Demands>,
    /// What to tell about each key.
    pub(super) report: Report,
}

impl Extensions {
    /// Reads both fields; `null`, empty arrays and empty objects count as absent.
    pub(super) fn parse(mandatory: Option<Value>, optional: Option<Value>) -> Result<Self, ApiError> {
        let mandatory = objects("extension_mandatory", mandatory)?;
        let optional = objects("extension_optional", optional)?;
        let mut report = Report::default();
        for name in mandatory.iter().chain(&optional).flat_map(Map::keys) {
            report.source_grade |= name == SOURCE_GRADE;
            report.expiry |= name == EXPIRY;
        }
        let foreign = |extensions: &Map<String, Value>| {
            let names = extensions.keys().filter(|name| ![SOURCE_GRADE, EXPIRY].contains(&name.as_str()));
            names.cloned().collect::<Vec<_>>()
        };
        let unsupported = mandatory.iter().map(foreign).filter(|names| !names.is_empty()).collect();
        let own = mandatory.into_iter().flatten();
        let demands = own.map(|(name, value)| demanded(&name, value)).try_fold(Demands::default(), both);
        Ok(Self { unsupported, demands, report })
    }
}

impl Report {
    /// The `key_extension` of a key; `None` if none was asked for.
    pub(super) fn about(self, provenance: &Provenance) -> Option<KeyExtension> {
        (self != Self::default()).then(|| KeyExtension {
            source_grade: self.source_grade.then(|| SourceGradeBody {
                entropy_sources: provenance.grade.entropy_sources.iter().cloned().collect(),
                pools: provenance.grade.pools,
                hybrid_tls: provenance.grade.hybrid_tls,
            }),
            expiry: self.expiry.then(|| ExpiryBody { expires_at: provenance.expires_at.to_string() }),
        })
    }
}

/// Extension results of one key: those that were asked for.
#[derive(Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct KeyExtension {
    #[serde(rename = "dqkd_source_grade", skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    source_grade: Option<SourceGradeBody>,
    #[serde(rename = "dqkd_expiry", skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    expiry: Option<ExpiryBody>,
}

/// How good the source of the key was.
#[derive(Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = SourceGrade)]
struct SourceGradeBody {
    /// What the pools were filled from, as the pool servers name it.
    entropy_sources: Vec<String>,
    /// Pools, each on a server of its own, that the key was extracted from.
    #[schema(minimum = 1)]
    pools: usize,
    /// Whether every connection that carried the key's metadata had a hybrid post-quantum key exchange.
    hybrid_tls: bool,
}

/// How long the key lives.
#[derive(Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = Expiry)]
struct ExpiryBody {
    /// From this moment on no site returns it.
    #[schema(format = "date-time")]
    expires_at: String,
}

fn objects(name: &'static str, value: Option<Value>) -> Result<Vec<Map<String, Value>>, ApiError> {
    let wrong_shape =
        || ApiError::bad_request("bad_extensions", format!("{name} shall be an array of objects"));
    let entries = match value {
        None => return Ok(Vec::new()),
        Some(Value::Array(entries)) => entries,
        Some(_) => return Err(wrong_shape()),
    };
    let object = |entry| if let Value::Object(object) = entry { Ok(object) } else { Err(wrong_shape()) };
    entries.into_iter().map(object).collect()
}

/// What the source of the keys shall be.
#[derive(Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = SourceGradeDemand)]
pub(super) struct GradeDemand {
    /// Fewest pools.
    min_pools: Option<u64>,
    /// The only entropy source that any pool may have.
    entropy_source: Option<String>,
    /// Hybrid key exchange wherever metadata goes.
    #[serde(default)]
    hybrid_tls: bool,
}

/// How long the keys shall live.
#[derive(Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ExpiryDemand {
    /// Shortest life from now.
    min_seconds: Option<u64>,
}

/// An element of `extension_mandatory`: own extensions only.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "read name by name; this describes it")]
pub(super) struct MandatoryExtension {
    #[schema(schema_with = grade_options)]
    dqkd_source_grade: Option<GradeDemand>,
    #[schema(schema_with = expiry_options)]
    dqkd_expiry: Option<ExpiryDemand>,
}

fn grade_options() -> Schema {
    described_options("SourceGradeDemand", "Demands on the source; also asks for `key_extension`.")
}

fn expiry_options() -> Schema {
    described_options("ExpiryDemand", "Demands on the life; also asks for `key_extension`.")
}

/// The schema of what [`options`] accepts.
fn described_options(demand: &str, description: &str) -> Schema {
    let plain = ObjectBuilder::new().schema_type(Type::Boolean).enum_values(Some([true]));
    let options = OneOfBuilder::new()
        .description(Some(description))
        .item(ObjectBuilder::new().schema_type(Type::Null))
        .item(plain)
        .item(RefOr::<Schema>::Ref(Ref::from_schema_name(demand)));
    Schema::OneOf(options.build())
}

/// What one mandatory extension demands; `None` if it cannot be read.
fn demanded(name: &str, value: Value) -> Option<Demands> {
    match name {
        SOURCE_GRADE => {
            let demand: GradeDemand = options(value)?;
            Some(Demands {
                min_pools: demand.min_pools,
                entropy_source: demand.entropy_source,
                hybrid_tls: demand.hybrid_tls,
                min_lifetime: None,
            })
        }
        EXPIRY => {
            let demand: ExpiryDemand = options(value)?;
            Some(Demands { min_lifetime: demand.min_seconds.map(Duration::from_secs), ..Demands::default() })
        }
        // Unsupported extensions are refused before demands matter.
        _ => Some(Demands::default()),
    }
}

/// `null` and `true` ask for the extension without options.
fn options<T: Default + for<'de> Deserialize<'de>>(value: Value) -> Option<T> {
    match value {
        Value::Null | Value::Bool(true) => Some(T::default()),
        Value::Object(_) => serde_json::from_value(value).ok(),
        _ => None,
    }
}

/// Both demands together; `None` if they contradict each other.
fn both(left: Demands, right: Option<Demands>) -> Option<Demands> {
    let right = right?;
    let entropy_source = match (left.entropy_source, right.entropy_source) {
        (Some(left), Some(right)) if left != right => return None,
        (left, right) => left.or(right),
    };
    Some(Demands {
        min_pools: left.min_pools.max(right.min_pools),
        entropy_source,
        hybrid_tls: left.hybrid_tls || right.hybrid_tls,
        min_lifetime: left.min_lifetime.max(right.min_lifetime),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn demands(mandatory: Value) -> Option<Demands> {
        Extensions::parse(Some(mandatory), None).unwrap().demands
    }

    #[test]
    fn demands_add_up_and_what_is_not_understood_cannot_be_met() {
        let strict = demands(json!([
            {"dqkd_source_grade": {"min_pools": 2, "hybrid_tls": true}, "dqkd_expiry": {"min_seconds": 60}},
            {"dqkd_source_grade": {"min_pools": 3, "entropy_source": "os"}},
            {"dqkd_source_grade": null},
        ]));
        let expected = Demands {
            min_pools: Some(3),
            entropy_source: Some("os".into()),
            hybrid_tls: true,
            min_lifetime: Some(Duration::from_mins(1)),
        };
        assert_eq!(strict, Some(expected));
        for plain in [json!([]), json!([{}]), json!([{"dqkd_expiry": true}, {"dqkd_source_grade": {}}])] {
            assert_eq!(demands(plain), Some(Demands::default()));
        }
        for unclear in [
            json!([{"dqkd_source_grade": {"min_pools": -1}}]),
            json!([{"dqkd_source_grade": {"max_pools": 1}}]),
            json!([{"dqkd_source_grade": "best"}]),
            json!([{"dqkd_expiry": {"min_seconds": "60"}}]),
            json!([{"dqkd_expiry": false}]),
            json!([{"dqkd_source_grade": {"entropy_source": "os"}}, {"dqkd_source_grade": {"entropy_source": "x"}}]),
        ] {
            assert_eq!(demands(unclear.clone()), None, "{unclear}");
        }
    }
}
