//! Request bodies of bounded length, and their JSON.

use std::fmt;

use axum::body::Body;
use http::StatusCode;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::de::{DeserializeOwned, Deserializer, IgnoredAny, MapAccess, Visitor};
use zeroize::Zeroizing;

use super::error::ApiError;

/// Reads a whole body of at most `max_bytes` into a buffer that is wiped when dropped.
///
/// # Errors
/// 413 if it is longer, 400 if it is incomplete.
pub(super) async fn read_body(body: Body, max_bytes: usize) -> Result<Zeroizing<Vec<u8>>, ApiError> {
    let mut limited = Limited::new(body, max_bytes);
    let mut bytes = Zeroizing::new(Vec::new());
    while let Some(frame) = limited.frame().await {
        match frame {
            Ok(frame) => {
                if let Some(chunk) = frame.data_ref() {
                    kme::append_wiped(&mut bytes, chunk);
                }
            }
            Err(error) if error.is::<LengthLimitError>() => {
                return Err(ApiError::new(
                    StatusCode::PAYLOAD_TOO_LARGE,
                    "body_too_large",
                    format!("the request body has more than {max_bytes} bytes"),
                ));
            }
            Err(_) => return Err(ApiError::bad_request("body_incomplete", "the request body is incomplete")),
        }
    }
    Ok(bytes)
}

/// Parses JSON. The error says what is wrong, with line and column, and never quotes the body.
///
/// # Errors
/// 400 for bytes that are not UTF-8, for malformed JSON and for JSON of another shape.
pub(super) fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    // serde_json does not check the UTF-8 of members that it skips.
    let text = std::str::from_utf8(bytes)
        .map_err(|_| ApiError::bad_request("bad_json", "the request body is not UTF-8"))?;
    serde_json::from_str(text).map_err(|error| {
        let what = match error.classify() {
            serde_json::error::Category::Data => "JSON of an unexpected shape",
            _ => "malformed JSON",
        };
        ApiError::bad_request(
            "bad_json",
            format!("the request body is {what} (line {}, column {})", error.line(), error.column()),
        )
    })
}

/// As a `#[serde(flatten)]` field: the number of members that no other field takes.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct OtherMembers(pub(super) usize);

impl<'de> serde::Deserialize<'de> for OtherMembers {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Count;
        impl<'de> Visitor<'de> for Count {
            type Value = OtherMembers;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<OtherMembers, A::Error> {
                let mut count = 0;
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {
                    count += 1;
                }
                Ok(OtherMembers(count))
            }
        }
        deserializer.deserialize_map(Count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_body_over_the_limit_is_413_and_one_at_the_limit_is_read() {
        let error = read_body(Body::from(vec![b'x'; 101]), 100).await.unwrap_err();
        assert_eq!(error.status, StatusCode::PAYLOAD_TOO_LARGE);
        assert_eq!(read_body(Body::from(vec![b'x'; 100]), 100).await.unwrap().len(), 100);
    }

    #[test]
    fn bytes_that_are_no_text_are_refused_also_where_nobody_reads_them() {
        #[derive(Debug, serde::Deserialize)]
        struct Anything {}
        assert!(parse::<Anything>(br#"{"x":"y"}"#).is_ok());
        assert_eq!(parse::<Anything>(b"{\"x\":\"\xff\"}").unwrap_err().status, StatusCode::BAD_REQUEST);
    }

    #[test]
    fn errors_do_not_repeat_the_body() {
        let error = parse::<u32>(br#""sesame""#).unwrap_err();
        assert_eq!(error.status, StatusCode::BAD_REQUEST);
        assert!(!error.message.contains("sesame"), "{}", error.message);
    }
}
