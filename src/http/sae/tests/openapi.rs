//! Compares the API's description with what is really read and sent: bounds, types, names.

use serde_json::json;

use super::*;
use crate::http::sae::path::{Route, SaeCall};

fn described() -> Value {
    serde_json::from_str(&crate::http::sae::description(&rules().limits).unwrap()).unwrap()
}

fn schema<'a>(api: &'a Value, name: &str) -> &'a Value {
    &api["components"]["schemas"][name]
}

/// Names of the members of an object, or of what a schema describes, in order.
fn names(object: &Value) -> Vec<&String> {
    object.as_object().unwrap().keys().collect()
}

fn takes(schema: &Value, kind: &str) -> bool {
    match &schema["type"] {
        Value::Array(kinds) => kinds.iter().any(|known| known == kind),
        one => one == kind,
    }
}

/// Values on both sides of every bound of a schema: first those that it accepts, then those that it refuses.
fn around(api: &Value, schema: &Value) -> (Vec<Value>, Vec<Value>) {
    let (mut good, mut bad) = (Vec::new(), Vec::new());
    for (kind, value) in [
        ("null", Value::Null),
        ("boolean", json!(true)),
        ("string", json!("1")),
        ("array", json!([])),
        ("object", json!({})),
        ("number", json!(8.5)),
    ] {
        if takes(schema, kind) { good.push(value) } else { bad.push(value) }
    }
    let step = schema["multipleOf"].as_i64().unwrap_or(1);
    if let Some(least) = schema["minimum"].as_i64() {
        good.push(json!(least));
        bad.push(json!(least - step));
    }
    if let Some(most) = schema["maximum"].as_i64() {
        good.push(json!(most));
        bad.push(json!(most + step));
    }
    if step > 1 {
        bad.push(json!(schema["minimum"].as_i64().unwrap() + 1));
    }
    if schema["items"]["$ref"] == "#/components/schemas/MandatoryExtension" {
        let own = &api["components"]["schemas"]["MandatoryExtension"];
        assert_eq!(own["additionalProperties"], false);
        bad.push(json!([{ "zz_foreign": 1 }]));
        for name in names(&own["properties"]) {
            good.extend([json!([{ name: null }]), json!([{ name: true }]), json!([{ name: {} }])]);
            bad.extend([json!([{ name: false }]), json!([{ name: 1 }]), json!([{ name: { "zz": 1 } }])]);
        }
    } else if takes(&schema["items"], "object") {
        good.push(json!([{ "zz_foreign": [1] }]));
        bad.push(json!([1]));
    } else if takes(&schema["items"], "string") {
        good.push(json!(["carol"]));
        bad.extend([json!([1]), json!(["carol", "carol"])]);
    }
    (good, bad)
}

#[tokio::test]
async fn every_member_of_a_key_request_is_bounded_by_the_code_where_the_description_says() {
    let net = Net::new().await;
    let api = described();
    let members = &schema(&api, "KeyRequest")["properties"];
    assert_eq!(names(members).len(), 5, "Table 10");
    let mut tried = 0;
    for (name, member) in members.as_object().unwrap() {
        let (good, bad) = around(&api, member);
        tried += good.len() + bad.len();
        for (values, status) in [(good, StatusCode::OK), (bad, StatusCode::BAD_REQUEST)] {
            for value in values {
                let body = json!({ name: value }).to_string();
                let answer = net.post("alice", "bob/enc_keys", body.clone()).await;
                assert_eq!(answer.status, status, "{body}: {answer:?}");
            }
        }
    }
    assert!(tried > 40, "the description draws lines");
    assert_eq!(net.post("alice", "bob/enc_keys", r#"{"zz":1}"#).await.status, StatusCode::OK);
    assert_eq!(net.post("alice", "bob/enc_keys", "null").await.status, StatusCode::BAD_REQUEST);
    let body = &api["paths"][SaeCall::EncKeys.template()]["post"]["requestBody"];
    assert_eq!(body["required"], false, "a body of no bytes is served");
}

#[tokio::test]
async fn queries_are_bounded_where_the_description_says() {
    let net = Net::new().await;
    let api = described();
    let parameters = api["paths"][SaeCall::EncKeys.template()]["get"]["parameters"].as_array().unwrap();
    let mut tried = 0;
    for parameter in parameters.iter().filter(|parameter| parameter["in"] == "query") {
        let (name, schema) = (parameter["name"].as_str().unwrap(), &parameter["schema"]);
        let step = schema["multipleOf"].as_i64().unwrap_or(1);
        let (least, most) = (schema["minimum"].as_i64().unwrap(), schema["maximum"].as_i64().unwrap());
        for (value, status) in [
            (least, StatusCode::OK),
            (most, StatusCode::OK),
            (least - step, StatusCode::BAD_REQUEST),
            (most + step, StatusCode::BAD_REQUEST),
        ] {
            tried += 1;
            let answer = net.get("alice", &format!("bob/enc_keys?{name}={value}")).await;
            assert_eq!(answer.status, status, "{name}={value}");
        }
    }
    assert_eq!(tried, 8);
}

#[tokio::test]
async fn key_ids_are_read_as_the_description_says() {
    let net = Net::new().await;
    let api = described();
    let ids = schema(&api, "KeyIds");
    assert_eq!(
        (&ids["required"], &ids["properties"]["key_IDs"]["minItems"]),
        (&json!(["key_IDs"]), &json!(1))
    );
    let most = usize::try_from(ids["properties"]["key_IDs"]["maxItems"].as_u64().unwrap()).unwrap();
    let keys = net.enc(most).await;
    let entry = |id: &str| json!({ "key_ID": id, "key_ID_extension": 1, "zz": null });
    let all: Vec<Value> = keys.iter().map(|(id, _)| entry(&id.to_uppercase())).collect();
    let mut beyond = all.clone();
    beyond.push(entry("00000000-0000-4000-8000-000000000000"));
    let twice = json!([all[0], all[0]]);
    for (bad, sentence) in [
        (json!({}), "key_IDs shall name at least one key"),
        (json!({ "key_IDs": null }), "key_IDs shall name at least one key"),
        (json!({ "key_IDs": [] }), "key_IDs shall name at least one key"),
        (json!({ "key_IDs": beyond }), "key_IDs shall name at most 8 keys"),
        (json!({ "key_IDs": twice }), "a key_ID is named twice"),
        (json!({ "key_IDs": [{ "key_ID": "not-a-uuid" }] }), "a key_ID is not a UUID"),
    ] {
        let answer = net.post("bob", "alice/dec_keys", bad.to_string()).await;
        assert_eq!((answer.status, answer.message().as_str()), (StatusCode::BAD_REQUEST, sentence), "{bad}");
    }
    for bad in [json!({ "key_IDs": ["x"] }), json!({ "key_IDs": [{}] }), json!([])] {
        let answer = net.post("bob", "alice/dec_keys", bad.to_string()).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{bad}");
    }
    let body = json!({ "key_IDs": all, "key_IDs_extension": "x", "zz": 1 }).to_string();
    assert_eq!(net.post("bob", "alice/dec_keys", body).await.keys(), keys);
}

#[tokio::test]
async fn answers_have_exactly_the_members_that_the_description_names() {
    let net = Net::new().await;
    let api = described();
    let status = net.get("alice", "bob/status").await.json();
    assert_eq!(names(&status), names(&schema(&api, "Status")["properties"]));
    let body = json!({ "extension_optional": [{ "dqkd_source_grade": null, "dqkd_expiry": null }] });
    let container = net.post("alice", "bob/enc_keys", body.to_string()).await.json();
    let key = &container["keys"][0];
    let told = &key["key_extension"];
    let refused = json!({ "extension_mandatory": [{ "zz_x": 1 }] }).to_string();
    let error = net.post("alice", "bob/enc_keys", refused).await.json();
    for (value, name) in [
        (&container, "KeyContainer"),
        (key, "Key"),
        (told, "KeyExtension"),
        (&told["dqkd_source_grade"], "SourceGrade"),
        (&told["dqkd_expiry"], "Expiry"),
        (&error, "Error"),
    ] {
        assert_eq!(names(value), names(&schema(&api, name)["properties"]), "{name}");
        assert_eq!(schema(&api, name)["additionalProperties"], false, "{name}");
    }
    let plain = net.get("alice", "bob/enc_keys").await.json();
    for (value, name) in [(&status, "Status"), (&plain["keys"][0], "Key")] {
        let mut required: Vec<&str> = Vec::new();
        required.extend(schema(&api, name)["required"].as_array().unwrap().iter().filter_map(Value::as_str));
        required.sort_unstable();
        assert_eq!(names(value), required, "{name}");
    }
}

#[test]
fn the_description_has_the_paths_and_verbs_that_are_served_and_no_others() {
    let api = described();
    assert_eq!(api["openapi"], "3.1.0");
    let calls = [SaeCall::Status, SaeCall::EncKeys, SaeCall::DecKeys];
    let mut templates: Vec<String> = calls.iter().map(|call| call.template().to_owned()).collect();
    templates.sort_unstable();
    assert_eq!(names(&api["paths"]), templates.iter().collect::<Vec<_>>());
    for call in calls {
        let operations = &api["paths"][call.template()];
        let verbs: Vec<String> = names(operations).iter().map(|verb| verb.to_uppercase()).collect();
        assert_eq!(verbs.join(", "), call.allow());
        assert_eq!(Route::parse(call.template()).unwrap().call, call);
    }
}
