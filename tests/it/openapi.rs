//! `/openapi.json` of a live site, and the copy of it in `docs/`.

use std::path::Path;

use testkit::needs;
use testkit::{Curl, Network};

/// If set, the test writes the copy instead of comparing it.
const WRITE: &str = "DQKD_WRITE_OPENAPI";

#[test]
fn the_description_in_docs_is_what_a_site_with_default_limits_serves() {
    needs!(Curl);
    let network = Network::start(2);
    let url = format!("{}/openapi.json", network.site(0).admin_url);
    let answer = Curl::nobody(&network.ca()).get(&url);
    assert_eq!(answer.status, 200);
    assert!(answer.headers.contains("content-type: application/json"), "{answer:?}");
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/openapi.json");
    if std::env::var_os(WRITE).is_some() {
        std::fs::write(&path, &answer.body).unwrap();
    }
    assert!(
        std::fs::read_to_string(&path).unwrap_or_default() == answer.body,
        "docs/openapi.json is out of date; write it again with\n    {WRITE}=1 cargo test --test it openapi::"
    );
}

#[test]
fn the_description_tells_the_limits_of_the_site_that_serves_it() {
    needs!(Curl);
    let mut network = Network::generate(2);
    network.configure(0, "[[peer]]", "[keys]\nmax_per_request = 7\n\n[[peer]]");
    network.start_pools(3);
    network.start_sites();
    let url = format!("{}/openapi.json", network.site(0).admin_url);
    let api = Curl::nobody(&network.ca()).get(&url).json();
    assert_eq!(api["components"]["schemas"]["KeyRequest"]["properties"]["number"]["maximum"], 7);
    let pool = network.pool(0).config.clone();
    let text = std::fs::read_to_string(pool).unwrap();
    let admin = text.lines().find_map(|line| line.strip_prefix("admin = \"")).unwrap().trim_end_matches('"');
    let answer = Curl::nobody(&network.ca()).get(&format!("http://{admin}/openapi.json"));
    assert_eq!(answer.status, 404, "a pool server has no such API");
}
