//! T8 and T9: Get status.

use serde_json::Value;

use super::super::exchange::Exchange;
use super::super::outcome::{Ended, Failure, Refusal};
use super::super::session::Session;
use super::case::{Case, case};
use crate::https::HttpRequest;
use crate::wire::path;

const CLAUSE: &str = "6.1 R19-R29";
const TEXTS: [&str; 4] = ["source_KME_ID", "target_KME_ID", "master_SAE_ID", "slave_SAE_ID"];
const NUMBERS: [&str; 7] = [
    "key_size",
    "stored_key_count",
    "max_key_count",
    "max_key_per_request",
    "max_key_size",
    "min_key_size",
    "max_SAE_ID_count",
];

pub(super) fn cases() -> [Case; 2] {
    [
        case!(8, "status has every member of Table 9, with its type", Calm, members),
        case!(9, "status for an unknown SAE is refused", Calm, unknown),
    ]
}

async fn members(session: &Session) -> Ended {
    let (a, b) = (&session.setup.a, &session.setup.b);
    let of_a = session.status().await;
    let from_a = judge(session, &of_a, &a.id, &b.id)?;
    let of_b = session.send(b, HttpRequest::get(path(&a.id, "status"))).await;
    // The caller is the master, also on the other side (A26).
    let from_b = judge(session, &of_b, &b.id, &a.id)?;
    let text = |status: &Value, name: &str| status.get(name).and_then(Value::as_str).map(str::to_owned);
    let is_mirrored = text(&from_a, "source_KME_ID") == text(&from_b, "target_KME_ID")
        && text(&from_a, "target_KME_ID") == text(&from_b, "source_KME_ID");
    let expected = "source_KME_ID and target_KME_ID that mirror those which A is told";
    session.check(is_mirrored, &of_b, CLAUSE, expected);
    Ok(())
}

fn judge(session: &Session, exchange: &Exchange, master: &str, slave: &str) -> Result<Value, Failure> {
    if exchange.status != 200 {
        return Err(Failure::new(exchange, "6.1 R12", "status 200"));
    }
    session.check(exchange.is_json(), exchange, "5.1 R9", "Content-Type application/json");
    let Some(json) = exchange.json().filter(|json| json.is_object()) else {
        return Err(Failure::new(exchange, CLAUSE, "a JSON object"));
    };
    for name in TEXTS {
        let holds = json.get(name).is_some_and(Value::is_string);
        session.check(holds, exchange, CLAUSE, &format!("`{name}`, a string"));
    }
    for name in NUMBERS {
        let holds = json.get(name).is_some_and(Value::is_u64);
        session.check(holds, exchange, CLAUSE, &format!("`{name}`, an integer (no string, no fraction)"));
    }
    for (name, id) in [("master_SAE_ID", master), ("slave_SAE_ID", slave)] {
        let holds = json.get(name).is_none_or(|value| value == id);
        session.check(holds, exchange, CLAUSE, &format!("`{name}` {id}: the caller is the master"));
    }
    let number = |name: &str| json.get(name).and_then(Value::as_u64);
    if let (Some(min), Some(size), Some(max)) =
        (number("min_key_size"), number("key_size"), number("max_key_size"))
    {
        let expected = "min_key_size <= key_size <= max_key_size, none of them 0";
        session.check(0 < min && min <= size && size <= max, exchange, CLAUSE, expected);
    }
    if let (Some(stored), Some(max)) = (number("stored_key_count"), number("max_key_count")) {
        session.check(stored <= max, exchange, CLAUSE, "stored_key_count <= max_key_count");
    }
    let holds = number("max_key_per_request") != Some(0);
    session.check(holds, exchange, CLAUSE, "max_key_per_request of 1 or more");
    let holds = json.get("status_extension").is_none_or(Value::is_object);
    session.check(holds, exchange, "6.1 R30", "`status_extension`, if any, an object");
    Ok(json.clone())
}

async fn unknown(session: &Session) -> Ended {
    let id = format!("nobody-{}", uuid::Uuid::new_v4());
    let exchange = session.send(&session.setup.a, HttpRequest::get(path(&id, "status"))).await;
    let refusal = Refusal::of("5.2 R18 A24", "an SAE that nobody registered");
    session.refused(&exchange, &refusal.tolerate(&[401, 404]));
    Ok(())
}
