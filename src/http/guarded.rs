//! A router as a listener serves it: behind the guard, with the client of the connection in each request.

use std::convert::Infallible;
use std::sync::Arc;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use http::Method;
use mtls::identity::ClientIdentity;
use mtls::{ConnectionService, ListenerService};
use tower::ServiceExt as _;
use zeroize::Zeroizing;

use super::middleware::{About, Client, Edge};

/// Finds the route template of a request.
pub(super) type Template = fn(&Request) -> &'static str;

/// The routes of one listener behind its guard. They find [`ClientIdentity`] in the extensions of each
/// request.
#[derive(Clone)]
pub struct Guarded(Arc<Parts>);

struct Parts {
    router: Router,
    edge: Edge,
    template: Template,
}

impl Guarded {
    pub(super) fn new(router: Router, edge: Edge, template: Template) -> Self {
        Self(Arc::new(Parts { router, edge, template }))
    }
}

impl ListenerService for Guarded {
    type Connection = GuardedConnection;

    fn open(&self, client: ClientIdentity) -> GuardedConnection {
        GuardedConnection { client: self.0.edge.client(client), parts: Arc::clone(&self.0) }
    }

    fn connections_max(&self, client: &ClientIdentity) -> usize {
        self.0.edge.connections_max(client)
    }

    fn refused(&self, client: &ClientIdentity) {
        self.0.edge.note_refused(client);
    }
}

/// One connection to a [`Guarded`] router.
#[derive(Clone)]
pub struct GuardedConnection {
    parts: Arc<Parts>,
    client: Arc<Client>,
}

impl ConnectionService for GuardedConnection {
    fn answer(&self, request: Request) -> impl Future<Output = Response> + Send + use<> {
        let about = About {
            method: request.method().clone(),
            route: (self.parts.template)(&request),
            ends_by_itself: false,
        };
        let (parts, client) = (Arc::clone(&self.parts), Arc::clone(&self.client));
        self.parts.edge.serve(about, &self.client, async move {
            let (mut head, body) = request.into_parts();
            let has_body = head.method != Method::GET && head.method != Method::HEAD;
            let (body, _place) = match parts.edge.enter(&client, has_body.then_some(body)).await {
                Ok(entered) => entered,
                Err(error) => return error.into_response(),
            };
            head.extensions.insert(client.identity().clone());
            head.extensions.insert(client);
            let body = Body::from(Bytes::from_owner(WipedBody(body)));
            let answered: Result<Response, Infallible> =
                parts.router.clone().oneshot(Request::from_parts(head, body)).await;
            answered.unwrap_or_else(|never| match never {})
        })
    }
}

/// Lets [`Bytes`] own a buffer that is wiped with its last reference.
struct WipedBody(Zeroizing<Vec<u8>>);

impl AsRef<[u8]> for WipedBody {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}
