//! A KME for examples and tests: real mutual TLS on loopback, keys in memory.

use std::net::SocketAddr;
use std::path::PathBuf;

use tokio_util::sync::CancellationToken;

/// Answers `status`, `enc_keys` and `dec_keys` for the SAEs that the shared test authority certifies.
pub struct SmallKme {
    address: SocketAddr,
    stop: CancellationToken,
}

impl SmallKme {
    pub async fn start() -> Self {
        Self::answering(Self::router()).await
    }

    /// A server at all loopback addresses, with a certificate for 127.0.0.1 and localhost.
    pub async fn answering(router: axum::Router) -> Self {
        let tcp = tokio::net::TcpListener::bind("0.0.0.0:0").await.unwrap();
        let address = tcp.local_addr().unwrap();
        let tls = mtls::ListenerTls::Mutual {
            store: crate::shared().tls(pki::Role::Kme, "site-a"),
            rules: crate::spiffe_rules(),
            accepts: mtls::identity::Kind::ALL,
            versions: mtls::Versions::Compatible,
        };
        let stop = CancellationToken::new();
        let limits = mtls::ListenerLimits::default();
        tokio::spawn(mtls::listener::serve("sae", tcp, tls, router, limits, stop.clone()));
        Self { address, stop }
    }

    pub fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.address.port())
    }

    /// CA, certificate and key of an SAE.
    pub fn files(sae: &str) -> [PathBuf; 3] {
        let files = crate::shared().files(pki::Role::Sae, sae);
        [files.ca, files.cert, files.key]
    }

    fn router() -> axum::Router {
        use axum::extract::Path;
        use axum::routing::{get, post};
        use serde_json::{Value, json};

        type Keys = std::sync::Arc<std::sync::Mutex<std::collections::HashMap<String, Value>>>;
        let keys = Keys::default();
        let given = keys.clone();
        let status = async |Path(slave): Path<String>| {
            axum::body::Body::from(
                json!({
                    "source_KME_ID": "site-a", "target_KME_ID": "site-b",
                    "master_SAE_ID": "alice", "slave_SAE_ID": slave,
                    "key_size": 256, "stored_key_count": 7, "max_key_count": 7, "max_key_per_request": 7,
                    "max_key_size": 256, "min_key_size": 256, "max_SAE_ID_count": 0,
                })
                .to_string(),
            )
        };
        let enc = async move |body: String| {
            let request: Value = serde_json::from_str(&body).unwrap();
            let made: Vec<Value> = (0..request["number"].as_u64().unwrap_or(1))
                .map(|number| {
                    let id = uuid::Uuid::new_v4().to_string();
                    let key = format!("{}{:02}A=", "A".repeat(40), number);
                    let entry = json!({ "key_ID": id, "key": key });
                    keys.lock().unwrap().insert(id, entry.clone());
                    entry
                })
                .collect();
            json!({ "keys": made }).to_string()
        };
        let dec = async move |body: String| {
            let request: Value = serde_json::from_str(&body).unwrap();
            let ids = request["key_IDs"].as_array().unwrap().iter().map(|id| id["key_ID"].as_str().unwrap());
            let found: Option<Vec<Value>> = ids.map(|id| given.lock().unwrap().remove(id)).collect();
            let message = "one or more keys specified are not found on KME";
            found.map_or_else(
                || (http::StatusCode::BAD_REQUEST, json!({ "message": message }).to_string()),
                |found| (http::StatusCode::OK, json!({ "keys": found }).to_string()),
            )
        };
        axum::Router::new()
            .route("/api/v1/keys/{slave}/status", get(status))
            .route("/api/v1/keys/{slave}/enc_keys", post(enc))
            .route("/api/v1/keys/{master}/dec_keys", post(dec))
    }
}

impl Drop for SmallKme {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}
