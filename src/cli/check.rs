//! `dqkd check-config`.

use std::path::{Path, PathBuf};

use super::{Failure, Outcome};
use crate::app;
use crate::config::{self, ConfigFile};
use crate::store::Store;

/// Prints one line for each valid file and every mistake in the others.
pub(super) fn run(files: &[PathBuf]) -> Outcome {
    let mut complaints = Vec::new();
    for result in config::check(files) {
        match result {
            Ok(summary) => match check_one(&summary.file) {
                Ok(notes) => {
                    println!("{summary}");
                    for note in notes {
                        println!("{}: note: {note}", summary.file.display());
                    }
                }
                Err(error) => complaints.push(format!("{}: {error}", summary.file.display())),
            },
            Err(error) => complaints.push(error.to_string()),
        }
    }
    if complaints.is_empty() { Ok(()) } else { Err(Failure::Usage(complaints.join("\n"))) }
}

/// Checks what only other rooms understand: certificates, revocation lists and keys, and the URL of the store. Connects
/// to nothing. Returns what an operator should know.
fn check_one(file: &Path) -> Result<Vec<String>, String> {
    let config = config::load(file, config::process_environment()).map_err(|error| error.to_string())?;
    if let ConfigFile::Kme(kme) = &config {
        Store::check_url(&kme.store.location.url()).map_err(|error| error.to_string())?;
    }
    app::check_identity(&config).map_err(|error| format!("{error:#}"))
}
