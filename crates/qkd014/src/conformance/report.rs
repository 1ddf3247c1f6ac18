//! What came out, for people, programs and continuous integration. Never holds a key.

use std::fmt::Write as _;
use std::time::Duration;

use serde_json::{Value, json};

use super::outcome::Failure;
use super::setup::Profile;

/// Characters of a line of the table's titles.
const LABEL_WIDTH: usize = 5;

/// What one test came to.
#[derive(Clone, Debug)]
pub enum Verdict {
    /// Everything was as demanded.
    Passed,
    /// What was not.
    Failed(Vec<Failure>),
    /// It was not run, and why.
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
    /// How much was demanded.
    pub profile: Profile,
    /// Keys that were asked for and may be used up.
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

    /// For people.
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

    /// For programs.
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

    /// For continuous integration: JUnit's XML.
    pub fn to_junit(&self) -> String {
        let seconds = |duration: Duration| format!("{:.3}", duration.as_secs_f64());
        let total = seconds(self.rows.iter().map(|row| row.duration).sum());
        let counts = format!(
            r#"tests="{}" failures="{}" errors="0" skipped="{}" time="{total}""#,
            self.rows.len(),
            self.failed(),
            self.skipped()
        );
        let suite = format!("etsi014.{}", self.profile_name());
        let mut text = String::new();
        push(&mut text, format_args!(r#"<?xml version="1.0" encoding="UTF-8"?>"#));
        push(&mut text, format_args!(r#"<testsuites name="dqkd conformance" {counts}>"#));
        push(&mut text, format_args!(r#"<testsuite name="{suite}" {counts}>"#));
        for row in &self.rows {
            let name = escape(&format!("T{} {}", row.number, row.title));
            let time = seconds(row.duration);
            push(&mut text, format_args!(r#"<testcase classname="{suite}" name="{name}" time="{time}">"#));
            match &row.verdict {
                Verdict::Passed => {}
                Verdict::Skipped(reason) => {
                    push(&mut text, format_args!(r#"<skipped message="{}"/>"#, escape(reason)));
                }
                Verdict::Failed(failures) => push(&mut text, format_args!("{}", junit_failure(failures))),
            }
            if !row.notes.is_empty() {
                let notes = escape(&row.notes.join("\n"));
                push(&mut text, format_args!("<system-out>{notes}</system-out>"));
            }
            push(&mut text, format_args!("</testcase>"));
        }
        push(&mut text, format_args!("</testsuite>"));
        push(&mut text, format_args!("</testsuites>"));
        text
    }
}

/// One element, since some readers take no more: the first failure as its message, all of them as its text.
fn junit_failure(failures: &[Failure]) -> String {
    let first = failures.first().map_or("", |failure| failure.expected.as_str());
    let clause = failures.first().map_or("", |failure| failure.clause);
    let all: Vec<String> = failures
        .iter()
        .map(|Failure { expected, sent, received, clause }| {
            format!("expected {expected}\nsent     {sent}\nreceived {received}\nclause   {clause}\n")
        })
        .collect();
    let (message, kind, body) =
        (escape(&format!("expected {first}")), escape(clause), escape(&all.join("\n")));
    format!(r#"<failure message="{message}" type="{kind}">{body}</failure>"#)
}

fn push(text: &mut String, line: std::fmt::Arguments<'_>) {
    // Writing into a String cannot fail.
    let _ = writeln!(text, "{line}");
}

/// So that nothing that a KME answers draws on the terminal or breaks the table.
fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// Text of XML 1.0, for attributes and elements. Characters that XML cannot hold become U+FFFD.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&apos;"),
            '\t' => escaped.push_str("&#9;"),
            '\n' => escaped.push_str("&#10;"),
            '\r' => escaped.push_str("&#13;"),
            '\0'..='\u{1f}' | '\u{fffe}' | '\u{ffff}' => escaped.push('\u{fffd}'),
            other => escaped.push(other),
        }
    }
    escaped
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
    fn junit_is_escaped_and_counts_what_it_holds() {
        let xml = report().to_junit();
        assert!(xml.contains(r#"tests="3" failures="1" errors="0" skipped="1" time="4.500""#), "{xml}");
        assert!(
            xml.contains(r#"<failure message="expected status 400 &amp; &lt;message&gt;" type="6.4 R51">"#)
        );
        assert!(xml.contains("it&apos;s\u{fffd}[31m&#10;"), "{xml}");
        assert!(xml.contains(r#"<skipped message="no &quot;x&quot;"/>"#), "{xml}");
        for tag in ["testsuites", "testsuite", "testcase", "failure", "system-out"] {
            assert_eq!(
                xml.matches(&format!("<{tag}")).count() - usize::from(tag == "testsuite"),
                xml.matches(&format!("</{tag}>")).count(),
                "{tag}: {xml}"
            );
        }
        // Outside of attributes and text no quote, ampersand or angle bracket is left over.
        assert!(!xml.contains("& ") && !xml.contains('\u{1b}'));
    }

    #[test]
    fn every_character_that_xml_reserves_or_forbids_is_replaced() {
        assert_eq!(
            escape("<a href='x'>&\"\t\r\u{0}\u{ffff}é"),
            "&lt;a href=&apos;x&apos;&gt;&amp;&quot;&#9;&#13;\u{fffd}\u{fffd}é"
        );
    }
}
