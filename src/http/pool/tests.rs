mod bad_servers;
mod sets;

use std::time::Duration;

use kme::{Clock, OsRandom, PoolId};
use serde_json::json;

use super::testing::{Caller, HttpAnswer, POOL_BYTES, TestServer, WORDS, limits};
use super::*;
use crate::pool::VaultLimits;

const OWNER: Caller = Caller::Kme("site-a");
const READER: Caller = Caller::Kme("site-b");
const STRANGER: Caller = Caller::Kme("site-c");

fn body() -> String {
    json!({"words": WORDS, "readers": ["site-a", "site-b"], "ttl": "10m", "later_extension": true})
        .to_string()
}

async fn make(server: &TestServer) -> String {
    let answer = server.call(OWNER, Method::POST, POOLS_PATH, &body()).await;
    assert_eq!(answer.status, StatusCode::CREATED, "{}", answer.text());
    let id = answer.json()["pool_id"].as_str().unwrap().to_owned();
    format!("{POOLS_PATH}/{id}")
}

fn assert_no_such_pool(answer: &HttpAnswer) {
    assert_eq!(answer.status, StatusCode::NOT_FOUND);
    assert_eq!(answer.text(), r#"{"message":"no such pool"}"#);
}

#[tokio::test]
async fn a_pool_is_made_read_by_its_readers_counted_and_released() {
    let server = TestServer::start("pool-1", limits()).await;
    let made = server.call(OWNER, Method::POST, POOLS_PATH, &body()).await;
    assert_eq!(made.status, StatusCode::CREATED);
    assert_eq!(made.headers[header::CACHE_CONTROL], "no-store");
    assert_eq!(made.json()["entropy_source"], "os");
    assert_eq!(made.json()["expires_at"], server.clock.now().plus(Duration::from_mins(10)).to_string());
    let path = format!("{POOLS_PATH}/{}", made.json()["pool_id"].as_str().unwrap());
    let first = server.call(READER, Method::GET, &path, "").await;
    assert_eq!(first.status, StatusCode::OK);
    assert_eq!(first.headers[header::CONTENT_TYPE], "application/octet-stream");
    assert_eq!(first.headers[header::CONTENT_LENGTH], POOL_BYTES.to_string().as_str());
    assert_eq!(first.headers[header::CACHE_CONTROL], "no-store");
    assert_eq!(first.body.len() as u64, POOL_BYTES);
    let second = server.call(OWNER, Method::GET, &path, "").await;
    assert!(first.body == second.body);
    let reads = server.call(OWNER, Method::GET, &format!("{path}/reads"), "").await;
    assert_eq!(
        reads.json(),
        json!({"readers": [
            {"reader": "site-a", "started": 1, "completed": 1},
            {"reader": "site-b", "started": 1, "completed": 1},
        ]})
    );
    assert_eq!(server.call(OWNER, Method::DELETE, &path, "").await.status, StatusCode::NO_CONTENT);
    assert_no_such_pool(&server.call(READER, Method::GET, &path, "").await);
}

#[tokio::test]
async fn unknown_foreign_and_expired_pools_get_the_same_404() {
    let server = TestServer::start("pool-1", limits()).await;
    let path = make(&server).await;
    let reads = format!("{path}/reads");
    let unknown = format!("{POOLS_PATH}/{}", PoolId::draw(&OsRandom).unwrap());
    assert_no_such_pool(&server.call(READER, Method::GET, &unknown, "").await);
    assert_no_such_pool(&server.call(READER, Method::GET, &format!("{POOLS_PATH}/not-a-uuid"), "").await);
    assert_no_such_pool(&server.call(STRANGER, Method::GET, &path, "").await);
    assert_no_such_pool(&server.call(READER, Method::DELETE, &path, "").await);
    assert_no_such_pool(&server.call(READER, Method::GET, &reads, "").await);
    server.clock.advance(Duration::from_mins(10));
    assert_no_such_pool(&server.call(READER, Method::GET, &path, "").await);
    assert_no_such_pool(&server.call(OWNER, Method::DELETE, &path, "").await);
    assert_no_such_pool(&server.call(OWNER, Method::GET, &reads, "").await);
}

#[tokio::test]
async fn only_kme_certificates_get_in() {
    let server = TestServer::start("pool-1", limits()).await;
    let path = make(&server).await;
    for caller in [Caller::Sae("site-a"), Caller::Operator("site-a")] {
        let create = server.call(caller, Method::POST, POOLS_PATH, &body()).await;
        assert_eq!(create.status, StatusCode::UNAUTHORIZED);
        assert_eq!(create.text(), r#"{"message":"Unauthorized"}"#);
        for (method, path) in [
            (Method::GET, path.clone()),
            (Method::DELETE, path.clone()),
            (Method::GET, format!("{path}/reads")),
        ] {
            assert_eq!(server.call(caller, method, &path, "").await.status, StatusCode::UNAUTHORIZED);
        }
    }
    assert_eq!(server.vault.pool_count(), 1);
}

#[tokio::test]
async fn with_a_list_other_kmes_get_403_and_are_no_readers() {
    let kmes = Some(["site-a", "site-b"].map(|name| name.parse().unwrap()).into());
    let server = TestServer::start("pool-1", VaultLimits { kmes, ..limits() }).await;
    let path = make(&server).await;
    let reads = format!("{path}/reads");
    for (method, path) in [
        (Method::POST, POOLS_PATH),
        (Method::GET, path.as_str()),
        (Method::DELETE, path.as_str()),
        (Method::GET, reads.as_str()),
    ] {
        let refused = server.call(STRANGER, method, path, &body()).await;
        assert_eq!(refused.status, StatusCode::FORBIDDEN, "{}", refused.text());
        let told = refused.json()["message"].as_str().unwrap().to_owned();
        assert_eq!(told, "KME site-c is not listed in [pool] kmes of this pool server's configuration");
    }
    let named = body().replace("site-b", "site-c");
    let refused = server.call(OWNER, Method::POST, POOLS_PATH, &named).await;
    assert_eq!(refused.status, StatusCode::BAD_REQUEST);
    assert!(refused.text().contains("reader site-c is not listed"), "{}", refused.text());
    assert_eq!(server.call(READER, Method::GET, &path, "").await.status, StatusCode::OK);
}

#[tokio::test]
async fn a_full_server_answers_503_and_makes_nothing() {
    let server =
        TestServer::start("pool-1", VaultLimits { memory_max_bytes: 2 * POOL_BYTES, ..limits() }).await;
    let path = make(&server).await;
    let full = server.call(READER, Method::POST, POOLS_PATH, &body()).await;
    assert_eq!(full.status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(full.headers.contains_key(header::RETRY_AFTER));
    server.call(OWNER, Method::DELETE, &path, "").await;
    make(&server).await;
}

#[tokio::test]
async fn bad_requests_are_400_and_say_what_is_allowed() {
    let server = TestServer::start("pool-1", limits()).await;
    for bad in [
        String::new(),
        "[]".to_owned(),
        json!({"words": WORDS, "readers": ["b"]}).to_string(),
        json!({"words": WORDS + 1, "readers": ["b"], "ttl": 60}).to_string(),
        json!({"words": u64::MAX, "readers": ["b"], "ttl": 60}).to_string(),
        json!({"words": WORDS, "readers": [], "ttl": 60}).to_string(),
        json!({"words": WORDS, "readers": ["b"], "ttl": 0}).to_string(),
        json!({"words": WORDS, "readers": ["b"], "ttl": "60x"}).to_string(),
        json!({"words": WORDS, "readers": [" "], "ttl": 60}).to_string(),
    ] {
        let answer = server.call(OWNER, Method::POST, POOLS_PATH, &bad).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{bad}");
        assert!(answer.json()["message"].is_string());
    }
    let huge = " ".repeat(BODY_MAX_BYTES + 1);
    let answer = server.call(OWNER, Method::POST, POOLS_PATH, &huge).await;
    assert_eq!(answer.status, StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(server.vault.pool_count(), 0);
}

#[tokio::test]
async fn other_paths_and_verbs_get_json_errors() {
    let server = TestServer::start("pool-1", limits()).await;
    let path = make(&server).await;
    let lost = server.call(OWNER, Method::GET, "/nowhere", "").await;
    assert_eq!(
        (lost.status, lost.text()),
        (StatusCode::NOT_FOUND, r#"{"message":"no such path"}"#.to_owned())
    );
    let verb = server.call(OWNER, Method::PUT, &path, "").await;
    assert_eq!(verb.status, StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!(verb.text(), r#"{"message":"method not allowed"}"#);
    let head = server.call(READER, Method::HEAD, &path, "").await;
    assert_eq!(head.status, StatusCode::METHOD_NOT_ALLOWED);
    let reads = server.call(OWNER, Method::GET, &format!("{path}/reads"), "").await;
    assert_eq!(reads.json()["readers"][1]["started"], 0, "HEAD is no read");
}
