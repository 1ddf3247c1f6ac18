//! `/api/v1/keys/{ID}/{call}`, exactly.
//!
//! The raw path is split first, then its one variable segment is percent-decoded once. So an ID may hold any
//! character, even `/` and `%`. A router that decodes or normalises paths could not offer that.

use std::borrow::Cow;

use http::Method;
use percent_encoding::percent_decode_str;

use crate::http::error::ApiError;

/// The three calls of ETSI GS QKD 014, Table 2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SaeCall {
    /// Get status.
    Status,
    /// Get key.
    EncKeys,
    /// Get key with key IDs.
    DecKeys,
}

impl SaeCall {
    /// The route template, with the names of Table 2.
    pub(super) fn template(self) -> &'static str {
        match self {
            Self::Status => "/api/v1/keys/{slave_SAE_ID}/status",
            Self::EncKeys => "/api/v1/keys/{slave_SAE_ID}/enc_keys",
            Self::DecKeys => "/api/v1/keys/{master_SAE_ID}/dec_keys",
        }
    }

    /// The value of `Allow`.
    pub(super) fn allow(self) -> &'static str {
        match self {
            Self::Status => "GET",
            Self::EncKeys | Self::DecKeys => "GET, POST",
        }
    }

    pub(super) fn allows(self, method: &Method) -> bool {
        *method == Method::GET || (self != Self::Status && *method == Method::POST)
    }
}

/// A path that names a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route<'p> {
    /// The call.
    pub call: SaeCall,
    raw_id: &'p str,
}

impl<'p> Route<'p> {
    /// Parses a raw path; one trailing slash is accepted. `None` if it names no call.
    pub fn parse(raw_path: &'p str) -> Option<Self> {
        let rest = raw_path.strip_prefix("/api/v1/keys/")?;
        let (raw_id, call) = rest.strip_suffix('/').unwrap_or(rest).split_once('/')?;
        let call = match call {
            "status" => SaeCall::Status,
            "enc_keys" => SaeCall::EncKeys,
            "dec_keys" => SaeCall::DecKeys,
            _ => return None,
        };
        Some(Self { call, raw_id })
    }

    /// The ID. A `%` without two hexadecimal digits stands for itself, since a known client does not escape
    /// IDs.
    ///
    /// # Errors
    /// 400 when it is not UTF-8.
    pub fn id(&self) -> Result<Cow<'p, str>, ApiError> {
        let id = percent_decode_str(self.raw_id).decode_utf8();
        id.map_err(|_| ApiError::bad_request("invalid_peer", "the ID in the path is not UTF-8"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id_of(path: &str) -> Option<(SaeCall, String)> {
        let route = Route::parse(path)?;
        Some((route.call, route.id().unwrap().into_owned()))
    }

    #[test]
    fn the_id_is_one_segment_decoded_once() {
        for (path, call, id) in [
            ("/api/v1/keys/bob/status", SaeCall::Status, "bob"),
            ("/api/v1/keys/bob/enc_keys/", SaeCall::EncKeys, "bob"),
            ("/api/v1/keys/a%2Fb%20%C3%A9/dec_keys", SaeCall::DecKeys, "a/b é"),
            ("/api/v1/keys/%252F/status", SaeCall::Status, "%2F"),
            ("/api/v1/keys/host:8443+1/status", SaeCall::Status, "host:8443+1"),
            ("/api/v1/keys/50%/status", SaeCall::Status, "50%"),
            ("/api/v1/keys/../status", SaeCall::Status, ".."),
            ("/api/v1/keys//status", SaeCall::Status, ""),
            ("/api/v1/keys/status/status", SaeCall::Status, "status"),
        ] {
            assert_eq!(id_of(path), Some((call, id.to_owned())), "{path}");
        }
    }

    #[test]
    fn every_other_path_is_no_route() {
        for path in [
            "/",
            "*",
            "/api/v1/keys",
            "/api/v1/keys/",
            "/api/v1/keys/bob",
            "/api/v1/keys/bob/",
            "/api/v1/keys/bob/status//",
            "//api/v1/keys/bob/status",
            "/api/v1/keys/a/b/status",
            "/api/v1/keys/bob/Status",
            "/api/v1/keys/bob/status/x",
            "/api/v2/keys/bob/status",
            "/kdapi/v1/keys/bob/status",
        ] {
            assert_eq!(Route::parse(path), None, "{path}");
        }
    }

    #[test]
    fn bytes_that_are_no_text_are_a_bad_request() {
        let route = Route::parse("/api/v1/keys/%ff/status").unwrap();
        assert_eq!(route.id().unwrap_err().status, http::StatusCode::BAD_REQUEST);
    }
}
