//! What stands behind the `sae` listener.

use std::net::SocketAddr;

use axum::extract::Request;
use axum::response::Response;
use mtls::identity::ClientIdentity;
use mtls::{Desk, Front};

use crate::http::sae::{SaeApi, SaeDesk};

/// Answers to SAEs.
pub(crate) struct SaeFront(pub(crate) SaeApi);

/// Answers to one.
#[derive(Clone)]
pub(crate) struct Answers(SaeDesk);

impl Front for SaeFront {
    type Desk = Answers;

    fn open(&self, client: ClientIdentity, _address: SocketAddr) -> Answers {
        Answers(self.0.to(client))
    }
}

impl Desk for Answers {
    fn answer(&self, request: Request) -> impl Future<Output = Response> + Send + use<> {
        self.0.answer(request)
    }
}
