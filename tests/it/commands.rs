//! The command line: exit codes and messages.

use std::process::Output;

use tempfile::TempDir;

use testkit::{Network, dqkd, output_of, run_to_end};

fn run(args: &[&str]) -> Output {
    output_of(dqkd().args(args))
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_wrong_configuration_ends_with_2_and_names_the_line_for_every_command_that_reads_it() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("x.toml");
    std::fs::write(&file, "[kme]\nid = \"a\"\nwrong = 1\n").unwrap();
    let path = file.display().to_string();
    for args in [
        &["check-config", &path][..],
        &["serve", "--config", &path],
        &["pool", "--config", &path],
        &["migrate", "--config", &path],
    ] {
        let output = run(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        let text = stderr(&output);
        assert!(text.contains("x.toml:3") && text.contains("wrong"), "{text}");
    }
    let output = run(&["serve", "--config", "/does/not/exist.toml"]);
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
}

#[test]
fn check_config_shows_every_mistake_with_its_place() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("site.toml");
    let text = r#"[kme]
id = "site-a"
trust_domain = "example.org"

[tls]
ca = "ca.pem"
cert = "site-a.pem"
key = "site-a.key"

[listen]
sae = "127.0.0.1:8443"
peer = "127.0.0.1:8444"
admin = "127.0.0.1"

[store]
url = "sqlite://site-a.db"

[keys]
ttl = "5 apples"
max_per_request = 0
"#;
    std::fs::write(&file, text).unwrap();
    let output = run(&["check-config", &file.display().to_string()]);
    assert_eq!(output.status.code(), Some(2));
    insta::with_settings!({ filters => vec![(dir.path().to_str().unwrap(), "DIR")] }, {
        insta::assert_snapshot!(stderr(&output), @r#"
        dqkd: DIR/site.toml:13:9: listen.admin: "127.0.0.1" is not an address; allowed: ADDRESS:PORT with a numeric address, as in "0.0.0.0:8443" or "[::]:8443"
            |
         13 | admin = "127.0.0.1"
            |         ^^^^^^^^^^^
        DIR/site.toml:15:1: store.kek_file: is missing; allowed: exactly one of kek_file, kek_env, kek_credential
            |
         15 | [store]
            | ^^^^^^^
        DIR/site.toml:20:19: keys.max_per_request: 0 is out of range; allowed: a whole number from 1 to 1024
            |
         20 | max_per_request = 0
            |                   ^
        DIR/site.toml:19:7: keys.ttl: "5 apples" is not a duration; allowed: a whole number and a unit (ms, s, m, h, d), as in "500ms", "30s" or "24h"
            |
         19 | ttl = "5 apples"
            |       ^^^^^^^^^^
        DIR/site.toml: pool_server: 0 pool servers are too few; allowed: two or more [[pool_server]] entries
        "#);
    });
}

#[test]
fn wrong_usage_ends_with_2_and_help_with_0() {
    assert_eq!(run(&["fly"]).status.code(), Some(2));
    assert_eq!(run(&["demo", "--sites", "1"]).status.code(), Some(2));
    assert_eq!(run(&["demo", "--once", "--generate-only"]).status.code(), Some(2));
    assert_eq!(run(&["--help"]).status.code(), Some(0));
}

#[test]
fn each_daemon_refuses_the_other_ones_configuration() {
    let network = Network::generate(2);
    let site = network.site(0).config.display().to_string();
    let pool = network.pool(0).config.display().to_string();
    let output = run(&["pool", "--config", &site]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("dqkd serve --config"), "{}", stderr(&output));
    let output = run(&["serve", "--config", &pool]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("dqkd pool --config"), "{}", stderr(&output));
    let listed = run_to_end(&["check-config", &site, &pool]);
    assert!(listed.contains("KME site-a with 1 peer") && listed.contains("pool server pool-1"), "{listed}");
}

#[test]
fn a_certificate_of_somebody_else_keeps_a_daemon_from_starting() {
    let network = Network::generate(2);
    network.configure(0, "pki/site-a.pem", "pki/site-b.pem");
    network.configure(0, "pki/site-a.key", "pki/site-b.key");
    let site = network.site(0).config.display().to_string();
    let output = run(&["serve", "--config", &site]);
    assert_eq!(output.status.code(), Some(1));
    let text = stderr(&output);
    assert!(
        text.contains("is not a certificate of KME site-a") && text.contains("it names KME site-b"),
        "{text}"
    );
}

#[test]
fn migrate_makes_the_schema_and_serve_without_migrate_wants_it() {
    let network = Network::generate(2);
    network.configure(0, "[store]", "[store]\nmigrate = false");
    let site = network.site(0).config.display().to_string();
    let output = run(&["serve", "--config", &site]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("dqkd migrate"), "{}", stderr(&output));
    for _ in 0..2 {
        assert!(run_to_end(&["migrate", "--config", &site]).contains("up to date"));
    }
}

#[test]
fn the_self_test_passes_and_a_changed_vector_fails_by_name() {
    let text = run_to_end(&["self-test"]);
    assert!(text.lines().count() > 5 && text.lines().all(|line| line.starts_with("ok ")), "{text}");
    let vectors = include_str!("../vectors/blast1-vectors.json");
    let dir = TempDir::new().unwrap();
    let good = dir.path().join("good.json");
    std::fs::write(&good, vectors).unwrap();
    run_to_end(&["self-test", "--vectors", &good.display().to_string()]);
    let mut parsed: serde_json::Value = serde_json::from_str(vectors).unwrap();
    let confirm = &mut parsed[0]["confirm"];
    *confirm = serde_json::Value::String("0".repeat(confirm.as_str().unwrap().len()));
    let bad = dir.path().join("bad.json");
    std::fs::write(&bad, parsed.to_string()).unwrap();
    let output = run(&["self-test", "--vectors", &bad.display().to_string()]);
    assert_eq!(output.status.code(), Some(1));
    let name = parsed[0]["name"].as_str().unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(stdout.lines().any(|line| line.starts_with("FAIL") && line.contains(name)), "{stdout}");
}

#[test]
fn the_authority_issues_shows_and_refuses_to_overwrite() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = TempDir::new().unwrap();
    let pki = dir.path().join("pki");
    let path = pki.display().to_string();
    run_to_end(&["pki", "init", "--trust-domain", "example.org", "--dir", &path]);
    assert_eq!(run(&["pki", "init", "--trust-domain", "example.org", "--dir", &path]).status.code(), Some(1));
    let issue =
        ["pki", "issue", "sae", "router.7", "--name", "router-7", "--dir", &path, "--p12-password", "p"];
    run_to_end(&issue);
    let again = run(&issue);
    assert_eq!(again.status.code(), Some(1));
    assert!(stderr(&again).contains("exists"), "{}", stderr(&again));
    run_to_end(&[&issue[..], &["--force"]].concat());
    let shown = run_to_end(&["pki", "show", &pki.join("router-7.pem").display().to_string()]);
    let filters = vec![
        (r"\d{4}-\d\d-\d\dT[\d:.]+Z", "TIME"),
        (r"\b([0-9a-f]{2}:)+[0-9a-f]{2}\b", "HEX"),
        (r"\b[0-9a-f]{16,}\b", "HEX"),
    ];
    insta::with_settings!({ filters => filters }, { insta::assert_snapshot!(shown, @"
        subject    CN=router.7
        issuer     CN=dqkd issuing CA of example.org
        serial     HEX
        key        sha256:HEX
        from       TIME
        until      TIME
        uri        spiffe://example.org/sae/router.7
        usage      client

        subject    CN=dqkd issuing CA of example.org
        issuer     CN=dqkd root CA of example.org
        serial     HEX
        key        sha256:HEX
        from       TIME
        until      TIME
        usage      certificate authority
        "); });
    for private in ["router-7.key", "router-7.p12", "authority/root.key", "authority/issuing.key"] {
        let mode = std::fs::metadata(pki.join(private)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{private}");
    }
    for (args, says) in [
        (&["kme", "site a"][..], "letters, digits, dots, hyphens and underscores only"),
        (&["sae", "CN=rack 7"], "--cn"),
        (&["sae", "a/b", "--cn"], "--name"),
    ] {
        let refused = run(&[&["pki", "issue", "--dir", &path][..], args].concat());
        assert_eq!(refused.status.code(), Some(1), "{args:?}");
        assert!(stderr(&refused).contains(says), "{}", stderr(&refused));
    }
    run_to_end(&["pki", "issue", "sae", "CN=rack 7", "--cn", "--name", "rack-7", "--dir", &path]);
    assert_eq!(run(&["pki", "revoke", "sae", "nobody", "--dir", &path]).status.code(), Some(1));
    run_to_end(&["pki", "revoke", "sae", "router.7", "--dir", &path]);
    run_to_end(&["pki", "crl", "--dir", &path]);
}

#[test]
fn an_authority_lists_renews_shows_its_lists_and_replaces_its_issuing_ca() {
    let dir = TempDir::new().unwrap();
    let pki = dir.path().join("pki");
    let path = pki.display().to_string();
    let passphrase = dir.path().join("passphrase");
    std::fs::write(&passphrase, "correct horse\n").unwrap();
    let with_root = ["--root-passphrase-file", passphrase.to_str().unwrap(), "--dir", &path];
    let init = ["pki", "init", "--trust-domain", "example.org", "--permit-dns", "example.org"];
    run_to_end(&[&init[..], &with_root].concat());
    run_to_end(&["pki", "issue", "kme", "site-a", "--dns", "a.example.org", "--dir", &path]);
    let elsewhere = run(&["pki", "issue", "kme", "site-b", "--dns", "b.example.com", "--dir", &path]);
    assert!(stderr(&elsewhere).contains("b.example.com is not permitted"), "{}", stderr(&elsewhere));

    let list = || -> serde_json::Value {
        serde_json::from_str(&run_to_end(&["pki", "list", "--json", "--dir", &path])).unwrap()
    };
    let first = list()[1]["serial"].as_str().unwrap().to_owned();
    let renewed = run_to_end(&["pki", "renew", "kme", "site-a", "--revoke-old", "--dir", &path]);
    assert!(renewed.contains(&format!("revoked {first}")), "{renewed}");
    let states: Vec<_> =
        list().as_array().unwrap().iter().map(|one| one["state"].as_str().unwrap().to_owned()).collect();
    assert_eq!(states, ["valid", "revoked", "valid"]);
    let shown = run_to_end(&["pki", "list", "--dir", &path]);
    assert!(shown.lines().any(|line| line.starts_with("revoked") && line.contains(&first)), "{shown}");
    let shown = run_to_end(&["pki", "show", pki.join("crl.pem").to_str().unwrap()]);
    assert!(shown.contains(&format!("revoked    {first} at ")), "{shown}");
    assert!(shown.starts_with("list of    CN=dqkd root CA of example.org\n"), "{shown}");

    let refused = run(&["pki", "revoke", "--issuing", "--dir", &path]);
    assert!(stderr(&refused).contains("--root-passphrase-file"), "{}", stderr(&refused));
    run_to_end(&[&["pki", "revoke", "--issuing"][..], &with_root].concat());
    let all = list();
    let kmes = all.as_array().unwrap().iter().filter(|one| one["role"] == "kme");
    assert!(kmes.map(|one| &one["state"]).all(|state| state == "revoked"), "{all}");
    run_to_end(&["pki", "issue", "kme", "site-a", "--dns", "a.example.org", "--force", "--dir", &path]);
    assert_eq!(run(&["pki", "revoke", "--issuing", "--serial", "00"]).status.code(), Some(2));
}

#[test]
fn completions_are_printed_for_every_shell() {
    for shell in ["bash", "zsh", "fish"] {
        assert!(run_to_end(&["completions", shell]).contains("dqkd"), "{shell}");
    }
}
