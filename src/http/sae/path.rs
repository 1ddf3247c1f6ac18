//! `/api/v1/keys/{ID}/{call}`, exactly.
//!
//! The raw path is split first and its one variable segment is percent-decoded once, so that an ID may hold
//! any character, `/` and `%` included. A router that decodes or normalises on its own could not do that.

use std::borrow::Cow;

use http::Method;
use percent_encoding::percent_decode_str;

use crate::http::error::ApiError;

/// The three calls of ETSI GS QKD 014, Table 2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// Get status.
    Status,
    /// Get key.
    EncKeys,
    /// Get key with key IDs.
    DecKeys,
}

impl Call {
    /// For logs: with the names of Table 2, never the ID.
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
    pub call: Call,
    raw_id: &'p str,
}

impl<'p> Route<'p> {
    /// Takes a raw path apart; one trailing slash is accepted. `None` for any other path.
    pub fn parse(raw_path: &'p str) -> Option<Self> {
        let rest = raw_path.strip_prefix("/api/v1/keys/")?;
        let (raw_id, call) = rest.strip_suffix('/').unwrap_or(rest).split_once('/')?;
        let call = match call {
            "status" => Call::Status,
            "enc_keys" => Call::EncKeys,
            "dec_keys" => Call::DecKeys,
            _ => return None,
        };
        Some(Self { call, raw_id })
    }

    /// The ID. A `%` without two hexadecimal digits stands for itself, since a client in the field does not
    /// escape IDs.
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

    fn id_of(path: &str) -> Option<(Call, String)> {
        let route = Route::parse(path)?;
        Some((route.call, route.id().unwrap().into_owned()))
    }

    #[test]
    fn the_id_is_one_segment_decoded_once() {
        for (path, call, id) in [
            ("/api/v1/keys/bob/status", Call::Status, "bob"),
            ("/api/v1/keys/bob/enc_keys/", Call::EncKeys, "bob"),
            ("/api/v1/keys/a%2Fb%20%C3%A9/dec_keys", Call::DecKeys, "a/b é"),
            ("/api/v1/keys/%252F/status", Call::Status, "%2F"),
            ("/api/v1/keys/host:8443+1/status", Call::Status, "host:8443+1"),
            ("/api/v1/keys/50%/status", Call::Status, "50%"),
            ("/api/v1/keys/../status", Call::Status, ".."),
            ("/api/v1/keys//status", Call::Status, ""),
            ("/api/v1/keys/status/status", Call::Status, "status"),
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
