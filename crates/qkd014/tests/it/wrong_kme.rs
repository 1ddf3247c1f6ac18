//! Tests the tester: `qkd014 conformance` finds no fault in correct KMEs, and names every fault of wrong ones
//! (`crates/qkd014/examples/wrong-kme`).

mod faults;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Mutex;

use serde_json::Value;
use tempfile::TempDir;

use faults::{EXPECTED, Expected, NOTED_ONLY};
use testkit::needs;
use testkit::{Network, PATIENCE, lines_of, output_of, program, qkd014, run_to_end};

const STRICT: &[&str] = &["--profile", "strict"];
/// Runs at once. More would only wait for each other on the machines in use.
const WORKERS: usize = 2;

/// All KMEs of a demo folder; killed when dropped.
pub(crate) struct WrongKme(Child);

impl WrongKme {
    pub(crate) fn start(demo: &Path, fault: Option<&str>) -> Self {
        let mut command = Command::new(program("examples/wrong-kme"));
        command.arg("--dir").arg(demo).stdout(Stdio::piped()).stdin(Stdio::null());
        if let Some(fault) = fault {
            command.args(["--fault", fault]);
        }
        let mut this = Self(command.spawn().unwrap());
        let lines = lines_of(&mut this.0);
        for _ in 0..3 {
            lines.recv_timeout(PATIENCE).expect("every site listens");
        }
        this
    }
}

impl Drop for WrongKme {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A demo folder with everything that the tester can be given.
pub(crate) struct Fixture {
    pub(crate) network: Network,
    /// An authority that the KMEs do not trust.
    foreign: TempDir,
}

impl Fixture {
    pub(crate) fn new() -> Self {
        let (network, foreign) = (Network::generate(3), TempDir::new().unwrap());
        let pki = network.pki().display().to_string();
        run_to_end(&["pki", "issue", "sae", "stranger", "--dir", &pki]);
        let dir = foreign.path().display().to_string();
        run_to_end(&["pki", "init", "--trust-domain", "dqkd.example", "--dir", &dir]);
        run_to_end(&["pki", "issue", "sae", "alice", "--dir", &dir]);
        Self { network, foreign }
    }

    pub(crate) fn demo(&self) -> PathBuf {
        self.network.site(0).config.parent().unwrap().to_owned()
    }

    /// Runs the tester against KMEs with `fault`. Unless `three_sites`, C shares B's KME, so that the KME has
    /// to tell both apart.
    fn run(&self, fault: Option<&str>, three_sites: bool, scope: &[&str]) -> Run {
        let _kme = WrongKme::start(&self.demo(), fault);
        let output = self.test("json", three_sites, scope);
        let report = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
            panic!("{fault:?}: no report: {error}: {}", String::from_utf8_lossy(&output.stderr))
        });
        Run { exit: output.status.code(), report }
    }

    /// Runs the tester against whatever KMEs there are.
    pub(crate) fn test(&self, format: &str, three_sites: bool, scope: &[&str]) -> Output {
        let demo = self.demo();
        let pki = self.network.pki();
        let mut command = qkd014();
        command.args(["conformance", "--format", format, "--drain", "--max-keys", "3000"]).args(scope);
        command.args(["--unmet-extension", r#"{"example_route_type":"relay"}"#]);
        command.arg("--demo").arg(demo.join("demo.json"));
        for (letter, dir, name) in [("x", pki.as_path(), "stranger"), ("y", self.foreign.path(), "alice")] {
            command.arg(format!("--{letter}-cert")).arg(dir.join(format!("{name}.pem")));
            command.arg(format!("--{letter}-key")).arg(dir.join(format!("{name}.key")));
        }
        if !three_sites {
            command.args(["--c-id", "carol", "--c-cert"]).arg(pki.join("carol.pem"));
            command.arg("--c-key").arg(pki.join("carol.key"));
        }
        output_of(&mut command)
    }
}

/// The result of a run of the tester.
struct Run {
    exit: Option<i32>,
    report: Value,
}

impl Run {
    fn rows(&self) -> impl Iterator<Item = &Value> {
        self.report["tests"].as_array().unwrap().iter()
    }

    fn failed(&self) -> BTreeSet<u64> {
        let failed = self.rows().filter(|row| row["verdict"] == "fail");
        failed.map(|row| row["test"].as_str().unwrap()[1..].parse().unwrap()).collect()
    }

    fn row(&self, number: u64) -> &Value {
        let name = format!("T{number}");
        self.rows().find(|row| row["test"] == name.as_str()).unwrap_or_else(|| panic!("no row {name}"))
    }
}

/// What is wrong with a run's report; empty if it names its fault.
fn complaints(expected: &Expected, run: &Run) -> Vec<String> {
    let mut complaints = Vec::new();
    let mut complain = |what: String| complaints.push(format!("{}: {what}", expected.fault));
    if run.exit != Some(1) {
        complain(format!("exit {:?}", run.exit));
    }
    let failed = run.failed();
    for (number, words) in expected.named_by {
        if !failed.contains(number) {
            complain(format!("T{number} did not fail"));
            continue;
        }
        let text = run.row(*number)["failures"].to_string();
        for word in words.iter().filter(|word| !text.contains(**word)) {
            complain(format!("T{number} does not say {word:?}: {text}"));
        }
    }
    for number in failed {
        let is_named = expected.named_by.iter().any(|(named, _)| *named == number);
        if !is_named && !expected.also.contain(number) {
            complain(format!("T{number} fails for no reason: {}", run.row(number)));
        }
    }
    complaints
}

/// Complains unless the lenient profile fails what breaks the standard, and only notes what breaks a reading
/// of it.
fn lenient_complaint(expected: &Expected, run: &Run) -> Option<String> {
    let is_noted = NOTED_ONLY.contains(&expected.fault);
    let has_note = run.rows().any(|row| row["notes"].as_array().is_some_and(|notes| !notes.is_empty()));
    let is_right = if is_noted { run.exit == Some(0) && has_note } else { run.exit == Some(1) };
    (!is_right).then(|| format!("{}: lenient: exit {:?}: {}", expected.fault, run.exit, run.report))
}

#[test]
fn a_kme_that_is_right_passes_every_test_that_can_be_run() {
    needs!(Curl);
    let fixture = Fixture::new();
    let three_sites = fixture.run(None, true, STRICT);
    let run = fixture.run(None, false, STRICT);
    for run in [&three_sites, &run] {
        let failed: Vec<&Value> = run.failed().iter().map(|number| run.row(*number)).collect();
        assert!(failed.is_empty(), "{failed:#?}");
    }
    assert_eq!((run.exit, three_sites.exit), (Some(0), Some(0)));
    // So that the runs below can find every fault.
    for number in EXPECTED.iter().flat_map(|expected| expected.named_by).map(|(number, _)| *number) {
        assert_eq!(run.row(number)["verdict"], "pass", "T{number}: {}", run.row(number));
    }
}

#[test]
fn kmes_that_are_down_pass_no_test() {
    let fixture = Fixture::new();
    let output = fixture.test("json", false, STRICT);
    let report = serde_json::from_slice(&output.stdout).unwrap();
    let run = Run { exit: output.status.code(), report };
    let passed: Vec<&Value> = run.rows().filter(|row| row["verdict"] == "pass").collect();
    assert!(passed.is_empty() && run.exit == Some(1), "{passed:#?}");
}

#[test]
fn every_fault_of_a_wrong_kme_is_caught_and_named_by_its_row() {
    let listed = Command::new(program("examples/wrong-kme")).arg("--list-faults").output().unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    let listed: BTreeSet<&str> = listed.lines().filter_map(|line| line.split('\t').next()).collect();
    let known: BTreeSet<&str> = EXPECTED.iter().map(|expected| expected.fault).collect();
    assert_eq!(listed, known, "every fault has its row here");

    let (queue, complained) = (Mutex::new(EXPECTED.iter()), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(|| {
                let fixture = Fixture::new();
                loop {
                    let Some(expected) = queue.lock().unwrap().next() else { return };
                    let run = fixture.run(Some(expected.fault), false, STRICT);
                    complained.lock().unwrap().extend(complaints(expected, &run));
                    let rows: Vec<String> =
                        expected.named_by.iter().map(|(number, _)| number.to_string()).collect();
                    let scope = ["--profile", "lenient", "--only", &rows.join(",")];
                    let run = fixture.run(Some(expected.fault), false, &scope);
                    complained.lock().unwrap().extend(lenient_complaint(expected, &run));
                }
            });
        }
    });
    let complained = complained.into_inner().unwrap();
    assert!(complained.is_empty(), "{}", complained.join("\n"));
}
