//! `qkd014 bench`: its figures are what really happened.

use std::path::Path;

use serde_json::Value;

use testkit::needs;
use testkit::{Network, eventually, output_of, qkd014};

/// Runs a short bench against `manifest` and returns what it prints.
fn printed(manifest: &Path, args: &[&str]) -> String {
    let mut command = qkd014();
    command.args(["bench", "--demo"]).arg(manifest);
    let output = output_of(command.args(args));
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The same as JSON.
fn bench(manifest: &Path, args: &[&str]) -> Value {
    let text = printed(manifest, &[&["--json"], args].concat());
    serde_json::from_str(&text).unwrap_or_else(|_| panic!("{text}"))
}

/// A small stock for `dec`, without a warm-up that uses it up; other operations wait for no keys.
fn stock(operation: &str) -> Vec<&'static str> {
    let short = ["--duration", "1", "--warmup", "0"];
    let stock: &[&str] = if operation == "dec" { &["--stock", "300"] } else { &[] };
    [&short, stock].concat()
}

/// No errors, and every key that was received had a twin.
fn check(report: &Value, keys_each: u64) {
    for round in report["rounds"].as_array().unwrap() {
        let run = &round["kme"];
        let operations = run["operations"].as_u64().unwrap();
        assert!(operations > 0, "{run:#}");
        let statuses: Vec<&String> = run["statuses"].as_object().unwrap().keys().collect();
        assert_eq!(statuses, ["200"], "{run:#}");
        assert_eq!(run["troubles"], serde_json::json!({}));
        let twins = &run["twins"];
        // Includes keys of the warm-up.
        assert!(twins["compared"].as_u64().unwrap() >= operations * keys_each, "{run:#}");
        for wrong in ["different", "missing", "repeated", "malformed"] {
            assert_eq!(twins[wrong], 0, "{twins}");
        }
        let times = &run["latency_ms"];
        let at = |name: &str| times[name].as_f64().unwrap();
        assert!(0.0 < at("p50") && at("p50") <= at("p90") && at("p90") <= at("p99"), "{times}");
        assert!(at("p99") <= at("p99.9") && at("p99.9") <= at("max"), "{times}");
        let cpu: f64 =
            run["servers"].as_array().unwrap().iter().map(|server| server["cpu_s"].as_f64().unwrap()).sum();
        assert!(cpu > 0.0, "the daemons' processes were found: {run:#}");
    }
}

#[test]
fn every_operation_over_both_versions_of_http_is_counted_and_every_key_compared_with_its_twin() {
    needs!(Curl);
    let network = Network::start(2);
    let manifest = network.manifest();
    for (operation, requests_each) in [("enc", 1), ("dec", 1), ("pair", 2), ("handshake", 1)] {
        for (http, path) in [("1", "sae"), ("2", "kme")] {
            let args = ["--op", operation, "--http", http, "--path", path, "--connections", "3"];
            let report = bench(&manifest, &[&args[..], &stock(operation)].concat());
            assert_eq!(
                (&report["operation"], report["http"].to_string().as_str()),
                (&operation.into(), http)
            );
            check(&report, 1);
            let run = &report["rounds"][0]["kme"];
            let answered = run["statuses"]["200"].as_u64().unwrap();
            assert_eq!(answered, requests_each * run["operations"].as_u64().unwrap(), "{run:#}");
            if operation == "dec" {
                assert!(answered <= 300 && run["seconds"].as_f64().unwrap() <= 1.0, "{run:#}");
            }
        }
    }
}

#[test]
fn many_keys_a_request_are_all_compared() {
    needs!(Curl);
    let network = Network::start(2);
    for operation in ["enc", "dec", "pair"] {
        let args = ["--op", operation, "--number", "5", "--size", "128", "--connections", "2"];
        let report = bench(&network.manifest(), &[&args[..], &stock(operation)].concat());
        check(&report, 5);
        assert_eq!(report["key_bits"], 128);
    }
}

#[test]
fn the_baseline_is_measured_before_each_round_and_divides_its_figures() {
    needs!(Curl);
    let network = Network::start(2);
    for operation in ["enc", "dec", "pair", "handshake"] {
        let args = ["--op", operation, "--baseline", "--rounds", "2", "--connections", "2"];
        let args = [&args[..], &["--baseline-duration", "0.5"]].concat();
        let report = bench(&network.manifest(), &[&args[..], &stock(operation)].concat());
        check(&report, 1);
        let rounds = report["rounds"].as_array().unwrap();
        assert_eq!(rounds.len(), 2);
        let of = |round: &Value, who: &str| round[who]["operations_per_s"].as_f64().unwrap();
        let mut ratios: Vec<f64> =
            rounds.iter().map(|round| of(round, "kme") / of(round, "baseline")).collect();
        ratios.sort_by(f64::total_cmp);
        let ratio = report["ratio"].as_f64().unwrap();
        assert!((ratio - f64::midpoint(ratios[0], ratios[1])).abs() < 1e-9, "{ratio} {ratios:?}");
        for round in rounds {
            assert_eq!(round["baseline"]["servers"][0]["names"][0], "baseline");
            assert_eq!(round["baseline"]["seconds"], 0.5);
            assert!(round["baseline"]["servers"][0]["cpu_s"].as_f64().unwrap() > 0.0);
        }
    }
}

#[test]
fn any_pair_of_kmes_is_measured_against_the_baseline_with_nothing_but_its_certificates() {
    needs!(Curl);
    let network = Network::start(2);
    let ((site_a, alice), (site_b, bob)) = (network.sae("alice"), network.sae("bob"));
    let mut command = qkd014();
    command.args(["bench", "--json", "--baseline", "--rounds", "1", "--connections", "2"]);
    command.args([
        "--url-a",
        &site_a.sae_url,
        "--sae-a",
        "alice",
        "--url-b",
        &site_b.sae_url,
        "--sae-b",
        "bob",
    ]);
    command.arg("--ca").arg(network.ca()).arg("--cert-a").arg(&alice.cert).arg("--key-a").arg(&alice.key);
    command.arg("--cert-b").arg(&bob.cert).arg("--key-b").arg(&bob.key).args(stock("enc"));
    let output = output_of(&mut command);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    check(&report, 1);
    assert!(report["baseline"]["operations_per_s"].as_f64().unwrap() > 0.0);
    // It verifies its clients, as KMEs do.
    let foreign = testkit::shared().path("ca.pem");
    let output = output_of(command.arg("--baseline-ca").arg(foreign));
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn an_open_loop_does_not_exceed_its_rate_and_counts_the_wait_of_those_who_are_late() {
    needs!(Curl);
    let network = Network::start(2);
    let manifest = network.manifest();
    let report = bench(&manifest, &["--rate", "50", "--connections", "4", "--duration", "4"]);
    check(&report, 1);
    let rate = report["kme"]["operations_per_s"].as_f64().unwrap();
    assert!(rate <= 55.0, "{rate}");
    // Far more than one connection can do, so each operation waits longer than the one before. If times began
    // when an operation was sent, latency times rate would be one: the operation under way.
    let args = ["--op", "handshake", "--rate", "100000", "--connections", "1"];
    let report = bench(&manifest, &[&args[..], &stock("handshake")].concat());
    let at = |name: &str| report["kme"][name].as_f64().unwrap();
    let waiting = at("p50_ms") / 1e3 * at("operations_per_s");
    assert!(waiting > 2.0, "{waiting} operations wait at once");
}

#[test]
fn windows_are_told_one_after_the_other_and_add_up_to_the_whole() {
    const CONNECTIONS: u64 = 4;
    needs!(Curl);
    let network = Network::start(2);
    let mut command = qkd014();
    command.args(["bench", "--json", "--op", "pair", "--demo"]).arg(network.manifest());
    command.args(["--window", "1", "--duration", "3", "--rate", "40", "--connections", "4"]);
    let output = output_of(&mut command);
    let text = String::from_utf8(output.stdout).unwrap();
    let mut lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let report = lines.pop().unwrap();
    check(&report, 1);
    let starts: Vec<f64> = lines.iter().map(|line| line["window"]["start_s"].as_f64().unwrap()).collect();
    assert_eq!(starts, [0.0, 1.0, 2.0]);
    let run = &report["rounds"][0]["kme"];
    for what in ["operations", "200"] {
        let of =
            |counts: &Value| counts[what].as_u64().or(counts["statuses"][what].as_u64()).unwrap_or_default();
        let windows: u64 = lines.iter().map(|line| of(&line["window"])).sum();
        // An operation that ended just before the end may be counted after the last window.
        let late = of(run) - windows;
        assert!(windows > 0 && late <= 2 * CONNECTIONS, "{what}: {run:#} {lines:#?}");
    }
    // The report has them all, and says how figures went.
    let told: Vec<Value> = lines.iter().map(|line| line["window"].clone()).collect();
    assert_eq!(run["windows"], Value::from(told));
    let rates: Vec<f64> =
        lines.iter().map(|line| line["window"]["operations_per_s"].as_f64().unwrap()).collect();
    let least = rates.iter().copied().fold(f64::INFINITY, f64::min);
    let course = serde_json::json!({ "first": rates[0], "last": rates[2], "worst": least });
    assert_eq!(run["over_time"]["operations_per_s"], course);
    for line in &lines {
        let at = |name: &str| line["window"]["dec_latency_ms"][name].as_f64();
        assert!(at("p50") <= at("p99"), "{line:#}");
        // The whole time includes the longest of all windows.
        assert!(at("max") <= run["dec_latency_ms"]["max"].as_f64(), "{line:#}");
    }
}

#[test]
fn either_order_retrieves_each_known_key_once_and_ends_when_there_are_no_more() {
    needs!(Curl);
    let network = Network::start(2);
    for order in ["newest", "random"] {
        let args = ["--op", "dec", "--order", order, "--stock", "300", "--rounds", "2", "--connections", "3"];
        let report =
            bench(&network.manifest(), &[&args[..], &["--duration", "600", "--warmup", "0"]].concat());
        check(&report, 1);
        assert_eq!((&report["order"], &report["supply"]), (&order.into(), &"stocked".into()));
        for round in report["rounds"].as_array().unwrap() {
            let run = &round["kme"];
            // A second retrieval of the same key would have been refused, and none is missing.
            assert_eq!(run["twins"]["compared"], 300);
            assert_eq!((&run["known_before"], &run["known_after"]), (&300.into(), &0.into()));
        }
        assert_eq!(report["twins"]["compared"], 600);
    }
}

#[test]
fn keys_that_a_round_leaves_are_known_to_the_next_and_only_the_others_are_fetched() {
    needs!(Curl);
    let network = Network::start(2);
    let args = ["--op", "dec", "--order", "random", "--stock", "300", "--rounds", "2", "--rate", "40"];
    let report = bench(&network.manifest(), &[&args[..], &["--duration", "2", "--warmup", "0"]].concat());
    check(&report, 1);
    let of = |round: usize, what: &str| report["rounds"][round]["kme"][what].as_u64().unwrap();
    for round in [0, 1] {
        assert_eq!(of(round, "known_before"), 300);
        let taken = 300 - of(round, "known_after");
        assert!((1..300).contains(&taken) && taken >= of(round, "operations"), "{report:#}");
    }
    let metrics = network.metrics(0);
    let handed_out: u64 = metrics
        .lines()
        .filter(|line| line.starts_with("dqkd_keys_handed_out_total"))
        .map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap())
        .sum();
    assert_eq!(handed_out, 300 + 300 - of(0, "known_after"));
}

#[test]
fn a_report_says_whether_keys_were_made_before_or_while_they_were_asked_for() {
    needs!(Curl);
    let network = Network::start(2);
    let manifest = network.manifest();
    let short = ["--duration", "1", "--warmup", "0", "--connections", "2"];
    for (args, supply, words) in [
        (&["--op", "enc"][..], "sustained", "enc, sustained (keys are made while they are asked for)"),
        (&["--op", "pair"], "sustained", "pair, sustained"),
        (&["--op", "pair", "--stock", "0"], "sustained", "pair, sustained"),
        (&["--op", "handshake"], "sustained", "handshake, sustained"),
        (&["--op", "enc", "--stock", "10"], "stocked", "enc, stocked (keys were made before the clock ran)"),
        (&["--op", "pair", "--stock", "10"], "stocked", "pair, stocked"),
        (&["--op", "dec", "--stock", "70"], "stocked", "dec, stocked (the newest of 70 keys"),
        (&["--op", "dec", "--stock", "70", "--order", "random"], "stocked", "dec, stocked (any of 70 keys"),
    ] {
        let args = [args, &short].concat();
        let report = bench(&manifest, &args);
        assert_eq!(report["supply"], supply, "{args:?}");
        let text = printed(&manifest, &args);
        assert!(text.starts_with(words), "{args:?}: {text}");
    }
}

#[test]
fn keys_that_were_ready_before_are_not_called_sustained_in_silence() {
    needs!(Curl);
    let mut network = Network::start(2);
    let manifest = network.manifest();
    let ready = |network: &Network| network.status("alice", "bob")["stored_key_count"].as_u64().unwrap();
    eventually("alice's reserve is full", || ready(&network) >= 64);
    // From here on nothing can be made.
    network.kill_site(1);
    let args = ["--compare", "0", "--rate", "100", "--duration", "0.2", "--warmup", "0"];
    let text = printed(&manifest, &args);
    assert!(text.contains("100% of the keys were ready before: measure for longer"), "{text}");
    let text = printed(&manifest, &[&args[..], &["--stock", "1"]].concat());
    assert!(text.contains("stocked") && !text.contains("measure for longer"), "{text}");
}

#[test]
fn slaves_are_named_in_turn_each_as_often_as_the_others() {
    const CONNECTIONS: u64 = 3;
    needs!(Curl);
    let mut network = Network::generate(2);
    for site in [0, 1] {
        // bob-2 has no KME.
        network.configure(site, "[[sae]]", "[[sae]]\nid = \"bob-1\"\nkme = \"site-b\"\n\n[[sae]]");
    }
    network.start_pools(3);
    network.start_sites();
    let args = ["--slaves", "2", "--compare", "0", "--connections", "3"];
    let report = bench(&network.manifest(), &[&args[..], &stock("enc")].concat());
    let statuses = &report["rounds"][0]["kme"]["statuses"];
    let [known, unknown] = ["200", "400"].map(|status| statuses[status].as_u64().unwrap());
    assert!(known > 0 && known.abs_diff(unknown) <= CONNECTIONS, "{statuses}");
    let refusals = &report["rounds"][0]["kme"]["refusals"];
    assert!(refusals["400"].as_str().unwrap().contains("unknown"), "the KME's own words: {refusals}");
}

#[test]
fn a_pair_that_is_not_there_and_wrong_usage_are_named() {
    let network = Network::generate(2);
    let manifest = network.manifest();
    let run = |args: &[&str]| {
        let output = output_of(qkd014().arg("bench").args(args));
        (output.status.code().unwrap(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let manifest = manifest.to_str().unwrap();
    for (args, code, named) in [
        (&["--demo", manifest][..], 1, "Connection refused"),
        (&["--demo", "/nowhere/demo.json"], 2, "cannot read /nowhere/demo.json"),
        (&["--demo", manifest, "--streams", "2"], 2, "--streams needs --http 2"),
        (&["--demo", manifest, "--duration", "0"], 2, "above 0"),
        (&["--demo", manifest, "--json", "--window", "0"], 2, "at least 0.1"),
        (&["--demo", manifest, "--slaves", "2"], 2, "--slaves needs --op enc or handshake"),
        (&["--demo", manifest, "--order", "random"], 2, "--order needs --op dec"),
        (&["--url-a", "https://x"], 2, "--url-b"),
        (&["--url-a", "127.0.0.1:1"], 2, "did you mean https://127.0.0.1:1?"),
    ] {
        let (ended, stderr) = run(args);
        assert!(ended == code && stderr.contains(named), "{args:?}: {ended} {stderr}");
    }
}
