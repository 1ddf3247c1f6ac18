//! A client of any ETSI GS QKD 014 KME: status, fresh keys, keys by their IDs.
//!
//! For people at the command line, for the demo and for tests. Keys it receives are wiped when dropped.

mod error;
mod wire;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::de::DeserializeOwned;
use tokio::time::timeout;

pub use error::ClientError;
pub use wire::{DeliveredKey, EncRequest, KeyContainer, KmeStatus};

use mtls::{ExpectedServer, HttpVersion, HttpsClient, TlsError, TlsStore};

/// Longest answer that is read: over a thousand keys of the largest size.
const ANSWER_MAX_BYTES: usize = 32 * 1024 * 1024;
/// Characters of a server's message that are kept.
const MESSAGE_MAX_CHARS: usize = 500;
/// Characters of an ID that stand for themselves in a path.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Calls one KME as one SAE.
#[derive(Clone, Debug)]
pub struct Etsi014Client {
    base: String,
    https: HttpsClient,
    call_timeout: Duration,
}

impl Etsi014Client {
    /// A client of the KME at `url` (scheme, host and port), which must have a certificate for that host.
    /// `call_timeout` bounds every call.
    ///
    /// # Errors
    /// [`TlsError`] when the certificates cannot be used for a client.
    pub fn new(url: &str, tls: Arc<TlsStore>, call_timeout: Duration) -> Result<Self, TlsError> {
        let https = HttpsClient::new(tls, ExpectedServer::HostName, "", HttpVersion::Http1Or2)?;
        Ok(Self { base: url.trim_end_matches('/').to_owned(), https, call_timeout })
    }

    /// Get status (clause 5.2): what can be asked for to share with `slave`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn status(&self, slave: &str) -> Result<KmeStatus, ClientError> {
        self.call(Method::GET, slave, "status", None).await
    }

    /// Get key (clause 5.3): fresh keys to share with `slave`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn enc_keys(&self, slave: &str, request: &EncRequest) -> Result<KeyContainer, ClientError> {
        let body =
            serde_json::to_vec(request).map_err(|_| ClientError::Garbled("a request without JSON form"))?;
        self.call(Method::POST, slave, "enc_keys", Some(body)).await
    }

    /// Get key with key IDs (clause 5.4): the keys that `master` got with these IDs.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn dec_keys(&self, master: &str, key_ids: &[String]) -> Result<KeyContainer, ClientError> {
        let ids: Vec<_> = key_ids.iter().map(|id| serde_json::json!({ "key_ID": id })).collect();
        let body = serde_json::json!({ "key_IDs": ids }).to_string().into_bytes();
        self.call(Method::POST, master, "dec_keys", Some(body)).await
    }

    async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        id: &str,
        call: &str,
        body: Option<Vec<u8>>,
    ) -> Result<T, ClientError> {
        let id = utf8_percent_encode(id, ESCAPED);
        let mut request =
            Request::builder().method(method).uri(format!("{}/api/v1/keys/{id}/{call}", self.base));
        if body.is_some() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        let request = request
            .body(Full::new(Bytes::from(body.unwrap_or_default())))
            .map_err(|_| ClientError::Garbled("an address that is no URL"))?;
        let exchange = async {
            let response = self.https.send(request).await?;
            let status = response.status();
            let body = Limited::new(response.into_body(), ANSWER_MAX_BYTES).collect().await;
            let body = body.map_err(|_| ClientError::Garbled("an answer that is too long or broke off"))?;
            Ok::<_, ClientError>((status, body.to_bytes()))
        };
        let (status, body) = timeout(self.call_timeout, exchange)
            .await
            .map_err(|_| ClientError::Slow(self.call_timeout))??;
        if status == StatusCode::OK {
            return serde_json::from_slice(&body)
                .map_err(|_| ClientError::Garbled("JSON of an unexpected shape"));
        }
        Err(ClientError::Refused { status, message: message_of(&body) })
    }
}

fn message_of(body: &[u8]) -> String {
    let text =
        serde_json::from_slice::<wire::Refusal>(body).map(|refusal| refusal.message).unwrap_or_default();
    text.chars().filter(|c| !c.is_control()).take(MESSAGE_MAX_CHARS).collect()
}
