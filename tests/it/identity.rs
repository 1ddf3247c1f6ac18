//! Certificates, revocation lists and secrets that a daemon takes, and those that it refuses.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Output;

use tempfile::TempDir;
use testkit::{Curl, Network, dqkd, eventually, run_to_end};

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A part of a site's `/readyz`: its condition and its message.
fn part(network: &Network, name: &str) -> String {
    let answer = Curl::nobody(&network.ca()).get(&format!("{}/readyz", network.site(0).admin_url));
    let parts = answer.json()["parts"].as_array().unwrap().clone();
    let part = parts.iter().find(|part| part["name"] == name).unwrap();
    format!("{}: {}", part["condition"].as_str().unwrap(), part["message"].as_str().unwrap_or_default())
}

/// The lists of a demo's file: that of the root, that of the issuing CA.
fn lists(pem: &str) -> [String; 2] {
    const END: &str = "-----END X509 CRL-----\n";
    let mut parts = pem.split_inclusive(END).map(str::to_owned);
    [parts.next().unwrap(), parts.next().unwrap()]
}

fn status(network: &Network, cert: &Path) -> u16 {
    let url = format!("{}/api/v1/keys/bob/status", network.site(0).sae_url);
    Curl::pem(&network.ca(), cert, &cert.with_extension("key")).get(&url).status
}

#[test]
fn a_revocation_file_that_misses_a_ca_changes_nothing_and_readyz_says_why() {
    let mut network = Network::generate(2);
    network.start_site(0);
    let crl = network.pki().join("crl.pem");
    let whole = std::fs::read_to_string(&crl).unwrap();
    let alice = network.sae("alice").1.cert.clone();
    assert_eq!(status(&network, &alice), 200);
    assert_eq!(part(&network, "tls files"), "ok: ");

    std::fs::write(&crl, &lists(&whole)[0]).unwrap();
    eventually("readyz tells", || part(&network, "tls files").starts_with("degraded"));
    let told = part(&network, "tls files");
    assert!(told.contains("crl.pem does not cover CA CN=dqkd issuing CA of dqkd.example"), "{told}");
    assert_eq!(status(&network, &alice), 200, "the old lists are in force");
    assert_eq!(part(&network, "revocation lists"), "ok: ");

    // The old file comes back after a revocation.
    let pki = network.pki().display().to_string();
    run_to_end(&["pki", "revoke", "sae", "alice", "--dir", &pki]);
    eventually("alice is out", || status(&network, &alice) == 0);
    assert_eq!(part(&network, "tls files"), "ok: ");
    std::fs::write(&crl, &whole).unwrap();
    eventually("readyz tells", || part(&network, "tls files").contains("has an old list of CA"));
    assert_eq!(status(&network, &alice), 0, "still revoked");
}

#[test]
fn readyz_has_a_word_for_each_state_of_the_lists() {
    let mut network = Network::generate(2);
    let pki = network.pki().display().to_string();
    network.configure(0, "crl = \"pki/crl.pem\"\n", "");
    network.start_site(0);
    assert!(part(&network, "revocation lists").starts_with("ok: none configured"));
    network.kill_site(0);

    let root = &lists(&std::fs::read_to_string(network.pki().join("crl.pem")).unwrap())[0];
    std::fs::write(network.pki().join("root-only.pem"), root).unwrap();
    let config = network.site(0).config.display().to_string();
    network.configure(0, "key = ", "crl = \"pki/root-only.pem\"\nkey = ");
    let refused = dqkd().args(["serve", "--config", &config]).output().unwrap();
    assert!(stderr(&refused).contains("does not cover CA CN=dqkd issuing CA"), "{}", stderr(&refused));
    let refused = dqkd().args(["check-config", &config]).output().unwrap();
    assert!(stderr(&refused).contains("does not cover CA CN=dqkd issuing CA"), "{}", stderr(&refused));

    network.configure(0, "key = ", "crl_exempt = [\"dqkd issuing CA of dqkd.example\"]\nkey = ");
    let told = run_to_end(&["check-config", &config]);
    assert!(
        told.contains("note: CAs without a revocation list, as tls.crl_exempt allows: CN=dqkd issuing CA")
    );
    network.start_site(0);
    let told = part(&network, "revocation lists");
    assert_eq!(told, "ok: no list, as tls.crl_exempt allows: CA CN=dqkd issuing CA of dqkd.example");
    run_to_end(&["pki", "crl", "--dir", &pki]);
}

#[test]
fn saes_of_a_ca_of_their_own_are_served_and_that_ca_names_nobody_else() {
    let mut network = Network::generate(2);
    let corporate = network.dir().join("corporate");
    let dir = corporate.display().to_string();
    let issue = |args: &[&str]| run_to_end(&[&["pki", "issue", "--dir", &dir][..], args].concat());
    run_to_end(&["pki", "init", "--trust-domain", "dqkd.example", "--name", "SAEs", "--dir", &dir]);
    issue(&["sae", "alice"]);
    issue(&["kme", "site-b", "--dns", "localhost"]);
    issue(&["operator", "olga"]);
    let both = ["demo/pki/crl.pem", "corporate/crl.pem"];
    let both = both.map(|file| std::fs::read_to_string(network.dir().join(file)).unwrap()).concat();
    std::fs::write(network.pki().join("both.pem"), both).unwrap();
    network.configure(0, "crl = \"pki/crl.pem\"\n", "crl = \"pki/both.pem\"\n");
    network.configure(0, "[tls]\n", &format!("[tls]\nsae_ca = \"{dir}/ca.pem\"\n"));
    network.start_site(0);

    let of = |name: &str| corporate.join(format!("{name}.pem"));
    assert_eq!(status(&network, &of("alice")), 200);
    assert_eq!(status(&network, &network.sae("alice").1.cert), 0, "the CA of KMEs does not vouch for SAEs");
    let info = format!("{}/peer/v1/info", network.site(0).peer_url);
    let ask = |cert: PathBuf| {
        Curl::pem(&network.ca(), &cert, &cert.with_extension("key")).and(&["--http2"]).get(&info).status
    };
    assert_eq!(ask(network.pki().join("site-b.pem")), 200);
    for name in ["site-b", "alice", "olga"] {
        assert_eq!(ask(of(name)), 0, "{name}");
        assert_ne!(status(&network, &of("site-b")), 200, "a KME is no SAE");
    }
}

fn copy(from: &str, to: &Path, bits: u32) {
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("certs-dev").join(from);
    std::fs::copy(from, to).unwrap();
    std::fs::set_permissions(to, std::fs::Permissions::from_mode(bits)).unwrap();
}

#[test]
fn development_keys_are_refused_off_loopback_under_every_name() {
    let dir = TempDir::new().unwrap();
    let at = |name: &str| dir.path().join(name);
    for (from, to) in
        [("unsafe-ca.pem", "ca.pem"), ("unsafe-site-a.pem", "a.pem"), ("unsafe-crl.pem", "crl.pem")]
    {
        copy(from, &at(to), 0o644);
    }
    for (from, to) in [("unsafe-site-a.key", "a.key"), ("unsafe-site-a.kek", "a.kek")] {
        copy(from, &at(to), 0o600);
    }
    let sample = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/site-a.toml");
    let text = std::fs::read_to_string(sample).unwrap();
    let text = text.replace("../certs-dev/unsafe-site-a", "a").replace("../certs-dev/unsafe-", "");
    let config = at("site.toml");
    let check = |text: &str, command: &[&str], env: &[(&str, &str)]| {
        std::fs::write(&config, text).unwrap();
        dqkd().args(command).arg(&config).envs(env.iter().copied()).output().unwrap()
    };
    let good = check(&text, &["check-config"], &[]);
    assert!(good.status.success(), "on loopback: {}", stderr(&good));
    let open = text.replace("peer = \"127.0.0.1:", "peer = \"0.0.0.0:");
    assert_ne!(open, text);
    for command in [&["check-config"][..], &["serve", "--config"]] {
        let refused = check(&open, command, &[]);
        assert!(!refused.status.success());
        let told = stderr(&refused);
        assert!(
            told.contains("ca.pem has the public development certificate certs-dev/unsafe-ca.pem"),
            "{told}"
        );
        assert!(told.contains("danger.public_development_keys = true"), "{told}");
    }
    for (text, env) in [
        (&open, &[("DQKD__DANGER__PUBLIC_DEVELOPMENT_KEYS", "true")][..]),
        (&format!("{open}\n[danger]\npublic_development_keys = true\n"), &[]),
    ] {
        let allowed = check(text, &["check-config"], env);
        assert!(allowed.status.success(), "{}", stderr(&allowed));
    }

    // Own certificates, but the public key-encryption key.
    let network = Network::generate(2);
    let site = network.site(0).config.with_file_name("site-a.kek");
    copy("unsafe-site-a.kek", &site, 0o600);
    network.configure(0, "peer = \"127.0.0.1:", "peer = \"0.0.0.0:");
    for command in [&["check-config"][..], &["serve", "--config"]] {
        let refused = dqkd().args(command).arg(&network.site(0).config).output().unwrap();
        let told = stderr(&refused);
        assert!(!refused.status.success() && told.contains("certs-dev/unsafe-site-a.kek"), "{told}");
    }
}

#[test]
fn secrets_that_others_can_read_keep_a_daemon_from_starting() {
    let network = Network::generate(2);
    let config = network.site(0).config.display().to_string();
    for secret in [network.pki().join("site-a.key"), network.site(0).config.with_extension("kek")] {
        let set = |bits| std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(bits)).unwrap();
        set(0o644);
        for command in [&["check-config", &config][..], &["serve", "--config", &config]] {
            let refused = dqkd().args(command).output().unwrap();
            assert_eq!(refused.status.code(), Some(2));
            let told = stderr(&refused);
            assert!(told.contains(&format!("chmod 600 {}", secret.display())), "{told}");
        }
        set(0o600);
    }
    run_to_end(&["check-config", &config]);
}
