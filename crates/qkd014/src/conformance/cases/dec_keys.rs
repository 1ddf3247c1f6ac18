//! T31 to T36, T40 to T42: Get key with key IDs, called by the SAEs that the keys are for.

use serde_json::{Value, json};

use super::super::outcome::{Ended, Refusal, Sentence};
use super::super::session::Session;
use super::case::{Case, case};

const SAME: &str = "5.4, 6.4 R49";

pub(super) fn cases() -> [Case; 9] {
    [
        case!(31, "POST dec_keys returns the three keys that the master got", Calm, three),
        case!(32, "GET dec_keys returns one key", Calm, one_by_get),
        case!(33, "a key is returned once", Calm, once),
        case!(34, "key IDs that nobody has", Calm, unknown),
        case!(35, "malformed key IDs", Calm, malformed),
        case!(36, "one unknown key among two: none is returned, none is lost", Calm, all_or_none),
        case!(40, "a key ID in upper case", Calm, upper_case),
        case!(41, "the same key ID twice in a request", Calm, twice),
        case!(42, "extensions of key IDs", Calm, extensions),
    ]
}

async fn three(session: &Session) -> Ended {
    let keys = session.fresh(3).await?;
    let ids: Vec<&str> = keys.iter().map(|key| key.id.as_str()).collect();
    session.same_keys(&session.b_gets(&ids).await, &keys, SAME);
    Ok(())
}

async fn one_by_get(session: &Session) -> Ended {
    let key = session.fresh_one().await?;
    let exchange = session.b_asks(&format!("?key_ID={}", key.id)).await;
    session.same_keys(&exchange, std::slice::from_ref(&key), "5.4, 6.4 R16 R49");
    Ok(())
}

async fn once(session: &Session) -> Ended {
    let key = session.fresh_one().await?;
    let query = format!("?key_ID={}", key.id);
    let exchange = session.b_asks(&query).await;
    session.same_keys(&exchange, std::slice::from_ref(&key), SAME);
    let refusal =
        || Refusal::of("5.4, 6.4 R51 R52 A10", "a key that was returned before").saying(Sentence::NOT_FOUND);
    session.refused(&session.b_asks(&query).await, &refusal());
    session.refused(&session.b_gets(&[&key.id]).await, &refusal());
    Ok(())
}

async fn unknown(session: &Session) -> Ended {
    let random = uuid::Uuid::new_v4().to_string();
    let nil = uuid::Uuid::nil().to_string();
    for (id, of) in [(random, "a key ID that no key has"), (nil, "the nil UUID")] {
        let refusal = Refusal::of("6.4 R51 A6", of).saying(Sentence::NOT_FOUND);
        session.refused(&session.b_gets(&[&id]).await, &refusal);
        session.refused(&session.b_asks(&format!("?key_ID={id}")).await, &refusal);
    }
    Ok(())
}

async fn malformed(session: &Session) -> Ended {
    let bodies: [(Value, &str); 5] = [
        (json!({ "key_IDs": [{ "key_ID": "not-a-uuid" }] }), "a key_ID that is no UUID"),
        (json!({ "key_IDs": [{}] }), "an entry of key_IDs without key_ID"),
        (json!({ "key_IDs": [] }), "an empty key_IDs"),
        (json!({}), "a body without key_IDs"),
        (json!({ "key_IDs": { "key_ID": uuid::Uuid::new_v4().to_string() } }), "key_IDs that is no array"),
    ];
    for (body, of) in bodies {
        session.refused(&session.b_posts(&body).await, &Refusal::of("6.4 R48 A22", of));
    }
    for (query, of) in
        [("?key_ID=not-a-uuid", "a key_ID that is no UUID"), ("", "a GET of dec_keys without key_ID")]
    {
        session.refused(&session.b_asks(query).await, &Refusal::of("6.4 R16 A22", of));
    }
    // With the ID of an existing key: an unknown one would be refused anyway.
    let key = session.fresh_one().await?;
    let exchange = session.b_posts(&json!({ "key_IDs": [key.id] })).await;
    session.refused(&exchange, &Refusal::of("6.4 R48", "key_IDs of strings").tolerate(&[200]));
    if exchange.status != 200 {
        session.b_still_gets(&key, "6.4 R48 R51").await;
    }
    Ok(())
}

async fn all_or_none(session: &Session) -> Ended {
    let key = session.fresh_one().await?;
    let unknown = uuid::Uuid::new_v4().to_string();
    let exchange = session.b_gets(&[&key.id, &unknown]).await;
    let refusal = Refusal::of("6.4 R51 A8", "one unknown key among two (no partial container)");
    session.refused(&exchange, &refusal.saying(Sentence::NOT_FOUND));
    session.b_still_gets(&key, "6.4 R51 A8").await;
    Ok(())
}

async fn upper_case(session: &Session) -> Ended {
    let key = session.fresh_one().await?;
    let exchange = session.b_gets(&[&key.id.to_ascii_uppercase()]).await;
    if exchange.status == 400 {
        session.should(false, &exchange, "6.4 A22", "the key: letters of a UUID have no case");
        session.b_still_gets(&key, SAME).await;
    } else {
        session.same_keys(&exchange, std::slice::from_ref(&key), "6.4 R49 A22");
    }
    Ok(())
}

async fn twice(session: &Session) -> Ended {
    let key = session.fresh_one().await?;
    let exchange = session.b_gets(&[&key.id, &key.id]).await;
    session.refused(&exchange, &Refusal::of("6.4 A23", "the same key_ID twice").tolerate(&[200]));
    if exchange.status == 400 {
        session.b_still_gets(&key, "6.4 R51 A23").await;
    }
    Ok(())
}

async fn extensions(session: &Session) -> Ended {
    let key = session.fresh_one().await?;
    let entry = json!({ "key_ID": key.id, "key_ID_extension": {} });
    let exchange = session.b_posts(&json!({ "key_IDs": [entry], "key_IDs_extension": {} })).await;
    session.same_keys(&exchange, std::slice::from_ref(&key), "6.4 R48");
    Ok(())
}
