//! Who may read a file with a secret.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use zeroize::Zeroizing;

use super::development;

/// Whether only the owner can read the file at `path`, which has this `metadata` and `content`. A file of root may
/// also be readable for its group: orchestrators mount secrets so. Development keys are public anyway.
///
/// # Errors
/// What is wrong, after the file's name, and what to do.
pub fn check(path: &Path, metadata: &Metadata, content: impl FnOnce() -> Vec<u8>) -> Result<(), String> {
    let mode = metadata.mode() & 0o777;
    let of_others = mode & 0o077;
    let is_private = of_others == 0 || of_others == 0o040 && metadata.uid() == 0;
    if is_private || development::is_public_secret(&Zeroizing::new(content())) {
        return Ok(());
    }
    Err(format!("can be read or changed by other users (mode {mode:04o}): chmod 600 {}", path.display()))
}
