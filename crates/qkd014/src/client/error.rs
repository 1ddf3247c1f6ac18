//! Why a call to a KME failed.

use std::time::Duration;

use http::StatusCode;

use crate::https::UrlError;

/// The call failed: no keys and no status. The text says what to check.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The URL cannot be a KME's.
    #[error(transparent)]
    Url(#[from] UrlError),
    /// The certificates cannot be used for a client.
    #[error("cannot connect with these certificates: {0}")]
    Certificates(String),
    /// No connection: name, network, or a failed handshake. The request was not sent.
    #[error("no connection: {reason}{}", connect_hint(.reason))]
    Connect {
        /// The innermost cause.
        reason: String,
    },
    /// The connection broke. The KME may have used up keys for the request, unless it refused the
    /// certificate.
    #[error("{reason}{}", broken_hint(.reason))]
    Broken {
        /// What happened.
        reason: String,
    },
    /// No complete answer in time. The KME may have used up keys for the request.
    #[error("no answer within {} s; the KME may have acted on the request", .0.as_secs_f64())]
    Slow(Duration),
    /// The KME refused, with this message.
    #[error("the KME answered {status}: {message}{}", refusal_hint(*.status))]
    Refused {
        /// The status of the answer.
        status: StatusCode,
        /// Its message.
        message: String,
    },
    /// The answer does not conform to ETSI GS QKD 014.
    #[error("the answer does not conform to ETSI GS QKD 014: {0}; is this the address of a KME?")]
    NotEtsi014(&'static str),
}

fn connect_hint(reason: &str) -> &'static str {
    let hints = [
        ("UnknownIssuer", "; is this the CA of the KME's certificate?"),
        ("BadSignature", "; is this the CA of the KME's certificate?"),
        ("refused", "; is the KME running, and is this its port?"),
    ];
    let hint = hints.iter().find(|(word, _)| reason.contains(word));
    hint.map_or("", |(_, hint)| hint)
}

/// In TLS 1.3 a server refuses a certificate only after the client has sent its request.
fn broken_hint(reason: &str) -> &'static str {
    if reason.contains("fatal alert") {
        "; does the KME trust the CA of this SAE's certificate?"
    } else {
        "; the KME may have acted on the request"
    }
}

fn refusal_hint(status: StatusCode) -> &'static str {
    match status {
        StatusCode::UNAUTHORIZED => {
            "; does this KME serve the SAE of this certificate, and are the keys meant for it?"
        }
        StatusCode::NOT_FOUND => "; is this the address of a KME?",
        StatusCode::SERVICE_UNAVAILABLE => "; try again later",
        _ => "",
    }
}
