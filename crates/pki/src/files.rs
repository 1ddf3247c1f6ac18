//! Files of an authority: written whole or not at all, the private ones readable by their owner only.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use super::PkiError;

/// Who may read a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    Private,
    Public,
}

impl Mode {
    fn bits(self) -> u32 {
        match self {
            Self::Private => 0o600,
            Self::Public => 0o644,
        }
    }
}

pub(super) fn failed(verb: &'static str, path: &Path) -> impl Fn(std::io::Error) -> PkiError {
    let path = path.to_owned();
    move |source| PkiError::File { verb, path: path.clone(), source }
}

/// Makes `dir` and its parents; private ones for the owner only.
pub(super) fn make_dir(dir: &Path, mode: Mode) -> Result<(), PkiError> {
    let bits = if mode == Mode::Private { 0o700 } else { 0o755 };
    DirBuilder::new().recursive(true).mode(bits).create(dir).map_err(failed("make", dir))
}

/// Writes the whole file or nothing. Without `replace`, the file must not exist.
pub(super) fn write(path: &Path, bytes: &[u8], mode: Mode, replace: bool) -> Result<(), PkiError> {
    if !replace && path.exists() {
        return Err(PkiError::Exists(path.to_owned()));
    }
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let new = path.with_file_name(name);
    // A run that was interrupted may have left it.
    let _ = fs::remove_file(&new);
    let error = failed("write", path);
    let mut file =
        OpenOptions::new().write(true).create_new(true).mode(mode.bits()).open(&new).map_err(&error)?;
    let written = file.write_all(bytes).and_then(|()| file.sync_all());
    let placed = written.and_then(|()| {
        if replace {
            fs::rename(&new, path)
        } else {
            // Unlike a rename, a link fails if the file exists meanwhile.
            fs::hard_link(&new, path)
        }
    });
    if !replace || placed.is_err() {
        let _ = fs::remove_file(&new);
    }
    placed.map_err(error)
}

pub(super) fn read(path: &Path) -> Result<String, PkiError> {
    fs::read_to_string(path).map_err(failed("read", path))
}

/// Makes other commands on the same authority wait until it is dropped.
pub(super) fn lock(dir: &Path) -> Result<File, PkiError> {
    let path: PathBuf = dir.join("lock");
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(&path)
        .map_err(failed("open", &path))?;
    file.lock().map_err(failed("lock", &path))?;
    Ok(file)
}
