//! The text that settings come from: a TOML file and the environment variables that override it.
//!
//! Turns byte spans into places that people can find. The variables are appended to the text of the file as lines, so
//! one kind of span serves both. Masks secrets in the lines that it quotes.

use std::ops::Range;
use std::path::{Path, PathBuf};

/// Prefix of the environment variables that override settings.
pub(super) const ENV_PREFIX: &str = "DQKD__";

/// Words in keys whose value may be a secret. Complaints do not quote it.
const SENSITIVE: [&str; 6] = ["kek", "passw", "passphrase", "secret", "token", "credential"];

/// The place of a setting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Line in the file, from 1; `None` for an environment variable.
    pub line: Option<usize>,
    /// Column in characters, from 1.
    pub column: usize,
    /// The environment variable, if the value came from one.
    pub variable: Option<String>,
    /// The line, with secrets masked.
    pub snippet: String,
    /// How many characters of the snippet the value takes, at least 1.
    pub width: usize,
}

/// The file's text followed by one `NAME=value` line for each override.
pub(super) struct Source {
    path: PathBuf,
    text: String,
    file_len: usize,
    overrides: Vec<Override>,
}

/// An override: the spans of its name and of its value in [`Source::text`].
struct Override {
    name: Range<usize>,
    value: Range<usize>,
}

impl Source {
    /// Joins the file's text and the overrides; variables without the prefix are left out.
    pub(super) fn new(path: &Path, file: &str, env: impl IntoIterator<Item = (String, String)>) -> Self {
        let mut text = String::with_capacity(file.len() + 1);
        text.push_str(file);
        text.push('\n');
        let mut env: Vec<_> = env.into_iter().filter(|(name, _)| name.starts_with(ENV_PREFIX)).collect();
        env.sort();
        let mut overrides = Vec::with_capacity(env.len());
        for (name, value) in env {
            let start = text.len();
            text.push_str(&name);
            let name = start..text.len();
            text.push('=');
            let start = text.len();
            text.push_str(&value);
            overrides.push(Override { name, value: start..text.len() });
            text.push('\n');
        }
        Self { path: path.to_owned(), text, file_len: file.len(), overrides }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The TOML document alone.
    pub(super) fn file(&self) -> &str {
        self.slice(&(0..self.file_len))
    }

    /// Every override: name, span of the name, value, span of the value.
    pub(super) fn overrides(&self) -> impl Iterator<Item = (&str, Range<usize>, &str, Range<usize>)> {
        self.overrides.iter().map(|entry| {
            (self.slice(&entry.name), entry.name.clone(), self.slice(&entry.value), entry.value.clone())
        })
    }

    fn slice(&self, span: &Range<usize>) -> &str {
        self.text.get(span.clone()).unwrap_or_default()
    }

    /// The place of a span, for people.
    pub(super) fn place(&self, span: &Range<usize>) -> Place {
        let start = span.start.min(self.text.len());
        if let Some(entry) =
            self.overrides.iter().find(|entry| (entry.name.start..=entry.value.end).contains(&start))
        {
            let line_start = entry.name.start;
            let line = self.slice(&(line_start..entry.value.end)).lines().next().unwrap_or_default();
            let name = self.slice(&entry.name).to_owned();
            return Self::describe(None, Some(name), line, start - line_start, span.len());
        }
        // An error at the very end points past the last line; show the line before.
        let start = start.min(self.file_len);
        let before = self.slice(&(0..start));
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        let number = before.matches('\n').count() + 1;
        let line = self.slice(&(line_start..self.file_len)).lines().next().unwrap_or_default();
        Self::describe(Some(number), None, line, start - line_start, span.len())
    }

    fn describe(
        line: Option<usize>,
        variable: Option<String>,
        text: &str,
        offset_bytes: usize,
        len_bytes: usize,
    ) -> Place {
        let offset_bytes = text.floor_char_boundary(offset_bytes);
        let end = text.floor_char_boundary(offset_bytes.saturating_add(len_bytes));
        let column = text.get(..offset_bytes).unwrap_or_default().chars().count() + 1;
        let width = text.get(offset_bytes..end).unwrap_or_default().chars().count().max(1);
        Place { line, column, variable, snippet: masked(text), width }
    }
}

/// `line` with stars for the password of a URL and for values that may be secret.
fn masked(line: &str) -> String {
    let lower =
        line.to_ascii_lowercase().replace("kek_file", "........").replace("kek_credential", "..............");
    let secret_from = SENSITIVE
        .iter()
        .filter_map(|word| lower.find(word))
        .min()
        .and_then(|at| line.get(at..).and_then(|rest| rest.find('=')).map(|equals| at + equals + 1));
    let user_info = line.find("://").map(|at| at + 3).and_then(|from| {
        let rest = line.get(from..)?;
        let to = rest.rfind('@')?;
        Some(from..from + to)
    });
    line.char_indices()
        .map(|(at, c)| {
            let hide = secret_from.is_some_and(|from| at >= from)
                || user_info.as_ref().is_some_and(|span| span.contains(&at));
            if hide && !c.is_whitespace() { '*' } else { c }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_count_lines_and_characters_from_one() {
        let source = Source::new(Path::new("x.toml"), "a = 1\nä = \"é\" # b\n", []);
        let at = source.file().find("\"é").unwrap();
        let place = source.place(&(at..at + "\"é\"".len()));
        assert_eq!((place.line, place.column, place.width), (Some(2), 5, 3));
        assert_eq!(place.snippet, "ä = \"é\" # b");
    }

    #[test]
    fn a_span_past_the_end_is_still_a_place() {
        let source = Source::new(Path::new("x.toml"), "a = 1", []);
        assert_eq!(source.place(&(5..5)).line, Some(1));
        assert_eq!(source.place(&(500..900)).line, Some(1));
    }

    #[test]
    fn an_override_is_placed_by_its_name_and_others_are_ignored() {
        let env = [("DQKD__KEYS__TTL".to_owned(), "1x".to_owned()), ("PATH".to_owned(), "/bin".to_owned())];
        let source = Source::new(Path::new("x.toml"), "", env);
        let entries: Vec<_> = source.overrides().collect();
        assert_eq!(entries.len(), 1);
        let place = source.place(&entries[0].3);
        assert_eq!(place.variable.as_deref(), Some("DQKD__KEYS__TTL"));
        assert_eq!((place.line, place.snippet.as_str(), place.column), (None, "DQKD__KEYS__TTL=1x", 17));
    }

    #[test]
    fn quoted_lines_hide_what_may_be_secret() {
        assert_eq!(masked(r#"kek = "00ff""#), "kek = ******");
        assert_eq!(masked("DQKD__STORE__KEK=00ff"), "DQKD__STORE__KEK=****");
        assert_eq!(masked(r#"url = "postgres://dqkd:pa@ss@db/x""#), r#"url = "postgres://**********@db/x""#);
        assert_eq!(masked(r#"kek_file = "a.kek""#), r#"kek_file = "a.kek""#);
        assert_eq!(masked(r#"url = "https://b.example""#), r#"url = "https://b.example""#);
    }
}
