//! Get key: clauses 5.3, 6.2, 6.3.

use std::collections::BTreeSet;

use serde_json::json;

use super::*;
use crate::delivery::testing::{Placed, to_kme, to_sae};
use crate::store::testing::counts;

#[tokio::test]
async fn every_way_to_ask_for_nothing_in_particular_gives_one_key_of_the_default_size() {
    let net = Net::new().await;
    let mut seen = BTreeSet::new();
    let mut check = |what: &str, answer: &TestAnswer| {
        let keys = answer.keys();
        assert_eq!((keys.len(), keys[0].1.len()), (1, 32), "{what}");
        assert!(seen.insert(keys[0].clone()), "{what}: the same key again");
        let id = uuid::Uuid::parse_str(&keys[0].0).unwrap();
        assert_eq!((id.get_version_num(), id.to_string()), (4, keys[0].0.clone()), "{what}");
    };
    for query in ["", "/", "?", "?key_size=1024", "?x", "?number=1", "?size=256", "?number=1&size=256&x=%ff"]
    {
        check(query, &net.get("alice", &format!("bob/enc_keys{query}")).await);
    }
    for body in [
        "",
        "{}",
        " {\n} ",
        r#"{"number":null,"size":null,"additional_slave_SAE_IDs":null}"#,
        r#"{"extension_mandatory":null,"extension_optional":null}"#,
        r#"{"additional_slave_SAE_IDs":[],"extension_mandatory":[],"extension_optional":[]}"#,
        r#"{"extension_mandatory":[{}],"extension_optional":[{},{}]}"#,
        r#"{"additional_target_sae_ids":[],"Number":7,"x":{"y":[[]]}}"#,
        r#"{"extension_optional":[{"zz_x":{"a":[1]}},{"zz_y":null}]}"#,
        r#"{"number":1}"#,
        r#"{"size":256}"#,
    ] {
        check(body, &net.post("alice", "bob/enc_keys", body).await);
    }
    // curl -d without a header, and no header at all.
    let form = Request::post("/api/v1/keys/bob/enc_keys/")
        .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded");
    check("form type", &net.call("alice", form, "{}").await);
    check("no type", &net.call("alice", Request::post("/api/v1/keys/bob/enc_keys"), "{}").await);
    // A query beside a body, and a body beside a query, are ignored.
    check("POST with query", &net.post("alice", "bob/enc_keys?number=3&size=x", "{}").await);
    let get = Request::get("/api/v1/keys/bob/enc_keys");
    check("GET with body", &net.call("alice", get, r#"{"number":3"#).await);
}

#[tokio::test]
async fn where_the_standard_is_read_strictly_paths_name_saes_and_lists_are_not_empty() {
    let net = Net::with(DeliveryRules { strict: true, ..rules() }).await;
    for call in ["status", "enc_keys"] {
        let answer = net.get("alice", &format!("site-b/{call}")).await;
        assert_eq!(
            (answer.status, answer.message().as_str()),
            (StatusCode::BAD_REQUEST, "the SAE or KME in the path is unknown")
        );
    }
    let empty = net.post("alice", "bob/enc_keys", r#"{"additional_slave_SAE_IDs":[]}"#).await;
    assert_eq!(empty.message(), "additional_slave_SAE_IDs shall name at least one SAE");
    assert_eq!(net.marks().await, [(0, 0); 2], "nothing was made");
    let made = net.post("alice", "bob/enc_keys", r#"{"additional_slave_SAE_IDs":null}"#).await.keys();
    assert_eq!(net.dec("bob", "site-a", &[&made[0].0]).await.message(), NOT_FOUND);
    assert_eq!(net.dec("bob", "alice", &[&made[0].0]).await.keys(), made);
}

#[tokio::test]
async fn number_and_size_are_exact_in_both_methods() {
    let net = Net::new().await;
    for (number, bits) in [(1, 64), (3, 512), (8, 4096), (2, 256)] {
        let by_get = net.get("alice", &format!("bob/enc_keys?size={bits}&number={number}")).await;
        let body = json!({ "number": number, "size": bits }).to_string();
        let by_post = net.post("alice", "bob/enc_keys", body).await;
        for answer in [by_get, by_post] {
            let keys = answer.keys();
            assert_eq!(keys.len(), number);
            assert!(keys.iter().all(|(_, key)| key.len() * 8 == bits), "{bits} bits");
            let distinct: BTreeSet<_> = keys.iter().collect();
            assert_eq!(distinct.len(), number);
        }
    }
}

#[tokio::test]
async fn bad_numbers_and_sizes_are_400_and_make_nothing() {
    let net = Net::new().await;
    let octets = "size shall be a multiple of 8";
    let size_range = "size shall be an integer from 64 to 4096 (bits)";
    let size_text = "size shall be an integer";
    let number_range = "number shall be an integer from 1 to 8";
    let number_text = "number shall be an integer";
    for (name, value, expected) in [
        ("size", "257", octets),
        ("size", "1", octets),
        ("size", "4097", octets),
        ("size", "-9", octets),
        ("size", "0", size_range),
        ("size", "-8", size_range),
        ("size", "56", size_range),
        ("size", "4104", size_range),
        ("size", "18446744073709551616", size_range),
        ("size", "8.5", size_text),
        ("size", "256.0", size_text),
        ("size", "2e2", size_text),
        ("number", "0", number_range),
        ("number", "-8", number_range),
        ("number", "9", number_range),
        ("number", "9223372036854775808", number_range),
        ("number", "1.0", number_text),
    ] {
        let get = net.get("alice", &format!("bob/enc_keys?{name}={value}")).await;
        assert_eq!((get.status, get.message()), (StatusCode::BAD_REQUEST, expected.into()), "{name}={value}");
        let post = net.post("alice", "bob/enc_keys", format!(r#"{{"{name}":{value}}}"#)).await;
        // JSON has no integers of more than 64 bits, so serde_json reads a larger one as a float.
        let expected = if value.len() == 20 { size_text } else { expected };
        assert_eq!(
            (post.status, post.message()),
            (StatusCode::BAD_REQUEST, expected.into()),
            "{name}:{value}"
        );
    }
    for query in
        ["number=abc01", "size=", "number=+1", "number=%201", "size=0x100", "number=1&number=1", "size=%ff"]
    {
        let answer = net.get("alice", &format!("bob/enc_keys?{query}")).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{query}");
        assert!(!answer.message().is_empty());
    }
    for value in [r#""256""#, "true", "[1]", "{}", r#""abc01""#] {
        for name in ["number", "size"] {
            let answer = net.post("alice", "bob/enc_keys", format!(r#"{{"{name}":{value}}}"#)).await;
            assert_eq!(answer.status, StatusCode::BAD_REQUEST);
            assert_eq!(answer.message(), format!("{name} shall be an integer"), "{value}");
        }
    }
    assert_eq!(net.marks().await, [(0, 0); 2], "nothing was made");
}

#[tokio::test]
async fn json_that_is_not_a_request_never_yields_a_key() {
    let net = Net::new().await;
    let deep = format!(r#"{{"x":{}"#, "[".repeat(20_000));
    for body in [
        "{",
        "nonsense",
        "{} {}",
        "{}x",
        "[]",
        "[1,256,null,null,null]",
        "null",
        "7",
        r#""{}""#,
        " ",
        r#"{"number":1,}"#,
        r#"{"number":1,"number":1}"#,
        r"{'number':1}",
        r#"{"number":1 "size":256}"#,
        "\u{feff}{}",
        r#"{"number":NaN}"#,
        &deep,
    ] {
        let answer = net.post("alice", "bob/enc_keys", body.to_owned()).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{}", &body[..body.len().min(40)]);
        assert!(!answer.message().is_empty());
    }
    let answer = net.post("alice", "bob/enc_keys", b"{\"x\":\"\xff\"}".to_vec()).await;
    assert_eq!(answer.status, StatusCode::BAD_REQUEST, "no UTF-8");
    assert_eq!(net.marks().await, [(0, 0); 2], "nothing was made");
}

#[tokio::test]
async fn an_unknown_mandatory_extension_is_refused_with_the_sentence_of_the_standard() {
    let net = Net::new().await;
    let body = r#"{"extension_mandatory":[{},{"zz_x":{"secret":"s3same"},"zz_z":null},{"zz_y":[1]}]}"#;
    let answer = net.post("alice", "bob/enc_keys", body).await;
    assert_eq!(answer.status, StatusCode::BAD_REQUEST);
    assert_eq!(answer.message(), "not all extension_mandatory parameters are supported");
    let names = json!([{"zz_x": null, "zz_z": null}, {"zz_y": null}]);
    assert_eq!(answer.json()["details"], json!([{ "extension_mandatory_unsupported": names }]));
    assert!(!answer.text.contains("s3same"), "values are not repeated");
    assert_eq!(net.marks().await, [(0, 0); 2], "nothing was made");
}

#[tokio::test]
async fn own_extensions_tell_about_each_key_when_asked() {
    let net = Net::new().await;
    let grade = json!({"entropy_sources": ["os"], "pools": 3, "hybrid_tls": false});
    let expiry = json!({"expires_at": "2026-11-23T01:00:00Z"});
    for (body, expected) in [
        (r#"{"extension_optional":[{"dqkd_source_grade":{}}]}"#, json!({"dqkd_source_grade": grade})),
        (r#"{"extension_optional":[{"dqkd_expiry":"x"},{"zz_y":1}]}"#, json!({"dqkd_expiry": expiry})),
        (
            r#"{"number":2,"extension_mandatory":[{"dqkd_source_grade":{"min_pools":3,"entropy_source":"os"},
            "dqkd_expiry":{"min_seconds":3600}}]}"#,
            json!({"dqkd_source_grade": grade, "dqkd_expiry": expiry}),
        ),
    ] {
        let answer = net.post("alice", "bob/enc_keys", body).await;
        let made = answer.keys();
        for key in answer.json()["keys"].as_array().unwrap() {
            assert_eq!(key["key_extension"], expected, "{body}");
        }
        assert_eq!(net.dec("bob", "alice", &[&made[0].0]).await.keys(), made[..1]);
    }
    let plain = net.post("alice", "bob/enc_keys", r#"{"extension_optional":[{"zz_x":1}]}"#).await.json();
    assert_eq!(plain["keys"][0].as_object().unwrap().keys().collect::<Vec<_>>(), ["key", "key_ID"]);
}

#[tokio::test]
async fn demands_that_cannot_be_met_are_refused_with_the_sentence_of_the_standard() {
    let net = Net::new().await;
    for extension in [
        r#"{"dqkd_source_grade":{"min_pools":4}}"#,
        r#"{"dqkd_source_grade":{"hybrid_tls":true}}"#,
        r#"{"dqkd_source_grade":{"entropy_source":"qrng"}}"#,
        r#"{"dqkd_source_grade":{"colour":"red"}}"#,
        r#"{"dqkd_expiry":{"min_seconds":3601}}"#,
        r#"{"dqkd_expiry":{"min_seconds":1e99}}"#,
        r#"{"dqkd_expiry":"tomorrow"}"#,
    ] {
        let body = format!(r#"{{"extension_mandatory":[{extension}]}}"#);
        let answer = net.post("alice", "bob/enc_keys", body).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{extension}");
        assert_eq!(answer.message(), "not all extension_mandatory request options could be met");
    }
    // Unsupported extensions are named first.
    let both = r#"{"extension_mandatory":[{"zz_x":1,"dqkd_source_grade":{"min_pools":9}}]}"#;
    let answer = net.post("alice", "bob/enc_keys", both).await;
    assert_eq!(answer.message(), "not all extension_mandatory parameters are supported");
    assert_eq!(answer.json()["details"], json!([{"extension_mandatory_unsupported": [{"zz_x": null}]}]));
    assert_eq!([counts(&net.sites.a.store).await.keys, counts(&net.sites.b.store).await.keys], [0, 0]);
}

#[tokio::test]
async fn extensions_and_additional_slaves_of_another_shape_are_refused() {
    let net = Net::new().await;
    for body in [
        r#"{"extension_mandatory":{}}"#,
        r#"{"extension_mandatory":"x"}"#,
        r#"{"extension_mandatory":[null]}"#,
        r#"{"extension_mandatory":[[]]}"#,
        r#"{"extension_optional":{"zz_x":1}}"#,
        r#"{"extension_optional":["zz_x"]}"#,
        r#"{"additional_slave_SAE_IDs":"carol"}"#,
        r#"{"additional_slave_SAE_IDs":[["carol"]]}"#,
        r#"{"additional_slave_SAE_IDs":[null]}"#,
        r#"{"additional_slave_SAE_IDs":{"carol":1}}"#,
        r#"{"additional_slave_SAE_IDs":["nobody"]}"#,
        r#"{"additional_slave_SAE_IDs":[""]}"#,
        r#"{"additional_slave_SAE_IDs":["carol","carol"]}"#,
        r#"{"additional_slave_SAE_IDs":["bob"]}"#,
        r#"{"additional_slave_SAE_IDs":["alice"]}"#,
        r#"{"additional_slave_SAE_IDs":["carol","dave","erin","b/o b%é"]}"#,
    ] {
        let answer = net.post("alice", "bob/enc_keys", body).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{body}");
        assert!(!answer.message().is_empty());
    }
    assert_eq!(net.marks().await, [(0, 0); 2], "nothing was made");
}

#[tokio::test]
async fn additional_slaves_each_retrieve_the_same_key_once() {
    let net = Net::new().await;
    let body = r#"{"additional_slave_SAE_IDs":["carol","dave"]}"#;
    let made = net.post("alice", "bob/enc_keys", body).await.keys();
    let id = made[0].0.as_str();
    for sae in ["bob", "carol", "dave"] {
        assert_eq!(net.dec(sae, "alice", &[id]).await.keys(), made, "{sae}");
        assert_eq!(net.dec(sae, "alice", &[id]).await.message(), NOT_FOUND, "{sae} again");
    }
}

#[tokio::test]
async fn a_path_may_name_a_kme_or_an_sae_with_any_characters() {
    let net = Net::new().await;
    for (path, recipient) in
        [("site-b".to_owned(), to_kme("site-b")), (escaped("b/o b%é"), to_sae("b/o b%é", "site-b"))]
    {
        net.get("alice", &format!("{path}/enc_keys")).await.keys();
        let placed = net.sites.a.source.orders().pop().unwrap();
        let expected =
            Placed { master: "alice".into(), recipients: vec![recipient], number: 1, key_bytes: 32 };
        assert_eq!(placed, expected);
    }
    let before = net.marks().await;
    for path in ["nobody", "alice", "%20", "", "%00", "%ff", "bob%2F", "site-z"] {
        for call in ["enc_keys", "status"] {
            let answer = net.get("alice", &format!("{path}/{call}")).await;
            assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{path}/{call}");
            assert!(!answer.message().is_empty());
        }
    }
    assert_eq!(net.marks().await, before, "nothing was made");
}
