//! What is wrong with a configuration, in words that let an operator correct it.
//!
//! Owns the form of every complaint: place, key, what is wrong, what is allowed, the line and a caret. Does not repeat
//! values that may be secret.

use std::fmt;
use std::path::PathBuf;

use super::source::Place;

/// Why a configuration cannot be used. `Display` is ready to print, perhaps on several lines.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{}: cannot be read: {source}; give the path of a TOML file that this user may read", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The content of the file is wrong.
    #[error("{}", Lines(.0))]
    Invalid(Vec<Problem>),
}

impl ConfigError {
    /// All complaints; none if the file could not be read.
    pub fn problems(&self) -> &[Problem] {
        match self {
            Self::Read { .. } => &[],
            Self::Invalid(problems) => problems,
        }
    }
}

struct Lines<'a>(&'a [Problem]);

impl fmt::Display for Lines<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            problem.fmt(f)?;
        }
        Ok(())
    }
}

/// One complaint about one setting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The file, as it was named.
    pub file: PathBuf,
    /// Where in the file; `None` if something is missing that belongs to no table.
    pub place: Option<Place>,
    /// `section.key`; empty for a syntax error.
    pub key: String,
    /// What is wrong.
    pub what: String,
    /// What is allowed; may be empty.
    pub allowed: String,
}

impl fmt::Display for Problem {
    /// `FILE:LINE:COL: section.key: what; allowed: ...`, then the line and a caret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.file.display())?;
        match &self.place {
            Some(Place { line: Some(line), column, .. }) => write!(f, "{line}:{column}:")?,
            Some(Place { variable: Some(variable), .. }) => write!(f, " environment variable {variable}:")?,
            _ => {}
        }
        if !self.key.is_empty() {
            write!(f, " {}:", self.key)?;
        }
        write!(f, " {}", self.what)?;
        if !self.allowed.is_empty() {
            write!(f, "; allowed: {}", self.allowed)?;
        }
        let Some(place) = &self.place else { return Ok(()) };
        let number = place.line.map(|line| line.to_string()).unwrap_or_default();
        let gutter = " ".repeat(number.len());
        // Keep tabs, so that the caret is under the value at any tab width.
        let indent: String = place
            .snippet
            .chars()
            .take(place.column - 1)
            .map(|c| if c == '\t' { '\t' } else { ' ' })
            .collect();
        write!(
            f,
            "\n {gutter} |\n {number} | {}\n {gutter} | {indent}{}",
            place.snippet,
            "^".repeat(place.width)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_shows_place_key_reason_line_and_caret() {
        let problem = Problem {
            file: "site-a.toml".into(),
            place: Some(Place {
                line: Some(12),
                column: 7,
                variable: None,
                snippet: "ttl = \"24x\"".into(),
                width: 5,
            }),
            key: "keys.ttl".into(),
            what: "is not a duration".into(),
            allowed: "a number and a unit".into(),
        };
        let expected = "site-a.toml:12:7: keys.ttl: is not a duration; allowed: a number and a unit\n    |\n 12 | ttl = \
                        \"24x\"\n    |       ^^^^^";
        assert_eq!(ConfigError::Invalid(vec![problem]).to_string(), expected);
    }
}
