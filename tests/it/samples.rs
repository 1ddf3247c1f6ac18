//! `config/` and `certs-dev/`: a fresh clone can serve at once.

use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use testkit::needs;
use testkit::{Curl, Daemon, Ports, eventually, run_to_end};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

#[test]
fn every_sample_is_judged_good_with_the_files_it_names() {
    let mut samples = 0;
    for entry in std::fs::read_dir(root().join("config")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "toml") {
            run_to_end(&["check-config", &path.display().to_string()]);
            samples += 1;
        }
    }
    assert!(samples >= 6, "{samples}");
}

/// On other ports, so that the test does not collide with a developer's daemons.
#[test]
fn the_samples_serve_and_share_a_key() {
    needs!(Curl);
    let dir = TempDir::new().unwrap();
    copy(&root().join("config"), &dir.path().join("config"));
    copy(&root().join("certs-dev"), &dir.path().join("certs-dev"));
    let claimed = Ports::claim();
    let ports: Vec<u16> = (claimed.base..).take(12).collect();
    let sampled = [8443, 9443, 9090, 8444, 9444, 9091, 9643, 9644, 9645, 9191, 9192, 9193];
    let config = |name: &str| dir.path().join("config").join(format!("{name}.toml"));
    let names = ["pool-1", "pool-2", "pool-3", "site-a", "site-b"];
    for name in names {
        let mut text = std::fs::read_to_string(config(name)).unwrap();
        for (from, to) in sampled.iter().zip(&ports) {
            text = text.replace(&format!("127.0.0.1:{from}"), &format!("127.0.0.1:{to}"));
        }
        std::fs::write(config(name), text).unwrap();
    }
    let _pools: Vec<Daemon> = names[..3].iter().map(|name| Daemon::start("pool", &config(name), 2)).collect();
    let _sites: Vec<Daemon> =
        names[3..].iter().map(|name| Daemon::start("serve", &config(name), 3)).collect();
    let dev = |name: &str| dir.path().join("certs-dev").join(name);
    let curl = |sae: &str| {
        let bundle = format!("{}:unsafe", dev(&format!("unsafe-{sae}.p12")).display());
        Curl::nobody(&dev("unsafe-ca.pem")).and(&["--cert", &bundle, "--cert-type", "P12"])
    };
    let enc = format!("https://127.0.0.1:{}/api/v1/keys/site-b/enc_keys", ports[0]);
    eventually("a key is made", || curl("alice").get(&enc).status == 200);
    let (id, key) = curl("alice").get(&enc).key();
    let dec = format!("https://127.0.0.1:{}/api/v1/keys/site-a/dec_keys?key_ID={id}", ports[3]);
    assert_eq!(curl("bob").get(&dec).key(), (id, key));
}

#[test]
fn the_script_regenerates_what_the_samples_name() {
    let dir = TempDir::new().unwrap();
    copy(&root().join("certs-dev"), &dir.path().join("certs-dev"));
    copy(&root().join("config"), &dir.path().join("config"));
    let list = dir.path().join("crates/mtls/src/development_keys.txt");
    std::fs::create_dir_all(list.parent().unwrap()).unwrap();
    let before = std::fs::read(dir.path().join("certs-dev/unsafe-ca.pem")).unwrap();
    let output = Command::new("bash")
        .arg(dir.path().join("certs-dev/regenerate.sh"))
        .env("DQKD", env!("CARGO_BIN_EXE_dqkd"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_ne!(std::fs::read(dir.path().join("certs-dev/unsafe-ca.pem")).unwrap(), before);
    for name in ["site-a", "site-b", "pool-1", "pool-2", "pool-3"] {
        let config = dir.path().join("config").join(format!("{name}.toml"));
        run_to_end(&["check-config", &config.display().to_string()]);
    }
    assert!(!dir.path().join("certs-dev/authority").exists(), "no CA key is left behind");
    let listed = std::fs::read_to_string(list).unwrap();
    let committed = std::fs::read_to_string(root().join("crates/mtls/src/development_keys.txt")).unwrap();
    assert_eq!(listed.lines().count(), committed.lines().count());
    assert!(committed.lines().all(|line| !listed.contains(line)), "all keys are new");
}

#[test]
fn the_committed_tree_has_no_private_key_but_the_unsafe_ones() {
    needs!(Git);
    let tracked = Command::new("git").args(["ls-files"]).current_dir(root()).output().unwrap();
    let listing = String::from_utf8(tracked.stdout).unwrap();
    for file in listing.lines() {
        let name = file.rsplit('/').next().unwrap();
        let bytes = std::fs::read(root().join(file)).unwrap_or_default();
        let has_key = bytes.windows(11).any(|window| window == b"PRIVATE KEY")
            && !file.starts_with("src/")
            && !file.starts_with("tests/");
        assert!(!has_key || name.starts_with("unsafe-"), "{file}");
    }
}
