//! Get status: clauses 5.2, 6.1.

use serde_json::json;

use super::*;

#[tokio::test]
async fn status_has_the_members_of_table_9_and_no_others() {
    let net = Net::new().await;
    net.sites.a.source.set_deliverable(42);
    let expected = |slave: &str, target: &str| {
        json!({
            "source_KME_ID": "site-a", "target_KME_ID": target, "master_SAE_ID": "alice",
            "slave_SAE_ID": slave, "key_size": 256, "stored_key_count": 42, "max_key_count": 100,
            "max_key_per_request": 8, "max_key_size": 4096, "min_key_size": 64, "max_SAE_ID_count": 3,
        })
    };
    for (path, slave, target) in [
        ("bob", "bob", "site-b"),
        ("bob/", "bob", "site-b"),
        ("erin", "erin", "site-c"),
        ("site-b", "site-b", "site-b"),
        ("dave", "dave", "site-a"),
        (&escaped("b/o b%é"), "b/o b%é", "site-b"),
    ] {
        let path = if let Some(id) = path.strip_suffix('/') {
            format!("{id}/status/")
        } else {
            format!("{path}/status?x=1")
        };
        let answer = net.get("alice", &path).await;
        assert_eq!((answer.status, answer.json()), (StatusCode::OK, expected(slave, target)), "{path}");
    }
    assert_eq!(net.marks().await, [(0, 0); 2], "asking makes nothing");
}

#[tokio::test]
async fn the_caller_is_the_master_also_on_the_slaves_side() {
    let net = Net::new().await;
    let status = net.get("bob", "alice/status").await.json();
    assert_eq!((&status["master_SAE_ID"], &status["slave_SAE_ID"]), (&json!("bob"), &json!("alice")));
    assert_eq!((&status["source_KME_ID"], &status["target_KME_ID"]), (&json!("site-b"), &json!("site-a")));
}
