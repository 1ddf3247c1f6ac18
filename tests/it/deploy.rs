//! `deploy/`: the files that operators start from work, and keep what `docs/deployment.md` promises of them.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;

use testkit::needs;
use testkit::{output_of, run_to_end};

fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy")
}

fn read(name: &str) -> String {
    std::fs::read_to_string(deploy().join(name)).unwrap()
}

fn compose() -> Value {
    serde_saphyr::from_str(&read("compose.yaml")).unwrap()
}

fn services(compose: &Value) -> Vec<(&String, &Value)> {
    compose["services"].as_object().unwrap().iter().collect()
}

fn texts(value: &Value) -> Vec<&str> {
    value.as_array().map(|list| list.iter().map(|item| item.as_str().unwrap()).collect()).unwrap_or_default()
}

/// Whether the service has `key`, as text, number or list.
fn has(service: &Value, key: &str) -> bool {
    !service[key].is_null()
}

#[test]
fn every_service_is_bounded_watched_hardened_and_comes_back() {
    let compose = compose();
    let names: Vec<&str> = services(&compose).iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["haproxy", "kme-1", "kme-2", "postgres"]);
    for (name, service) in services(&compose) {
        for key in ["mem_limit", "memswap_limit", "cpus", "pids_limit", "stop_grace_period", "image"] {
            assert!(has(service, key), "{name} has no {key}");
        }
        assert_eq!(service["mem_limit"], service["memswap_limit"], "{name} may swap");
        assert!(texts(&service["healthcheck"]["test"]).len() > 2, "{name} has no health check");
        assert_eq!(service["restart"], "unless-stopped", "{name}");
        assert_eq!(service["read_only"], true, "{name}");
        assert_eq!(texts(&service["cap_drop"]), ["ALL"], "{name}");
        assert_eq!(texts(&service["security_opt"]), ["no-new-privileges:true"], "{name}");
        assert!(service["privileged"].is_null() && service["network_mode"].is_null(), "{name}");
    }
}

#[test]
fn only_the_load_balancer_is_reached_from_outside_and_postgres_by_the_replicas_alone() {
    let compose = compose();
    for (name, service) in services(&compose) {
        let networks = texts(&service["networks"]);
        match name.as_str() {
            "haproxy" => assert!(networks == ["site"] && texts(&service["ports"]).len() == 2),
            "postgres" => assert!(networks == ["database"] && !has(service, "ports")),
            _ => assert!(networks == ["site", "database"] && !has(service, "ports"), "{name}"),
        }
    }
    assert_eq!(compose["networks"]["database"]["internal"], true);
}

#[test]
fn secrets_are_files_outside_the_tree_and_every_file_that_is_mounted_is_in_it() {
    let compose = compose();
    let secrets = compose["secrets"].as_object().unwrap();
    let mut used = BTreeSet::new();
    for (name, service) in services(&compose) {
        for secret in texts(&service["secrets"]) {
            assert!(secrets.contains_key(secret), "{name}: {secret}");
            used.insert(secret.to_owned());
        }
        for volume in texts(&service["volumes"]) {
            let from = volume.split(':').next().unwrap();
            match from.strip_prefix("./") {
                Some(file) => {
                    assert!(deploy().join(file).exists() && volume.ends_with(":ro"), "{name}: {volume}");
                }
                None => assert!(compose["volumes"].get(from).is_some(), "{name}: {volume}"),
            }
        }
        for value in service["environment"].as_object().into_iter().flat_map(|map| map.values()) {
            assert!(
                value.as_str().unwrap().starts_with("/run/secrets/"),
                "{name}: a secret in the environment"
            );
        }
    }
    assert_eq!(used, secrets.keys().cloned().collect());
    let ignored = std::fs::read_to_string(deploy().join("../.gitignore")).unwrap();
    assert!(ignored.lines().any(|line| line == "/deploy/secrets"));
    for secret in secrets.values() {
        assert!(secret["file"].as_str().unwrap().starts_with("./secrets/"), "{secret}");
    }
    let configs =
        [read("kme.toml"), read("haproxy.cfg"), read("postgres/start.sh"), read("postgres/init.sh")];
    let named = configs.iter().flat_map(|text| text.split("/run/secrets/").skip(1));
    for rest in named {
        let name: String = rest.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
        assert!(secrets.contains_key(&name), "/run/secrets/{name} is no secret");
    }
}

#[test]
fn the_replicas_are_the_same_but_for_their_name_and_get_the_time_that_a_stop_may_take() {
    let compose = compose();
    let (one, two) = (&compose["services"]["kme-1"], &compose["services"]["kme-2"]);
    assert_eq!(one, two);
    assert_eq!(one["depends_on"]["postgres"]["condition"], "service_healthy");
    assert!(deploy().join(one["build"].as_str().unwrap()).join("Dockerfile").exists());
    let probe = texts(&one["healthcheck"]["test"]);
    assert_eq!(probe[1..5], ["/usr/local/bin/dqkd", "ready", "--config", "/etc/dqkd/kme.toml"]);
    let help = run_to_end(&["ready", "--help"]);
    for option in probe.iter().filter(|word| word.starts_with("--")) {
        assert!(help.contains(option), "{option}");
    }
}

/// Certificates of a fresh authority replace the secrets; the networks' names are resolved later.
#[test]
fn haproxy_accepts_its_configuration() {
    needs!(Haproxy);
    let dir = TempDir::new().unwrap();
    let pki = dir.path().join("pki").display().to_string();
    run_to_end(&["pki", "init", "--dir", &pki, "--trust-domain", "dqkd.example"]);
    run_to_end(&["pki", "issue", "operator", "probe", "--dir", &pki]);
    let part = |name: &str| std::fs::read_to_string(Path::new(&pki).join(name)).unwrap();
    let probe = dir.path().join("probe");
    std::fs::write(&probe, part("probe.pem") + &part("probe.key")).unwrap();
    let config = read("haproxy.cfg")
        .replace("/run/secrets/ca ", &format!("{pki}/ca.pem "))
        .replace("/run/secrets/probe", &probe.display().to_string());
    assert!(!config.contains("/run/secrets"));
    let file = dir.path().join("haproxy.cfg");
    std::fs::write(&file, config).unwrap();
    let output = Command::new("haproxy").args(["-c", "-f"]).arg(&file).output();
    let output = output.unwrap();
    let said =
        String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}");
    let complaints = said.lines().filter(|line| line.contains("[WARNING]") || line.contains("[ALERT]"));
    let others: Vec<&str> = complaints.filter(|line| !line.contains("could not resolve address")).collect();
    assert!(others.is_empty(), "{others:?}");
}

/// Files replace the secrets. Checks the configuration as `serve` does.
#[test]
fn the_daemon_accepts_its_configuration_and_drains_for_longer_than_the_load_balancer_needs() {
    needs!(Openssl);
    let dir = TempDir::new().unwrap();
    let secrets = dir.path().join("secrets");
    std::fs::copy(deploy().join("prepare.sh"), dir.path().join("prepare.sh")).unwrap();
    assert!(Command::new("bash").arg(dir.path().join("prepare.sh")).status().unwrap().success());
    let pki = secrets.display().to_string();
    run_to_end(&["pki", "init", "--dir", &pki, "--trust-domain", "dqkd.example"]);
    let dns = "site-a.example";
    run_to_end(&["pki", "issue", "kme", "site-a", "--dir", &pki, "--name", "kme", "--dns", dns]);
    let compose = compose();
    let mut config = read("kme.toml");
    for (name, secret) in compose["secrets"].as_object().unwrap() {
        let file = dir.path().join(secret["file"].as_str().unwrap());
        for end in ["\"", "&"] {
            config =
                config.replace(&format!("/run/secrets/{name}{end}"), &format!("{}{end}", file.display()));
        }
    }
    assert!(!config.contains("/run/secrets"), "{config}");
    let file = dir.path().join("kme.toml");
    std::fs::write(&file, &config).unwrap();
    run_to_end(&["check-config", &file.display().to_string()]);
    let dqkd::config::ConfigFile::Kme(config) = dqkd::config::load(&file, []).unwrap() else {
        panic!("kme.toml configures something else");
    };
    assert!(config.store.location.to_string().contains("postgres"), "{}", config.store.location);
    // "inter 1s fall 2" and a check that was just under way.
    assert!(read("haproxy.cfg").contains("default-server inter 1s fall 2"));
    assert!(config.limits.drain_delay.as_secs() >= 4);
    let stop = config.limits.drain_delay + config.limits.shutdown_grace;
    let grace = compose["services"]["kme-1"]["stop_grace_period"].as_str().unwrap();
    let grace: u64 = grace.strip_suffix('s').unwrap().parse().unwrap();
    assert!(grace >= stop.as_secs() + 15, "15 s for closing the store");
    assert!(read("dqkd.service").contains("TimeoutStopSec=45"));
}

/// Only where Docker has its Compose plugin. Elsewhere the tests above read the file themselves.
#[test]
fn docker_compose_accepts_the_file_where_it_is_installed() {
    let docker = |args: &[&str]| Command::new("docker").args(args).current_dir(deploy()).output();
    if !docker(&["compose", "version"]).is_ok_and(|output| output.status.success()) {
        eprintln!("`docker compose` is not installed here: not asked");
        return;
    }
    let output = docker(&["compose", "--file", "compose.yaml", "config", "--quiet"]).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn the_scripts_are_sound_and_prepare_makes_secrets_once_for_their_owner_alone() {
    use std::os::unix::fs::PermissionsExt as _;
    needs!(Openssl);
    let dir = TempDir::new().unwrap();
    for script in ["prepare.sh", "postgres/start.sh", "postgres/init.sh"] {
        let checked = output_of(Command::new("bash").arg("-n").arg(deploy().join(script)));
        assert!(checked.status.success(), "{script}: {}", String::from_utf8_lossy(&checked.stderr));
    }
    let script = dir.path().join("prepare.sh");
    std::fs::copy(deploy().join("prepare.sh"), &script).unwrap();
    let prepare = || {
        let output = output_of(Command::new("bash").arg(&script));
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let said = prepare();
    assert!(said.contains("missing: secrets/kme.pem") && said.contains("made secrets/kek"), "{said}");
    let files = ["db-password", "postgres-password", "kek", "db.key"];
    let contents = || files.map(|name| std::fs::read(dir.path().join("secrets").join(name)).unwrap());
    let first = contents();
    for name in files {
        let mode = std::fs::metadata(dir.path().join("secrets").join(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
    assert!(!prepare().contains("made"), "nothing is replaced");
    assert_eq!(contents(), first);
    assert!(std::fs::read_to_string(dir.path().join(".env")).unwrap().contains("DQKD_UID="));
}
