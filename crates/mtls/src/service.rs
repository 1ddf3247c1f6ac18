//! The interface to a listener: a service for each connection, which answers its requests.

use std::convert::Infallible;

use axum::Router;
use axum::extract::Request;
use axum::response::Response;
use tower::ServiceExt as _;

use crate::identity::ClientIdentity;

/// What a listener serves.
pub trait ListenerService: Send + Sync + 'static {
    /// Serves one connection.
    type Connection: ConnectionService;

    /// The service of a new connection from `client`.
    fn open(&self, client: ClientIdentity) -> Self::Connection;

    /// Most connections that `client` may have at once, beside its fair share of all.
    fn connections_max(&self, client: &ClientIdentity) -> usize {
        let _ = client;
        usize::MAX
    }

    /// Notes that `client` got no connection, because it has as many as it may have.
    fn refused(&self, client: &ClientIdentity) {
        let _ = client;
    }
}

/// Answers the requests of one connection.
pub trait ConnectionService: Clone + Send + Sync + 'static {
    /// Answers one request. If the client disconnects, the future is dropped.
    ///
    /// An answer whose body is there as a whole must have reached the client within
    /// [`crate::ListenerLimits::answer_timeout`]. A streamed body sets its own limit.
    fn answer(&self, request: Request) -> impl Future<Output = Response> + Send + use<Self>;
}

/// A router finds the [`ClientIdentity`] in the extensions of each request.
impl ListenerService for Router {
    type Connection = RouterConnection;

    fn open(&self, client: ClientIdentity) -> RouterConnection {
        RouterConnection { router: self.clone(), client }
    }
}

/// One connection served by a router.
#[derive(Clone, Debug)]
pub struct RouterConnection {
    router: Router,
    client: ClientIdentity,
}

impl ConnectionService for RouterConnection {
    fn answer(&self, mut request: Request) -> impl Future<Output = Response> + Send + use<> {
        request.extensions_mut().insert(self.client.clone());
        let answer = self.router.clone().oneshot(request);
        async move {
            let answered: Result<Response, Infallible> = answer.await;
            answered.unwrap_or_else(|never| match never {})
        }
    }
}
