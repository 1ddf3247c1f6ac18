//! HTTP over mutual TLS, for the client, the conformance tests and the load generator.
//!
//! An [`Endpoint`] is a server and the identity that calls it. A [`Connection`] to it carries one request
//! after the other over HTTP/1.1 or HTTP/2. [`KeptConnections`] keeps idle ones and repeats requests that
//! were certainly not sent. Bodies are bounded and held in wiped memory. Timeouts are the callers' task.

mod connection;
mod endpoint;
mod http1;
mod kept;
mod message;
mod url;

pub(crate) use connection::Connection;
pub(crate) use endpoint::{ANY_HTTP, Endpoint, HTTP_1, HTTP_2};
pub(crate) use kept::KeptConnections;
pub(crate) use message::{BODY_MAX_BYTES, HttpRequest, HttpResponse, Trouble};
pub use url::{KmeUrl, UrlError};
