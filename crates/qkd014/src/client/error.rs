//! Why a KME did not answer as asked.

use std::time::Duration;

use http::StatusCode;

use mtls::HttpsError;

/// No keys and no status.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No connection, or it broke.
    #[error(transparent)]
    Https(#[from] HttpsError),
    /// No complete answer in time.
    #[error("no answer within {} s", .0.as_secs())]
    Slow(Duration),
    /// The KME refused; the message is its own.
    #[error("the KME answered {status}: {message}")]
    Refused {
        /// The status of the answer.
        status: StatusCode,
        /// Its message.
        message: String,
    },
    /// The answer is not of ETSI GS QKD 014.
    #[error("the KME answered with {0}")]
    Garbled(&'static str),
}
