//! T45 to T47: an empty store, many calls at once.

use futures_util::future::join_all;
use serde_json::{Value, json};

use super::super::exchange::{Exchange, unanswered};
use super::super::outcome::{Ended, Failure, Refusal, Sentence, Stop, skip};
use super::super::session::{MOMENT, Session};
use super::super::setup::Sae;
use super::case::{Case, case};
use crate::https::{Connection, HTTP_1, HttpRequest};
use crate::wire::path;

/// Calls at once.
const PARALLEL: usize = 50;
/// Bits that one request of T45 asks for at most.
const DRAIN_BITS: u64 = 4 * 1024 * 1024;
/// How often T45 checks for service after the supply was resumed, once every [`MOMENT`].
const RECOVERY_LOOKS: u32 = 150;

pub(super) fn cases() -> [Case; 3] {
    [
        case!(45, "an empty store: 503, no partial container", Drains, drain),
        case!(46, "50 enc_keys at once: no key and no ID repeats", Calm, many_enc),
        case!(47, "50 dec_keys at once for one key: one is served", Calm, many_dec),
    ]
}

/// Sends `request` as `sae` over many connections at the same time.
async fn at_once(session: &Session, sae: &Sae, request: &HttpRequest) -> Vec<Exchange> {
    let connections: Vec<Result<Connection, String>> =
        join_all((0..PARALLEL).map(|_| session.connect(sae, HTTP_1))).await;
    let send = async |connection: Result<Connection, String>| match connection {
        Ok(mut connection) => session.over(&mut connection, sae, request).await,
        Err(trouble) => unanswered(sae, request, trouble),
    };
    join_all(connections.into_iter().map(send)).await
}

async fn many_enc(session: &Session) -> Ended {
    let limits = session.limits()?;
    session.spend(PARALLEL)?;
    let request = HttpRequest::post(path(&session.setup.b.id, "enc_keys"), "{}");
    let exchanges = at_once(session, &session.setup.a, &request).await;
    let mut unserved = 0;
    for exchange in &exchanges {
        if exchange.status == 503 || exchange.trouble.is_some() {
            unserved += 1;
            continue;
        }
        if let Err(failure) = session.fresh_of(exchange, 1, limits.key_size, "5.3 R43 R45") {
            session.fail(failure);
        }
    }
    if let (true, Some(exchange)) = (unserved > 0, exchanges.iter().find(|exchange| exchange.status != 200)) {
        let expected = format!("200 for each of {PARALLEL} calls at once; {unserved} were not served");
        if unserved == PARALLEL {
            session.fail(Failure::new(exchange, "5.3 R18", expected));
        } else {
            session.should(false, exchange, "5.3 R18", &expected);
        }
    }
    Ok(())
}

async fn many_dec(session: &Session) -> Ended {
    let key = session.fresh_one().await?;
    let body = json!({ "key_IDs": [{ "key_ID": key.id }] });
    let request = HttpRequest::post(path(&session.setup.a.id, "dec_keys"), body.to_string());
    let exchanges = at_once(session, &session.setup.b, &request).await;
    let served: Vec<&Exchange> = exchanges.iter().filter(|exchange| exchange.status == 200).collect();
    for exchange in &served {
        session.same_keys(exchange, std::slice::from_ref(&key), "5.4 R49");
    }
    if served.len() != 1
        && let Some(exchange) = served.last().copied().or(exchanges.first())
    {
        let expected = format!("exactly one of {PARALLEL} calls served, not {}", served.len());
        session.fail(Failure::new(exchange, "5.4 R52", expected));
    }
    for exchange in exchanges.iter().filter(|exchange| exchange.status != 200 && exchange.trouble.is_none()) {
        let refusal = Refusal::of("6.4 R51 R52", "a key that another call got");
        session.refused(exchange, &refusal.with(&[400, 503]).saying(Sentence::NOT_FOUND));
    }
    Ok(())
}

async fn drain(session: &Session) -> Ended {
    if !session.setup.drain {
        return skip("would empty the store of the pair; allow it with --drain");
    }
    if let Some(command) = &session.setup.hooks.stop_supply {
        session.hook(command).await?;
    }
    let drained = empty(session).await;
    if let Some(command) = &session.setup.hooks.resume_supply {
        session.hook(command).await?;
        drained?;
        return is_served_again(session).await;
    }
    drained
}

/// Asks for less and less until even one key of the default size is too much.
async fn empty(session: &Session) -> Ended {
    let limits = session.limits()?;
    let number = limits.max_per_request.max(1);
    let large =
        (DRAIN_BITS / number / 8 * 8).clamp(limits.key_size, limits.max_key_size.max(limits.key_size));
    let mut last = None;
    for (number, size) in [(number, large), (number, limits.key_size), (1, limits.key_size)] {
        let number = usize::try_from(number).unwrap_or(1);
        last = Some(until_refused(session, number, size).await?);
    }
    let Some(exchange) = last else { return Ok(()) };
    let expected = "Retry-After with 503";
    session.should(exchange.header("retry-after").is_some(), &exchange, "A9", expected);
    let status = session.status().await;
    let stored = status.json().and_then(|json| json.get("stored_key_count").and_then(Value::as_u64));
    session.should(stored == Some(0), &status, "6.1 R24 A27", "stored_key_count 0 after a 503 for one key");
    Ok(())
}

async fn until_refused(session: &Session, number: usize, size: u64) -> Result<Exchange, Stop> {
    loop {
        if session.spend(number).is_err() {
            return skip(format!(
                "{} keys did not empty the store; raise --max-keys, or stop the supply with --stop-supply-hook",
                session.keys_used()
            ));
        }
        let exchange = session.enc(&json!({ "number": number, "size": size })).await;
        if exchange.status != 200 {
            let refusal = Refusal::of("5.3 R18 A9", "more keys than there are").with(&[503]);
            session.refused(&exchange, &refusal.tolerate(&[400]));
            return Ok(exchange);
        }
        session.fresh_of(&exchange, number, size, "6.3 R44 A9")?;
    }
}

async fn is_served_again(session: &Session) -> Ended {
    let mut exchange = session.enc(&json!({})).await;
    for _ in 0..RECOVERY_LOOKS {
        if exchange.status == 200 {
            return Ok(());
        }
        tokio::time::sleep(MOMENT).await;
        exchange = session.enc(&json!({})).await;
    }
    Err(Failure::new(&exchange, "5.3", "keys again after the supply was resumed").into())
}
