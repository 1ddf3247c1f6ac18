//! T37 to T39, T43: keys of others and paths that name the wrong SAE.

use serde_json::json;

use super::super::outcome::{Ended, Failure, Refusal, Sentence, Stop};
use super::super::session::Session;
use super::super::setup::Sae;
use super::case::{Case, case};
use crate::https::HttpRequest;
use crate::wire::path;

pub(super) fn cases() -> [Case; 4] {
    [
        case!(37, "nobody gets a key of others, and its owner still does", Calm, foreign),
        case!(38, "one foreign key among two: 401, the own key is not lost", Calm, own_and_foreign),
        case!(39, "the right key ID under another master", Calm, wrong_master),
        case!(43, "paths that name the caller, or nobody", Calm, own_path),
    ]
}

async fn foreign(session: &Session) -> Ended {
    let c = session.c()?;
    let key = session.fresh_one().await?;
    let of = "a key that does not name the caller";
    // At the KME that holds the key, even if C is served elsewhere.
    let at_b = Sae { url: session.setup.b.url.clone(), ..c.clone() };
    let request = || {
        let body = json!({ "key_IDs": [{ "key_ID": key.id }] });
        HttpRequest::post(path(&session.setup.a.id, "dec_keys"), body.to_string())
    };
    let exchange = session.send_alone(&at_b, request()).await;
    session.refused(&exchange, &Refusal::of("5.4 R50 A7", of).with(&[401]));
    if !session.c_is_with_b() {
        // C's own KME may not know the key at all.
        let exchange = session.send_alone(c, request()).await;
        let refusal = Refusal::of("5.4, 6.4 R50 R51", of).with(&[401, 400]).saying(Sentence::NOT_FOUND);
        session.refused(&exchange, &refusal);
    }
    session.b_still_gets(&key, "5.4 R50 A7").await;
    Ok(())
}

async fn own_and_foreign(session: &Session) -> Ended {
    let (c, limits) = (session.c()?, session.limits()?);
    let own = session.fresh_one().await?;
    session.spend(1)?;
    let exchange = session.send(&session.setup.a, HttpRequest::post(path(&c.id, "enc_keys"), "{}")).await;
    let keys = session.fresh_of(&exchange, 1, limits.key_size, "6.3 R44-R46")?;
    let missing = || Stop::from(Failure::new(&exchange, "6.3 R44", "one key"));
    let other = keys.first().ok_or_else(missing)?;
    let exchange = session.b_gets(&[&own.id, &other.id]).await;
    let refusal = Refusal::of("5.4 R50 A7", "one own and one foreign key");
    if session.c_is_with_b() {
        session.refused(&exchange, &refusal.with(&[401]));
    } else {
        // B's KME may not know the foreign key at all.
        session.refused(&exchange, &refusal.with(&[401, 400]).saying(Sentence::NOT_FOUND));
    }
    session.b_still_gets(&own, "5.4 R50 A7 A8").await;
    let exchange = session.dec(c, &session.setup.a.id, &[&other.id]).await;
    session.same_keys(&exchange, std::slice::from_ref(other), "5.4 R50 A7");
    Ok(())
}

async fn wrong_master(session: &Session) -> Ended {
    let key = session.fresh_one().await?;
    let nobody = format!("nobody-{}", uuid::Uuid::new_v4());
    let master = session.setup.c.as_ref().map_or(&nobody, |c| &c.id);
    let exchange = session.dec(&session.setup.b, master, &[&key.id]).await;
    let refusal = Refusal::of("5.4, 6.4 R51 A1", "a key of A under the path of another master");
    session.refused(&exchange, &refusal.tolerate(&[200, 401, 404]));
    if exchange.status != 200 {
        session.b_still_gets(&key, "5.4 A1").await;
    }
    Ok(())
}

async fn own_path(session: &Session) -> Ended {
    session.spend(2)?;
    let (a, b) = (&session.setup.a, &session.setup.b);
    let own = |of| Refusal::of("5.3, 5.4 R18 A25", of).tolerate(&[200, 401, 404]);
    let exchange = session.send(a, HttpRequest::post(path(&a.id, "enc_keys"), "{}")).await;
    session.refused(&exchange, &own("enc_keys for the caller itself"));
    let body = json!({ "key_IDs": [{ "key_ID": uuid::Uuid::new_v4() }] }).to_string();
    let exchange = session.send(b, HttpRequest::post(path(&b.id, "dec_keys"), body.as_str())).await;
    session.refused(&exchange, &own("dec_keys of the caller itself"));
    let blank = |of| Refusal::of("5.1 R17 R18", of).tolerate(&[401, 404]);
    let exchange = session.send(a, HttpRequest::post(path(" ", "enc_keys"), "{}")).await;
    session.refused(&exchange, &blank("enc_keys for an SAE called `%20`"));
    let exchange = session.send(b, HttpRequest::post(path(" ", "dec_keys"), body)).await;
    session.refused(&exchange, &blank("dec_keys of an SAE called `%20`"));
    Ok(())
}
