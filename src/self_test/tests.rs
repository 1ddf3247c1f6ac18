use blast::Product;
use serde_json::{Value, json};

use super::*;

fn vectors() -> Vec<Value> {
    serde_json::from_str(VECTORS).unwrap()
}

/// The first vector with one field changed, as a file.
fn changed(field: &str, value: Value) -> String {
    let mut vector = vectors().remove(0);
    vector[field] = value;
    json!([vector]).to_string()
}

#[test]
fn the_quick_test_passes_on_every_product() {
    let report = run_quick().unwrap();
    let products = Product::available().len();
    assert_eq!(report.checks.len(), 7 + products - 1 + products);
}

#[test]
fn every_vector_of_the_reference_passes_on_every_product() {
    let report = run_full().unwrap();
    assert!(report.passed(), "{report}");
    for vector in vectors() {
        for product in Product::available() {
            let name = format!("{} ({})", vector["name"].as_str().unwrap(), product.name());
            assert!(report.checks.iter().any(|check| check.name == name), "{name}");
        }
    }
    assert_eq!(report.to_string().lines().count(), report.checks.len());
}

#[test]
fn a_vector_of_another_name_and_size_works() {
    // By tests/vectors/blast1.py: vector("another", 4, 1 << 14, 24, 7).
    let json = include_str!("../../tests/vectors/another-size.json");
    let report = run_vectors(json).unwrap();
    assert!(report.passed(), "{report}");
    assert!(report.checks[0].name.starts_with("another "));
}

#[test]
fn optional_fields_may_be_left_out() {
    let mut vector = vectors().remove(0);
    for field in ["words_per_pool", "first_positions"] {
        vector.as_object_mut().unwrap().remove(field);
    }
    assert!(run_vectors(&json!([vector]).to_string()).unwrap().passed());
}

#[test]
fn each_wrong_answer_is_reported_as_a_mismatch_of_that_vector() {
    let zeros = "00".repeat(32);
    let cases = [
        ("confirm", json!("00".repeat(16)), "confirm differs"),
        ("keys", json!([zeros]), "key 0 differs"),
        ("keys", json!([""]), "key 0 differs"),
        ("words_per_pool", json!(181), "words_per_pool is 180, not 181"),
        ("first_positions", json!([[7379, 1], [], []]), "first_positions of pool 0 differ"),
        ("seed", json!(zeros), "first_positions of pool 0 differ"),
        ("mask_seed", json!(zeros), "key 0 differs"),
        ("key_bytes", json!(31), "words_per_pool is 179, not 180"),
        ("key_bytes", json!(0), "the engine refused: a key must have at least one byte"),
    ];
    for (field, value, expected) in cases {
        let report = run_vectors(&changed(field, value)).unwrap();
        assert!(!report.passed(), "{field}");
        let failure = report.checks[0].failure.as_deref().unwrap();
        assert!(failure.contains(expected), "{field}: {failure}");
        assert!(report.to_string().starts_with("FAIL  one-256-bit-key (portable): "), "{report}");
        assert!(report.into_result().unwrap_err().to_string().contains("one-256-bit-key"));
    }
}

#[test]
fn a_wrong_digest_of_the_keys_is_a_mismatch() {
    let mut vector = vectors().into_iter().find(|vector| vector.get("keys").is_none()).unwrap();
    vector["keys_sha3_256"] = json!("00".repeat(32));
    let report = run_vectors(&json!([vector]).to_string()).unwrap();
    assert_eq!(report.checks[0].failure.as_deref(), Some("keys_sha3_256 differs"));
}

#[test]
fn malformed_fields_are_named_with_their_vector() {
    let cases = [
        ("seed", json!("zz"), "must be hex"),
        ("seed", json!("00"), "has 1 bytes, not 32"),
        ("mask_seed", json!(5), "must be hex text"),
        ("pools", json!(2), "`pool_ids` has 3 entries for 2 pools"),
        ("pools", json!(9), "must be 2 to 8"),
        ("pool_words", json!(1000), "must be a power of two"),
        ("pool_words", json!(1 << 27), "words in all"),
        ("pool_words", json!(-1), "must be a whole number"),
        ("pool_ids", json!("x"), "must be a list"),
        ("key_ids", json!(["00"]), "has 1 bytes, not 16"),
        ("key_ids", json!([]), "`keys` has 1 entries for 0 key IDs"),
        ("key_bytes", json!("32"), "must be a whole number"),
        ("keys", json!([1]), "must be hex text"),
        ("words_per_pool", json!(1_u64 << 40), "is too large"),
        ("first_positions", json!([[1]]), "one list of positions"),
        ("first_positions", json!([[-1], [], []]), "one list of positions"),
        ("confirm", Value::Null, "must be hex text"),
    ];
    for (field, value, expected) in cases {
        let error = run_vectors(&changed(field, value)).unwrap_err().to_string();
        assert!(error.starts_with("vector `one-256-bit-key`: field `"), "{error}");
        assert!(error.contains(expected), "{field}: {error}");
    }
}

#[test]
fn missing_fields_are_named() {
    for field in
        ["pools", "pool_words", "seed", "mask_seed", "key_bytes", "pool_ids", "key_ids", "confirm", "keys"]
    {
        let mut vector = vectors().remove(0);
        vector.as_object_mut().unwrap().remove(field);
        let error = run_vectors(&json!([vector]).to_string()).unwrap_err().to_string();
        assert!(error.contains(&format!("field `{field}` is missing")), "{error}");
    }
    let mut unnamed = vectors().remove(0);
    unnamed.as_object_mut().unwrap().remove("name");
    let error = run_vectors(&json!([vectors().remove(0), unnamed]).to_string()).unwrap_err();
    assert_eq!(error.to_string(), "vector number 2: field `name` is missing");
}

#[test]
fn files_without_vectors_are_refused() {
    assert!(matches!(run_vectors("{"), Err(SelfTestError::Json(_))));
    for text in ["[]", "{}", "[1]", "null"] {
        assert!(matches!(run_vectors(text), Err(SelfTestError::NoVectors)), "{text}");
    }
}
