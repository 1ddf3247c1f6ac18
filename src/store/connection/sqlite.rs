//! SQLite: from a URL to a file, and connections to it.

use std::fs::OpenOptions;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, utf8_percent_encode};
use sqlx::AnyConnection;
use sqlx::ConnectOptions;
use sqlx::any::AnyConnectOptions;
use tracing::warn;

use crate::store::error::StoreError;

/// Characters that end the path of a URL, or mean something in it.
const IN_URL: &AsciiSet =
    &CONTROLS.add(b' ').add(b'"').add(b'#').add(b'%').add(b'<').add(b'>').add(b'?').add(b'`').add(b'\\');

/// For every connection: a commit is on disk when it returns, freed cells are overwritten, and a statement
/// waits while another process holds a lock.
const PRAGMAS: &str = "PRAGMA busy_timeout = 5000; PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; \
     PRAGMA foreign_keys = ON; PRAGMA secure_delete = ON; PRAGMA trusted_schema = OFF";
/// For a connection that keeps all others out.
const ALONE: &str = "PRAGMA busy_timeout = 1000; PRAGMA locking_mode = EXCLUSIVE";
/// For a connection that may write. The cache has room for the pages of some ten thousand keys; each commit
/// walks all of it, so a larger one costs more.
pub(crate) const WRITE: &str = "PRAGMA query_only = OFF; PRAGMA cache_size = -8192";
/// For a connection that only reads.
pub(crate) const READ: &str = "PRAGMA query_only = ON";

/// A database file.
pub(crate) struct SqliteFile {
    path: PathBuf,
    options: AnyConnectOptions,
}

impl SqliteFile {
    /// From what follows `sqlite:` in the URL. The path is absolute or relative to the working directory.
    ///
    /// # Errors
    /// [`StoreError::Settings`]; the text never repeats the URL.
    pub(crate) fn parse(rest: &str) -> Result<Self, StoreError> {
        let path = database_file(rest)?;
        let unusable = || StoreError::Settings("store.url: the file name cannot be used".to_owned());
        let text = path.to_str().ok_or_else(unusable)?;
        let url = format!("sqlite://{}?mode=rw", utf8_percent_encode(text, IN_URL));
        let options: AnyConnectOptions = url.parse().map_err(|_| unusable())?;
        Ok(Self { path, options: options.disable_statement_logging() })
    }

    /// Checks that the file exists. With `create`, makes a missing one.
    pub(crate) fn find(&self, create: bool) -> Result<(), StoreError> {
        if create {
            return create_private(&self.path);
        }
        if self.path.exists() {
            return Ok(());
        }
        Err(StoreError::Settings(format!(
            "store.url: there is no database {}: run `dqkd migrate`",
            self.path.display()
        )))
    }

    /// A connection that keeps every other process out until it is closed.
    ///
    /// # Errors
    /// [`StoreError::Busy`] when another process has the file open.
    pub(crate) async fn connect_alone(&self) -> Result<AnyConnection, StoreError> {
        let mut connection = self.options.connect().await?;
        // Before anything else: so the log gets no shared index, and another user of the file is noticed.
        sqlx::raw_sql(ALONE).execute(&mut connection).await?;
        sqlx::raw_sql(PRAGMAS).execute(&mut connection).await?;
        sqlx::raw_sql(ALONE).execute(&mut connection).await?;
        sqlx::raw_sql("BEGIN EXCLUSIVE; COMMIT").execute(&mut connection).await?;
        Ok(connection)
    }

    /// `then` is [`READ`] or [`WRITE`].
    pub(crate) async fn connect(&self, then: &'static str) -> Result<AnyConnection, StoreError> {
        let mut connection = self.options.connect().await?;
        sqlx::raw_sql(PRAGMAS).execute(&mut connection).await?;
        sqlx::raw_sql(then).execute(&mut connection).await?;
        Ok(connection)
    }
}

/// The path of the file, absolute and without links in its directories: the driver would read `..` as text.
fn database_file(rest: &str) -> Result<PathBuf, StoreError> {
    let settings = |text: String| StoreError::Settings(format!("store.url{text}"));
    let path = rest.strip_prefix("//").unwrap_or(rest);
    if path.is_empty() || path == ":memory:" {
        return Err(settings(" must name a file: keys in memory would not survive a restart".to_owned()));
    }
    if path.contains('?') {
        return Err(settings(" takes no options after the file name".to_owned()));
    }
    let unusable = || settings(": the file name cannot be used".to_owned());
    let path = percent_decode_str(path).decode_utf8();
    let path = path.ok().and_then(|path| std::path::absolute(&*path).ok()).ok_or_else(unusable)?;
    if path.is_dir() {
        return Err(settings(format!(": {} is a directory; name a file in it", path.display())));
    }
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Err(unusable()) };
    match parent.canonicalize() {
        Ok(parent) => Ok(parent.join(name)),
        Err(_) => Err(settings(format!(": the directory {} does not exist; create it", parent.display()))),
    }
}

/// Makes the file with mode 0600; SQLite would make it readable for others. SQLite gives `-wal` and `-shm`
/// the mode of the file.
fn create_private(path: &Path) -> Result<(), StoreError> {
    let failed = |what: &str, error: &std::io::Error| {
        StoreError::Settings(format!("{what} the database file {}: {error}", path.display()))
    };
    match OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            let mode = path.metadata().map_err(|e| failed("cannot read the mode of", &e))?.mode();
            if mode & 0o077 != 0 {
                warn!(store.file = %path.display(), "other users may read the database file: chmod 600 it");
            }
            Ok(())
        }
        Err(error) => Err(failed("cannot create", &error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_sqlite_url_form_names_the_file() {
        for (url, path) in [
            ("//site-a.db", "site-a.db"),
            ("site-a.db", "site-a.db"),
            ("///tmp/a b.db", "/tmp/a b.db"),
            ("///tmp/a%20b.db", "/tmp/a b.db"),
            ("/tmp/a.db", "/tmp/a.db"),
        ] {
            assert_eq!(database_file(url).unwrap(), std::path::absolute(path).unwrap(), "{url}");
        }
    }

    #[tokio::test]
    async fn a_file_name_with_signs_that_a_url_gives_a_meaning_is_found() {
        sqlx::any::install_default_drivers();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a b#c%41.db");
        let escaped = utf8_percent_encode(path.to_str().unwrap(), IN_URL).to_string();
        let file = SqliteFile::parse(&format!("//{escaped}")).unwrap();
        file.find(true).unwrap();
        assert!(path.exists());
        let mut connection = file.connect(WRITE).await.unwrap();
        sqlx::raw_sql("CREATE TABLE t (a TEXT)").execute(&mut connection).await.unwrap();
        assert!(std::fs::metadata(&path).unwrap().len() > 0, "the very file was written");
    }
}
