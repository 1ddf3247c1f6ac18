//! `dqkd check-config`.

use std::path::{Path, PathBuf};

use super::{Failure, Outcome};
use crate::config::{self, ConfigFile};
use crate::store::Store;

/// Prints one line for each valid file and every mistake in the others.
pub(super) fn run(files: &[PathBuf]) -> Outcome {
    let mut complaints = Vec::new();
    for result in config::check(files) {
        match result {
            Ok(summary) => match check_store(&summary.file) {
                Ok(()) => println!("{summary}"),
                Err(error) => complaints.push(format!("{}: {error}", summary.file.display())),
            },
            Err(error) => complaints.push(error.to_string()),
        }
    }
    if complaints.is_empty() { Ok(()) } else { Err(Failure::Usage(complaints.join("\n"))) }
}

/// Checks the URL of the store, without connecting. Only the store understands it.
fn check_store(file: &Path) -> Result<(), String> {
    match config::load(file, config::process_environment()) {
        Ok(ConfigFile::Kme(kme)) => {
            Store::check_url(&kme.store.location.url()).map_err(|error| error.to_string())
        }
        Ok(ConfigFile::Pool(_)) => Ok(()),
        Err(error) => Err(error.to_string()),
    }
}
