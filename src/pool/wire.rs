//! The JSON of the pool server protocol (`/pool/v1/`), shared by server and client.

use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use kme::{KmeId, PoolId, Timestamp};

/// Path of the collection of pools.
pub const POOLS_PATH: &str = "/pool/v1/pools";

/// Body of `POST /pool/v1/pools`. Unknown members are ignored.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CreateRequest {
    /// 64-bit words of the pool; a power of two.
    pub words: u64,
    /// The KMEs that may download it.
    pub readers: Vec<KmeId>,
    /// Its life.
    pub ttl: Ttl,
}

/// Answer to `POST /pool/v1/pools`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CreateResponse {
    /// The pool's name at this server.
    pub pool_id: PoolId,
    /// When it is erased at the latest, by the server's clock.
    pub expires_at: Timestamp,
    /// What it was filled from, for example `os`.
    pub entropy_source: String,
}

/// Answer to `GET /pool/v1/pools/ID/reads`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ReadsResponse {
    /// One entry for each named reader.
    pub readers: Vec<ReaderCount>,
}

/// Downloads by one reader.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReaderCount {
    /// The reader.
    pub reader: KmeId,
    /// Downloads that began.
    pub started: u64,
    /// Downloads that were sent completely.
    pub completed: u64,
}

/// A life in whole seconds: on the wire an integer, or text such as `"10m"` (units s, m, h, d).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ttl(pub Duration);

impl Serialize for Ttl {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(self.0.as_secs())
    }
}

impl<'de> Deserialize<'de> for Ttl {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Form {
            Seconds(u64),
            Text(String),
        }
        let seconds = match Form::deserialize(deserializer)? {
            Form::Seconds(seconds) => Some(seconds),
            Form::Text(text) => seconds_of(&text),
        };
        seconds
            .map(|seconds| Self(Duration::from_secs(seconds)))
            .ok_or_else(|| serde::de::Error::custom("ttl must be whole seconds or text such as \"10m\""))
    }
}

fn seconds_of(text: &str) -> Option<u64> {
    let (unit_at, unit) = text.char_indices().next_back()?;
    let factor = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3_600,
        'd' => 86_400,
        _ => return None,
    };
    let digits = text.get(..unit_at)?;
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    digits.parse::<u64>().ok()?.checked_mul(factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_life_is_seconds_or_a_number_with_a_unit() {
        let parse = |text: &str| serde_json::from_str::<Ttl>(text).ok().map(|ttl| ttl.0.as_secs());
        assert_eq!(parse("600"), Some(600));
        assert_eq!(parse("\"10m\""), Some(600));
        assert_eq!(parse("\"90s\""), Some(90));
        assert_eq!(parse("\"2h\""), Some(7_200));
        assert_eq!(parse("\"1d\""), Some(86_400));
        for bad in [
            "\"\"",
            "\"m\"",
            "\"10\"",
            "\"-1s\"",
            "\"+1s\"",
            "-1",
            "1.5",
            "null",
            "\"99999999999999999999d\"",
        ] {
            assert_eq!(parse(bad), None, "{bad}");
        }
        assert_eq!(serde_json::to_string(&Ttl(Duration::from_mins(1))).unwrap(), "60");
    }
}
