//! `dqkd check-config`: checks files without starting anything.
//!
//! Owns the summary of a good file. Does not print: the command line does.

use std::fmt;
use std::path::{Path, PathBuf};

use super::env::process_environment;
use super::error::ConfigError;
use super::load::{ConfigFile, load};

/// What a good file configures, on one line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// The file, as it was named.
    pub file: PathBuf,
    text: String,
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ok: {}", self.file.display(), self.text)
    }
}

/// Checks each file, with the overrides in the environment of this process, and the files that it names.
pub fn check<P: AsRef<Path>>(paths: &[P]) -> Vec<Result<Summary, ConfigError>> {
    check_with(paths, &process_environment())
}

/// Like [`check`], with the given overrides.
pub fn check_with<P: AsRef<Path>>(
    paths: &[P],
    env: &[(String, String)],
) -> Vec<Result<Summary, ConfigError>> {
    paths.iter().map(|path| check_one(path.as_ref(), env)).collect()
}

fn check_one(path: &Path, env: &[(String, String)]) -> Result<Summary, ConfigError> {
    let config = load(path, env.iter().cloned())?;
    config.check_files(path)?;
    let text = match &config {
        ConfigFile::Kme(kme) => format!(
            "KME {} with {}, {}, {}",
            kme.id,
            count(kme.peers.len(), "peer"),
            count(kme.pool_servers.len(), "pool server"),
            count(kme.saes.len(), "listed SAE"),
        ),
        ConfigFile::Pool(pool) => format!("pool server {} at {}", pool.id, pool.listen.pool),
    };
    Ok(Summary { file: path.to_owned(), text })
}

fn count(number: usize, what: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {what}{plural}")
}
