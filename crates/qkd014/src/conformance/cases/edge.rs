//! T50 to T52 and T54: paths, verbs, the form of errors, caches.

use http::Method;
use serde_json::json;

use super::super::exchange::Exchange;
use super::super::outcome::{Ended, Failure, Refusal};
use super::super::session::Session;
use super::case::{Case, case};
use crate::https::HttpRequest;
use crate::wire::path;

/// Most failures of one kind that T52 and T54 show.
const SHOWN: usize = 10;

pub(super) fn cases() -> [Case; 4] {
    [
        case!(50, "unknown paths and wrong verbs", Calm, paths_and_verbs),
        case!(51, "a trailing slash is no redirect", Calm, trailing_slash),
        case!(52, "every error of the run has the standard's form and no key", Sums, errors),
        case!(54, "every key of the run came with Cache-Control: no-store", Sums, caches),
    ]
}

async fn paths_and_verbs(session: &Session) -> Ended {
    session.spend(1)?;
    let (a, b) = (&session.setup.a, &session.setup.b.id);
    let unknown = Refusal::of("5.1 A28", "a path that the standard does not know").with(&[404]);
    let unknown = unknown.tolerate(&[400, 401, 403, 405]);
    for request in
        [HttpRequest::get(path(b, "keys")), HttpRequest::get("/api/v1/keys"), HttpRequest::get("/")]
    {
        let exchange = session.send(a, request).await;
        session.refused(&exchange, &unknown);
    }
    let verb = Refusal::of("5.1 A28", "a verb that the standard does not know here").with(&[405]);
    let verb = verb.tolerate(&[400, 401, 403, 404, 501]);
    let posted = session.send(a, HttpRequest::post(path(b, "status"), "{}")).await;
    let put = HttpRequest { method: Method::PUT, ..HttpRequest::post(path(b, "enc_keys"), "{}") };
    for exchange in [posted, session.send(a, put).await] {
        session.refused(&exchange, &verb);
        let has_allow = exchange.status != 405 || exchange.header("allow").is_some();
        session.should(has_allow, &exchange, "RFC 7231 6.5.5, A28", "Allow with 405");
    }
    Ok(())
}

/// Requires that the path is served or not found, without a redirect.
fn is_no_redirect(session: &Session, exchange: &Exchange) {
    let fits =
        exchange.status == 200 || exchange.status == 404 || (!session.strict() && exchange.status == 400);
    session.check(
        fits,
        exchange,
        "5.1 A29",
        "the same answer as without the slash, or 404; never a redirect",
    );
}

async fn trailing_slash(session: &Session) -> Ended {
    let limits = session.limits()?;
    session.spend(1)?;
    let (a, b) = (&session.setup.a, &session.setup.b);
    is_no_redirect(session, &session.send(a, HttpRequest::get(path(&b.id, "status/"))).await);
    let exchange = session.send(a, HttpRequest::post(path(&b.id, "enc_keys/"), "{}")).await;
    is_no_redirect(session, &exchange);
    if exchange.status == 200 {
        session.fresh_of(&exchange, 1, limits.key_size, "6.3 R44-R46")?;
    }
    let key = session.fresh_one().await?;
    let body = json!({ "key_IDs": [{ "key_ID": key.id }] }).to_string();
    let exchange = session.send(b, HttpRequest::post(path(&a.id, "dec_keys/"), body)).await;
    is_no_redirect(session, &exchange);
    if exchange.status == 200 {
        session.same_keys(&exchange, std::slice::from_ref(&key), "5.4 R49");
    }
    Ok(())
}

async fn errors(session: &Session) -> Ended {
    // Some errors of its own, so that the test is useful if it runs alone.
    let nobody = format!("nobody-{}", uuid::Uuid::new_v4());
    let first = session.send(&session.setup.a, HttpRequest::get(path(&nobody, "status"))).await;
    if first.trouble.is_some() {
        return Err(Failure::new(&first, "6.5 R53", "an answer: no error was seen").into());
    }
    session.enc(&json!({ "number": -1 })).await;
    session.enc(&json!({ "extension_mandatory": [{ "zz_x": 1 }] })).await;
    session.b_gets(&[&uuid::Uuid::new_v4().to_string()]).await;
    session.b_posts(&json!({ "key_IDs": [] })).await;
    // A refusal that involves a key, if T45 has left one.
    if let Ok(key) = session.fresh_one().await {
        session.b_gets(&[&key.id, &uuid::Uuid::new_v4().to_string()]).await;
    }
    let (seen, formless) = session.errors_seen();
    session.note(format!("{seen} errors were looked at"));
    fail_with_first(session, formless);
    Ok(())
}

async fn caches(session: &Session) -> Ended {
    // If it runs alone, gets one container itself. Otherwise not, because T45 may have left no key.
    if session.containers_seen().0 == 0 {
        let key = session.fresh_one().await?;
        session.b_still_gets(&key, "5.4 R49").await;
    }
    let (seen, cached) = session.containers_seen();
    session.note(format!("{seen} key containers were looked at"));
    if session.strict() {
        fail_with_first(session, cached);
    } else if let Some(first) = cached.first() {
        session.note(format!("{} of them lack {} ({})", cached.len(), first.expected, first.clause));
    }
    Ok(())
}

fn fail_with_first(session: &Session, failures: Vec<Failure>) {
    let more = failures.len().saturating_sub(SHOWN);
    failures.into_iter().take(SHOWN).for_each(|failure| session.fail(failure));
    if more > 0 {
        session.note(format!("and {more} more of the kind"));
    }
}
