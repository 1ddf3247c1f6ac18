//! Connections that are reused.

use std::time::Duration;

use parking_lot::Mutex;

use super::connection::Connection;
use super::endpoint::Endpoint;
use super::message::{HttpRequest, HttpResponse, Trouble};

/// Most idle connections that are kept.
const KEPT_MAX: usize = 8;
/// Longest time that a connection stays idle. Common servers close it after five seconds or more.
const IDLE_MAX: Duration = Duration::from_secs(4);

/// Connections to one endpoint.
pub(crate) struct KeptConnections {
    endpoint: Endpoint,
    idle: Mutex<Vec<Connection>>,
}

impl KeptConnections {
    pub(crate) fn to(endpoint: Endpoint) -> Self {
        Self { endpoint, idle: Mutex::default() }
    }

    /// Sends `request` over an idle or a new connection. Repeats it over another one if it was certainly not
    /// sent.
    pub(crate) async fn exchange(
        &self,
        request: &HttpRequest,
        response: &mut HttpResponse,
    ) -> Result<(), Trouble> {
        while let Some(mut connection) = self.take() {
            match connection.exchange(request, response).await {
                Err(Trouble::Unsent(_)) => {}
                result => return self.end(connection, response, result),
            }
        }
        let mut connection =
            self.endpoint.connect().await.map_err(|error| Trouble::Unsent(error.to_string()))?;
        let result = connection.exchange(request, response).await;
        self.end(connection, response, result)
    }

    /// The connection used last, unless it was idle for too long.
    fn take(&self) -> Option<Connection> {
        let mut idle = self.idle.lock();
        idle.retain(|connection| connection.idle_for() < IDLE_MAX);
        idle.pop()
    }

    /// Keeps the connection if it can serve more requests.
    fn end(
        &self,
        connection: Connection,
        response: &HttpResponse,
        result: Result<(), Trouble>,
    ) -> Result<(), Trouble> {
        let mut idle = self.idle.lock();
        if result.is_ok() && !response.is_last && idle.len() < KEPT_MAX {
            idle.push(connection);
        }
        result
    }
}
