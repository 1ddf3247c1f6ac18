//! `dqkd check-config`.

use std::path::PathBuf;

use super::{Failure, Outcome};
use crate::config;

/// Prints a line for each good file and every complaint about the others.
pub(super) fn run(files: &[PathBuf]) -> Outcome {
    let mut complaints = Vec::new();
    for result in config::check(files) {
        match result {
            Ok(summary) => println!("{summary}"),
            Err(error) => complaints.push(error.to_string()),
        }
    }
    if complaints.is_empty() { Ok(()) } else { Err(Failure::Usage(complaints.join("\n"))) }
}
