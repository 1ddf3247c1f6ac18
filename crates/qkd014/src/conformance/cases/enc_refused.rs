//! T17 to T20, T23, T24: Get key, requests that must be refused.

use serde_json::{Value, json};

use super::super::exchange::Exchange;
use super::super::outcome::{Ended, Refusal, Sentence, skip};
use super::super::session::Session;
use super::case::{Case, case};
use crate::https::HttpRequest;
use crate::wire::path;

pub(super) fn cases() -> [Case; 6] {
    [
        case!(17, "a size that is no multiple of 8", Calm, no_octets),
        case!(18, "sizes that are no sizes, or beyond the limits", Calm, bad_sizes),
        case!(19, "numbers that are no numbers, or beyond the limits", Calm, bad_numbers),
        case!(20, "malformed JSON, another shape, 1 MiB: never a key", Calm, bad_bodies),
        case!(23, "an unknown mandatory extension", Calm, unsupported),
        case!(24, "a mandatory extension that cannot be met", Calm, unmet),
    ]
}

async fn no_octets(session: &Session) -> Ended {
    let limits = session.limits()?;
    let size =
        if (limits.key_size + 1).is_multiple_of(8) { limits.key_size + 2 } else { limits.key_size + 1 };
    session.spend(3)?;
    let exchanges =
        [session.enc_get(&format!("?size={size}")).await, session.enc(&json!({ "size": size })).await];
    for exchange in exchanges {
        let is_in_range = size <= limits.max_key_size;
        if exchange.status == 200 && is_in_range {
            // Allowed (R34), with the length asked for.
            if let Err(failure) = session.fresh_of(&exchange, 1, size, "6.2 R34 R35") {
                session.fail(failure);
            }
            continue;
        }
        let refusal = Refusal::of("6.2 R35 A12", "a size that is no multiple of 8");
        if is_in_range || session.strict() {
            session.refused(&exchange, &refusal.saying(Sentence::OCTETS));
        } else {
            session.refused(&exchange, &refusal);
        }
    }
    let body = json!({ "size": size });
    if session.enc(&body).await.status != 200 {
        session.uses_nothing("6.2 R35 R59", || session.enc(&body)).await;
    }
    Ok(())
}

/// The refusal of values beyond all limits. The lenient profile also accepts what other KMEs answer.
fn beyond(of: &'static str) -> Refusal {
    Refusal::of("6.1, 6.2 R18 A14", of).tolerate(&[503])
}

async fn bad_sizes(session: &Session) -> Ended {
    let limits = session.limits()?;
    let malformed = |of| Refusal::of("6.2 R18 A13", of);
    let over = limits.max_key_size.saturating_add(8 - limits.max_key_size % 8);
    let mut cases: Vec<(Value, Refusal)> = vec![
        (json!(0), malformed("a size of 0")),
        (json!(-8), malformed("a negative size")),
        (json!("abc01"), malformed("a size that is no number")),
        (json!(8.5), malformed("a size that is no integer")),
        (json!("256"), malformed("a size that is a string").tolerate(&[200])),
        (json!(over), beyond("a size above max_key_size")),
    ];
    let under = limits.min_key_size.saturating_sub(1) / 8 * 8;
    if under > 0 {
        cases.push((json!(under), beyond("a size below min_key_size")));
    }
    refuses_each(session, "size", cases).await
}

async fn bad_numbers(session: &Session) -> Ended {
    let limits = session.limits()?;
    let malformed = |of| Refusal::of("6.2 R18 A13", of);
    let cases = vec![
        (json!(0), malformed("a number of 0").tolerate(&[200])),
        (json!(-8), malformed("a negative number")),
        (json!("abc01"), malformed("a number that is none")),
        (json!(limits.max_per_request.saturating_add(1)), beyond("a number above max_key_per_request")),
        (json!(1_u64 << 63), beyond("a number of 2^63")),
    ];
    refuses_each(session, "number", cases).await
}

/// By POST and, except for JSON strings of digits, by GET.
async fn refuses_each(session: &Session, name: &str, cases: Vec<(Value, Refusal)>) -> Ended {
    session.spend(2 * cases.len())?;
    for (value, refusal) in cases {
        session.refused(&session.enc(&json!({ name: value })).await, &refusal);
        let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        if text != "256" {
            session.refused(&session.enc_get(&format!("?{name}={text}")).await, &refusal);
        }
    }
    let body = json!({ name: -8 });
    session.uses_nothing("6.2 R59", || session.enc(&body)).await;
    Ok(())
}

async fn posted(session: &Session, body: &str) -> Exchange {
    session.send_alone(&session.setup.a, HttpRequest::post(path(&session.setup.b.id, "enc_keys"), body)).await
}

async fn bad_bodies(session: &Session) -> Ended {
    session.spend(8)?;
    for (body, of) in [
        (r#"{"number":1"#, "JSON that ends early"),
        (r#"{"number":}"#, "JSON without a value"),
        (r"{'number':1}", "JSON with single quotes"),
        ("number=1", "a body that is no JSON"),
        ("[]", "JSON whose root is an array"),
        (r#"[{"number":1}]"#, "JSON whose root is an array with an object"),
        (r#""number""#, "JSON whose root is a string"),
    ] {
        session.refused(&posted(session, body).await, &Refusal::of("5.1, 6.2 R9 A20", of));
    }
    // Malformed too, so that serving it is always wrong.
    let huge = format!(r#"{{"zz_x":"{}"#, "a".repeat(1024 * 1024));
    let exchange = posted(session, &huge).await;
    if exchange.trouble.is_some() {
        session.note("a body of 1 MiB: the connection was closed without an answer");
    } else {
        let refusal = Refusal::of("6.2 R18 A28", "a malformed body of 1 MiB");
        session.refused(&exchange, &refusal.with(&[400, 413]));
    }
    session.uses_nothing("6.2 R59 A20", || posted(session, r#"{"number":1"#)).await;
    Ok(())
}

async fn unsupported(session: &Session) -> Ended {
    session.spend(1)?;
    let body = json!({ "extension_mandatory": [{ "zz_x": 1 }] });
    let refusal = Refusal::of("6.2 R38", "an unknown mandatory extension");
    session.refused(&session.enc(&body).await, &refusal.saying(Sentence::UNSUPPORTED));
    session.uses_nothing("6.2 R38 R59", || session.enc(&body)).await;
    Ok(())
}

async fn unmet(session: &Session) -> Ended {
    let Some(extension) = &session.setup.unmet_extension else {
        return skip("needs a supported extension with a value that cannot be met: --unmet-extension");
    };
    session.spend(1)?;
    let body = json!({ "extension_mandatory": [extension] });
    let refusal = Refusal::of("6.2 R39", "a mandatory extension that cannot be met");
    session.refused(&session.enc(&body).await, &refusal.saying(Sentence::UNMET));
    session.uses_nothing("6.2 R39 R59", || session.enc(&body)).await;
    Ok(())
}
