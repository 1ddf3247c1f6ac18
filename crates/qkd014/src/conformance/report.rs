//! The report: a table to read, JSON for programs, JUnit for continuous integration. It never holds a key.

use std::fmt::Write as _;
use std::time::Duration;

use quick_junit::{NonSuccessKind, TestCase, TestCaseStatus, TestSuite};
use serde_json::{Value, json};

use super::outcome::Failure;
use super::setup::Profile;

/// Width of the columns of numbers and verdicts.
const LABEL_WIDTH: usize = 5;

/// The verdict of one test.
#[derive(Clone, Debug)]
pub enum Verdict {
    /// Nothing was wrong.
    Passed,
    /// What was wrong.
    Failed(Vec<Failure>),
    /// Why it was not run.
    Skipped(String),
}

/// One test of a report.
#[derive(Clone, Debug)]
pub struct Row {
    /// 1 to 54.
    pub number: u32,
    /// What it is about.
    pub title: &'static str,
    /// Its verdict.
    pub verdict: Verdict,
    /// What else is worth knowing, for example deviations that the profile lets pass.
    pub notes: Vec<String>,
    /// How long it took.
    pub duration: Duration,
}

/// A whole run.
#[derive(Clone, Debug)]
pub struct Report {
    /// By number.
    pub rows: Vec<Row>,
    /// How strict the run was.
    pub profile: Profile,
    /// Keys that the run asked for.
    pub keys_used: usize,
}

impl Verdict {
    fn word(&self) -> &'static str {
        match self {
            Self::Passed => "pass",
            Self::Failed(_) => "fail",
            Self::Skipped(_) => "skip",
        }
    }

    fn failures(&self) -> &[Failure] {
        if let Self::Failed(failures) = self { failures } else { &[] }
    }
}

impl Report {
    /// How many tests failed.
    pub fn failed(&self) -> usize {
        self.count("fail")
    }

    /// How many passed.
    pub fn passed(&self) -> usize {
        self.count("pass")
    }

    /// How many were skipped.
    pub fn skipped(&self) -> usize {
        self.count("skip")
    }

    fn count(&self, word: &str) -> usize {
        self.rows.iter().filter(|row| row.verdict.word() == word).count()
    }

    fn profile_name(&self) -> &'static str {
        match self.profile {
            Profile::Strict => "strict",
            Profile::Lenient => "lenient",
        }
    }

    /// The report as a table.
    pub fn to_table(&self) -> String {
        let mut text = String::new();
        for row in &self.rows {
            let word = if row.verdict.failures().is_empty() { row.verdict.word() } else { "FAIL" };
            let number = format!("T{}", row.number);
            push(&mut text, format_args!("{number:<LABEL_WIDTH$}{word:<LABEL_WIDTH$} {}", row.title));
            if let Verdict::Skipped(reason) = &row.verdict {
                push(&mut text, format_args!("           skipped   {}", one_line(reason)));
            }
            for failure in row.verdict.failures() {
                push(&mut text, format_args!("           expected  {}", one_line(&failure.expected)));
                push(&mut text, format_args!("           sent      {}", one_line(&failure.sent)));
                push(&mut text, format_args!("           received  {}", one_line(&failure.received)));
                push(&mut text, format_args!("           clause    {}", failure.clause));
            }
            for note in &row.notes {
                push(&mut text, format_args!("           note      {}", one_line(note)));
            }
        }
        let (passed, failed, skipped) = (self.passed(), self.failed(), self.skipped());
        push(
            &mut text,
            format_args!(
                "profile {}: {passed} passed, {failed} failed, {skipped} skipped; {} keys asked for",
                self.profile_name(),
                self.keys_used
            ),
        );
        text
    }

    /// The report as JSON.
    pub fn to_json(&self) -> Value {
        let row = |row: &Row| {
            let reason = if let Verdict::Skipped(reason) = &row.verdict { Some(reason) } else { None };
            json!({
                "test": format!("T{}", row.number),
                "title": row.title,
                "verdict": row.verdict.word(),
                "failures": row.verdict.failures(),
                "reason": reason,
                "notes": row.notes,
                "seconds": row.duration.as_secs_f64(),
            })
        };
        json!({
            "standard": "ETSI GS QKD 014 V1.1.1",
            "profile": self.profile_name(),
            "passed": self.passed(),
            "failed": self.failed(),
            "skipped": self.skipped(),
            "keys_used": self.keys_used,
            "tests": self.rows.iter().map(row).collect::<Vec<_>>(),
        })
    }

    /// The report as JUnit XML, for continuous integration.
    ///
    /// # Errors
    /// None is known: the XML is made in memory.
    pub fn to_junit(&self) -> Result<String, quick_junit::SerializeError> {
        let name = format!("etsi014.{}", self.profile_name());
        let mut suite = TestSuite::new(name.as_str());
        suite.add_test_cases(self.rows.iter().map(|row| junit_case(row, &name)));
        let time = self.rows.iter().map(|row| row.duration).sum();
        suite.set_time(time);
        let mut report = quick_junit::Report::new("qkd014 conformance");
        report.set_time(time);
        report.add_test_suite(suite);
        report.to_string()
    }
}

fn junit_case(row: &Row, suite: &str) -> TestCase {
    let status = match &row.verdict {
        Verdict::Passed => TestCaseStatus::success(),
        Verdict::Skipped(reason) => {
            let mut status = TestCaseStatus::skipped();
            status.set_message(reason.as_str());
            status
        }
        Verdict::Failed(failures) => junit_failure(failures),
    };
    let mut case = TestCase::new(format!("T{} {}", row.number, row.title), status);
    case.set_classname(suite).set_time(row.duration);
    if !row.notes.is_empty() {
        case.set_system_out(row.notes.join("\n"));
    }
    case
}

/// A single element, since some readers accept only one: the first failure as its message, all failures as
/// its text.
fn junit_failure(failures: &[Failure]) -> TestCaseStatus {
    let mut status = TestCaseStatus::non_success(NonSuccessKind::Failure);
    if let Some(first) = failures.first() {
        status.set_message(format!("expected {}", first.expected)).set_type(first.clause);
    }
    let all: Vec<String> = failures
        .iter()
        .map(|Failure { expected, sent, received, clause }| {
            format!("expected {expected}\nsent     {sent}\nreceived {received}\nclause   {clause}\n")
        })
        .collect();
    status.set_description(all.join("\n"));
    status
}

fn push(text: &mut String, line: std::fmt::Arguments<'_>) {
    // Writing into a String cannot fail.
    let _ = writeln!(text, "{line}");
}

/// Makes one line of a KME's text, so that it cannot control the terminal or break the table.
fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let failure = Failure {
            expected: "status 400 & <message>".into(),
            sent: "GET as \"A\": /x".into(),
            received: "200 it's\u{1b}[31m\n".into(),
            clause: "6.4 R51",
        };
        let row = |number, title, verdict| Row {
            number,
            title,
            verdict,
            notes: vec!["a < b".into()],
            duration: Duration::from_millis(1500),
        };
        let rows = vec![
            row(1, "one", Verdict::Passed),
            row(2, "two", Verdict::Failed(vec![failure.clone(), failure])),
            row(3, "three", Verdict::Skipped("no \"x\"".into())),
        ];
        Report { rows, profile: Profile::Strict, keys_used: 7 }
    }

    #[test]
    fn the_table_shows_what_was_expected_sent_and_received_and_why_something_was_skipped() {
        let table = report().to_table();
        assert!(table.contains("T1   pass  one\n"), "{table}");
        assert!(table.contains("T2   FAIL  two\n"), "{table}");
        assert_eq!(table.matches("expected  status 400 & <message>\n").count(), 2, "{table}");
        assert!(table.contains("received  200 it's [31m \n"), "control characters are not printed: {table}");
        assert!(table.contains("clause    6.4 R51\n") && table.contains("skipped   no \"x\"\n"), "{table}");
        assert!(
            table.ends_with("profile strict: 1 passed, 1 failed, 1 skipped; 7 keys asked for\n"),
            "{table}"
        );
    }

    #[test]
    fn json_has_every_member_of_every_test() {
        let json = report().to_json();
        assert_eq!((&json["passed"], &json["failed"], &json["skipped"]), (&json!(1), &json!(1), &json!(1)));
        assert_eq!(json["tests"][0]["verdict"], "pass");
        assert_eq!(json["tests"][1]["failures"][1]["clause"], "6.4 R51");
        assert_eq!(json["tests"][2]["reason"], "no \"x\"");
        assert_eq!(json["tests"][2]["seconds"], 1.5);
    }

    #[test]
    fn junit_counts_what_it_holds_and_no_answer_of_a_kme_breaks_it() {
        let xml = report().to_junit().unwrap();
        let parsed = quick_junit::Report::deserialize_from_str(&xml).unwrap();
        let suite = parsed.test_suites.first().unwrap();
        assert_eq!((suite.tests, suite.failures, suite.skipped, suite.errors), (3, 1, 1, 0), "{xml}");
        assert_eq!(suite.name.as_str(), "etsi014.strict");
        assert!(xml.contains("expected status 400 &amp; &lt;message&gt;"), "{xml}");
        assert!(xml.contains(r#"type="6.4 R51""#) && xml.contains("no &quot;x&quot;"), "{xml}");
        assert_eq!(xml.matches("clause   6.4 R51").count(), 2, "{xml}");
        assert!(!xml.contains('\u{1b}'), "nothing that a terminal obeys: {xml}");
    }
}
