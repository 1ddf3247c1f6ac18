//! The client: status, fresh keys, keys by their IDs.

mod error;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use mtls::TlsStore;
use parking_lot::Mutex;
use serde::de::DeserializeOwned;
use tokio::time::timeout;

pub use error::ClientError;

use crate::credentials::Credentials;
use crate::https::{ANY_HTTP, Endpoint, HttpRequest, HttpResponse, KeptConnections, KmeUrl, Trouble};
use crate::wire::{self, KeyContainer, KeyRequest, KmeStatus};

/// How long a call may take by default.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Calls one KME as one SAE. Cheap to clone; clones share connections.
///
/// Keys are wiped from memory when they are dropped.
///
/// ```
/// # use testkit::SmallKme;
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let kme = SmallKme::start().await;
/// # let (url, [ca, cert, key]) = (kme.url(), SmallKme::files("alice"));
/// use qkd014::{Client, Credentials};
///
/// // url: "https://kme.example:8443"; ca, cert, key: "ca.pem", "alice.pem", "alice.key"
/// let client = Client::new(&url, Credentials::from_pem_files(ca, cert, key)?)?;
/// let status = client.status("bob").await?;
/// println!("{} keys are ready for bob", status.stored_key_count);
/// # assert_eq!(status.master_sae_id, "alice");
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Client {
    shared: Arc<Shared>,
    timeout: Duration,
}

struct Shared {
    url: KmeUrl,
    tls: Arc<TlsStore>,
    current: Mutex<Current>,
}

/// Connections made with the certificates in force.
struct Current {
    generation: u64,
    connections: Arc<KeptConnections>,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Client({})", self.shared.url)
    }
}

impl Client {
    /// A client of the KME at `url` (`https://HOST[:PORT]`), which must have a certificate for that host.
    ///
    /// # Errors
    /// [`ClientError::Url`] and [`ClientError::Certificates`].
    pub fn new(url: &str, credentials: impl Into<Credentials>) -> Result<Self, ClientError> {
        Self::of(url.parse()?, credentials.into())
    }

    pub(crate) fn of(url: KmeUrl, Credentials(tls): Credentials) -> Result<Self, ClientError> {
        let current = Mutex::new(Current::new(&url, &tls)?);
        Ok(Self { shared: Arc::new(Shared { url, tls, current }), timeout: TIMEOUT })
    }

    /// The same with another timeout for each call; the default is 30 seconds.
    #[must_use]
    pub fn with_timeout(self, timeout: Duration) -> Self {
        Self { timeout, ..self }
    }

    /// Get status (clause 5.2): how many keys the KME can deliver to share with `slave`, and its limits.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn status(&self, slave: &str) -> Result<KmeStatus, ClientError> {
        self.call(&HttpRequest::get(wire::path(slave, "status"))).await
    }

    /// Get key (clause 5.3): fresh keys to share with `slave`. Tell the slave their IDs.
    ///
    /// ```
    /// # use testkit::SmallKme;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let kme = SmallKme::start().await;
    /// # let client = |sae: &str| {
    /// #     let [ca, cert, key] = SmallKme::files(sae);
    /// #     qkd014::Client::new(&kme.url(), qkd014::Credentials::from_pem_files(ca, cert, key).unwrap()).unwrap()
    /// # };
    /// # let client = client("alice");
    /// use qkd014::KeyRequest;
    ///
    /// let request = KeyRequest { number: Some(2), size: Some(256), ..KeyRequest::default() };
    /// for key in client.enc_keys("bob", &request).await?.keys {
    ///     println!("{}: {} bytes", key.id, key.key.expose().len());
    /// #   assert_eq!(key.key.expose().len(), 32);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn enc_keys(&self, slave: &str, request: &KeyRequest) -> Result<KeyContainer, ClientError> {
        let body = serde_json::to_vec(request)
            .map_err(|_| ClientError::NotEtsi014("the request has no form in JSON"))?;
        self.call(&HttpRequest::post(wire::path(slave, "enc_keys"), body)).await
    }

    /// Get key with key IDs (clause 5.4): the keys that `master` got with these IDs.
    ///
    /// ```
    /// # use testkit::SmallKme;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let kme = SmallKme::start().await;
    /// # let client = |sae: &str| {
    /// #     let [ca, cert, key] = SmallKme::files(sae);
    /// #     qkd014::Client::new(&kme.url(), qkd014::Credentials::from_pem_files(ca, cert, key).unwrap()).unwrap()
    /// # };
    /// # let (alice, bob) = (client("alice"), client("bob"));
    /// # use qkd014::KeyRequest;
    /// // Alice fetches a key and tells Bob its ID; Bob fetches the same key from his KME.
    /// let hers = alice.enc_keys("bob", &KeyRequest::default()).await?.keys.remove(0);
    /// let his = bob.dec_keys("alice", &[&hers.id]).await?.keys.remove(0);
    /// assert!(his.key.ct_eq(&hers.key));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn dec_keys(
        &self,
        master: &str,
        key_ids: &[impl AsRef<str>],
    ) -> Result<KeyContainer, ClientError> {
        let body = wire::key_ids_body(key_ids.iter().map(AsRef::as_ref));
        self.call(&HttpRequest::post(wire::path(master, "dec_keys"), body)).await
    }

    async fn call<T: DeserializeOwned>(&self, request: &HttpRequest) -> Result<T, ClientError> {
        let connections = self.shared.connections()?;
        let mut response = HttpResponse::default();
        timeout(self.timeout, connections.exchange(request, &mut response))
            .await
            .map_err(|_| ClientError::Slow(self.timeout))?
            .map_err(|trouble| match trouble {
                Trouble::Unsent(reason) => ClientError::Connect { reason },
                Trouble::Broken(reason) => ClientError::Broken { reason },
            })?;
        if response.status == StatusCode::OK.as_u16() {
            return serde_json::from_slice(&response.body)
                .map_err(|_| ClientError::NotEtsi014("JSON of an unexpected shape"));
        }
        let status = StatusCode::from_u16(response.status)
            .map_err(|_| ClientError::NotEtsi014("a status that HTTP does not know"))?;
        Err(ClientError::Refused { status, message: wire::message_of(&response.body) })
    }
}

impl Shared {
    /// The connections in use, or new ones if the certificates have changed.
    fn connections(&self) -> Result<Arc<KeptConnections>, ClientError> {
        let mut current = self.current.lock();
        if current.generation != self.tls.generation() {
            *current = Current::new(&self.url, &self.tls)?;
        }
        Ok(Arc::clone(&current.connections))
    }
}

impl Current {
    fn new(url: &KmeUrl, tls: &Arc<TlsStore>) -> Result<Self, ClientError> {
        // Read before the certificates: at worst connections are renewed twice.
        let generation = tls.generation();
        let endpoint = Endpoint::new(url, tls, ANY_HTTP).map_err(ClientError::Certificates)?;
        Ok(Self { generation, connections: Arc::new(KeptConnections::to(endpoint)) })
    }
}
