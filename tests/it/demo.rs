//! `dqkd demo`.

use std::process::{Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use testkit::Killed;
use testkit::needs;
use testkit::postgres::TestPostgres;
use testkit::{PATIENCE, dqkd, lines_of, output_of, run_to_end};

#[test]
fn once_prints_the_same_key_from_both_sites_and_ends_with_0() {
    let dir = TempDir::new().unwrap();
    let output = output_of(dqkd().args(["demo", "--once", "--dir"]).arg(dir.path().join("demo")));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    let key_of = |site: &str| {
        let line = text.lines().find(|line| line.starts_with(site) && line.ends_with('='));
        line.unwrap_or_else(|| panic!("{text}")).split_whitespace().nth(1).unwrap().to_owned()
    };
    assert_eq!(key_of("site-a"), key_of("site-b"));
    assert_eq!(key_of("site-a").len(), 44);
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn with_a_postgres_each_site_has_a_schema_of_its_own_and_a_second_demo_replaces_them() {
    needs!(Postgres);
    let url = TestPostgres::shared().new_database();
    for _ in 0..2 {
        let dir = TempDir::new().unwrap();
        let mut demo = dqkd();
        demo.args(["demo", "--once", "--store", &url, "--dir"]).arg(dir.path().join("demo"));
        let output = output_of(&mut demo);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    let database = TestPostgres::database_of(&url);
    for schema in ["dqkd_demo_site_a", "dqkd_demo_site_b"] {
        let count = format!("SELECT count(*) > 0 FROM {schema}.records");
        assert_eq!(TestPostgres::shared().sql(database, &[&count]), "t");
    }
}

#[test]
fn the_printed_commands_work_as_they_are_and_both_signals_stop_it_cleanly() {
    needs!(Curl);
    for signal in [Signal::INT, Signal::TERM] {
        let dir = TempDir::new().unwrap();
        let mut command = dqkd();
        command.args(["demo", "--dir"]).arg(dir.path().join("demo")).stdout(Stdio::piped());
        let mut demo = Killed(command.spawn().unwrap());
        let lines = lines_of(&mut demo.0);
        let (mut commands, mut with_qkd014) = (Vec::new(), Vec::new());
        loop {
            let line = lines.recv_timeout(PATIENCE).unwrap();
            if let Some(command) = line.trim_start().strip_prefix("curl ") {
                commands.push(command.to_owned());
            }
            if line.contains("qkd014 enc ") || line.contains("qkd014 dec ") {
                with_qkd014.push(line.clone());
            }
            if line.starts_with("Ctrl-C") {
                break;
            }
        }
        let shell = |command: &str| {
            let output = Command::new("sh").args(["-c", &format!("curl -sS {command}")]).output().unwrap();
            assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
            serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap()
        };
        let enc = shell(&commands[0]);
        let id = enc["keys"][0]["key_ID"].as_str().unwrap();
        assert_eq!(shell(&commands[1].replace("KEY_ID\"}", &format!("{id}\"}}"))), enc, "{signal:?}");
        assert_eq!(shell(&commands[2])["ready"], true);
        let sh = |command: &str| Command::new("sh").args(["-c", command]).output().unwrap();
        let made = sh(&with_qkd014[0]);
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let text = String::from_utf8(made.stdout.clone()).unwrap();
        let id = text.split(' ').next().unwrap();
        assert_eq!(sh(&with_qkd014[1].replace("KEY_ID", id)).stdout, made.stdout, "{signal:?}");
        kill_process(Pid::from_child(&demo.0), signal).unwrap();
        assert!(demo.0.wait().unwrap().success(), "{signal:?}");
    }
}

#[test]
fn ports_are_consecutive_from_base_port_and_the_manifest_has_absolute_paths() {
    let dir = TempDir::new().unwrap();
    let demo = dir.path().join("demo");
    let demo_arg = demo.display().to_string();
    let args = ["demo", "--generate-only", "--base-port", "21000", "--sites", "3", "--dir", &demo_arg];
    run_to_end(&args);
    let text = std::fs::read_to_string(demo.join("demo.json")).unwrap();
    let manifest: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(manifest["sites"][0]["sae_url"], "https://127.0.0.1:21000");
    assert_eq!(manifest["sites"][2]["admin_url"], "http://127.0.0.1:21008");
    assert_eq!(manifest["pool_servers"][2]["url"], "https://127.0.0.1:21013");
    assert_eq!(manifest["sites"][2]["saes"][0]["id"], "erin");
    let sae = &manifest["sites"][0]["saes"][0];
    for path in [&manifest["ca"], &manifest["sites"][0]["config"], &sae["cert"], &sae["key"], &sae["p12"]] {
        let path = std::path::Path::new(path.as_str().unwrap());
        assert!(path.is_absolute() && path.is_file(), "{}", path.display());
    }
    assert!(sae["p12_password"].as_str().unwrap().len() >= 16);
    assert_eq!(manifest["pool_servers"].as_array().unwrap().len(), 3);
    // A second run replaces the first demo, but never a folder with other files.
    run_to_end(&[&args[..], &["--pool-servers", "5"]].concat());
    let text = std::fs::read_to_string(demo.join("demo.json")).unwrap();
    let manifest: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(manifest["pool_servers"].as_array().unwrap().len(), 5);
    for site in manifest["sites"].as_array().unwrap() {
        let config = std::fs::read_to_string(site["config"].as_str().unwrap()).unwrap();
        assert_eq!(config.matches("[[pool_server]]").count(), 5, "{config}");
    }
    let other = dir.path().join("other");
    std::fs::create_dir(&other).unwrap();
    std::fs::write(other.join("precious"), "x").unwrap();
    let refused = output_of(dqkd().args(["demo", "--once", "--dir"]).arg(&other));
    assert_eq!(refused.status.code(), Some(1));
    assert!(other.join("precious").is_file());
}

#[test]
fn pool_servers_of_many_sites_have_room_for_the_pools_of_all() {
    let dir = TempDir::new().unwrap();
    let demo = dir.path().join("demo");
    run_to_end(&["demo", "--generate-only", "--sites", "21", "--dir", demo.to_str().unwrap()]);
    let pool = demo.join("pool-1.toml");
    let text = std::fs::read_to_string(&pool).unwrap();
    let config: toml::Value = toml::from_str(&text).unwrap();
    // In MiB: a pool of 131072 words for each other site, and its successor.
    let needed = 21 * 20 * 2;
    assert!(config["pool"]["memory_max_mib"].as_integer().unwrap() >= needed, "{text}");
    run_to_end(&["check-config", pool.to_str().unwrap(), demo.join("site-u.toml").to_str().unwrap()]);
}

#[test]
fn a_taken_port_is_named() {
    // Below the system's ephemeral ports: other tests may hold the next ones there.
    let bind = |port| std::net::TcpListener::bind(("127.0.0.1", port)).ok();
    let taken = (20_000..30_000).step_by(100).find_map(bind).unwrap();
    let port = taken.local_addr().unwrap().port();
    let dir = TempDir::new().unwrap();
    let base = port.to_string();
    let output = output_of(
        dqkd().args(["demo", "--once", "--base-port", &base, "--dir"]).arg(dir.path().join("demo")),
    );
    assert_eq!(output.status.code(), Some(1));
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(stderr.contains(&format!("sae listener of site-a cannot use 127.0.0.1:{port}")), "{stderr}");
}
