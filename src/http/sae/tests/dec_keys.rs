//! Get key with key IDs: clauses 5.4, 6.4.

use super::*;
use crate::delivery::testing::KEY_TTL;

const UNKNOWN: &str = "00000000-0000-4000-8000-000000000000";

async fn not_found(net: &Net, caller: &str, path: &str, ids: &[&str]) {
    let answer = net.dec(caller, path, ids).await;
    assert_eq!((answer.status, answer.message().as_str()), (StatusCode::BAD_REQUEST, NOT_FOUND), "{ids:?}");
}

#[tokio::test]
async fn a_slave_gets_what_the_master_got_once_in_the_order_asked() {
    let net = Net::new().await;
    let made = net.enc(3).await;
    let ids: Vec<&str> = made.iter().rev().map(|(id, _)| id.as_str()).collect();
    let reversed: Vec<_> = made.iter().rev().cloned().collect();
    assert_eq!(net.dec("bob", "alice", &ids).await.keys(), reversed);
    for id in ids {
        not_found(&net, "bob", "alice", &[id]).await;
    }
}

#[tokio::test]
async fn both_methods_and_lenient_forms_are_served() {
    let net = Net::new().await;
    let made = net.enc(8).await;
    let id = |n: usize| made[n].0.as_str();
    let get = |n: usize| format!("alice/dec_keys?key_ID={}", id(n));
    assert_eq!(net.get("bob", &get(0)).await.keys()[0], made[0]);
    assert_eq!(net.get("bob", &format!("{}&key_size=256", get(1))).await.keys()[0], made[1]);
    let upper = format!("alice/dec_keys/?key%5fID={}", id(2).to_uppercase());
    assert_eq!(net.get("bob", &upper).await.keys()[0], made[2]);
    let bodies = [
        format!(
            r#"{{"key_IDs":[{{"key_ID":"{}","key_ID_extension":{{}}}}],"key_IDs_extension":{{}}}}"#,
            id(3)
        ),
        format!(r#"{{"key_IDs":[{{"key_ID":"{}","key_ID_extension":"","master_SAE_ID":"alice"}}]}}"#, id(4)),
        format!(
            r#"{{"key_IDs":[{{"key_ID_extension":null,"key_ID":"{}"}}],"key_IDs_extension":null,"x":1}}"#,
            id(5)
        ),
        format!(r#"{{"key_IDs":[{{"key_ID":"{}"}}]}}"#, id(6).to_uppercase()),
    ];
    for (n, body) in (3..).zip(bodies) {
        assert_eq!(net.post("bob", "alice/dec_keys?key_ID=x", body).await.keys()[0], made[n]);
    }
    let untyped = Request::post("/api/v1/keys/site-a/dec_keys/");
    let body = format!(r#"{{"key_IDs":[{{"key_ID":"{}"}}]}}"#, id(7));
    assert_eq!(net.call("bob", untyped, body).await.keys()[0], made[7]);
}

#[tokio::test]
async fn requests_that_name_no_key_rightly_are_400_and_use_up_nothing() {
    let net = Net::new().await;
    let made = net.enc(1).await;
    let id = made[0].0.as_str();
    let before = net.marks().await;
    let nine = format!(r#"{{"key_IDs":[{}]}}"#, vec![format!(r#"{{"key_ID":"{UNKNOWN}"}}"#); 9].join(","));
    let twice = format!(r#"{{"key_IDs":[{{"key_ID":"{id}"}},{{"key_ID":"{}"}}]}}"#, id.to_uppercase());
    let as_text = format!(r#"{{"key_IDs":["{id}"]}}"#);
    let as_array = format!(r#"{{"key_IDs":[["{id}"]]}}"#);
    let bare = format!(r#"{{"key_IDs":"{id}"}}"#);
    let alone = format!(r#"{{"key_IDs":{{"key_ID":"{id}"}}}}"#);
    let cut = format!(r#"{{"key_IDs":[{{"key_ID":"{id}"}}]"#);
    let half = format!(r#"{{"key_IDs":[{{"key_ID":"{id}"}},{{"key_ID":"not-a-uuid"}}]}}"#);
    let undashed = format!(r#"{{"key_IDs":[{{"key_ID":"{}"}}]}}"#, id.replace('-', ""));
    for body in [
        "",
        "{}",
        "[]",
        "null",
        r#"{"key_IDs":null}"#,
        r#"{"key_IDs":[]}"#,
        r#"{"key_IDs":[{}]}"#,
        r#"{"key_IDs":[null]}"#,
        r#"{"key_IDs":[{"key_ID":null}]}"#,
        r#"{"key_IDs":[{"key_ID":7}]}"#,
        r#"{"key_IDs":[{"key_ID":""}]}"#,
        &nine,
        &twice,
        &as_text,
        &as_array,
        &bare,
        &alone,
        &cut,
        &half,
        &undashed,
    ] {
        let answer = net.post("bob", "alice/dec_keys", body.to_owned()).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{body}: {answer:?}");
        assert!(!answer.message().is_empty() && answer.message() != NOT_FOUND, "{body}: {answer:?}");
    }
    for query in ["", "?key_ID=", "?key_id=", "?key_ID=not-a-uuid", &format!("?key_ID={id}&key_ID={id}")] {
        let answer = net.get("bob", &format!("alice/dec_keys{query}")).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{query}");
        assert!(!answer.message().is_empty());
    }
    for path in ["bob", "%20", "%00", "%ff"] {
        let answer = net.dec("bob", path, &[id]).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{path}");
    }
    assert_eq!(net.marks().await, before);
    assert_eq!(net.dec("bob", "alice", &[id]).await.keys(), made, "the key is still there");
}

#[tokio::test]
async fn all_keys_or_none_and_no_difference_between_unknown_retrieved_and_expired() {
    let net = Net::new().await;
    let made = net.enc(3).await;
    let ids: Vec<&str> = made.iter().map(|(id, _)| id.as_str()).collect();
    not_found(&net, "bob", "alice", &[UNKNOWN]).await;
    not_found(&net, "bob", "alice", &["00000000-0000-0000-0000-000000000000"]).await;
    not_found(&net, "bob", "alice", &[ids[0], UNKNOWN]).await;
    not_found(&net, "bob", "dave", &[ids[0]]).await;
    assert_eq!(net.dec("bob", "alice", &[ids[0]]).await.keys(), made[..1]);
    not_found(&net, "bob", "alice", &[ids[1], ids[0]]).await;
    assert_eq!(net.dec("bob", "alice", &[ids[1]]).await.keys(), made[1..2]);
    net.sites.clock.advance(KEY_TTL);
    not_found(&net, "bob", "alice", &[ids[2]]).await;
}

#[tokio::test]
async fn a_key_of_others_is_401_for_the_whole_request_and_uses_up_nothing() {
    let net = Net::new().await;
    let made = net.enc(1).await;
    let own = net.get("alice", "carol/enc_keys").await.keys();
    for ids in [vec![&made[0].0], vec![&own[0].0, &made[0].0]] {
        let ids: Vec<&str> = ids.into_iter().map(String::as_str).collect();
        let answer = net.dec("carol", "alice", &ids).await;
        assert_eq!((answer.status, answer.message().as_str()), (StatusCode::UNAUTHORIZED, "Unauthorized"));
    }
    assert_eq!(net.dec("carol", "alice", &[&own[0].0]).await.keys(), own);
    assert_eq!(net.dec("bob", "alice", &[&made[0].0]).await.keys(), made);
}

#[tokio::test]
async fn of_many_at_once_exactly_one_gets_the_key() {
    let net = Arc::new(Net::new().await);
    let made = net.get("alice", "site-b/enc_keys").await.keys();
    let id = made[0].0.clone();
    let mut calls = tokio::task::JoinSet::new();
    for n in 0..50 {
        let (net, id) = (Arc::clone(&net), id.clone());
        let caller = if n % 2 == 0 { "bob" } else { "carol" };
        calls.spawn(async move { net.dec(caller, "site-a", &[&id]).await });
    }
    let answers = calls.join_all().await;
    let (got, refused): (Vec<_>, Vec<_>) = answers.iter().partition(|answer| answer.status == StatusCode::OK);
    assert_eq!((got.len(), refused.len()), (1, 49));
    assert_eq!(got[0].keys(), made);
    assert!(refused.iter().all(|answer| answer.message() == NOT_FOUND));
}
