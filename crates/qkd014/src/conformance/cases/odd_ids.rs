//! T44: SAE IDs are free text.

use serde_json::Value;

use super::super::outcome::{Ended, skip};
use super::super::session::Session;
use super::case::{Case, case};
use crate::https::HttpRequest;
use crate::wire::path;

const CLAUSE: &str = "4, 5.1 R3 R17";

pub(super) fn cases() -> [Case; 1] {
    [case!(44, "an SAE ID with space, `/`, `%` or letters beyond ASCII", Calm, odd)]
}

async fn odd(session: &Session) -> Ended {
    let Some(id) = &session.setup.odd_id else {
        return skip("needs a registered SAE ID with a space, `/`, `%` or letters beyond ASCII: --odd-id");
    };
    let limits = session.limits()?;
    session.spend(2)?;
    let a = &session.setup.a;
    let exchange = session.send(a, HttpRequest::get(path(id, "status"))).await;
    let slave =
        exchange.json().and_then(|json| json.get("slave_SAE_ID").and_then(Value::as_str).map(str::to_owned));
    let expected = format!("status 200 with slave_SAE_ID `{id}`, not encoded");
    session.check(exchange.status == 200 && slave.as_ref() == Some(id), &exchange, CLAUSE, &expected);
    for request in [HttpRequest::get(path(id, "enc_keys")), HttpRequest::post(path(id, "enc_keys"), "{}")] {
        let exchange = session.send(a, request).await;
        if let Err(failure) = session.fresh_of(&exchange, 1, limits.key_size, CLAUSE) {
            session.fail(failure);
        }
    }
    Ok(())
}
