//! `dqkd self-test`.

use std::path::Path;

use anyhow::{Context as _, anyhow};

use super::Outcome;
use crate::self_test;

/// Prints one line for each check; fails if one of them does.
pub(super) fn run(vectors: Option<&Path>) -> Outcome {
    let report = match vectors {
        None => self_test::run_full(),
        Some(file) => {
            let json =
                std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
            self_test::run_vectors(&json)
        }
    };
    let report = report.map_err(anyhow::Error::from)?;
    print!("{report}");
    if report.passed() {
        Ok(())
    } else {
        Err(anyhow!("the self-test failed: do not use this program").into())
    }
}
