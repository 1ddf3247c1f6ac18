//! Reads parts of a request other than path and body: the calling KME, the query, the media type.

use std::borrow::Cow;

use axum::extract::Request;
use http::{HeaderMap, StatusCode, header};
use mtls::identity::{AuthenticatedKme, ClientIdentity};
use percent_encoding::percent_decode;

use super::error::ApiError;

/// The KME that the client's certificate names.
///
/// # Errors
/// 401 for any other client.
pub(super) fn kme(request: &Request) -> Result<AuthenticatedKme, ApiError> {
    let client = request.extensions().get::<ClientIdentity>();
    client.and_then(ClientIdentity::kme).cloned().ok_or_else(|| ApiError::unauthorized("not_a_kme"))
}

/// The value of `name` in a query string; other names are ignored.
///
/// # Errors
/// 400 when `name` occurs twice, or its value is not UTF-8.
pub(super) fn query_value<'q>(
    query: Option<&'q str>,
    name: &'static str,
) -> Result<Option<Cow<'q, str>>, ApiError> {
    let mut found = None;
    for pair in query.unwrap_or_default().split('&') {
        let (written, value) = pair.split_once('=').unwrap_or((pair, ""));
        if !percent_decode(written.as_bytes()).eq(name.bytes()) {
            continue;
        }
        let value = percent_decode(value.as_bytes())
            .decode_utf8()
            .map_err(|_| ApiError::bad_request("bad_query", format!("{name} in the query is not UTF-8")))?;
        if found.replace(value).is_some() {
            return Err(ApiError::bad_request("bad_query", format!("{name} is in the query twice")));
        }
    }
    Ok(found)
}

/// The number of names in a query string that are not among `known`.
pub(super) fn other_names(query: Option<&str>, known: &[&str]) -> usize {
    let pairs = query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty());
    let names = pairs.map(|pair| pair.split_once('=').map_or(pair, |(name, _)| name));
    names.filter(|name| !known.iter().any(|known| percent_decode(name.as_bytes()).eq(known.bytes()))).count()
}

/// Refuses a media type that cannot be JSON.
///
/// A missing one passes, and so does `application/x-www-form-urlencoded`, which `curl -d` sends by default:
/// the body must parse as JSON anyway.
///
/// # Errors
/// 415.
pub(super) fn accept_json(headers: &HeaderMap) -> Result<(), ApiError> {
    let mut values = headers.get_all(header::CONTENT_TYPE).iter();
    if values.all(|value| value.to_str().is_ok_and(may_be_json)) {
        return Ok(());
    }
    Err(ApiError::new(
        StatusCode::UNSUPPORTED_MEDIA_TYPE,
        "not_json",
        "the request body shall be JSON (Content-Type: application/json)",
    ))
}

fn may_be_json(content_type: &str) -> bool {
    let essence = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    if essence.is_empty() || essence.ends_with("json") {
        return true;
    }
    let (kind, subtype) = essence.split_once('/').unwrap_or((&essence, ""));
    let binary_kind = matches!(kind, "text" | "multipart" | "image" | "audio" | "video" | "font" | "model");
    !binary_kind && subtype != "xml" && !subtype.ends_with("+xml") && !subtype.ends_with("cbor")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_value_is_decoded_and_found_among_unknown_names() {
        let query = Some("key_size=256&n%75mber=%33&number2=9&&x");
        assert_eq!(query_value(query, "number").unwrap().as_deref(), Some("3"));
        assert_eq!(query_value(query, "size").unwrap(), None);
        assert_eq!(query_value(Some("size"), "size").unwrap().as_deref(), Some(""));
        assert_eq!(query_value(None, "size").unwrap(), None);
        assert_eq!(other_names(query, &["number"]), 3);
        assert_eq!(other_names(None, &[]), 0);
    }

    #[test]
    fn a_name_twice_and_bytes_that_are_no_text_are_refused_only_under_known_names() {
        assert!(query_value(Some("size=1&size=1"), "size").is_err());
        assert!(query_value(Some("size=%ff"), "size").is_err());
        assert!(query_value(Some("x=%ff&x=2"), "size").unwrap().is_none());
    }

    #[test]
    fn only_types_that_are_certainly_not_json_are_refused() {
        let accepted = |value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::CONTENT_TYPE, value.parse().unwrap());
            accept_json(&headers).is_ok()
        };
        assert!(accept_json(&HeaderMap::new()).is_ok());
        for good in [
            "application/json",
            "Application/JSON; charset=UTF-8",
            "application/problem+json",
            "text/json",
            "application/x-www-form-urlencoded",
            "application/octet-stream",
            "",
        ] {
            assert!(accepted(good), "{good}");
        }
        for bad in [
            "text/plain",
            "text/html; charset=utf-8",
            "application/xml",
            "application/soap+xml",
            "multipart/form-data; boundary=x",
            "image/png",
        ] {
            assert!(!accepted(bad), "{bad}");
        }
    }
}
