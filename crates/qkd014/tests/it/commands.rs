//! `qkd014 status`, `enc` and `dec`: their output and their messages.

use std::process::Output;

use testkit::{Network, needs, output_of, qkd014};

fn run(args: &[&str]) -> Output {
    output_of(qkd014().args(args))
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn wrong_usage_ends_with_2_and_help_with_0() {
    assert_eq!(run(&["fly"]).status.code(), Some(2));
    assert_eq!(run(&["enc", "bob"]).status.code(), Some(2));
    assert_eq!(run(&["--help"]).status.code(), Some(0));
}

#[test]
fn a_url_without_https_comes_with_the_one_that_was_meant() {
    let files = ["--ca", "x", "--cert", "x", "--key", "x"];
    let output = run(&[&["status", "--url", "127.0.0.1:8443"][..], &files, &["bob"]].concat());
    assert_eq!(output.status.code(), Some(2));
    let said = stderr(&output);
    assert!(said.contains("did you mean https://127.0.0.1:8443?"), "{said}");
}

#[test]
fn the_client_says_what_the_kme_said() {
    needs!(Curl);
    let network = Network::start(2);
    let (site, alice) = network.sae("alice");
    let (ca, p12) = (network.ca().display().to_string(), alice.p12.display().to_string());
    let base = |password: &str, slave: &str| {
        run(&["enc", "--url", &site.sae_url, "--ca", &ca, "--p12", &p12, "--p12-password", password, slave])
    };
    let refused = base(&alice.p12_password, "nobody");
    assert_eq!(refused.status.code(), Some(1));
    assert!(stderr(&refused).contains("400"), "{}", stderr(&refused));
    let wrong = base("wrong", "bob");
    assert_eq!(wrong.status.code(), Some(1));
    assert!(stderr(&wrong).contains("wrong password"), "{}", stderr(&wrong));
}

#[test]
fn keys_are_fetched_at_one_site_and_retrieved_at_the_other() {
    needs!(Curl);
    let network = Network::start(2);
    let call = |sae: &str, command: &str, rest: &[&str]| {
        let (site, sae) = network.sae(sae);
        let (ca, p12) = (network.ca().display().to_string(), sae.p12.display().to_string());
        let mut args = vec![command, "--url", &site.sae_url, "--ca", &ca, "--p12", &p12];
        args.extend(["--p12-password", &sae.p12_password, "--json"]);
        args.extend(rest);
        let output = output_of(qkd014().args(&args));
        assert!(output.status.success(), "{args:?}: {}", stderr(&output));
        serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap()
    };
    assert_eq!(call("alice", "status", &["bob"])["target_KME_ID"], "site-b");
    let made = call("alice", "enc", &["bob", "--number", "2"]);
    let ids: Vec<&str> =
        made["keys"].as_array().unwrap().iter().map(|k| k["key_ID"].as_str().unwrap()).collect();
    assert_eq!(call("bob", "dec", &[&["alice"][..], &ids].concat()), made);
}
