//! T10 to T16, T21, T22, T25, T26: Get key, requests that must be served.

use http::Method;
use serde_json::{Value, json};

use super::super::exchange::Exchange;
use super::super::outcome::{Ended, Refusal, Sentence};
use super::super::session::{Limits, Session};
use super::case::{Case, case};
use crate::https::{BODY_MAX_BYTES, HttpRequest};
use crate::wire::path;

const CONTAINER: &str = "6.3 R44-R46";

pub(super) fn cases() -> [Case; 11] {
    [
        case!(10, "POST enc_keys with {} gives one key of the default size", Calm, empty_object),
        case!(11, "POST enc_keys without a body gives one key", Calm, no_body),
        case!(12, "GET enc_keys gives one key", Calm, get),
        case!(13, "GET enc_keys with number and size", Calm, get_number_and_size),
        case!(14, "POST enc_keys with number and size", Calm, post_number_and_size),
        case!(15, "number alone, size alone: the other has its default", Calm, one_of_both),
        case!(16, "smallest, default and largest size", Calm, sizes),
        case!(21, "members that are null count as absent", Calm, nulls),
        case!(22, "unknown members and query names are ignored", Calm, extras),
        case!(25, "an unknown optional extension is ignored, or refused with its sentence", Calm, optional),
        case!(26, "empty lists of extensions and of additional SAEs", Calm, empty_lists),
    ]
}

/// Requires one key of the default size.
fn one_key(session: &Session, exchange: &Exchange, limits: Limits, clause: &'static str) {
    if let Err(failure) = session.fresh_of(exchange, 1, limits.key_size, clause) {
        session.fail(failure);
    }
}

/// Requires one key of the default size where the standard leaves a choice: in the lenient profile, a refusal
/// in the standard's form is only noted.
fn one_key_or_note(session: &Session, exchange: &Exchange, limits: Limits, clause: &'static str, of: &str) {
    if exchange.status == 400 && exchange.message().is_some() {
        session.should(false, exchange, clause, &format!("status 200 and a key for {of}"));
    } else {
        one_key(session, exchange, limits, clause);
    }
}

async fn empty_object(session: &Session) -> Ended {
    let limits = session.limits()?;
    session.spend(1)?;
    let exchange = session.enc(&json!({})).await;
    for key in session.fresh_of(&exchange, 1, limits.key_size, CONTAINER)? {
        let is_usual = key.id == key.id.to_ascii_lowercase()
            && uuid::Uuid::try_parse(&key.id).is_ok_and(|id| id.get_version_num() == 4);
        session.should(is_usual, &exchange, "6.3 R45 A22", "`key_ID` as a lower-case UUID of version 4");
    }
    Ok(())
}

async fn no_body(session: &Session) -> Ended {
    let limits = session.limits()?;
    session.spend(1)?;
    let request = HttpRequest::new(Method::POST, path(&session.setup.b.id, "enc_keys"));
    let exchange = session.send(&session.setup.a, request).await;
    one_key_or_note(session, &exchange, limits, "6.2 R31 A19", "a POST without a body");
    Ok(())
}

async fn get(session: &Session) -> Ended {
    let limits = session.limits()?;
    session.spend(1)?;
    one_key(session, &session.enc_get("").await, limits, "5.1 R14");
    Ok(())
}

/// Three keys of 1024 bits, or as close as the limits allow.
fn some(limits: Limits) -> (usize, u64) {
    let number = usize::try_from(limits.max_per_request.clamp(1, 3)).unwrap_or(1);
    let is_allowed = (limits.min_key_size..=limits.max_key_size).contains(&1024);
    (number, if is_allowed { 1024 } else { limits.key_size })
}

async fn get_number_and_size(session: &Session) -> Ended {
    let (number, size) = some(session.limits()?);
    session.spend(number)?;
    let exchange = session.enc_get(&format!("?number={number}&size={size}")).await;
    session.fresh_of(&exchange, number, size, CONTAINER)?;
    Ok(())
}

async fn post_number_and_size(session: &Session) -> Ended {
    let (number, size) = some(session.limits()?);
    session.spend(number)?;
    let exchange = session.enc(&json!({ "number": number, "size": size })).await;
    session.fresh_of(&exchange, number, size, CONTAINER)?;
    Ok(())
}

async fn one_of_both(session: &Session) -> Ended {
    let limits = session.limits()?;
    let (number, size) = some(limits);
    session.spend(2 * (number + 1))?;
    for exchange in
        [session.enc(&json!({ "number": number })).await, session.enc_get(&format!("?number={number}")).await]
    {
        if let Err(failure) = session.fresh_of(&exchange, number, limits.key_size, "6.2 R33") {
            session.fail(failure);
        }
    }
    for exchange in
        [session.enc(&json!({ "size": size })).await, session.enc_get(&format!("?size={size}")).await]
    {
        if let Err(failure) = session.fresh_of(&exchange, 1, size, "6.2 R32") {
            session.fail(failure);
        }
    }
    Ok(())
}

async fn sizes(session: &Session) -> Ended {
    let limits = session.limits()?;
    let mut sizes = vec![limits.min_key_size, limits.key_size, limits.max_key_size];
    sizes.dedup();
    session.spend(sizes.len())?;
    for size in sizes {
        // The largest key, in base64 and JSON, must fit into the longest answer that is read.
        if size > BODY_MAX_BYTES as u64 * 4 {
            session.note(format!("keys of {size} bits were not asked for: too large"));
            continue;
        }
        let exchange = session.enc(&json!({ "size": size })).await;
        if size % 8 != 0 && exchange.status == 400 {
            let refusal = Refusal::of("6.2 R35 A12", "a size that is no multiple of 8");
            session.refused(&exchange, &refusal.saying(Sentence::OCTETS));
        } else if let Err(failure) = session.fresh_of(&exchange, 1, size, "6.1, 6.3 R27 R28 R46") {
            session.fail(failure);
        }
    }
    Ok(())
}

async fn nulls(session: &Session) -> Ended {
    let limits = session.limits()?;
    session.spend(1)?;
    let body = json!({ "number": null, "size": null, "additional_slave_SAE_IDs": null });
    one_key_or_note(session, &session.enc(&body).await, limits, "6.2 A18", "members that are null");
    Ok(())
}

async fn extras(session: &Session) -> Ended {
    let limits = session.limits()?;
    session.spend(2)?;
    let exchange = session.enc(&json!({ "additional_target_sae_ids": [] })).await;
    one_key_or_note(session, &exchange, limits, "6.2 A17", "an unknown member");
    let exchange = session.enc_get("?key_size=256").await;
    one_key_or_note(session, &exchange, limits, "6.2 A17", "an unknown name in the query");
    Ok(())
}

async fn optional(session: &Session) -> Ended {
    let limits = session.limits()?;
    session.spend(1)?;
    let exchange = session.enc(&json!({ "extension_optional": [{ "zz_x": { "a": [1] } }] })).await;
    if exchange.status == 400 {
        let refusal = Refusal::of("6.2 R40", "an unknown optional extension, unless it is ignored");
        session.refused(&exchange, &refusal.saying(Sentence::UNHANDLED));
    } else {
        one_key(session, &exchange, limits, "6.2 R40 R41");
    }
    Ok(())
}

async fn empty_lists(session: &Session) -> Ended {
    let limits = session.limits()?;
    let bodies: [(Value, &str); 5] = [
        (json!({ "extension_mandatory": [] }), "an empty extension_mandatory"),
        (json!({ "extension_optional": [] }), "an empty extension_optional"),
        (json!({ "extension_mandatory": [{}] }), "an extension_mandatory of one empty object"),
        (json!({ "extension_optional": [{}] }), "an extension_optional of one empty object"),
        (json!({ "additional_slave_SAE_IDs": [] }), "an empty additional_slave_SAE_IDs"),
    ];
    session.spend(bodies.len())?;
    for (body, of) in bodies {
        let exchange = session.enc(&body).await;
        one_key_or_note(session, &exchange, limits, "6.2 R31 A15 A16", of);
    }
    Ok(())
}
