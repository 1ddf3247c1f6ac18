//! `dqkd store copy`: a site moves to Postgres.

use std::path::Path;
use std::process::Output;

use testkit::needs;
use testkit::postgres::TestPostgres;
use testkit::{Network, dqkd, output_of};

fn copy(from: &Path, to: &str, more: &[&str]) -> Output {
    output_of(dqkd().args(["store", "copy"]).arg(from).arg(to).args(more))
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn a_site_that_moves_to_postgres_returns_the_keys_that_it_had_and_only_once() {
    needs!(Postgres, Curl);
    let mut network = Network::start(2);
    let keys = network.enc("alice", "bob", "?number=3").keys();
    let ids: Vec<&str> = keys.iter().map(|(id, _)| id.as_str()).collect();
    assert_eq!(network.dec("bob", "alice", &ids[..1]).keys(), keys[..1]);
    let config = network.site(1).config.clone();
    let url = TestPostgres::shared().new_database();

    let running = copy(&config, &url, &[]);
    assert_eq!(running.status.code(), Some(1), "{}", said(&running));
    assert!(said(&running).contains("the source is in use"), "{}", said(&running));

    assert!(network.sites[1].take().unwrap().terminate().success());
    let copied = copy(&config, &url, &[]);
    assert!(copied.status.success(), "{}", said(&copied));
    assert!(said(&copied).contains("sealed keys open") && said(&copied).contains("Start no daemon on"));
    let again = copy(&config, &url, &[]);
    assert!(said(&again).contains("the target is not empty"), "{}", said(&again));

    network.configure(1, "url = \"sqlite://site-b.db\"", &format!("url = \"{url}\""));
    network.start_site(1);
    assert_eq!(network.dec("bob", "alice", &ids[1..]).keys(), keys[1..]);
    assert_eq!(network.dec("bob", "alice", &ids[..1]).status, 400, "retrieved before the move");
}

#[test]
fn without_a_configuration_the_kek_has_to_be_named() {
    let output = copy(Path::new("sqlite:///tmp/none.db"), "sqlite:///tmp/other.db", &[]);
    assert_eq!(output.status.code(), Some(2));
    assert!(said(&output).contains("--kek-file"), "{}", said(&output));
}
