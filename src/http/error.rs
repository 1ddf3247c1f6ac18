//! The form of an error: every listener answers failures with this JSON.

use std::borrow::Cow;

use axum::Json;
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use serde::Serialize;
use utoipa::ToSchema;

/// `Retry-After` of a request whose body came too slowly.
const BODY_RETRY_SECS: u32 = 1;

/// An error answer: ETSI GS QKD 014 Table 13, `{"message": ..., "details": [...]}`.
///
/// Leaves out an empty `details`: a test suite in use elsewhere expects strings in it, but the standard has
/// objects.
#[derive(Debug)]
pub struct ApiError {
    /// The status of the answer.
    pub status: StatusCode,
    /// Name of the failure in logs and metrics; it does not change and is not sent.
    pub code: &'static str,
    /// What the caller reads. Never contains a secret.
    pub message: Cow<'static, str>,
    /// Name and value pairs that explain the message.
    pub details: Vec<serde_json::Value>,
    /// Seconds to put into `Retry-After`.
    pub retry_after_secs: Option<u32>,
    /// What is behind it, for the request's log line; not sent. Never contains a secret.
    pub cause: Option<String>,
}

/// [`ApiError::code`], left in the extensions of the response for its log line.
#[derive(Clone, Copy, Debug)]
pub(super) struct ErrorCode(pub(super) &'static str);

/// [`ApiError::cause`], left there too.
#[derive(Clone, Debug)]
pub(super) struct Cause(pub(super) String);

/// Table 13.
#[derive(Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = Error)]
pub(super) struct Body<'a> {
    /// What is wrong. The sentences of the standard are literal.
    message: &'a str,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    /// Name and value pairs that explain the message; left out when there are none.
    #[schema(value_type = Vec<Object>, required = false)]
    details: &'a [serde_json::Value],
}

impl ApiError {
    /// An error with `status`, without details.
    pub fn new(status: StatusCode, code: &'static str, message: impl Into<Cow<'static, str>>) -> Self {
        Self {
            status,
            code,
            message: message.into(),
            details: Vec::new(),
            retry_after_secs: None,
            cause: None,
        }
    }

    /// 400: the same request will fail again.
    pub fn bad_request(code: &'static str, message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, code, message)
    }

    /// 401: this path, or this key, is not for the caller.
    pub fn unauthorized(code: &'static str) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, code, "Unauthorized")
    }

    /// 503: nothing was consumed; the same request may succeed after `retry_after_secs`.
    pub fn unavailable(
        code: &'static str,
        message: impl Into<Cow<'static, str>>,
        retry_after_secs: u32,
    ) -> Self {
        Self {
            retry_after_secs: Some(retry_after_secs),
            ..Self::new(StatusCode::SERVICE_UNAVAILABLE, code, message)
        }
    }

    /// The same, with what is behind it.
    pub fn caused_by(self, cause: String) -> Self {
        Self { cause: Some(cause), ..self }
    }

    /// 503 for a body that did not arrive in time. Not 400: a client would take that to mean that its key is
    /// gone, and the fault may be this daemon's.
    pub fn body_slow() -> Self {
        Self::unavailable("body_slow", "the request body did not arrive in time", BODY_RETRY_SECS)
    }

    /// 404 for a path that no route serves.
    pub fn no_such_path() -> Self {
        Self::new(StatusCode::NOT_FOUND, "no_such_path", "no such path")
    }

    /// 405 for a method that the path does not serve. The router adds `Allow`.
    pub fn method_not_allowed() -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "method not allowed")
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let body = Body { message: &self.message, details: &self.details };
        let mut response = (self.status, Json(body)).into_response();
        if let Some(secs) = self.retry_after_secs {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(secs));
        }
        response.extensions_mut().insert(ErrorCode(self.code));
        if let Some(cause) = self.cause {
            response.extensions_mut().insert(Cause(cause));
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    async fn body(error: ApiError) -> (http::response::Parts, String) {
        let (parts, body) = error.into_response().into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        (parts, String::from_utf8(bytes.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn errors_are_json_with_a_message_and_no_empty_details() {
        let (parts, text) = body(ApiError::unavailable("peer_down", "peer site-b does not answer", 2)).await;
        assert_eq!(parts.status, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(parts.headers[header::CONTENT_TYPE], "application/json");
        assert_eq!(parts.headers[header::RETRY_AFTER], "2");
        assert_eq!(text, r#"{"message":"peer site-b does not answer"}"#);
    }

    #[tokio::test]
    async fn details_are_objects() {
        let mut error = ApiError::bad_request("x", "y");
        error.details.push(serde_json::json!({"a": 1}));
        assert_eq!(body(error).await.1, r#"{"message":"y","details":[{"a":1}]}"#);
    }
}
