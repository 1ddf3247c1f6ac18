//! `/metrics` of real daemons against `docs/metrics.md`.

use std::collections::BTreeSet;
use std::path::Path;

use testkit::needs;
use testkit::{Curl, Network, dqkd, output_of};

/// Names in the tables below one heading.
fn documented(heading: &str) -> BTreeSet<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/metrics.md");
    let text = std::fs::read_to_string(path).unwrap();
    let (_, rest) = text.split_once(&format!("\n## {heading}\n")).unwrap();
    let section = rest.split("\n## ").next().unwrap();
    let names = section.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());
    names.map(str::to_owned).collect()
}

fn documented_for(kind: &str) -> BTreeSet<String> {
    let mut names = documented("Every daemon");
    assert!(names.len() > 5, "{names:?}");
    names.extend(documented(kind));
    names
}

/// Names of families as they are written in queries.
fn served(text: &str) -> BTreeSet<String> {
    let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
    types
        .map(|(name, kind)| if kind == "counter" { format!("{name}_total") } else { name.to_owned() })
        .collect()
}

/// The sum of all series of `name` whose labels contain `labels`.
fn sum(text: &str, name: &str, labels: &[&str]) -> f64 {
    let values = text.lines().filter_map(|line| {
        let (series, value) = line.rsplit_once(' ')?;
        let rest = series.strip_prefix(name)?;
        let is_it =
            (rest.is_empty() || rest.starts_with('{')) && labels.iter().all(|label| rest.contains(label));
        is_it.then(|| value.parse::<f64>().unwrap())
    });
    values.sum()
}

fn scrape(url: &str, ca: &Path) -> String {
    let answer = Curl::nobody(ca).get(&format!("{url}/metrics"));
    assert_eq!(answer.status, 200, "{answer:?}");
    assert!(
        answer.headers.contains("content-type: application/openmetrics-text; version=1.0.0"),
        "{answer:?}"
    );
    assert!(answer.headers.contains("cache-control: no-store"), "{answer:?}");
    assert!(answer.body.ends_with("# EOF\n"), "{answer:?}");
    answer.body
}

fn pool_admin_url(network: &Network, index: usize) -> String {
    let text = std::fs::read_to_string(&network.pool(index).config).unwrap();
    let line = text.lines().find(|line| line.starts_with("admin = ")).unwrap();
    format!("http://{}", line.trim_start_matches("admin = ").trim_matches('"'))
}

#[test]
fn every_documented_metric_is_served_every_served_one_is_documented_and_none_tells_a_secret() {
    needs!(Curl);
    let network = Network::start(2);
    let keys = network.enc("alice", "bob", "?number=2").keys();
    let odd = network.enc("alice", "bob", "?size=512").keys();
    let ids: Vec<&str> = keys.iter().map(|(id, _)| id.as_str()).collect();
    assert_eq!(network.dec("bob", "alice", &ids).keys().len(), 2);
    assert_eq!(network.dec("bob", "alice", &ids).status, 400);
    let (a, b) = (
        scrape(&network.site(0).admin_url, &network.ca()),
        scrape(&network.site(1).admin_url, &network.ca()),
    );
    let pool = scrape(&pool_admin_url(&network, 0), &network.ca());
    assert_eq!(served(&a), documented_for("KME"));
    assert_eq!(served(&b), documented_for("KME"));
    assert_eq!(served(&pool), documented_for("Random pool server"));

    for (text, name, labels, least) in [
        (&a, "dqkd_build_info", &["id=\"site-a\"", "kind=\"kme\""][..], 1.0),
        (&a, "dqkd_ready", &[], 1.0),
        (
            &a,
            "dqkd_http_requests_total",
            &["/enc_keys", "status=\"200\"", "method=\"GET\"", "listener=\"sae\""],
            2.0,
        ),
        (&a, "dqkd_http_request_duration_seconds_count", &["/enc_keys"], 2.0),
        (&a, "dqkd_keys_handed_out_total", &[], 3.0),
        (&a, "dqkd_batches_made_total", &["outcome=\"made\"", "cause=\"order\""], 1.0),
        (&a, "dqkd_batches_pushed_total", &["peer=\"site-b\"", "outcome=\"stored\""], 2.0),
        (&a, "dqkd_peer_calls_total", &["call=\"/peer/v1/batches\"", "outcome=\"answered\""], 2.0),
        (&a, "dqkd_peer_breaker_state", &["peer=\"site-b\"", "state=\"closed\""], 1.0),
        (&a, "dqkd_engine_duration_seconds_count", &["operation=\"generate\""], 2.0),
        (&a, "dqkd_reserve_pairs", &[], 1.0),
        (&a, "dqkd_pool_sets", &["maker=\"own\""], 1.0),
        (&a, "dqkd_store_transactions_total", &["outcome=\"committed\""], 1.0),
        (&b, "dqkd_http_requests_total", &["/dec_keys", "status=\"400\"", "method=\"POST\""], 1.0),
        (&b, "dqkd_batches_received_total", &["peer=\"site-a\"", "outcome=\"stored\""], 2.0),
        (&b, "dqkd_keys_regenerated_total", &["peer=\"site-a\""], 3.0),
        (&b, "dqkd_store_call_duration_seconds_count", &["name=\"retrieve\""], 2.0),
        (&b, "dqkd_store_jobs_per_commit_count", &[], 2.0),
        (&b, "dqkd_pool_set_bytes", &["maker=\"peers\""], 1.0),
        (&pool, "dqkd_vault_pools", &[], 1.0),
        (&pool, "dqkd_http_requests_total", &["listener=\"pool\"", "status=\"201\""], 1.0),
        (&pool, "process_start_time_seconds", &[], 1_700_000_000.0),
    ] {
        let found = sum(text, name, labels);
        assert!(found >= least, "{name} {labels:?} is {found}, not {least} or more:\n{text}");
    }
    let secrets = keys.iter().chain(&odd).flat_map(|(id, key)| [id.as_str(), key.as_str()]);
    for word in secrets.chain(["alice", "bob"]) {
        assert!(![&a, &b, &pool].iter().any(|text| text.contains(word)), "{word} is shown");
    }
}

#[test]
fn ready_tells_by_its_exit_code_whether_a_daemon_serves() {
    needs!(Curl);
    let ready = |config: &Path| {
        let output = output_of(dqkd().arg("ready").arg("--config").arg(config));
        let said = String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap();
        (output.status.code(), said)
    };
    let mut network = Network::start(2);
    let (site, pool) = (network.site(0).config.clone(), network.pool(0).config.clone());
    let (code, said) = ready(&site);
    assert!(code == Some(0) && said.contains("ok       store\n"), "{said}");
    assert_eq!(ready(&pool).0, Some(0));
    network.kill_site(0);
    let (code, said) = ready(&site);
    assert!(code == Some(1) && said.contains("does not answer"), "{said}");
    // An address that is not loopback demands an operator certificate. The command says so before it calls.
    network.configure(0, "admin = \"127.0.0.1", "admin = \"0.0.0.0");
    let (code, said) = ready(&site);
    assert!(code == Some(1) && said.contains("operator certificate"), "{said}");
}

#[test]
fn a_peer_that_is_gone_shows_in_the_numbers_of_the_other_site() {
    needs!(Curl);
    let mut network = Network::start(2);
    network.kill_site(1);
    let url = network.site(0).admin_url.clone();
    testkit::eventually("the breaker opens and readiness is degraded", || {
        let text = scrape(&url, &network.ca());
        sum(&text, "dqkd_peer_breaker_state", &["peer=\"site-b\"", "state=\"closed\""]) < 1.0
            && sum(&text, "dqkd_part_condition", &["part=\"peer site-b\"", "condition=\"degraded\""]) >= 1.0
            && sum(&text, "dqkd_ready", &[]) >= 1.0
            && sum(&text, "dqkd_peer_calls_total", &["outcome=\"unreachable\""]) >= 3.0
    });
}
