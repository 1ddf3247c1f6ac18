//! From a file to settings: read, parse, merge the environment, give types, check.
//!
//! Owns the order of these steps, and rewords the complaints of `toml` and serde.

use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use toml::Spanned;
use toml::de::{DeTable, DeValue, Deserializer};

use super::checker::{At, Checker, unusable_files};
use super::env;
use super::error::{ConfigError, Problem};
use super::kme::KmeConfig;
use super::pool_server::PoolServerConfig;
use super::raw::{RawKmeFile, RawPoolServerFile, Schema};
use super::source::Source;

/// Largest configuration file in bytes: room for ten thousand SAEs.
const FILE_MAX_BYTES: u64 = 4 * 1024 * 1024;

/// What a file configures.
#[derive(Clone, Debug)]
pub enum ConfigFile {
    /// A KME: the file has a `[kme]` table.
    Kme(Box<KmeConfig>),
    /// A random pool server: the file has a `[pool]` table.
    Pool(Box<PoolServerConfig>),
}

impl ConfigFile {
    /// Complains about referenced files (certificates, keys, CRL, KEK) that cannot be read, and
    /// about secrets that others can read.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] with one problem for each such file.
    pub fn check_files(&self, file: &Path) -> Result<(), ConfigError> {
        let references = match self {
            Self::Kme(config) => &config.references,
            Self::Pool(config) => &config.references,
        };
        let problems = unusable_files(file, references);
        if problems.is_empty() { Ok(()) } else { Err(ConfigError::Invalid(problems)) }
    }
}

/// Reads and checks one configuration file. `env` has pairs of name and value; see
/// [`process_environment`](super::process_environment).
///
/// # Errors
/// [`ConfigError::Read`] if the file cannot be read, [`ConfigError::Invalid`] with everything that is wrong in it.
pub fn load(path: &Path, env: impl IntoIterator<Item = (String, String)>) -> Result<ConfigFile, ConfigError> {
    let read = |source| ConfigError::Read { path: path.to_owned(), source };
    let absolute = std::path::absolute(path).map_err(read)?;
    let mut text = String::new();
    let file = File::open(path).map_err(read)?;
    file.take(FILE_MAX_BYTES + 1).read_to_string(&mut text).map_err(read)?;
    if text.len() as u64 > FILE_MAX_BYTES {
        return Err(read(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("over {FILE_MAX_BYTES} bytes"),
        )));
    }
    let directory = absolute.parent().unwrap_or(Path::new("/")).to_owned();
    parse(path, &directory, &text, env)
}

/// Checks configuration text. Messages name `path`; relative paths start at `directory`.
///
/// # Errors
/// [`ConfigError::Invalid`] with everything that is wrong.
pub(super) fn parse(
    path: &Path,
    directory: &Path,
    text: &str,
    env: impl IntoIterator<Item = (String, String)>,
) -> Result<ConfigFile, ConfigError> {
    let source = Source::new(path, text, env);
    let document = DeTable::parse(source.file()).map_err(|error| {
        let span = error.span();
        ConfigError::Invalid(vec![reworded(&source, error.message(), span, String::new())])
    })?;
    let present = |table: &str| document.get_ref().contains_key(table);
    let directory = directory.to_owned();
    match (present("kme"), present("pool")) {
        (true, false) => typed::<RawKmeFile>(&source, directory, document, &RawKmeFile::SCHEMA)
            .and_then(|(checker, raw)| KmeConfig::check(checker, raw))
            .map(|config| ConfigFile::Kme(Box::new(config))),
        (false, true) => typed::<RawPoolServerFile>(&source, directory, document, &RawPoolServerFile::SCHEMA)
            .and_then(|(checker, raw)| PoolServerConfig::check(checker, raw))
            .map(|config| ConfigFile::Pool(Box::new(config))),
        (both, _) => {
            let what =
                if both { "has both a [kme] and a [pool] table" } else { "has no [kme] or [pool] table" };
            let mut checker = Checker::new(&source, directory);
            let allowed = "[kme] for a KME (dqkd serve), or [pool] for a random pool server (dqkd pool)";
            checker.problem(&At::new(String::new(), None), what, allowed);
            Err(checker.finish().0)
        }
    }
    .map_err(ConfigError::Invalid)
}

/// Merges the overrides into `document` and gives it types.
fn typed<'s, T: DeserializeOwned>(
    source: &'s Source,
    directory: PathBuf,
    mut document: Spanned<DeTable<'s>>,
    schema: &Schema,
) -> Result<(Checker<'s>, T), Vec<Problem>> {
    let mut checker = Checker::new(source, directory);
    env::merge(document.get_mut(), source, schema, &mut checker);
    let names = document.get_ref().clone();
    match T::deserialize(Deserializer::from(document)) {
        Ok(raw) => Ok((checker, raw)),
        Err(error) => {
            let span = error.span();
            let key = span.as_ref().and_then(|span| path_of(&names, span)).unwrap_or_default();
            let (mut problems, _) = checker.finish();
            problems.push(reworded(source, error.message(), span, key));
            Err(problems)
        }
    }
}

/// The dotted name of the key or value at exactly `span`.
fn path_of(table: &DeTable<'_>, span: &Range<usize>) -> Option<String> {
    table.iter().find_map(|(key, value)| {
        let below = match value.get_ref() {
            DeValue::Table(inner) => path_of(inner, span),
            DeValue::Array(items) => items.iter().find_map(|item| match item.get_ref() {
                DeValue::Table(inner) => path_of(inner, span),
                _ => (item.span() == *span).then(String::new),
            }),
            _ => None,
        };
        match below {
            Some(rest) if rest.is_empty() => Some(key.get_ref().to_string()),
            Some(rest) => Some(format!("{}.{rest}", key.get_ref())),
            None => (key.span() == *span || value.span() == *span).then(|| key.get_ref().to_string()),
        }
    })
}

/// A complaint of serde, in our words.
fn reworded(source: &Source, message: &str, span: Option<Range<usize>>, key: String) -> Problem {
    let message = message.trim_end();
    let (what, allowed) = match message.split_once(", expected ") {
        Some((what, allowed)) => (what, allowed),
        None => (message, ""),
    };
    let what = what.replace("unknown field", "unknown key").replace('`', "\"");
    let allowed = allowed.trim_start_matches("one of ").replace('`', "");
    let allowed = match allowed.as_str() {
        "i64" => "a whole number",
        "a sequence" => "a list of texts",
        "a boolean" => "true or false",
        "a string" => "text in quotes",
        other if other.starts_with("struct ") => "a table",
        other => other,
    };
    Problem {
        file: source.path().to_owned(),
        place: span.map(|span| source.place(&span)),
        key,
        what,
        allowed: allowed.to_owned(),
    }
}
