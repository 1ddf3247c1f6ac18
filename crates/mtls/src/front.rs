//! What a listener puts behind its connections.

use std::convert::Infallible;
use std::net::SocketAddr;

use axum::Router;
use axum::extract::Request;
use axum::response::Response;
use tower::ServiceExt as _;

use crate::identity::ClientIdentity;

/// Answers the clients of a listener.
pub trait Front: Send + Sync + 'static {
    /// Answers one of them.
    type Desk: Desk;

    /// For a connection whose client is `client`, at `address`.
    fn open(&self, client: ClientIdentity, address: SocketAddr) -> Self::Desk;
}

/// Answers the requests of one connection.
pub trait Desk: Clone + Send + Sync + 'static {
    /// One answer. Dropped when the client does not wait for it.
    fn answer(&self, request: Request) -> impl Future<Output = Response> + Send + use<Self>;
}

/// Where a request comes from, put into its extensions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerAddress(pub SocketAddr);

/// A router finds the [`ClientIdentity`] and the [`PeerAddress`] in the extensions of each request.
impl Front for Router {
    type Desk = Routed;

    fn open(&self, client: ClientIdentity, address: SocketAddr) -> Routed {
        Routed { router: self.clone(), client, address: PeerAddress(address) }
    }
}

/// One connection of a router.
#[derive(Clone, Debug)]
pub struct Routed {
    router: Router,
    client: ClientIdentity,
    address: PeerAddress,
}

impl Desk for Routed {
    fn answer(&self, mut request: Request) -> impl Future<Output = Response> + Send + use<> {
        request.extensions_mut().insert(self.client.clone());
        request.extensions_mut().insert(self.address);
        let answer = self.router.clone().oneshot(request);
        async move {
            let answered: Result<Response, Infallible> = answer.await;
            answered.unwrap_or_else(|never| match never {})
        }
    }
}
