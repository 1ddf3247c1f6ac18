//! Help texts and reports, word for word. `INSTA_UPDATE=always cargo test -p qkd014 snapshots` rewrites them;
//! look at the difference before you commit it.

use std::collections::BTreeSet;
use std::path::Path;

use insta::{assert_snapshot, with_settings};
use serde_json::Value;
use testkit::{output_of, qkd014};

use crate::wrong_kme::{Fixture, WrongKme};

/// Every file under `tests/snapshots`.
const SNAPSHOTS: &[&str] = &[
    "bench-json",
    "conformance-json",
    "conformance-junit",
    "conformance-table",
    "help",
    "help-bench",
    "help-conformance",
    "help-dec",
    "help-enc",
    "help-status",
];

/// What differs from run to run.
const VOLATILE: &[(&str, &str)] = &[
    (r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", "UUID"),
    (r#""seconds": [0-9.e-]+"#, r#""seconds": SECONDS"#),
    (r#"time="[0-9.]+""#, r#"time="SECONDS""#),
];

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn assert_text(name: &str, shown: &str) {
    with_settings!({ snapshot_path => "../snapshots", prepend_module_to_snapshot => false, filters => VOLATILE.to_vec() }, {
        assert_snapshot!(name, shown);
    });
}

#[test]
fn no_snapshot_is_pending_or_left_over() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/snapshots");
    let names =
        std::fs::read_dir(dir).unwrap().map(|entry| text(entry.unwrap().file_name().as_encoded_bytes()));
    let known: BTreeSet<String> = SNAPSHOTS.iter().map(|name| format!("{name}.snap")).collect();
    assert_eq!(names.collect::<BTreeSet<String>>(), known);
}

#[test]
fn help() {
    for command in ["", "status", "enc", "dec", "conformance", "bench"] {
        let output = output_of(
            qkd014().env("COLUMNS", "100").args([command, "--help"].iter().filter(|arg| !arg.is_empty())),
        );
        let name = if command.is_empty() { "help".to_owned() } else { format!("help-{command}") };
        assert_text(&name, &text(&output.stdout));
    }
}

/// Two tests that pass, two that fail, one that is skipped, one with a note.
#[test]
fn conformance_reports() {
    let fixture = Fixture::new();
    let _kme = WrongKme::start(&fixture.demo(), Some("missing-is-404"));
    for format in ["table", "json", "junit"] {
        let output = fixture.test(format, false, &["--only", "8,23,34,36,44,52"]);
        assert_text(&format!("conformance-{format}"), &text(&output.stdout));
    }
}

/// Members and their types.
#[test]
fn bench_report() {
    let fixture = Fixture::new();
    let _kme = WrongKme::start(&fixture.demo(), None);
    let mut command = qkd014();
    command.args(["bench", "--json", "--demo"]).arg(fixture.network.manifest());
    command.args(["--op", "pair", "--baseline", "--rounds", "1", "--rate", "100", "--connections", "2"]);
    let output = output_of(command.args(["--duration", "1", "--warmup", "0"]));
    assert!(output.status.success(), "{}", text(&output.stderr));
    let mut report: Value = serde_json::from_slice(&output.stdout).unwrap();
    hide_numbers(&mut report);
    assert_text("bench-json", &format!("{report:#}"));
}

fn hide_numbers(json: &mut Value) {
    match json {
        Value::Number(_) => *json = Value::from("(number)"),
        Value::Array(entries) => entries.iter_mut().for_each(hide_numbers),
        Value::Object(members) => members.values_mut().for_each(hide_numbers),
        _ => {}
    }
}
