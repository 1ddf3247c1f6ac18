//! Passwords of `.p12` bundles.

use std::path::Path;

use anyhow::Context as _;
use zeroize::Zeroizing;

/// The first line of a file with a password.
pub(super) fn first_line(file: &Path) -> anyhow::Result<Zeroizing<String>> {
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let text = Zeroizing::new(text);
    Ok(Zeroizing::new(text.lines().next().unwrap_or_default().to_owned()))
}
